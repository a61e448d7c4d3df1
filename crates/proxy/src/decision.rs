//! What is permitted, and where it goes.

use std::net::{IpAddr, SocketAddr};

use policy::{
    Decision, EchMode, EventKind, Flow, FlowEvent, HostName, InForce, KernelDefault, NameSource, Protocol,
    Reason, Rule, Verdict,
};

use crate::{Egress, NoAddress, flows::Subject};

/// The most addresses of a name that are tried.
const MAX_CANDIDATES: usize = 4;

/// A permitted flow.
#[derive(Debug)]
pub(crate) struct Permit {
    /// The verdict on the first address.
    pub(crate) verdict: Verdict,
    pub(crate) name: Option<HostName>,
    pub(crate) source: NameSource,
    /// Where it may go, best first. Empty only if the name's addresses could not be found out.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) port: u16,
    pub(crate) generation: u64,
    /// Whether it carries Encrypted Client Hello.
    pub(crate) ech: bool,
}

/// A refused flow.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) verdict: Verdict,
    pub(crate) name: Option<HostName>,
    pub(crate) source: NameSource,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) generation: u64,
}

impl Permit {
    pub(crate) fn event(&self) -> FlowEvent {
        FlowEvent {
            kind: EventKind::EgressAllowed,
            verdict: self.verdict.clone(),
            name: self.name.clone(),
            name_source: self.source,
            address: self.addresses.first().copied(),
            port: Some(self.port),
            protocol: Protocol::Tcp,
            generation: self.generation,
            count: 1,
        }
    }

    /// What the registry of flows judges again when the policy changes.
    pub(crate) fn subject(&self, address: IpAddr) -> Subject {
        Subject { name: self.name.clone(), source: self.source, address, port: self.port, ech: self.ech }
    }
}

impl Refusal {
    /// A refusal for a reason that lies in the bytes, not in an entry.
    pub(crate) fn of_bytes(
        reason: Reason,
        name: Option<HostName>,
        source: NameSource,
        destination: SocketAddr,
        generation: u64,
    ) -> Self {
        Self {
            verdict: deny(reason),
            name,
            source,
            address: destination.ip(),
            port: destination.port(),
            generation,
        }
    }

    pub(crate) fn event(&self) -> FlowEvent {
        FlowEvent {
            kind: EventKind::EgressBlocked,
            verdict: self.verdict.clone(),
            name: self.name.clone(),
            name_source: self.source,
            address: Some(self.address),
            port: Some(self.port),
            protocol: Protocol::Tcp,
            generation: self.generation,
            count: 1,
        }
    }
}

/// Whether an address entry of the policy covers the destination, so that it needs no name.
pub(crate) fn by_entry(in_force: &InForce, destination: SocketAddr) -> Option<Permit> {
    by_address(in_force, destination).ok().filter(|permit| matches!(permit.verdict.rule, Rule::Entry { .. }))
}

/// Whether the destination is permitted as an address, by an entry or by an open default.
pub(crate) fn by_address(in_force: &InForce, destination: SocketAddr) -> Result<Permit, Refusal> {
    let verdict = judge(in_force, None, Some(destination.ip()), destination.port());
    if verdict.is_allowed() {
        Ok(Permit {
            verdict,
            name: None,
            source: NameSource::None,
            addresses: vec![destination.ip()],
            port: destination.port(),
            generation: in_force.generation,
            ech: false,
        })
    } else {
        Err(refusal(in_force, verdict, None, NameSource::None, destination))
    }
}

/// Judges a flow that names its host: the name, then each address it could go to.
pub(crate) async fn by_name<E: Egress>(
    egress: &E,
    in_force: &InForce,
    name: HostName,
    source: NameSource,
    destination: SocketAddr,
) -> Result<Permit, Refusal> {
    let port = destination.port();
    let verdict = judge(in_force, Some(&name), None, port);
    if !verdict.is_allowed() {
        return Err(refusal(in_force, verdict, Some(name), source, destination));
    }
    let candidates = if egress.names_bound_to(destination.ip()).contains(&name) {
        vec![destination.ip()]
    } else {
        // Boxed: most names are bound already, and connections need not carry the room for asking.
        match Box::pin(egress.addresses_of(&name)).await {
            Ok(addresses) => addresses,
            Err(NoAddress::Refused(verdict)) => {
                return Err(refusal(in_force, verdict, Some(name), source, destination));
            }
            Err(NoAddress::Failed(error)) => {
                tracing::info!(%name, error, "a permitted name has no address");
                Vec::new()
            }
        }
    };
    let (mut addresses, mut allowed, mut refused) = (Vec::new(), None, None);
    for address in candidates {
        let verdict = judge(in_force, Some(&name), Some(address), port);
        if !verdict.is_allowed() {
            refused = Some((verdict, address));
        } else if addresses.len() < MAX_CANDIDATES {
            addresses.push(address);
            allowed.get_or_insert(verdict);
        }
    }
    if let (None, Some((verdict, address))) = (&allowed, refused) {
        return Err(refusal(in_force, verdict, Some(name), source, SocketAddr::new(address, port)));
    }
    // The client's own choice of family first.
    addresses.sort_by_key(|address| address.is_ipv4() != destination.is_ipv4());
    Ok(Permit {
        verdict: allowed.unwrap_or(verdict),
        name: Some(name),
        source,
        addresses,
        port,
        generation: in_force.generation,
        ech: false,
    })
}

