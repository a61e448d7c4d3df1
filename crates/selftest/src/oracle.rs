//! Whether an attempt got out: by what the world saw, by what the sandbox was told, and by what was recorded.
//!
//! What the sandbox was told proves nothing by itself. An attempt that is to be refused is refused only if the world
//! saw nothing of it, and its event is there.

use std::{collections::BTreeSet, net::IpAddr};

use policy::{Decision, Protocol};
use store::EventRecord;

use crate::{
    cases::{Attempt, Case, EventKey},
    forms::dns::Reply,
    ground::{Expect, Ground},
    probe::{self, Action},
    report::{CaseReport, Group, Outcome},
    sinks::{Indexed, Kind, Sighting},
};

/// The most lines of evidence that a report has for one attack.
const MAX_EVIDENCE: usize = 12;
const DNS: u16 = 53;

/// What was found about one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) outcome: Outcome,
    pub(crate) evidence: Option<String>,
}

impl Finding {
    fn new(outcome: Outcome, evidence: impl Into<String>) -> Self {
        Self { outcome, evidence: Some(evidence.into()) }
    }

    fn good(outcome: Outcome) -> Self {
        Self { outcome, evidence: None }
    }
}

/// Everything that the attempts are judged by.
pub(crate) struct Records<'a> {
    pub(crate) seen: &'a [Indexed],
    pub(crate) events: &'a [EventRecord],
    /// Every attempt with what came of it.
    pub(crate) tried: &'a [(&'a Attempt, &'a probe::Outcome)],
}

