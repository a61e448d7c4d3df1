//! What it costs that a name is bound before the answer is sent, against a resolver that only answers.

use std::net::SocketAddr;

use anyhow::Result;
use gate::GATE_V4;
use netns::NetNs;

use crate::{
    Settings,
    figure::{Figure, Peer, Target, Unit},
    gate_node::GateNode,
    load::{Load, NAME},
    network::{Network, ROUTER},
    peers::Unbound,
};

/// How many names a round has; all rounds together stay below what one sandbox may have bound.
const NAMES: u16 = 90;
/// The most rounds that leaves room for.
const MAX_ROUNDS: usize = 10;

/// Measures it.
pub(crate) fn measure(settings: &Settings, network: &Network, gate: &mut GateNode) -> Result<Vec<Figure>> {
    let _unbound = Unbound::start(network)?;
    let entry = format!("*.{NAME}");
    // The first sandbox only fills the cache of the node, which all of them share.
    let (first, sandbox) = (gate.attach(&entry)?, gate.attach(&entry)?);
    let ours = SocketAddr::from((GATE_V4, 53));
    let peers = SocketAddr::from((ROUTER, 53));
    let (mut fresh, mut bound, mut unbound) = (Vec::new(), Vec::new(), Vec::new());
    for (round, begin) in (0..settings.rounds().min(MAX_ROUNDS)).zip((1..).step_by(usize::from(NAMES))) {
        let ask = |namespace: &NetNs, server| -> Result<f64> {
            Ok(Load::Queries { server, first: begin, count: NAMES }.run_in(namespace)?.value)
        };
        ask(&first, ours)?;
        ask(&network.proxied.client, peers)?;
        if round % 2 == 0 {
            fresh.push(ask(&sandbox, ours)?);
            unbound.push(ask(&network.proxied.client, peers)?);
        } else {
            unbound.push(ask(&network.proxied.client, peers)?);
            fresh.push(ask(&sandbox, ours)?);
        }
        bound.push(ask(&sandbox, ours)?);
    }
    let figure = |name: &str, what: &str, ours, target| Figure {
        name: format!("resolver.{name}"),
        what: what.to_owned(),
        unit: Unit::Microseconds,
        ours,
        peer: Some(Peer { name: "Unbound, cached", values: unbound.clone() }),
        target,
    };
    let (mut rates, mut peer_rates) = (Vec::new(), Vec::new());
    for round in 0..settings.rounds() {
        let mut ask = |is_ours: bool| -> Result<()> {
            let (namespace, server, rates) = if is_ours {
                (&sandbox, ours, &mut rates)
            } else {
                (&network.proxied.client, peers, &mut peer_rates)
            };
            let load = Load::QueryRate { server, parallel: 32, milliseconds: settings.milliseconds() };
            rates.push(load.run_in(namespace)?.value);
            Ok(())
        };
        ask(round % 2 == 0)?;
        ask(round % 2 != 0)?;
    }
    let rate = Figure {
        name: "resolver.rate".to_owned(),
        what: "cached answers, 32 questions at a time".to_owned(),
        unit: Unit::PerSecond,
        ours: rates,
        peer: Some(Peer { name: "Unbound, cached", values: peer_rates }),
        target: Target::AtLeastTimesPeer(0.5),
    };
    Ok(vec![
        rate,
        figure("bind", "cached answer, bound before the reply, p50", fresh, Target::AtMostOverPeer(200.0)),
        figure("bound", "cached answer, bound already, p50", bound, Target::AtMostTimesPeer(1.5)),
    ])
}