/// Judges a flow whose protocol names no host: permitted to an address that is bound to a permitted name or that an
/// address entry covers. An open default is not enough where names are denied, because this may be one of them.
pub(crate) fn by_binding<E: Egress>(
    egress: &E,
    in_force: &InForce,
    destination: SocketAddr,
) -> Result<Permit, Refusal> {
    if let Some(judged) = by_bound_names(egress, in_force, destination) {
        return judged;
    }
    let permit = by_address(in_force, destination).map_err(not_bound)?;
    let may_be_denied = in_force.policy.kernel().default == KernelDefault::ProxyTcp;
    if may_be_denied && !matches!(permit.verdict.rule, Rule::Entry { .. }) {
        return Err(refusal(in_force, deny(Reason::NotBound), None, NameSource::None, destination));
    }
    Ok(permit)
}

/// Judges a flow that names an address as its host. Other names may share the address of a permitted one, so the
/// permission has to be the address's own.
pub(crate) fn by_named_address<E: Egress>(
    egress: &E,
    in_force: &InForce,
    destination: SocketAddr,
) -> Result<Permit, Refusal> {
    match by_bound_names(egress, in_force, destination) {
        Some(Err(refused)) => Err(refused),
        Some(Ok(_)) => by_address(in_force, destination),
        None => by_address(in_force, destination).map_err(not_bound),
    }
}

/// The judgement on the names that the destination is bound to, if there are any: one that is permitted is enough.
fn by_bound_names<E: Egress>(
    egress: &E,
    in_force: &InForce,
    destination: SocketAddr,
) -> Option<Result<Permit, Refusal>> {
    let mut refused = None;
    for name in egress.names_bound_to(destination.ip()) {
        let verdict = judge(in_force, Some(&name), Some(destination.ip()), destination.port());
        if verdict.is_allowed() {
            return Some(Ok(Permit {
                verdict,
                name: Some(name),
                source: NameSource::Dns,
                addresses: vec![destination.ip()],
                port: destination.port(),
                generation: in_force.generation,
                ech: false,
            }));
        }
        refused = Some(refusal(in_force, verdict, Some(name), NameSource::Dns, destination));
    }
    refused.map(Err)
}

/// The kernel would not have diverted what no name was ever bound to, unless the policy has changed since.
fn not_bound(mut refused: Refusal) -> Refusal {
    if refused.verdict.reason == Reason::DefaultDeny {
        refused.verdict.reason = Reason::NotBound;
    }
    refused
}

/// Whether the policy refuses Encrypted Client Hello.
pub(crate) fn refused_ech(in_force: &InForce) -> bool {
    in_force.policy.spec().ech == EchMode::Refuse
}

/// The refusal of Encrypted Client Hello.
pub(crate) fn ech_verdict() -> Verdict {
    deny(Reason::Ech)
}

/// A refusal that no entry is responsible for.
pub(crate) fn deny(reason: Reason) -> Verdict {
    Verdict { decision: Decision::Deny, rule: Rule::Default, reason }
}

pub(crate) fn judge(
    in_force: &InForce,
    name: Option<&HostName>,
    address: Option<IpAddr>,
    port: u16,
) -> Verdict {
    in_force.policy.judge(&Flow { protocol: Protocol::Tcp, name, address, port: Some(port) })
}

fn refusal(
    in_force: &InForce,
    verdict: Verdict,
    name: Option<HostName>,
    source: NameSource,
    destination: SocketAddr,
) -> Refusal {
    Refusal {
        verdict,
        name,
        source,
        address: destination.ip(),
        port: destination.port(),
        generation: in_force.generation,
    }
}
