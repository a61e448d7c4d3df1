//! From a decision of the data path to a stored event.

use std::borrow::Cow;

use policy::{EventKind, FlowEvent, FlowTotals, NameSource, Protocol, Rule};
use store::{Category, EventRecord, EventRule, EventUpdate, RuleKind};

use crate::queue::Moment;

/// The event of a decision.
pub(crate) fn record(id: u64, sandbox: &str, event: FlowEvent, now: Moment) -> EventRecord {
    EventRecord {
        sandbox_id: Some(sandbox.to_owned()),
        decision: Some(event.verdict.decision),
        reason: Some(event.verdict.reason.as_str().into()),
        rule: Some(rule(&event.verdict.rule)),
        host: event.name.map(|name| name.to_string()),
        host_source: Some(name_source(event.name_source).into()),
        address: event.address,
        port: event.port,
        protocol: Some(protocol(event.protocol)),
        generation: Some(event.generation),
        count: event.count.max(1),
        ..EventRecord::new(id, now.time, Category::Network, kind(event.kind))
    }
}

/// The change that the end of a flow makes.
pub(crate) fn finished(id: u64, totals: FlowTotals) -> EventUpdate {
    EventUpdate::Finished {
        id,
        bytes_up: totals.bytes_up,
        bytes_down: totals.bytes_down,
        duration_ms: u64::try_from(totals.duration.as_millis()).unwrap_or(u64::MAX),
    }
}

fn rule(rule: &Rule) -> EventRule {
    let kind = match rule {
        Rule::Default => RuleKind::Default,
        Rule::Entry { list, index, entry } => {
            RuleKind::Entry { list: *list, index: *index, entry: entry.to_string() }
        }
        Rule::Floor(part) => RuleKind::Floor { floor: (*part).to_owned() },
    };
    EventRule { text: rule.to_string(), kind }
}

fn kind(kind: EventKind) -> &'static str {
    match kind {
        EventKind::EgressAllowed => "egress_allowed",
        EventKind::EgressBlocked => "egress_blocked",
        EventKind::EgressRevoked => "egress_revoked",
        EventKind::DnsBlocked => "dns_blocked",
    }
}

fn name_source(source: NameSource) -> &'static str {
    match source {
        NameSource::Sni => "sni",
        NameSource::Host => "host",
        NameSource::Dns => "dns",
        NameSource::None => "none",
    }
}

fn protocol(protocol: Protocol) -> Cow<'static, str> {
    match protocol {
        Protocol::Tcp => "tcp".into(),
        Protocol::Udp => "udp".into(),
        Protocol::Icmp => "icmp".into(),
        Protocol::Other(number) => number.to_string().into(),
    }
}