impl Records<'_> {
    /// Judges an attempt.
    pub(crate) fn judge(&self, attempt: &Attempt, outcome: &probe::Outcome) -> Finding {
        if let probe::Outcome::Fault(fault) = outcome {
            return Finding::new(Outcome::Failed, format!("{}: {fault}", attempt.what));
        }
        let found = match &attempt.expect {
            Expect::Refused { rule, .. } => self.refused(attempt, outcome, rule),
            Expect::Permitted { rule } => self.permitted(attempt, outcome, rule),
            Expect::Contained => match self.escaped(attempt) {
                Some(seen) => Finding::new(Outcome::Hole, seen),
                None => Finding::good(Outcome::Held),
            },
            Expect::Inside if *outcome == probe::Outcome::Done => Finding::good(Outcome::Held),
            Expect::Inside => Finding::new(Outcome::FalselyBlocked, said(outcome)),
        };
        let evidence = found.evidence.map(|evidence| format!("{}: {evidence}", attempt.what));
        Finding { evidence, ..found }
    }

    fn refused(&self, attempt: &Attempt, outcome: &probe::Outcome, rule: &str) -> Finding {
        if let Some(seen) = self.escaped(attempt) {
            return Finding::new(Outcome::Hole, format!("{seen}, which {rule} refuses"));
        }
        if is_open(&attempt.action, outcome) {
            return Finding::new(
                Outcome::Hole,
                format!("the connection is still open, which {rule} refuses"),
            );
        }
        if is_success(&attempt.action, outcome) {
            return Finding::new(Outcome::Hole, format!("{}, which {rule} refuses", said(outcome)));
        }
        match attempt.event().and_then(|key| self.misrecorded(attempt, key)) {
            Some(wrong) => Finding::new(Outcome::Unrecorded, wrong),
            None => Finding::good(Outcome::Held),
        }
    }

    fn permitted(&self, attempt: &Attempt, outcome: &probe::Outcome, rule: &str) -> Finding {
        let blocked =
            |why: String| Finding::new(Outcome::FalselyBlocked, format!("{why}, which {rule} permits"));
        if is_query(&attempt.action) {
            return match outcome {
                probe::Outcome::Data(reply) => match Reply::read(&reply.0) {
                    Some(reply) if reply.code == 0 && reply.answers > 0 => answered(attempt, &reply),
                    Some(reply) => {
                        blocked(format!("response code {} with {} answers", reply.code, reply.answers))
                    }
                    None => blocked("a reply that cannot be read".to_owned()),
                },
                other => blocked(said(other)),
            };
        }
        let mut arrivals = self.seen.iter().filter(|sighting| sighting.has(&attempt.trace)).peekable();
        if arrivals.peek().is_none() {
            return blocked(format!("the world saw nothing of it; the sandbox was told: {}", said(outcome)));
        }
        match arrivals.map(|seen| &seen.sighting).find(|seen| !attempt.lands.contains(&seen.destination)) {
            Some(elsewhere) => {
                let wanted = attempt.lands.first().map(IpAddr::to_string).unwrap_or_default();
                Finding::new(Outcome::Hole, format!("{} and not {wanted}", place(elsewhere)))
            }
            None => Finding::good(Outcome::Permitted),
        }
    }

    /// What the world saw of an attempt that is not to get out.
    fn escaped(&self, attempt: &Attempt) -> Option<String> {
        self.seen.iter().find(|seen| is_of(seen, attempt)).map(|seen| place(&seen.sighting))
    }

    /// What is wrong with the events of a refusal.
    fn misrecorded(&self, attempt: &Attempt, key: &EventKey) -> Option<String> {
        let matching: Vec<&EventRecord> = self.events.iter().filter(|event| is_about(event, key)).collect();
        let is_permitted = |event: &&EventRecord| event.decision == Some(Decision::Allow);
        let shares = |other: &Attempt| {
            !matches!(other.expect, Expect::Refused { .. }) && other.flow.as_ref() == Some(key)
        };
        if matching.iter().any(is_permitted) && !self.tried.iter().any(|(other, _)| shares(other)) {
            return Some("it was recorded as permitted".to_owned());
        }
        let refusals = matching.iter().filter(|event| !is_permitted(event));
        let recorded: u64 = refusals.map(|event| event.count).sum();
        let count = |is: &dyn Fn(&Attempt) -> bool| {
            let matching = self.tried.iter().filter(|(other, _)| is(other)).count();
            u64::try_from(matching).unwrap_or(u64::MAX)
        };
        let tried = count(&|other| other.event() == Some(key));
        // Of these some are refused, too, for what is said after something that is permitted.
        let may = count(&|other| other.expect == Expect::Contained && other.flow.as_ref() == Some(key));
        if recorded < tried || recorded > tried.saturating_add(may) {
            return Some(format!("it was refused {tried} times and recorded {recorded} times"));
        }
        if let Expect::Refused { reason: Some(reason), .. } = &attempt.expect
            && !matching.iter().any(|event| event.reason.as_deref() == Some(reason.as_str()))
        {
            let reasons: BTreeSet<&str> =
                matching.iter().filter_map(|event| event.reason.as_deref()).collect();
            let reasons: Vec<&str> = reasons.into_iter().collect();
            return Some(format!("it was recorded as {} and not as {reason}", reasons.join(", ")));
        }
        None
    }

    /// What reached the world and belongs to no attempt and to no flow that the policy permits.
    fn unexplained(&self, ground: &Ground) -> Vec<String> {
        let is_explained = |seen: &Indexed| {
            let sighting = &seen.sighting;
            let (address, port) = (Some(sighting.destination), sighting.port);
            let protocol = match sighting.kind {
                Kind::Tcp => Protocol::Tcp,
                Kind::Udp => Protocol::Udp,
                Kind::Packet(1 | 58) => Protocol::Icmp,
                Kind::Packet(number) => Protocol::Other(number),
                Kind::Node => return false,
            };
            if let Some(name) = &sighting.query {
                return ground.lookup(name).is_permitted();
            }
            let named = ground.named.as_ref().filter(|named| named.addresses.contains(&sighting.destination));
            let name = named.map(|named| &named.name).filter(|_| protocol == Protocol::Tcp);
            ground.judge(protocol, None, address, port).is_allowed()
                || name.is_some_and(|name| ground.judge(protocol, Some(name), address, port).is_allowed())
        };
        // What is of an attempt is judged with it.
        let is_tried = |seen: &Indexed| self.tried.iter().any(|(attempt, _)| is_of(seen, attempt));
        let strays = self.seen.iter().filter(|seen| !is_explained(seen) && !is_tried(seen));
        strays.map(|seen| place(&seen.sighting)).collect()
    }
}

/// Whether a sighting is of an attempt: by its canary, or because nothing else is meant to get there.
fn is_of(seen: &Indexed, attempt: &Attempt) -> bool {
    let Sighting { kind, destination, port, .. } = &seen.sighting;
    let is_place = attempt
        .place
        .is_some_and(|place| (place.kind, place.address, place.port) == (*kind, *destination, *port));
    is_place || seen.has(&attempt.trace)
}

