//! The proxied path against HAProxy, and the address-entry path against a routed veth.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use gate::GATE_V4;
use netns::NetNs;

use crate::{
    Settings,
    child::{self, Child},
    fairness,
    figure::{Figure, Peer, Target, Unit},
    gate_node::GateNode,
    load::{Client, Direction, Load, NAME, Outcome},
    network::{Network, SERVER},
    peers::Haproxy,
    resolver,
};

/// Measures what is asked for of it.
pub(crate) fn measure(settings: &Settings) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if !["relay", "address", "fairness", "resolver"].iter().any(|group| settings.wants(group)) {
        return Ok(figures);
    }
    if settings.realtime {
        child::above_others()?;
    }
    let network = Network::build()?;
    let mut world = Child::start(&network.world, child::own(["world"])?)?;
    world.hear().context("starting the world's servers")?;
    let mut gate = GateNode::start(&network)?;
    if settings.wants("relay") {
        let _haproxy = Haproxy::start(&network)?;
        let sandbox = gate.attach(NAME)?;
        let ours = Side { namespace: &sandbox, resolver: Some(SocketAddr::from((GATE_V4, 53))) };
        let peer = Side { namespace: &network.proxied.client, resolver: None };
        let path = Path { group: "relay", what: "relay with SNI peek", peer: "HAProxy" };
        for contest in RELAYED {
            figures.extend(contest.hold(settings, &path, &ours, &peer)?);
        }
    }
    if settings.wants("address") {
        let sandbox = gate.attach(&SERVER.to_string())?;
        let side = |namespace| Side { namespace, resolver: None };
        let (ours, plain) = (side(&sandbox), side(&network.routed.client));
        let masqueraded = side(&network.masqueraded.client);
        let path = Path { group: "address", what: "address entry", peer: "routed veth" };
        for contest in ADDRESSED {
            figures.extend(contest.hold(settings, &path, &ours, &plain)?);
        }
        // What is possible with private addresses, which somebody has to track and translate.
        let ours_again = Path { group: "address.tracked", peer: "masqueraded veth", ..path };
        let what = "masqueraded veth";
        let theirs = Path { group: "address.masqueraded", what, peer: "routed veth" };
        for (path, one, other) in [(ours_again, &ours, &masqueraded), (theirs, &masqueraded, &plain)] {
            for contest in ADDRESSED {
                let contest = Contest { target: Target::None, ..*contest };
                figures.extend(contest.hold(settings, &path, one, other)?);
            }
        }
    }
    if settings.wants("fairness") {
        figures.extend(fairness::measure(settings, &mut gate)?);
    }
    if settings.wants("resolver") {
        figures.extend(resolver::measure(settings, &network, &mut gate)?);
    }
    Ok(figures)
}

/// The same load on both sides.
struct Contest {
    name: &'static str,
    what: &'static str,
    kind: Kind,
    target: Target,
}

#[derive(Clone, Copy)]
enum Kind {
    Streams(usize, Direction),
    Connections(usize),
    FirstByte,
}

const RELAYED: &[Contest] = &[
    Contest {
        name: "streams8.up",
        what: "8 streams up",
        kind: Kind::Streams(8, Direction::Up),
        target: Target::AtLeastTimesPeer(1.15),
    },
    Contest {
        name: "streams8.down",
        what: "8 streams down",
        kind: Kind::Streams(8, Direction::Down),
        target: Target::AtLeastTimesPeer(1.15),
    },
    Contest {
        name: "streams1.up",
        what: "1 stream up",
        kind: Kind::Streams(1, Direction::Up),
        target: Target::AtLeastTimesPeer(1.05),
    },
    Contest {
        name: "streams1.down",
        what: "1 stream down",
        kind: Kind::Streams(1, Direction::Down),
        target: Target::AtLeastTimesPeer(1.05),
    },
    Contest {
        name: "connections16",
        what: "new connections, 16 clients",
        kind: Kind::Connections(16),
        target: Target::AtLeastTimesPeer(0.95),
    },
    Contest {
        name: "connections64",
        what: "new connections, 64 clients",
        kind: Kind::Connections(64),
        target: Target::AtLeastTimesPeer(0.95),
    },
    Contest {
        name: "first-byte",
        what: "first byte, p50",
        kind: Kind::FirstByte,
        target: Target::AtMostTimesPeer(1.1),
    },
];

