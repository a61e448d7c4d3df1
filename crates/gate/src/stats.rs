//! What a gate has done, and does now, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a gate has done since it was started, and how much there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateStats {
    /// Sandboxes that are attached.
    pub sandboxes: u64,
    /// Connections that go through the proxies.
    pub proxied_flows: u64,
    /// Flows that go by wires.
    pub wired_flows: u64,
    /// What came to the resolvers, whatever became of it.
    pub dns_queries: u64,
    /// How often it was proved that the rules of a sandbox hold.
    pub proofs: u64,
    /// How often they did not. The sandbox was cut off then.
    pub failed_proofs: u64,
}

/// What all sandboxes count together.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) dns_queries: AtomicU64,
    pub(crate) proofs: AtomicU64,
    pub(crate) failed_proofs: AtomicU64,
}

impl Counters {
    /// One more.
    pub(crate) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The numbers, with those that are counted elsewhere left at 0.
    pub(crate) fn read(&self) -> GateStats {
        GateStats {
            dns_queries: self.dns_queries.load(Ordering::Relaxed),
            proofs: self.proofs.load(Ordering::Relaxed),
            failed_proofs: self.failed_proofs.load(Ordering::Relaxed),
            ..GateStats::default()
        }
    }
}