/// An attack with what became of its forms.
pub(crate) fn sum_up(case: &Case, findings: &[Finding]) -> CaseReport {
    let outcome = findings.iter().map(|finding| finding.outcome).min();
    let rules: BTreeSet<&str> = case
        .attempts
        .iter()
        .filter_map(|attempt| match &attempt.expect {
            Expect::Refused { rule, .. } | Expect::Permitted { rule } => Some(rule.as_str()),
            Expect::Inside | Expect::Contained => None,
        })
        .collect();
    let rule = rules.first().filter(|_| rules.len() == 1).map(|&rule| rule.to_owned());
    let mut evidence: Vec<String> = findings.iter().filter_map(|finding| finding.evidence.clone()).collect();
    let more = evidence.len().saturating_sub(MAX_EVIDENCE);
    evidence.truncate(MAX_EVIDENCE);
    if more > 0 {
        evidence.push(format!("and {more} more"));
    }
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    CaseReport {
        id: case.id.clone(),
        group: case.group,
        title: case.title.to_owned(),
        outcome: outcome.unwrap_or(Outcome::Skipped),
        attempts: count(case.attempts.len()),
        permitted: count(case.attempts.iter().filter(|attempt| attempt.expect.is_permitted()).count()),
        rule,
        evidence,
    }
}

/// Everything that reached the world is of some attempt, or of a flow that the policy permits.
pub(crate) fn unexplained(records: &Records<'_>, ground: &Ground) -> CaseReport {
    let mut evidence = records.unexplained(ground);
    let more = evidence.len().saturating_sub(MAX_EVIDENCE);
    evidence.truncate(MAX_EVIDENCE);
    if more > 0 {
        evidence.push(format!("and {more} more"));
    }
    CaseReport {
        id: "Z1".to_owned(),
        group: Group::State,
        title: "nothing else has reached the world".to_owned(),
        outcome: if evidence.is_empty() { Outcome::Held } else { Outcome::Hole },
        attempts: 0,
        permitted: 0,
        rule: None,
        evidence,
    }
}

/// Whether an answer leads only where the policy permits the name to lead.
fn answered(attempt: &Attempt, reply: &Reply) -> Finding {
    let inside = reply.addresses.iter().find(|address| !attempt.lands.contains(address));
    match inside.filter(|_| !attempt.lands.is_empty()) {
        Some(address) => Finding::new(Outcome::Hole, format!("the answer leads to {address}")),
        None => Finding::good(Outcome::Permitted),
    }
}

fn is_about(event: &EventRecord, key: &EventKey) -> bool {
    event.protocol.as_deref() == Some(key.protocol)
        && event.address.map(|address| address.to_canonical()) == key.address
        && event.port == key.port
        && (event.kind == "egress_revoked") == key.is_revoked
}

fn is_query(action: &Action) -> bool {
    matches!(action, Action::Udp { to, .. } if to.port() == DNS)
}

/// Whether the sandbox was told that it worked. Replies to DNS queries are the node's own, whatever the server.
fn is_success(action: &Action, outcome: &probe::Outcome) -> bool {
    match outcome {
        probe::Outcome::Http(statuses) => statuses.iter().any(|status| (200..300).contains(status)),
        probe::Outcome::Data(_) => !is_query(action),
        probe::Outcome::ServerHello | probe::Outcome::Done => true,
        probe::Outcome::Refused(_)
        | probe::Outcome::Reset
        | probe::Outcome::Closed
        | probe::Outcome::Silence
        | probe::Outcome::Alert(_)
        | probe::Outcome::Fault(_) => false,
    }
}

/// Whether a connection that is to be cut has not been.
fn is_open(action: &Action, outcome: &probe::Outcome) -> bool {
    matches!((action, outcome), (Action::Held { .. }, probe::Outcome::Silence))
}

fn said(outcome: &probe::Outcome) -> String {
    match outcome {
        probe::Outcome::Refused(error) => error.clone(),
        probe::Outcome::Reset => "the connection was cut".to_owned(),
        probe::Outcome::Closed => "the connection was closed".to_owned(),
        probe::Outcome::Silence => "there was no answer".to_owned(),
        probe::Outcome::Alert(number) => format!("TLS alert {number}"),
        probe::Outcome::ServerHello => "a server answered the TLS handshake".to_owned(),
        probe::Outcome::Http(statuses) => format!("HTTP {statuses:?}"),
        probe::Outcome::Data(data) => format!("{} bytes were answered", data.0.len()),
        probe::Outcome::Done => "it was done".to_owned(),
        probe::Outcome::Fault(fault) => fault.clone(),
    }
}

fn place(sighting: &Sighting) -> String {
    let port = sighting.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let at = sighting.destination;
    match (&sighting.query, sighting.kind) {
        (Some(name), _) => format!("the name {name} was asked for at {at}"),
        (None, Kind::Tcp) => format!("a connection reached {at}{port}"),
        (None, Kind::Udp) => format!("a datagram reached {at}{port}"),
        (None, Kind::Packet(number)) => format!("a packet of protocol {number} reached {at}{port}"),
        (None, Kind::Node) => format!("a connection reached the machine itself, at {at}{port}"),
    }
}

#[cfg(test)]
mod tests;
