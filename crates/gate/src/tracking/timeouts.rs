//! How long connections are remembered, and what that says of one that ended.

use std::time::{Duration, Instant};

use nft::conntrack::{Entry, TcpState};
use policy::FlowTotals;

/// How long connections are remembered (seconds): TCP ones after their end and after a reset, UDP ones without and with
/// an answer, ICMP ones, and those of other protocols. Known here, because what is told of one that ends was forgotten
/// so long after its last packet. But for the first, which is what servers do, they are the kernel's own.
const TIME_WAIT: u64 = 60;
const RESET: u64 = 10;
const UDP: u64 = 30;
const UDP_ANSWERED: u64 = 120;
const ICMP: u64 = 30;
const OTHER: u64 = 600;

/// Below `/proc/sys/net/netfilter`, in the uplink namespace.
pub(super) const PARAMETERS: [(&str, u64); 9] = [
    ("acct", 1),
    ("events", 1),
    ("tcp_timeout_time_wait", TIME_WAIT),
    ("tcp_timeout_close", RESET),
    ("udp_timeout", UDP),
    ("udp_timeout_stream", UDP_ANSWERED),
    ("icmp_timeout", ICMP),
    ("icmpv6_timeout", ICMP),
    ("generic_timeout", OTHER),
];

/// What a connection amounted to. One that was over, or whose time was over, ended with its last packet (which is known
/// to a second, and to a blink if the kernel has forgotten it by itself); one that was cut, when it was cut.
pub(super) fn totals(entry: &Entry, since: Instant) -> FlowTotals {
    let age = entry.age.unwrap_or_else(|| since.elapsed());
    FlowTotals {
        bytes_up: entry.sent.bytes,
        bytes_down: entry.received.bytes,
        duration: age.saturating_sub(silence(entry)),
    }
}

/// For how long nothing had come when it ended. The kernel says in whole seconds how long it would still have waited.
fn silence(entry: &Entry) -> Duration {
    const TCP_PROTOCOL: u8 = 6;
    let limit = match (entry.original.protocol, entry.tcp) {
        (_, Some(TcpState::TIME_WAIT)) => TIME_WAIT,
        (_, Some(TcpState::CLOSE)) => RESET,
        (TCP_PROTOCOL, _) => return Duration::ZERO,
        _ if !entry.remaining.is_zero() => return Duration::ZERO,
        (UDP_PROTOCOL, _) if entry.is_assured => UDP_ANSWERED,
        (UDP_PROTOCOL, _) => UDP,
        (1 | 58, _) => ICMP,
        _ => OTHER,
    };
    let limit = Duration::from_secs(limit);
    if entry.remaining.is_zero() {
        limit
    } else {
        limit.saturating_sub(entry.remaining + Duration::from_secs(1))
    }
}

const UDP_PROTOCOL: u8 = 17;

#[cfg(test)]
mod tests {
    use nft::conntrack::{Counters, Tuple};

    use super::*;
    use crate::addresses::Slot;

    fn entry(protocol: u8, tcp: Option<TcpState>, age: u64, remaining: u64) -> Entry {
        let tuple = Tuple {
            source: Slot::new(0).unwrap().v4().into(),
            destination: "10.1.2.3".parse().unwrap(),
            protocol,
            ports: Some((1000, 80)),
            icmp: None,
        };
        Entry {
            original: tuple,
            reply: tuple.inverted(&tuple),
            id: 1,
            mark: 1,
            sent: Counters { packets: 2, bytes: 100 },
            received: Counters { packets: 3, bytes: 2000 },
            age: Some(Duration::from_secs(age)),
            remaining: Duration::from_secs(remaining),
            is_assured: false,
            tcp,
        }
    }

    fn seconds(entry: &Entry) -> u64 {
        totals(entry, Instant::now()).duration.as_secs()
    }

    #[test]
    fn a_flow_lasts_until_its_last_packet_or_until_it_is_cut() {
        let over = Some(TcpState::TIME_WAIT);
        assert_eq!(seconds(&entry(6, over, 85, 0)), 25);
        assert_eq!(seconds(&entry(6, over, 25, 57)), 23);
        assert_eq!(seconds(&entry(6, Some(TcpState::CLOSE), 25, 0)), 15);
        assert_eq!(seconds(&entry(6, None, 25, 400_000)), 25);
        assert_eq!(seconds(&entry(17, None, 40, 0)), 10);
        assert_eq!(seconds(&Entry { is_assured: true, ..entry(17, None, 130, 0) }), 10);
        assert_eq!(seconds(&entry(17, None, 40, 20)), 40);
        assert_eq!(seconds(&entry(1, None, 31, 0)), 1);
        assert_eq!(seconds(&entry(1, None, 3, 0)), 0);
    }

    #[test]
    fn bytes_are_told_as_the_sandbox_sees_them() {
        let totals = totals(&Entry { age: None, ..entry(17, None, 0, 5) }, Instant::now());
        assert_eq!((totals.bytes_up, totals.bytes_down), (100, 2000));
    }
}
