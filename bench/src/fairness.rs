//! What one sandbox notices of another that does nothing but try what it may not.

use std::{net::SocketAddr, thread};

use anyhow::{Context, Result};
use gate::GATE_V4;

use crate::{
    Settings,
    figure::{Figure, Peer, Target, Unit},
    gate_node::GateNode,
    load::{Client, Load, NAME},
};

/// How many refused connections a second one sandbox tries.
const RATE: u32 = 50_000;

/// Measures it.
pub(crate) fn measure(settings: &Settings, gate: &mut GateNode) -> Result<Vec<Figure>> {
    let other = gate.attach(NAME)?;
    let culprit = gate.attach(NAME)?;
    let client = |resolver| Client { resolver, milliseconds: settings.milliseconds() };
    let connect = Load::Connect { client: client(Some(SocketAddr::from((GATE_V4, 53)))) };
    let refused = Load::Refused { client: client(None), rate: RATE };
    let (mut idle, mut beside, mut rates, mut attempts) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
    for _ in 0..settings.rounds() {
        idle.push(connect.run_in(&other)?.p99.unwrap_or_default());
        thread::scope(|scope| -> Result<()> {
            let trying = scope.spawn(|| refused.run_in(&culprit));
            beside.push(connect.run_in(&other)?.p99.unwrap_or_default());
            let tried = trying.join().ok().context("the generator of refused connections")??;
            rates.push(tried.value);
            attempts += tried.p99.unwrap_or_default();
            Ok(())
        })?;
    }
    let times = settings.times(200);
    let proofs = (0..times).map(|_| gate.prove()).collect::<Result<Vec<_>>>()?;
    #[expect(clippy::cast_precision_loss, reason = "there are far fewer than 2^52 of them")]
    let accounted = gate.accounted()? as f64;
    let figure = |name: &str, what: &str, unit, ours, target| Figure {
        name: format!("fairness.{name}"),
        what: what.to_owned(),
        unit,
        ours,
        peer: None,
        target,
    };
    let connecting = "connecting, p99, beside a sandbox with 50 000 refused connections a second";
    let peer = Some(Peer { name: "the same, alone", values: idle });
    let connecting = figure("connect", connecting, Unit::Microseconds, beside, Target::AtMostTimesPeer(2.0));
    let lost = "refusals accounted for, of those that were made";
    let proof = "the proof that a sandbox's rules hold, p50";
    Ok(vec![
        Figure { peer, ..connecting },
        figure("refused", "refused connections of the other one", Unit::PerSecond, rates, Target::None),
        figure("accounted", lost, Unit::Times, vec![accounted / attempts], Target::AtLeast(1.0)),
        figure("proof", proof, Unit::Microseconds, proofs, Target::None),
    ])
}
