//! From a query to its reply.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use policy::{
    Decision, EventKind, Flow, FlowEvent, HostName, InForce, NameSource, Policy, Protocol, Reason,
    RefusedNames, Rule, Verdict,
};

use crate::{
    BindRefused, Family, Lookup, LookupError, Refused, Transport, Upstream, Zone,
    message::{self, Asked, Ede, Fault, Kind, Received},
    upstream::Answer,
};

/// The least life of a binding: shorter TTLs are for the reply only.
const MIN_BINDING: Duration = Duration::from_secs(60);
/// The TTL of a sink address in seconds: short, so that a policy which permits the name soon takes effect.
const SINK_TTL: u32 = 10;
/// The TTL of the loopback addresses in seconds.
const LOCALHOST_TTL: u32 = 3600;
/// How often an answer is judged again because the policy was replaced between judging and binding.
const MAX_ATTEMPTS: usize = 4;

/// The reply to one query; `None` when there is nothing to reply to.
///
/// Asks `upstream` only if the policy permits the name, and binds the answer before it returns.
pub async fn answer<Z: Zone>(
    query: &[u8],
    zone: &Z,
    upstream: &Upstream,
    transport: Transport,
) -> Option<Vec<u8>> {
    match begin(query, zone, upstream, transport) {
        Step::Done(reply) => reply,
        Step::Lookup(pending) => pending.finish(zone, upstream).await,
    }
}

/// How far a query came without waiting.
pub(crate) enum Step {
    /// To its end.
    Done(Option<Vec<u8>>),
    /// To a lookup.
    Lookup(Pending),
}

/// A question whose answer has to be looked up.
pub(crate) struct Pending {
    asked: Asked,
    transport: Transport,
    /// The query, for the reply if the lookup panics.
    query: Vec<u8>,
    family: Family,
    /// Counts as under way until the reply is made.
    _lookup: Lookup,
}

/// Everything that needs no waiting: refusals, cached answers. If it panics, only this query notices.
pub(crate) fn begin<Z: Zone>(query: &[u8], zone: &Z, upstream: &Upstream, transport: Transport) -> Step {
    catch_unwind(AssertUnwindSafe(|| consider(query, zone, upstream, transport)))
        .unwrap_or_else(|_panic| Step::Done(fault(query, zone, transport)))
}

fn consider<Z: Zone>(query: &[u8], zone: &Z, upstream: &Upstream, transport: Transport) -> Step {
    zone.asked();
    let now = Instant::now();
    if !zone.budget().take_query(now) {
        return Step::Done(too_fast(query, zone, transport));
    }
    let asked = match message::read(query, transport) {
        Received::Nothing => return Step::Done(None),
        Received::Bad { reply, fault } => {
            if let Some(fault) = fault {
                record_fault(zone, fault, transport);
            }
            return Step::Done(Some(reply));
        }
        Received::Asked(asked) => asked,
    };
    if is_localhost(&asked.name) {
        return Step::Done(localhost(&asked));
    }
    let in_force = zone.in_force();
    let verdict = judge(&in_force.policy, &asked.name, None);
    if !verdict.is_allowed() || !in_force.policy.kernel().resolves_names {
        return Step::Done(refuse_name(&asked, zone, &in_force, verdict));
    }
    let family = match asked.kind {
        Kind::A => Family::V4,
        Kind::Aaaa if zone.ipv6() => Family::V6,
        Kind::Any => return Step::Done(asked.any()),
        Kind::Aaaa | Kind::Other => return Step::Done(asked.no_data()),
    };
    if let Some(outcome) = upstream.cached(&asked.name, family) {
        return Step::Done(conclude(&asked, zone, outcome));
    }
    match zone.budget().begin_lookup(&in_force.policy, &asked.name, 1, now) {
        Ok(lookup) => {
            Step::Lookup(Pending { asked, transport, query: query.to_vec(), family, _lookup: lookup })
        }
        Err(refused) => Step::Done(over_limit(&asked, zone, &in_force, &refused)),
    }
}

impl Pending {
    /// Looks the name up and makes the reply. If it panics, only this query notices.
    pub(crate) async fn finish<Z: Zone>(self, zone: &Z, upstream: &Upstream) -> Option<Vec<u8>> {
        let looking = async {
            let outcome = upstream.lookup(&self.asked.name, self.family, zone.budget().asker()).await;
            if outcome == Err(LookupError::Busy) {
                return over_limit(&self.asked, zone, &zone.in_force(), &Refused::busy());
            }
            conclude(&self.asked, zone, outcome)
        };
        let replied = AssertUnwindSafe(looking).catch_unwind().await;
        replied.unwrap_or_else(|_panic| fault(&self.query, zone, self.transport))
    }
}

