//! What a manager has done, and what there is now, in numbers.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use gate::GateStats;

use super::{Manager, State, end::Reason};

/// What a manager has done since it was started, and what there is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sandboxes that have not ended, by the word for their state; all three states are there.
    pub sandboxes: BTreeMap<&'static str, u64>,
    /// Sandboxes that were created and ran.
    pub created: u64,
    /// Creations that failed.
    pub not_created: u64,
    /// Sandboxes that were taken over from an earlier daemon.
    pub adopted: u64,
    /// Sandboxes that ended, by why: `requested`, `timeout`, `init_died`, `lost` (they could not be taken over from an
    /// earlier daemon), `rules_do_not_hold`. All reasons are there.
    pub ended: BTreeMap<&'static str, u64>,
    /// Connections to ports inside that are open.
    pub port_connections: u64,
    /// What their networks say.
    pub network: GateStats,
}

/// What is counted on the way.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) created: AtomicU64,
    pub(super) not_created: AtomicU64,
    pub(super) adopted: AtomicU64,
    ended: [AtomicU64; Reason::ALL.len()],
}

impl Counters {
    /// One more.
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// One sandbox more has ended.
    pub(super) fn ended(&self, reason: Reason) {
        for (_, counter) in Reason::ALL.iter().zip(&self.ended).filter(|(counted, _)| **counted == reason) {
            Self::add(counter);
        }
    }
}

impl Manager {
    /// What it has done since it was started, and what there is now.
    pub fn stats(&self) -> Stats {
        let counters = &self.inner.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut sandboxes: BTreeMap<_, _> =
            [State::Creating, State::Running, State::Paused].map(|state| (state.as_str(), 0)).into();
        for living in self.inner.living.lock().values() {
            // One that is being ended is none of these.
            if let Some(count) = sandboxes.get_mut(living.state().as_str()) {
                *count += 1;
            }
        }
        Stats {
            sandboxes,
            created: read(&counters.created),
            not_created: read(&counters.not_created),
            adopted: read(&counters.adopted),
            ended: Reason::ALL
                .iter()
                .map(|reason| reason.as_str())
                .zip(counters.ended.iter().map(read))
                .collect(),
            port_connections: self.port_connections(),
            network: self.inner.config.network.stats(),
        }
    }
}
