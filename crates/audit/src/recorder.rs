//! What the data path records with.

use std::{borrow::Cow, sync::Arc};

use policy::{FlowEvent, FlowTotals};
use serde_json::Value;
use store::{Category, EventRecord};

use crate::{Audit, detail};

/// Records the events of one sandbox. Every method returns at once: none waits for the store.
#[derive(Clone, Debug)]
pub struct Recorder {
    audit: Audit,
    sandbox: Arc<str>,
    enabled: bool,
}

impl Recorder {
    pub(crate) fn new(audit: Audit, sandbox: Arc<str>, enabled: bool) -> Self {
        Self { audit, sandbox, enabled }
    }

    /// The sandbox's id.
    pub fn sandbox(&self) -> &str {
        &self.sandbox
    }

    /// Records a decision about a flow. Returns the id for [`Recorder::finish`]; that of a folded refusal is the id
    /// of the event it was folded into, that of a switched-off recorder is 0.
    pub fn flow(&self, event: FlowEvent) -> u64 {
        self.audit.inner.shared.count(event.kind, event.count.max(1));
        if !self.enabled {
            return 0;
        }
        self.audit.inner.shared.with(|queue, now| queue.flow(&self.sandbox, event, now))
    }

    /// Adds to an event what its flow amounted to in the end.
    pub fn finish(&self, id: u64, totals: FlowTotals) {
        if id != 0 {
            self.audit.inner.shared.with(|queue, _| queue.finish(&self.sandbox, id, totals));
        }
    }

    /// Records a step in the sandbox's life, such as `sandbox_created`, `sandbox_killed`, `sandbox_timeout`,
    /// `sandbox_adopted` or `policy_changed`. Kept even if the audit of the sandbox is switched off.
    pub fn lifecycle(&self, kind: impl Into<Cow<'static, str>>, detail: Value) {
        self.event(Category::Lifecycle, kind, detail);
    }

    /// Records something that was asked for and refused, such as `policy_change_refused`. As [`Self::lifecycle`], but of
    /// more than [`ATTEMPTS`] within ten seconds only the number is kept, in an `audit_gap` with the reason
    /// `attempt_limit`: who may ask is not who may fill the disk.
    ///
    /// [`ATTEMPTS`]: crate::ATTEMPTS
    pub fn attempt(&self, kind: impl Into<Cow<'static, str>>, detail: Value) {
        let detail = detail::bounded(detail);
        self.audit.inner.shared.with(|queue, now| {
            let mut record = EventRecord::new(0, now.time, Category::Lifecycle, kind);
            record.detail = detail;
            queue.attempt(&self.sandbox, record, now);
        });
    }

    /// Records an activity of any other kind, such as a command.
    pub fn event(&self, category: Category, kind: impl Into<Cow<'static, str>>, detail: Value) {
        if !self.enabled && !category.is_always_recorded() {
            return;
        }
        let detail = detail::bounded(detail);
        self.audit.inner.shared.with(|queue, now| {
            let mut record = EventRecord::new(0, now.time, category, kind);
            record.detail = detail;
            queue.push(Some(&self.sandbox), record, now);
        });
    }

    /// Says that `count` events could not be recorded at their source, such as `kernel_log_overrun`.
    pub fn gap(&self, what: &'static str, count: u64) {
        if self.enabled && count > 0 {
            self.audit.inner.shared.with(|queue, _| queue.gap(Some(Arc::clone(&self.sandbox)), what, count));
        }
    }
}
