//! A figure: ours, the peer's, what it should be.

use serde::Serialize;

use crate::statistics::median;

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    /// Its name in the history and for `--only`.
    pub(crate) name: String,
    /// What was measured, for people.
    pub(crate) what: String,
    pub(crate) unit: Unit,
    /// Our values, one for each round.
    pub(crate) ours: Vec<f64>,
    /// The peer and its values.
    pub(crate) peer: Option<Peer>,
    pub(crate) target: Target,
}

/// What we are measured against.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f64>,
}

/// What the values are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "us")]
    Microseconds,
    #[serde(rename = "/s")]
    PerSecond,
    #[serde(rename = "Gbit/s")]
    GigabitsPerSecond,
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    #[serde(rename = "MiB")]
    Mebibytes,
    #[serde(rename = "x")]
    Times,
}

/// What it should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    /// At most this.
    AtMost(f64),
    /// At most this, and not more than the peer.
    AtMostAndPeer(f64),
    /// At least this.
    AtLeast(f64),
    /// At least so many times the peer.
    AtLeastTimesPeer(f64),
    /// At most so many times the peer.
    AtMostTimesPeer(f64),
    /// At most so much more than the peer.
    AtMostOverPeer(f64),
    /// For information.
    None,
}

impl Figure {
    /// The median of our values.
    pub(crate) fn our_median(&self) -> f64 {
        median(&self.ours)
    }

    /// The median of the peer's.
    pub(crate) fn peer_median(&self) -> Option<f64> {
        self.peer.as_ref().map(|peer| median(&peer.values))
    }

    /// Ours in terms of the peer's.
    pub(crate) fn ratio(&self) -> Option<f64> {
        self.peer_median().filter(|peer| *peer > 0.0).map(|peer| self.our_median() / peer)
    }

    /// Whether it is what it should be; `None` if there is no target, or its peer was not measured.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let ours = self.our_median();
        let peer = self.peer_median();
        match self.target {
            Target::AtMost(most) => Some(ours <= most),
            Target::AtMostAndPeer(most) => peer.map(|peer| ours <= most && ours <= peer),
            Target::AtLeast(least) => Some(ours >= least),
            Target::AtLeastTimesPeer(times) => peer.map(|peer| ours >= times * peer),
            Target::AtMostTimesPeer(times) => peer.map(|peer| ours <= times * peer),
            Target::AtMostOverPeer(more) => peer.map(|peer| ours - peer <= more),
            Target::None => None,
        }
    }

    /// The target, for people.
    pub(crate) fn target_text(&self) -> String {
        let unit = self.unit.as_str();
        let peer = self.peer.as_ref().map_or("peer", |peer| peer.name);
        match self.target {
            Target::AtMost(most) => format!("≤ {most} {unit}"),
            Target::AtMostAndPeer(most) => format!("≤ {most} {unit}, ≤ {peer}"),
            Target::AtLeast(least) => format!("≥ {least} {unit}"),
            Target::AtLeastTimesPeer(times) => format!("≥ {times} × {peer}"),
            Target::AtMostTimesPeer(times) => format!("≤ {times} × {peer}"),
            Target::AtMostOverPeer(more) => format!("≤ {peer} + {more} {unit}"),
            Target::None => String::new(),
        }
    }
}

impl Unit {
    /// The unit's sign.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::PerSecond => "/s",
            Self::GigabitsPerSecond => "Gbit/s",
            Self::MegabytesPerSecond => "MB/s",
            Self::Mebibytes => "MiB",
            Self::Times => "×",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(ours: f64, peer: Option<f64>, target: Target) -> Figure {
        let peer = peer.map(|value| Peer { name: "peer", values: vec![value] });
        let (name, what) = ("figure".to_owned(), "a figure".to_owned());
        Figure { name, what, unit: Unit::Milliseconds, ours: vec![ours], peer, target }
    }

    #[test]
    fn a_target_is_met_by_what_keeps_to_it_and_missed_by_what_does_not() {
        let met = |ours, target| figure(ours, Some(10.0), target).is_met();
        for (good, bad, target) in [
            (11.5, 11.4, Target::AtLeastTimesPeer(1.15)),
            (11.0, 11.1, Target::AtMostTimesPeer(1.1)),
            (10.2, 10.3, Target::AtMostOverPeer(0.2)),
            (5.0, 6.0, Target::AtMost(5.0)),
            (6.0, 5.0, Target::AtLeast(6.0)),
            (10.0, 10.1, Target::AtMostAndPeer(15.0)),
            (9.0, 9.5, Target::AtMostAndPeer(9.0)),
        ] {
            assert_eq!(met(good, target), Some(true), "{target:?}");
            assert_eq!(met(bad, target), Some(false), "{target:?}");
        }
    }

    #[test]
    fn without_the_peer_nothing_is_claimed() {
        assert_eq!(figure(1.0, None, Target::AtLeastTimesPeer(1.0)).is_met(), None);
        assert_eq!(figure(1.0, None, Target::AtMostAndPeer(2.0)).is_met(), None);
    }
}
