//! The bounded event pipeline: fold, persist, stream.
//!
//! ```text
//! data path ─ Recorder ─▶ queue (bounded, folds refusals) ─▶ writer task ─▶ store
//!                                                               └─▶ followers
//! ```
//!
//! - Recording is synchronous and never waits for the disk: it takes a lock for about a microsecond.
//! - Memory is bounded. When the queue is full, the oldest refusal of the sandbox with the most of them is dropped,
//!   and only if there is none the oldest other network event. Events of the life cycle are kept. What was dropped
//!   is counted, and an `audit_gap` event says so as soon as there is room. The detail of an event is at most
//!   [`MAX_DETAIL`] bytes.
//! - The disk is bounded too, by [`AuditConfig::retention`] and [`AuditConfig::max_bytes`].
//! - Identical refusals within ten seconds are one event whose count grows; once the event is stored, its count is
//!   written again every second. Allowed flows are never folded.
//! - An event's id is given when it is recorded and grows from event to event, whatever the clock does.

#![forbid(unsafe_code)]

mod detail;
mod follow;
mod queue;
mod recorder;
mod render;
mod retention;
mod writer;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;
use policy::EventKind;
use store::{Category, EventRecord, Store, StoreError};
use tokio::{
    sync::{Notify, broadcast, watch},
    task::AbortHandle,
};

pub use crate::{
    detail::MAX_DETAIL,
    follow::{Subscription, Update},
    queue::ATTEMPTS,
    recorder::Recorder,
};
use crate::{
    queue::{Limits, Moment, Queue},
    writer::Progress,
};

/// How the pipeline is bounded.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// How many events may wait to be written.
    pub queue: usize,
    /// How many refusals are remembered for folding at the same time.
    pub folds: usize,
    /// How long after its first occurrence a refusal is folded into it.
    pub fold_window: Duration,
    /// How long the writer gathers events before it writes them.
    pub gather: Duration,
    /// How long the growth of a written event's count may wait. Each time it is written, it is a link of the chain.
    pub repeat_every: Duration,
    /// How old a stored event may become, and how long a sandbox that has ended is remembered.
    pub retention: Duration,
    /// How many bytes of records of ended sandboxes of one account are remembered, the newest ones.
    pub killed_bytes: u64,
    /// How much the events may take in the database before the sandbox with the most events loses its oldest.
    pub max_bytes: u64,
    /// How often the two are looked after.
    pub prune_every: Duration,
    /// How far a follower may lag before it misses events.
    pub follower_lag: usize,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            queue: 16 * 1024,
            folds: 16 * 1024,
            fold_window: Duration::from_secs(10),
            gather: Duration::from_millis(50),
            repeat_every: Duration::from_secs(1),
            retention: Duration::from_secs(7 * 24 * 60 * 60),
            killed_bytes: 64 << 20,
            max_bytes: 2 << 30,
            prune_every: Duration::from_secs(5 * 60),
            follower_lag: 4096,
        }
    }
}

/// What the pipeline has done since it was started. All but `waiting` only grow.
///
/// Every decision that reaches a recorder that is switched on ends in exactly one of: the `count` of a stored event,
/// the `count` of a stored `audit_gap`, or something that is still waiting.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditStats {
    /// Decisions, repeats included, by the words of [`EventKind`]; those of recorders that are switched off, too.
    pub decisions: BTreeMap<&'static str, u64>,
    /// Events that were taken in.
    pub recorded: u64,
    /// Occurrences that were counted with an earlier event instead of being one.
    pub folded: u64,
    /// Events that were written, those of gaps included.
    pub stored: u64,
    /// Occurrences that were not recorded, by cause. The causes are the reasons of `audit_gap` events:
    /// - `queue_full`: events came faster than the disk takes them;
    /// - `store_failed`: the store refused them for other reasons than a full disk;
    /// - `totals_lost`: a flow has its event, but not its bytes and duration;
    /// - `attempt_limit`: refused attempts of one sandbox beyond [`ATTEMPTS`] within ten seconds;
    /// - `database_full`: stored events that were deleted before their time;
    /// - those of the sources, such as `kernel_log_limit`.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Transactions that failed; each is tried again or counted as `store_failed`.
    pub write_failures: u64,
    /// Events and changes in memory that are not written yet.
    pub waiting: u64,
}

/// Why the pipeline cannot do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// The store does not take the events. They are kept, within the bounds, and tried again.
    #[error("the events cannot be stored")]
    Store(#[source] Arc<StoreError>),
    /// The pipeline was closed.
    #[error("the audit was closed")]
    Closed,
}

/// The running pipeline. Clones share it; it stops when the last clone and the last recorder are gone. Call
/// [`Audit::close`] first, or what is still in the queue is lost.
#[derive(Clone, Debug)]
pub struct Audit {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What recorders, followers and tasks have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    /// There is something to write, or more than before.
    wake: Notify,
    progress: watch::Sender<Progress>,
    live: broadcast::Sender<Update>,
    /// How many decisions of each [`EventKind`] there were.
    decisions: [AtomicU64; EventKind::ALL.len()],
    /// Events that were written.
    stored: AtomicU64,
    /// Writes that failed.
    failures: AtomicU64,
}