/// Records that a query met a fault of the daemon, and gives the reply: SERVFAIL, if the query can be read at all.
fn fault<Z: Zone>(query: &[u8], zone: &Z, transport: Transport) -> Option<Vec<u8>> {
    let reply = || {
        let asked = match message::read_question(query, transport) {
            Received::Asked(asked) => Some(asked),
            Received::Nothing | Received::Bad { .. } => None,
        };
        let name = asked.as_ref().map(|asked| asked.name.clone());
        record_daemon_fault(zone, name, transport);
        asked.and_then(|asked| asked.failed((Ede::Other, "a fault of the resolver")))
    };
    catch_unwind(AssertUnwindSafe(reply)).unwrap_or_else(|_panic| {
        tracing::error!("a DNS query met a fault, which could not be recorded");
        None
    })
}

/// Records that something was not answered for a fault of the daemon.
pub(crate) fn record_daemon_fault<Z: Zone>(zone: &Z, name: Option<HostName>, transport: Transport) {
    let verdict = Verdict { decision: Decision::Deny, rule: Rule::Default, reason: Reason::DaemonFault };
    zone.record(event(zone.in_force().generation, verdict, name, transport));
}

/// Judges, binds and writes the answer of a lookup. The policy is read again, because it may have been replaced
/// while the lookup was under way.
fn conclude<Z: Zone>(asked: &Asked, zone: &Z, outcome: Result<Answer, LookupError>) -> Option<Vec<u8>> {
    for _ in 0..MAX_ATTEMPTS {
        let in_force = zone.in_force();
        let verdict = judge(&in_force.policy, &asked.name, None);
        if !verdict.is_allowed() || !in_force.policy.kernel().resolves_names {
            return refuse_name(asked, zone, &in_force, verdict);
        }
        let answer = match &outcome {
            Ok(answer) => answer,
            Err(error) => return no_answer(asked, error),
        };
        let (permitted, dropped) = filter(&in_force.policy, &asked.name, &answer.addresses);
        if let Some((address, verdict)) = dropped {
            let refusal = permitted.is_empty().then(|| describe(&verdict));
            record(zone, asked, &in_force, verdict, Some(address));
            if let Some(text) = refusal {
                return asked
                    .refused((Ede::Blocked, &format!("every address of the name is refused: {text}")));
            }
        }
        match zone.bind(&asked.name, &permitted, answer.ttl.max(MIN_BINDING), in_force.generation) {
            Ok(()) => return asked.addresses(&permitted, seconds(answer.ttl)),
            Err(BindRefused::Superseded) => continue,
            Err(BindRefused::Limit) => {
                let verdict = Verdict { decision: Decision::Deny, reason: Reason::BindingLimit, ..verdict };
                let text = describe(&verdict);
                record(zone, asked, &in_force, verdict, None);
                return asked.refused((Ede::Blocked, &text));
            }
            Err(error @ BindRefused::Kernel(_)) => {
                tracing::error!(name = %asked.name, %error, "an answer could not be bound");
                record_daemon_fault(zone, Some(asked.name.clone()), asked.transport());
                return asked.failed((Ede::Other, "the answer could not be bound"));
            }
        }
    }
    record_daemon_fault(zone, Some(asked.name.clone()), asked.transport());
    asked.failed((Ede::Other, "the policy is being replaced"))
}

/// The addresses that the policy permits for the name, and the first of those that it does not.
fn filter(
    policy: &Policy,
    name: &HostName,
    addresses: &[IpAddr],
) -> (Vec<IpAddr>, Option<(IpAddr, Verdict)>) {
    let mut permitted = Vec::with_capacity(addresses.len());
    let mut dropped = None;
    for &address in addresses {
        let verdict = judge(policy, name, Some(address));
        if verdict.is_allowed() {
            permitted.push(address);
        } else if dropped.is_none() {
            dropped = Some((address, verdict));
        }
    }
    (permitted, dropped)
}

/// The reply about a name that is not permitted.
fn refuse_name<Z: Zone>(asked: &Asked, zone: &Z, in_force: &InForce, verdict: Verdict) -> Option<Vec<u8>> {
    let blackout = !in_force.policy.kernel().resolves_names;
    let mode = match verdict.rule {
        Rule::Floor(_) => RefusedNames::Refused,
        _ if blackout => RefusedNames::Refused,
        _ => in_force.policy.spec().refused_names,
    };
    if mode == RefusedNames::Sink {
        match asked.kind {
            // The connection to the sink is the refusal that is recorded, with its port.
            Kind::A => {
                if let Some(sink) = zone.sink(&asked.name) {
                    return asked.addresses(&[IpAddr::V4(sink)], SINK_TTL);
                }
            }
            Kind::Aaaa => {
                zone.record_if_alone(blocked(asked, in_force, verdict, None));
                return asked.no_data();
            }
            Kind::Any | Kind::Other => {}
        }
    }
    let text = describe(&verdict);
    record(zone, asked, in_force, verdict, None);
    match mode {
        RefusedNames::Nxdomain => asked.no_name(Some((Ede::Blocked, &text))),
        RefusedNames::Sink | RefusedNames::Refused => asked.refused((Ede::Blocked, &text)),
    }
}

