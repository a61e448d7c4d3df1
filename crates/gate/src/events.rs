//! From what the packet filter logged to what is recorded.

use std::{io, sync::Arc};

use nft::{Flow as Headers, LogSocket, Received};
use policy::{
    Decision, EventKind, Flow, FlowEvent, HostName, InForce, NameSource, Protocol, Reason, Rule, Verdict,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{Notify, watch},
};
use tokio_util::sync::CancellationToken;

/// A name that belongs to a flow's destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The name.
    pub(crate) name: HostName,
    /// The destination is the name's sink address, not one of its own.
    pub(crate) is_sink: bool,
}

/// The policies that a logged packet may have met: the one in force, and the one before.
pub(crate) struct Policies<'a> {
    pub(crate) now: &'a InForce,
    pub(crate) before: Option<&'a InForce>,
}

/// The event of a refused packet; `None` when it is not an attempt to reach anything.
pub(crate) fn refusal(headers: &Headers, known: Option<Known>, policies: &Policies<'_>) -> Option<FlowEvent> {
    let protocol = protocol(headers.protocol);
    if protocol == Protocol::Tcp && !headers.tcp_flags.is_some_and(is_opening) {
        return None;
    }
    let port = headers.ports.map(|(_, destination)| destination);
    let is_sink = known.as_ref().is_some_and(|known| known.is_sink);
    let name = known.map(|known| known.name);
    let flow = Flow {
        protocol,
        name: name.as_ref(),
        // A sink address is not what the name resolves to.
        address: (!is_sink).then_some(headers.destination),
        port,
    };
    let (mut verdict, generation) = policies.judge(&flow, Decision::Deny);
    if verdict.is_allowed() {
        // The name is permitted, but this address was never given as an answer for it (or not any more).
        let quic = protocol == Protocol::Udp && port == Some(443) && name.is_some();
        verdict.reason = if quic { Reason::Quic } else { Reason::NotBound };
        verdict.decision = Decision::Deny;
    }
    Some(event(EventKind::EgressBlocked, verdict, generation, name, headers))
}

/// The event of a new flow that the kernel forwards.
pub(crate) fn permission(headers: &Headers, known: Option<Known>, policies: &Policies<'_>) -> FlowEvent {
    let flow = Flow {
        protocol: protocol(headers.protocol),
        name: None,
        address: Some(headers.destination),
        port: headers.ports.map(|(_, destination)| destination),
    };
    let (mut verdict, generation) = policies.judge(&flow, Decision::Allow);
    verdict.decision = Decision::Allow;
    event(EventKind::EgressAllowed, verdict, generation, known.map(|known| known.name), headers)
}

/// The event of a flow that was one too many.
pub(crate) fn limit(headers: &Headers, known: Option<Known>, now: &InForce, reason: Reason) -> FlowEvent {
    let verdict = Verdict { decision: Decision::Deny, rule: Rule::Default, reason };
    event(EventKind::EgressBlocked, verdict, now.generation, known.map(|known| known.name), headers)
}

/// The two ends of the reading of a log: who reads, and who wants to know how far that is.
pub(crate) fn reading() -> (Reader, Reading) {
    let look = Arc::new(Notify::new());
    let (empty, found_empty) = watch::channel(0);
    (Reader { look: Arc::clone(&look), found_empty: empty }, Reading { look, found_empty })
}

/// Who reads a log.
pub(crate) struct Reader {
    /// Somebody wants to know whether there is more.
    look: Arc<Notify>,
    /// How often nothing was found.
    found_empty: watch::Sender<u64>,
}

/// How far the reading of a log is.
pub(crate) struct Reading {
    look: Arc<Notify>,
    found_empty: watch::Receiver<u64>,
}