impl Audit {
    /// Starts the pipeline into `store`. Must be called within a tokio runtime, which then runs its tasks.
    ///
    /// # Errors
    /// [`AuditError::Store`] if the id of the last event cannot be read.
    pub async fn start(store: Store, config: AuditConfig) -> Result<Self, AuditError> {
        let last_id = store.events().last_id().await.map_err(|e| AuditError::Store(Arc::new(e)))?;
        let shared = Arc::new(Shared::new(&config, last_id));
        let writer = tokio::spawn(writer::run(Arc::clone(&shared), store.clone(), config.gather));
        let pruner = tokio::spawn(retention::run(Arc::clone(&shared), store, config));
        let tasks = [writer.abort_handle(), pruner.abort_handle()];
        Ok(Self { inner: Arc::new(Inner { shared, tasks }) })
    }

    /// What records the events of one sandbox. With `enabled` false it keeps those of the life cycle only.
    pub fn recorder(&self, sandbox: &str, enabled: bool) -> Recorder {
        Recorder::new(self.clone(), sandbox.into(), enabled)
    }

    /// Records something about the service itself, such as `key_created`.
    pub fn admin(&self, kind: &'static str, detail: serde_json::Value) {
        let detail = detail::bounded(detail);
        self.inner.shared.with(|queue, now| {
            let mut record = EventRecord::new(0, now.time, Category::Admin, kind);
            record.detail = detail;
            queue.push(None, record, now);
        });
    }

    /// Follows the events from now on: all of them, or those of one sandbox.
    pub fn subscribe(&self, sandbox: Option<String>) -> Subscription {
        Subscription::new(self.inner.shared.live.subscribe(), sandbox)
    }

    /// What the pipeline has done since it was started.
    pub fn stats(&self) -> AuditStats {
        let shared = &self.inner.shared;
        let (counters, waiting) = {
            let queue = shared.queue.lock();
            (queue.counters().clone(), queue.waiting())
        };
        let decisions = EventKind::ALL
            .into_iter()
            .zip(&shared.decisions)
            .map(|(kind, count)| (kind.as_str(), count.load(Ordering::Relaxed)));
        AuditStats {
            decisions: decisions.collect(),
            recorded: counters.recorded,
            folded: counters.folded,
            stored: shared.stored.load(Ordering::Relaxed),
            dropped: counters.dropped,
            write_failures: shared.failures.load(Ordering::Relaxed),
            waiting: u64::try_from(waiting).unwrap_or(u64::MAX),
        }
    }

    /// Waits until everything recorded before is in the store.
    ///
    /// # Errors
    /// [`AuditError::Store`] as soon as a write fails; the events are tried again all the same.
    pub async fn flush(&self) -> Result<(), AuditError> {
        let shared = &self.inner.shared;
        let mut progress = shared.progress.subscribe();
        let target = shared.queue.lock().request_flush();
        shared.wake.notify_one();
        loop {
            {
                let now = progress.borrow_and_update();
                if now.written >= target {
                    return Ok(());
                }
                if now.closed {
                    return Err(AuditError::Closed);
                }
                if let Some(error) = &now.failing {
                    return Err(AuditError::Store(Arc::clone(error)));
                }
            }
            progress.changed().await.map_err(|_| AuditError::Closed)?;
        }
    }

    /// Writes what is in the queue, once, and stops. What is recorded later is lost.
    ///
    /// # Errors
    /// [`AuditError::Store`] if something could not be written.
    pub async fn close(&self) -> Result<(), AuditError> {
        let shared = &self.inner.shared;
        let mut progress = shared.progress.subscribe();
        shared.queue.lock().stop();
        shared.wake.notify_one();
        let last = progress.wait_for(|progress| progress.closed).await.map_err(|_| AuditError::Closed)?;
        match &last.failing {
            Some(error) => Err(AuditError::Store(Arc::clone(error))),
            None => Ok(()),
        }
    }
}

impl Shared {
    fn new(config: &AuditConfig, last_id: u64) -> Self {
        let limits = Limits {
            queue: config.queue,
            folds: config.folds,
            fold_window: config.fold_window,
            repeat_every: config.repeat_every,
        };
        Self {
            queue: Mutex::new(Queue::new(limits, last_id)),
            wake: Notify::new(),
            progress: watch::Sender::default(),
            live: broadcast::Sender::new(config.follower_lag.max(1)),
            decisions: Default::default(),
            stored: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// Counts decisions of a kind.
    pub(crate) fn count(&self, kind: EventKind, number: u64) {
        let counters = EventKind::ALL.into_iter().zip(&self.decisions);
        for (_, counter) in counters.filter(|(counted, _)| *counted == kind) {
            counter.fetch_add(number, Ordering::Relaxed);
        }
    }

    /// Changes the queue, and wakes the writer if that gave it a reason.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Queue, Moment) -> T) -> T {
        let now = Moment::now();
        let (result, wake) = {
            let mut queue = self.queue.lock();
            let (before, timed) = (queue.pending(), queue.next_repeat().is_some());
            let result = change(&mut queue, now);
            let after = queue.pending();
            let is_first = (before == 0 && after > 0) || (!timed && queue.next_repeat().is_some());
            (result, is_first || (before < writer::BATCH && after >= writer::BATCH))
        };
        if wake {
            self.wake.notify_one();
        }
        result
    }
}

impl Moment {
    fn now() -> Self {
        // The writer's timers are tokio's, which tests may stop.
        Self { instant: tokio::time::Instant::now().into_std(), time: Timestamp::now() }
    }
}