/// The reply to a query that is one too many, of which no more is read than the reply takes over. The event has no name:
/// there may be as many as there are queries.
fn too_fast<Z: Zone>(query: &[u8], zone: &Z, transport: Transport) -> Option<Vec<u8>> {
    let verdict = Verdict { decision: Decision::Deny, rule: Rule::Default, reason: Reason::DnsRate };
    let text = describe_limit(&verdict);
    zone.record(event(zone.in_force().generation, verdict, None, transport));
    match message::read_question(query, transport) {
        Received::Nothing => None,
        Received::Bad { reply, .. } => Some(reply),
        Received::Asked(asked) => asked.refused((Ede::Blocked, &text)),
    }
}

/// The reply about a permitted name that is not looked up. The event is about the zone, so that those of its names are
/// one event.
fn over_limit<Z: Zone>(asked: &Asked, zone: &Z, in_force: &InForce, refused: &Refused) -> Option<Vec<u8>> {
    let verdict = refused.verdict();
    let text = describe_limit(&verdict);
    zone.record(event(in_force.generation, verdict, refused.apex().cloned(), asked.transport()));
    asked.refused((Ede::Blocked, &text))
}

/// The faithful reply for a permitted name that has no address.
fn no_answer(asked: &Asked, error: &LookupError) -> Option<Vec<u8>> {
    match error {
        LookupError::NoName => asked.no_name(None),
        LookupError::NoData => asked.no_data(),
        LookupError::Failed(_) | LookupError::Busy => {
            tracing::debug!(name = %asked.name, %error, "a lookup failed");
            asked.failed((Ede::NoReachableAuthority, "no upstream server gave an answer"))
        }
    }
}

/// What every decision of the resolver is about: some TCP port of the name.
fn judge(policy: &Policy, name: &HostName, address: Option<IpAddr>) -> Verdict {
    policy.judge(&Flow { protocol: Protocol::Tcp, name: Some(name), address, port: None })
}

fn describe(verdict: &Verdict) -> String {
    format!("refused by the sandbox's policy: {} ({})", verdict.reason.as_str(), verdict.rule)
}

fn describe_limit(verdict: &Verdict) -> String {
    format!("over a limit of the sandbox: {} ({})", verdict.reason.as_str(), verdict.rule)
}

fn record<Z: Zone>(zone: &Z, asked: &Asked, in_force: &InForce, verdict: Verdict, address: Option<IpAddr>) {
    zone.record(blocked(asked, in_force, verdict, address));
}

fn blocked(asked: &Asked, in_force: &InForce, verdict: Verdict, address: Option<IpAddr>) -> FlowEvent {
    let name = Some(asked.name.clone());
    FlowEvent { address, ..event(in_force.generation, verdict, name, asked.transport()) }
}

fn record_fault<Z: Zone>(zone: &Z, fault: Fault, transport: Transport) {
    let (reason, name) = match fault {
        Fault::Malformed => (Reason::MalformedDns, None),
        Fault::Type(name) => (Reason::DnsType, name),
    };
    let verdict = Verdict { decision: Decision::Deny, rule: Rule::Default, reason };
    zone.record(event(zone.in_force().generation, verdict, name, transport));
}

pub(crate) fn event(
    generation: u64,
    verdict: Verdict,
    name: Option<HostName>,
    transport: Transport,
) -> FlowEvent {
    FlowEvent {
        kind: EventKind::DnsBlocked,
        verdict,
        name_source: if name.is_some() { NameSource::Dns } else { NameSource::None },
        name,
        address: None,
        port: None,
        protocol: protocol(transport),
        generation,
        count: 1,
    }
}

fn protocol(transport: Transport) -> Protocol {
    match transport {
        Transport::Udp => Protocol::Udp,
        Transport::Tcp => Protocol::Tcp,
    }
}

/// Names that mean this machine wherever they are asked for (RFC 6761 section 6.3).
fn is_localhost(name: &HostName) -> bool {
    let name = name.as_str();
    name == "localhost" || name.ends_with(".localhost")
}

fn localhost(asked: &Asked) -> Option<Vec<u8>> {
    match asked.kind {
        Kind::A => asked.addresses(&[IpAddr::V4(Ipv4Addr::LOCALHOST)], LOCALHOST_TTL),
        Kind::Aaaa => asked.addresses(&[IpAddr::V6(Ipv6Addr::LOCALHOST)], LOCALHOST_TTL),
        Kind::Any | Kind::Other => asked.no_data(),
    }
}

/// Whole seconds, never 0: a reply that may not be cached at all would only cause more queries.
fn seconds(ttl: Duration) -> u32 {
    u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX).max(1)
}