impl Reading {
    /// Waits until everything is taken that the log had when this was called, or until nobody reads it any more.
    pub(crate) async fn caught_up(&self) {
        // What is found first may have been looked for before this was called.
        for _ in 0..2 {
            let mut found = self.found_empty.clone();
            found.mark_unchanged();
            self.look.notify_one();
            if found.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Reads a log until `stop`, giving what it brings to `take`; then what was logged before that.
pub(crate) async fn follow(
    mut log: AsyncFd<LogSocket>,
    reader: Reader,
    stop: CancellationToken,
    mut take: impl FnMut(Received),
) -> io::Result<()> {
    let following = async {
        loop {
            let ready = tokio::select! {
                ready = log.readable_mut() => Some(ready?),
                () = reader.look.notified() => None,
            };
            let (received, is_asked) = match ready {
                Some(mut ready) => {
                    let received = ready.get_inner_mut().recv();
                    if matches!(received, Ok(None)) {
                        ready.clear_ready();
                    }
                    (received, false)
                }
                None => (log.get_mut().recv(), true),
            };
            match received {
                Ok(Some(received)) => {
                    take(received);
                    if is_asked {
                        // The answer is still owed.
                        reader.look.notify_one();
                    }
                }
                Ok(None) => reader.found_empty.send_modify(|times| *times = times.wrapping_add(1)),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        ended = following => return ended,
    }
    log.get_mut().leave_group().map_err(io::Error::other)?;
    while let Some(received) = log.get_mut().recv().map_err(io::Error::other)? {
        take(received);
    }
    Ok(())
}

impl Policies<'_> {
    /// The verdict of the policy that decided as is known, and its generation.
    fn judge(&self, flow: &Flow<'_>, decided: Decision) -> (Verdict, u64) {
        let now = self.now.policy.judge(flow);
        if now.decision != decided
            && let Some(before) = self.before
        {
            let verdict = before.policy.judge(flow);
            if verdict.decision == decided {
                return (verdict, before.generation);
            }
        }
        (now, self.now.generation)
    }
}

fn event(
    kind: EventKind,
    verdict: Verdict,
    generation: u64,
    name: Option<HostName>,
    headers: &Headers,
) -> FlowEvent {
    FlowEvent {
        kind,
        verdict,
        name_source: if name.is_some() { NameSource::Dns } else { NameSource::None },
        name,
        address: Some(headers.destination),
        port: headers.ports.map(|(_, destination)| destination),
        protocol: protocol(headers.protocol),
        generation,
        count: 1,
    }
}

/// SYN without ACK (RFC 9293 section 3.1).
fn is_opening(flags: u8) -> bool {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    flags & (SYN | ACK) == SYN
}

/// The protocol with this number.
pub(crate) fn protocol(number: u8) -> Protocol {
    match number {
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        1 | 58 => Protocol::Icmp,
        other => Protocol::Other(other),
    }
}

#[cfg(test)]
mod tests {
    use std::{task::Poll, time::Duration};

    use policy::{Floor, Policy, PolicySpec};
    use tokio::time::timeout;

    use super::*;

    /// One who reads a log of so many pieces as [`follow`] does.
    async fn read(reader: Reader, mut pieces: u32, mut take: impl FnMut()) {
        loop {
            reader.look.notified().await;
            tokio::task::yield_now().await;
            if pieces > 0 {
                pieces -= 1;
                take();
                reader.look.notify_one();
            } else {
                reader.found_empty.send_modify(|times| *times += 1);
            }
        }
    }

    #[tokio::test]
    async fn reading_has_caught_up_when_all_is_taken_and_not_before() {
        let (reader, reading) = reading();
        let mut taken = 0;
        tokio::select! {
            () = read(reader, 3, || taken += 1) => {}
            () = reading.caught_up() => {}
        }
        assert_eq!(taken, 3);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_log_that_is_not_read_any_more() {
        let (reader, reading) = reading();
        let mut caught_up = Box::pin(reading.caught_up());
        assert_eq!(futures_util::poll!(&mut caught_up), Poll::Pending);
        drop(reader);
        timeout(Duration::from_secs(10), caught_up).await.unwrap();
    }

    fn in_force(allow: &[&str], generation: u64) -> InForce {
        let spec = PolicySpec {
            allow_out: allow.iter().map(|text| (*text).to_owned()).collect(),
            ..PolicySpec::default()
        };
        InForce { policy: Arc::new(Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap()), generation }
    }

    fn to(destination: &str, protocol: u8, port: u16) -> Headers {
        Headers {
            source: "100.64.0.2".parse().unwrap(),
            destination: destination.parse().unwrap(),
            protocol,
            ports: Some((40_000, port)),
            tcp_flags: (protocol == 6).then_some(0x02),
            icmp: None,
            icmp_id: None,
        }
    }

    fn known(name: &str, is_sink: bool) -> Option<Known> {
        Some(Known { name: HostName::parse(name).unwrap(), is_sink })
    }

    fn refused(headers: &Headers, known: Option<Known>, now: &InForce) -> FlowEvent {
        refusal(headers, known, &Policies { now, before: None }).unwrap()
    }

    #[test]
    fn a_refused_packet_is_told_with_the_rule_that_refused_it() {
        let now = in_force(&["api.example.com"], 3);
        let event = refused(&to("93.184.216.34", 6, 443), None, &now);
        assert_eq!((event.verdict.reason, event.generation, event.port), (Reason::DefaultDeny, 3, Some(443)));
        let event = refused(&to("169.254.169.254", 6, 80), None, &now);
        assert_eq!((event.verdict.reason, event.verdict.rule), (Reason::Floor, Rule::Floor("metadata")));
    }

    #[test]
    fn a_connection_to_a_sink_address_is_told_with_its_name() {
        let now = in_force(&["api.example.com"], 1);
        let event = refused(&to("198.18.0.1", 6, 8443), known("evil.test", true), &now);
        assert_eq!(event.name.unwrap().as_str(), "evil.test");
        assert_eq!(event.name_source, NameSource::Dns);
        assert_eq!((event.verdict.reason, event.port), (Reason::DefaultDeny, Some(8443)));
    }

    #[test]
    fn a_name_permitted_since_its_sink_address_was_given_is_not_bound() {
        let now = in_force(&["late.test"], 2);
        let event = refused(&to("198.18.0.1", 6, 443), known("late.test", true), &now);
        assert_eq!((event.verdict.decision, event.verdict.reason), (Decision::Deny, Reason::NotBound));
    }

    #[test]
    fn quic_to_a_permitted_name_is_told_as_such() {
        let now = in_force(&["api.example.com"], 1);
        let event = refused(&to("93.184.216.34", 17, 443), known("api.example.com", false), &now);
        assert_eq!((event.verdict.decision, event.verdict.reason), (Decision::Deny, Reason::Quic));
    }

    #[test]
    fn packets_of_cut_connections_are_no_attempts() {
        let mut headers = to("93.184.216.34", 6, 443);
        headers.tcp_flags = Some(0x10);
        let now = in_force(&["api.example.com"], 1);
        assert!(refusal(&headers, None, &Policies { now: &now, before: None }).is_none());
    }

    #[test]
    fn a_packet_logged_before_a_change_is_told_by_the_policy_that_decided() {
        let (before, now) = (in_force(&["10.0.0.0/8"], 1), in_force(&["10.0.0.0/8", "192.168.0.0/16"], 2));
        let policies = Policies { now: &now, before: Some(&before) };
        let event = refusal(&to("192.168.1.1", 6, 22), None, &policies).unwrap();
        assert_eq!((event.verdict.reason, event.generation), (Reason::DefaultDeny, 1));
        let policies = Policies { now: &before, before: Some(&now) };
        let event = permission(&to("192.168.1.1", 6, 22), None, &policies);
        assert_eq!((event.verdict.reason, event.generation), (Reason::AllowEntry, 2));
    }
}
