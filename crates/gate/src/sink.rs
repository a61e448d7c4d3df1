//! Addresses for names that are refused, so that the refused connection tells its name.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use policy::{FlowEvent, HostName};

use crate::addresses::{SINK_BASE, SINK_PREFIX};

/// The most names that one sandbox can have sink addresses for.
const MAX_SINKS: usize = 8192;

/// How many queries for IPv6 addresses wait for one for the sink address; of further ones each is an event at once.
const MAX_WAITING: usize = 256;
/// How long they wait: clients that ask for both do so at the same time, or for the second when they have the answer to the
/// first.
const COMPANION: Duration = Duration::from_secs(2);
/// How long a client may keep the sink address, and ask for IPv6 addresses alone: its TTL.
const KEPT: Duration = Duration::from_secs(10);

/// The sink addresses of one sandbox: one for each refused name that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Sinks {
    by_name: HashMap<HostName, Sink>,
    /// The name of the address so many behind the first.
    names: Vec<HostName>,
    /// Events of names whose IPv6 addresses were asked for, the oldest first.
    waiting: VecDeque<(Instant, FlowEvent)>,
}

#[derive(Debug)]
struct Sink {
    address: Ipv4Addr,
    /// When it was asked for last.
    asked: Instant,
}

impl Sinks {
    /// The address of a name, the same every time; `None` when no more are given out.
    pub(crate) fn assign(&mut self, name: &HostName, now: Instant) -> Option<Ipv4Addr> {
        if let Some(sink) = self.by_name.get_mut(name) {
            sink.asked = now;
            return Some(sink.address);
        }
        if self.names.len() >= MAX_SINKS {
            return None;
        }
        let address = Ipv4Addr::from_bits(FIRST + u32::try_from(self.names.len()).ok()?);
        self.names.push(name.clone());
        self.by_name.insert(name.clone(), Sink { address, asked: now });
        Some(address)
    }

    /// The IPv6 addresses of a name were asked for. Gives the event back if it is to be recorded at once.
    pub(crate) fn wait(&mut self, event: FlowEvent, now: Instant) -> Option<FlowEvent> {
        if self.is_accompanied(&event, now) {
            return None;
        }
        if self.waiting.len() >= MAX_WAITING {
            return Some(event);
        }
        self.waiting.push_back((now, event));
        None
    }

    /// The events that have waited long enough, or all of them, without the sink address having been asked for.
    pub(crate) fn take_alone(&mut self, now: Instant, are_all: bool) -> Vec<FlowEvent> {
        let over = self.waiting.iter().take_while(|(since, _)| are_all || now >= *since + COMPANION).count();
        let over: Vec<_> = self.waiting.drain(..over).collect();
        over.into_iter()
            .filter_map(|(since, event)| (!self.is_accompanied(&event, since)).then_some(event))
            .collect()
    }

    /// Whether the name's sink address was asked for since, or not long before.
    fn is_accompanied(&self, event: &FlowEvent, since: Instant) -> bool {
        let sink = event.name.as_ref().and_then(|name| self.by_name.get(name));
        sink.is_some_and(|sink| sink.asked + KEPT >= since)
    }

    /// The name whose sink address this is.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<&HostName> {
        let IpAddr::V4(address) = address else { return None };
        let offset = address.to_bits().checked_sub(FIRST)?;
        self.names.get(usize::try_from(offset).ok()?)
    }
}

/// The first address given out: not the network's own.
const FIRST: u32 = SINK_BASE.to_bits() + 1;

/// The whole range.
pub(crate) fn range() -> Ipv4Net {
    Ipv4Net::new_assert(SINK_BASE, SINK_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_address_and_the_address_tells_the_name() {
        let (mut sinks, now) = (Sinks::default(), Instant::now());
        let names = ["evil.test", "other.test"].map(|text| HostName::parse(text).unwrap());
        let addresses = names.each_ref().map(|name| sinks.assign(name, now).unwrap());
        assert_ne!(addresses[0], addresses[1]);
        for (name, address) in names.iter().zip(addresses) {
            assert!(range().contains(&address));
            assert_eq!(sinks.assign(name, now), Some(address));
            assert_eq!(sinks.name_of(address.into()), Some(name));
        }
        assert_eq!(sinks.name_of(SINK_BASE.into()), None);
        assert_eq!(sinks.name_of("198.19.255.255".parse().unwrap()), None);
        assert_eq!(sinks.name_of("::1".parse().unwrap()), None);
    }

    #[test]
    fn the_table_is_bounded_and_stays_inside_the_range() {
        let (mut sinks, now) = (Sinks::default(), Instant::now());
        let name = |number: usize| HostName::parse(&format!("n{number}.test")).unwrap();
        for number in 0..MAX_SINKS {
            assert!(range().contains(&sinks.assign(&name(number), now).unwrap()));
        }
        assert_eq!(sinks.assign(&name(MAX_SINKS), now), None);
        assert!(sinks.assign(&name(0), now).is_some(), "a name that has one keeps it");
    }

    fn refusal(name: &str) -> FlowEvent {
        FlowEvent {
            kind: policy::EventKind::DnsBlocked,
            verdict: policy::Verdict {
                decision: policy::Decision::Deny,
                rule: policy::Rule::Default,
                reason: policy::Reason::DefaultDeny,
            },
            name: Some(HostName::parse(name).unwrap()),
            name_source: policy::NameSource::Dns,
            address: None,
            port: None,
            protocol: policy::Protocol::Udp,
            generation: 1,
            count: 1,
        }
    }

    #[test]
    fn a_name_that_is_asked_for_ipv6_addresses_alone_is_told_and_one_that_is_asked_for_both_is_not() {
        let (mut sinks, start) = (Sinks::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let [alone, first, second] =
            ["alone.test", "first.test", "second.test"].map(|name| HostName::parse(name).unwrap());
        sinks.assign(&first, at(0)).unwrap();
        for name in [&alone, &first, &second] {
            assert_eq!(sinks.wait(refusal(name.as_str()), at(1)), None);
        }
        sinks.assign(&second, at(2)).unwrap();
        assert_eq!(sinks.take_alone(at(2), false), []);
        assert_eq!(sinks.take_alone(at(3), false), [refusal("alone.test")]);
        assert_eq!(sinks.take_alone(at(3), true), []);
        // Long after, it is alone.
        assert_eq!(sinks.wait(refusal("first.test"), at(11)), None);
        assert_eq!(sinks.take_alone(at(11), true), [refusal("first.test")]);
    }

    #[test]
    fn queries_that_are_too_many_to_wait_are_told_at_once() {
        let (mut sinks, now) = (Sinks::default(), Instant::now());
        for number in 0..MAX_WAITING {
            assert_eq!(sinks.wait(refusal(&format!("n{number}.test")), now), None);
        }
        assert_eq!(sinks.wait(refusal("more.test"), now), Some(refusal("more.test")));
        assert_eq!(sinks.take_alone(now, true).len(), MAX_WAITING);
        assert_eq!(sinks.wait(refusal("more.test"), now), None);
    }
}
