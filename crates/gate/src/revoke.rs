//! Connections that a new policy leaves without a way.
//!
//! Rules hold for the next packet, but a connection that only waits sends none. So every socket of the sandbox whose
//! way is refused now, or leads elsewhere, is destroyed.

use std::{collections::HashMap, net::IpAddr};

use netns::{Family, SocketEntry, SocketTable, Transport};
use policy::{
    Decision, EventKind, Flow, FlowEvent, InForce, NameSource, Protocol, Reason, Rule, Topology, Verdict,
};

use crate::{
    GateError,
    addresses::{GATE_V4, GATE_V6, SANDBOX_V4, SANDBOX_V6, is_wire_address},
    sandbox::Sandbox,
};

/// Destroys the connections that went by the wire under `before` and may not under `now`, and records them; and
/// those through the proxy whose packets would go by the wire now.
pub(crate) fn cut(sandbox: &Sandbox, before: &InForce, now: &InForce) -> Result<(), GateError> {
    destroy(sandbox, now.generation, |socket, met| judge(socket, met, before, now))
}

/// Destroys all connections that go by the wire, because the sandbox has moved as many bytes as it may, and records them.
pub(crate) fn cut_spent(sandbox: &Sandbox) -> Result<(), GateError> {
    let now = &sandbox.force().now;
    let verdict = Verdict { decision: Decision::Deny, rule: Rule::Default, reason: Reason::ByteBudget };
    destroy(sandbox, now.generation, |socket, _| {
        let is_cut = !is_own(socket.remote.ip()) && !is_dns(socket) && is_wired(socket, now);
        is_cut.then(|| Some(verdict.clone()))
    })
}

/// Destroys the sockets for which `judge` has anything, and records those for which that is a verdict. `judge` gets the
/// other end too, if that is in the namespace: then the connection is one through the proxy.
fn destroy(
    sandbox: &Sandbox,
    generation: u64,
    judge: impl Fn(&SocketEntry, Option<&SocketEntry>) -> Option<Option<Verdict>> + Sync,
) -> Result<(), GateError> {
    let mut revoked = Vec::new();
    let cut = || -> Result<(), netns::Error> {
        let mut table = SocketTable::open()?;
        for transport in [Transport::Tcp, Transport::Udp] {
            // The ends of one connection may be of different families: one knows an IPv4 address as an IPv6 one.
            let mut sockets = table.connected(transport, Family::V4)?;
            sockets.extend(table.connected(transport, Family::V6)?);
            let ends: HashMap<_, _> =
                sockets.iter().map(|socket| ((socket.local, socket.remote), socket)).collect();
            for socket in &sockets {
                let met = ends.get(&(socket.remote, socket.local)).copied();
                let Some(cut) = judge(socket, met) else { continue };
                table.destroy(socket)?;
                revoked.extend(cut.map(|verdict| event(socket, verdict, generation)));
                if let Some(met) = met {
                    // What the proxy is told by packets would go by the wire.
                    table.destroy(met)?;
                }
            }
        }
        Ok(())
    };
    let cut = sandbox.namespace.run(cut);
    // What was cut before something failed is cut.
    for event in revoked {
        sandbox.recorder.flow(event);
    }
    cut.map_err(|error| GateError::EnterNamespace("the sandbox", error))?
        .map_err(|error| GateError::SetUp("the sandbox", error))
}

/// `None` when the socket may live; otherwise the verdict to be recorded, unless it is the proxy's business.
fn judge(
    socket: &SocketEntry,
    met: Option<&SocketEntry>,
    before: &InForce,
    now: &InForce,
) -> Option<Option<Verdict>> {
    if is_own(socket.remote.ip()) || is_dns(socket) {
        return None;
    }
    match (is_wired(socket, before), is_wired(socket, now)) {
        (true, true) | (false, false) => None,
        // It began by the wire, since the new rules are in force.
        (false, true) if met.is_none() && !is_inner(socket.local.ip()) => None,
        // Its packets would go by the wire in the middle of a connection that nobody there knows. The proxy has recorded
        // it, unless it has not even been accepted.
        (false, true) => {
            let is_unheard = met.is_some_and(|met| met.is_opening);
            Some(is_unheard.then(|| not_bound(now.policy.judge(&flow(socket)))))
        }
        (true, false) => {
            let mut verdict = now.policy.judge(&flow(socket));
            if verdict.is_allowed() {
                // Permitted, but through the proxy only, which has not seen it begin.
                verdict = not_bound(verdict);
            }
            Some(Some(verdict))
        }
    }
}

/// What a connection gets that is permitted where it cannot go on.
fn not_bound(verdict: Verdict) -> Verdict {
    Verdict { decision: Decision::Deny, reason: Reason::NotBound, ..verdict }
}

/// Whether the kernel forwards the socket's packets by the wire, which it does by address alone: unless it is a connection
/// through the proxy that is older than the wire, and goes on there.
fn is_wired(socket: &SocketEntry, in_force: &InForce) -> bool {
    if socket.transport == Transport::Tcp && is_inner(socket.local.ip()) {
        return false;
    }
    in_force.policy.topology() == Topology::Wire && in_force.policy.judge(&flow(socket)).is_allowed()
}

/// The resolver answers whatever address was asked.
fn is_dns(socket: &SocketEntry) -> bool {
    socket.transport == Transport::Udp && socket.remote.port() == crate::addresses::DNS_PORT
}

fn is_own(address: IpAddr) -> bool {
    let gate: [IpAddr; 2] = [GATE_V4.into(), GATE_V6.into()];
    let is_local = address.is_loopback() || address.is_unspecified() || is_wire_address(address);
    is_local || is_inner(address) || gate.contains(&address)
}

/// Whether it is an address that the sandbox has without a wire, and that does not leave by one.
fn is_inner(address: IpAddr) -> bool {
    let inner: [IpAddr; 2] = [SANDBOX_V4.into(), SANDBOX_V6.into()];
    inner.contains(&address)
}

fn flow(socket: &SocketEntry) -> Flow<'static> {
    Flow {
        protocol: protocol(socket),
        name: None,
        address: Some(socket.remote.ip()),
        port: Some(socket.remote.port()),
    }
}

fn protocol(socket: &SocketEntry) -> Protocol {
    match socket.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    }
}

fn event(socket: &SocketEntry, verdict: Verdict, generation: u64) -> FlowEvent {
    FlowEvent {
        kind: EventKind::EgressRevoked,
        verdict,
        name: None,
        name_source: NameSource::None,
        address: Some(socket.remote.ip()),
        port: Some(socket.remote.port()),
        protocol: protocol(socket),
        generation,
        count: 1,
    }
}