const ADDRESSED: &[Contest] = &[
    Contest {
        name: "streams8.up",
        what: "8 streams up",
        kind: Kind::Streams(8, Direction::Up),
        target: Target::AtLeastTimesPeer(0.95),
    },
    Contest {
        name: "streams8.down",
        what: "8 streams down",
        kind: Kind::Streams(8, Direction::Down),
        target: Target::AtLeastTimesPeer(0.95),
    },
    Contest {
        name: "connections16",
        what: "new connections, 16 clients",
        kind: Kind::Connections(16),
        // Each is tracked and translated twice, and is an event; a plain router does none of that.
        target: Target::None,
    },
];

/// What is measured, and beside what.
struct Path {
    group: &'static str,
    what: &'static str,
    peer: &'static str,
}

/// Where a load comes from.
struct Side<'a> {
    namespace: &'a NetNs,
    resolver: Option<SocketAddr>,
}

impl Kind {
    /// How many rounds, and the milliseconds of each. How many connections begin in a second depends on which of many threads
    /// are put together on a processor, which changes from second to second: more rounds, and shorter ones, even that out.
    fn rounds(self, settings: &Settings) -> (usize, u64) {
        match self {
            Self::Streams(..) | Self::FirstByte => (settings.rounds(), settings.milliseconds()),
            Self::Connections(_) => (8 * settings.rounds(), settings.milliseconds() / 4),
        }
    }
}

impl Side<'_> {
    fn run(&self, kind: Kind, milliseconds: u64) -> Result<Outcome> {
        let client = Client { resolver: self.resolver, milliseconds };
        let load = match kind {
            Kind::Streams(parallel, direction) => Load::Streams { client, parallel, direction },
            Kind::Connections(parallel) => Load::Connections { client, parallel },
            Kind::FirstByte => Load::FirstByte { client },
        };
        load.run_in(self.namespace)
    }
}

impl Contest {
    /// Round after round, ours and the peer's in turn, so that whatever else the machine does meets both.
    fn hold(
        &self,
        settings: &Settings,
        path: &Path,
        ours: &Side<'_>,
        peer: &Side<'_>,
    ) -> Result<Option<Figure>> {
        let name = format!("{}.{}", path.group, self.name);
        if !settings.wants(&name) {
            return Ok(None);
        }
        let (mut our_values, mut peer_values) = (Vec::new(), Vec::new());
        let (rounds, milliseconds) = self.kind.rounds(settings);
        for round in 0..rounds {
            // Who begins changes: the second may profit from what the first has warmed.
            let order = if round % 2 == 0 { [true, false] } else { [false, true] };
            for is_ours in order {
                let (side, values) = if is_ours { (ours, &mut our_values) } else { (peer, &mut peer_values) };
                let outcome = side.run(self.kind, milliseconds).with_context(|| name.clone())?;
                if outcome.failed > 0 {
                    let who = if is_ours { "ours" } else { path.peer };
                    anstream::eprintln!("{name}: {who}: {} attempts failed", outcome.failed);
                }
                values.push(outcome.value);
            }
        }
        Ok(Some(Figure {
            name,
            what: format!("{}, {}", path.what, self.what),
            unit: match self.kind {
                Kind::Streams(..) => Unit::GigabitsPerSecond,
                Kind::Connections(_) => Unit::PerSecond,
                Kind::FirstByte => Unit::Microseconds,
            },
            ours: our_values,
            peer: Some(Peer { name: path.peer, values: peer_values }),
            target: self.target,
        }))
    }
}
