//! The task that writes what was recorded.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use store::{EventBatch, EventRecord, Store, StoreError};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    Shared,
    follow::Update,
    queue::{Change, Drained, Moment},
};

/// How many events one transaction holds. Other writes wait for it, so it is kept to a few milliseconds.
pub(crate) const BATCH: usize = 1000;

/// How often a batch is tried before it is given up, for any failure but a full disk.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How far the writer is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The queue's sequence up to which everything is written.
    pub(crate) written: u64,
    /// Why the current batch is not written yet.
    pub(crate) failing: Option<Arc<StoreError>>,
    pub(crate) closed: bool,
}

/// Where events are written to.
pub(crate) trait Sink: Send + Sync + 'static {
    fn write(&self, batch: &EventBatch) -> impl Future<Output = Result<(), StoreError>> + Send;
}

impl Sink for Store {
    async fn write(&self, batch: &EventBatch) -> Result<(), StoreError> {
        self.events().write(batch).await
    }
}

pub(crate) async fn run(shared: Arc<Shared>, sink: impl Sink, gather: Duration) {
    loop {
        wait_for_work(&shared, gather).await;
        let (taken, last) = {
            let mut queue = shared.queue.lock();
            (queue.take(Moment::now()), queue.is_stopping())
        };
        let drained = taken.sort();
        tell_followers(&shared, &drained);
        let Drained { events, changes, sequence } = drained;
        write_all(&shared, &sink, events, changes).await;
        shared.progress.send_modify(|progress| {
            progress.written = sequence;
            progress.closed = last;
        });
        if last {
            return;
        }
    }
}

async fn wait_for_work(shared: &Shared, gather: Duration) {
    let repeat = shared.queue.lock().next_repeat();
    match repeat.map(Instant::from_std) {
        None => shared.wake.notified().await,
        Some(end) => tokio::select! {
            () = shared.wake.notified() => {}
            () = sleep_until(end) => return,
        },
    }
    wait_until_due(shared, gather).await;
}

/// Gathers for a while, but no longer than until a batch is full or somebody waits.
async fn wait_until_due(shared: &Shared, gather: Duration) {
    let end = Instant::now() + gather;
    while !shared.queue.lock().is_due() {
        tokio::select! {
            () = shared.wake.notified() => {}
            () = sleep_until(end) => return,
        }
    }
}

fn tell_followers(shared: &Shared, drained: &Drained) {
    if shared.live.receiver_count() == 0 {
        return;
    }
    let events = drained.events.iter().map(|event| Update::Event(Arc::new(event.clone())));
    let changes = drained
        .changes
        .iter()
        .map(|change| Update::Changed { sandbox: change.owner.clone(), change: change.update.clone() });
    for update in events.chain(changes) {
        // Fails only if the last follower has just gone.
        let _ = shared.live.send(update);
    }
}

/// Writes in transactions of up to [`BATCH`] events.
async fn write_all(
    shared: &Shared,
    sink: &impl Sink,
    mut events: Vec<EventRecord>,
    mut changes: Vec<Change>,
) {
    while !events.is_empty() || !changes.is_empty() {
        let inserts = take(&mut events);
        // A change must not come before its event.
        let changes = if events.is_empty() { take(&mut changes) } else { Vec::new() };
        write(shared, sink, inserts, changes).await;
    }
}

fn take<T>(from: &mut Vec<T>) -> Vec<T> {
    let rest = from.split_off(from.len().min(BATCH));
    std::mem::replace(from, rest)
}

/// Writes one transaction, again and again as long as the disk is full, a few times otherwise.
async fn write(shared: &Shared, sink: &impl Sink, inserts: Vec<EventRecord>, changes: Vec<Change>) {
    let batch = EventBatch { inserts, updates: changes.iter().map(|change| change.update.clone()).collect() };
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let error = match sink.write(&batch).await {
            Ok(()) => {
                if attempt > 1 {
                    tracing::info!("events are stored again");
                }
                count(&shared.stored, batch.inserts.len());
                return shared.progress.send_modify(|progress| progress.failing = None);
            }
            Err(error) => Arc::new(error),
        };
        count(&shared.failures, 1);
        if attempt == 1 {
            tracing::warn!(%error, events = batch.inserts.len(), "events cannot be stored; they are tried again");
        }
        shared.progress.send_modify(|progress| progress.failing = Some(Arc::clone(&error)));
        let stopping = shared.queue.lock().is_stopping();
        if stopping || (attempt >= ATTEMPTS && !error.is_full()) {
            tracing::error!(%error, events = batch.inserts.len(), "events are given up");
            // The next batch begins anew; the last one's failure is what `close` reports.
            shared.progress.send_modify(|progress| {
                progress.failing.take_if(|_| !stopping);
            });
            return shared.with(|queue, _| queue.give_up(batch.inserts, changes));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn count(counter: &AtomicU64, number: usize) {
    counter.fetch_add(u64::try_from(number).unwrap_or(u64::MAX), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::atomic::AtomicU32};

    use jiff::Timestamp;
    use parking_lot::Mutex;
    use policy::{Decision, EventKind, FlowEvent, FlowTotals, NameSource, Protocol, Reason, Rule, Verdict};
    use store::Category;

    use super::*;
    use crate::{
        AuditConfig,
        queue::{STORE_FAILED, TOTALS_LOST},
    };

    /// A sink that refuses the first so many batches.
    struct Refusing {
        refusals: AtomicU32,
        full: bool,
        taken: Mutex<Vec<EventBatch>>,
    }

    impl Sink for Arc<Refusing> {
        async fn write(&self, batch: &EventBatch) -> Result<(), StoreError> {
            let left =
                self.refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            match left {
                Ok(_) if self.full => Err(StoreError::Full { action: "record events" }),
                Ok(_) => Err(StoreError::Cursor { cursor: "any failure".to_owned() }),
                Err(_) => {
                    self.taken.lock().push(batch.clone());
                    Ok(())
                }
            }
        }
    }

    /// Runs the writer over `events` events of two sandboxes until all are dealt with; returns the batches.
    async fn batches(refusals: u32, full: bool, events: u16) -> Vec<EventBatch> {
        let sink = Arc::new(Refusing { refusals: refusals.into(), full, taken: Mutex::default() });
        let shared = Arc::new(Shared::new(&AuditConfig::default(), 0));
        let task = tokio::spawn(run(Arc::clone(&shared), Arc::clone(&sink), Duration::ZERO));
        let (a, b): (Arc<str>, Arc<str>) = ("sbx-a".into(), "sbx-b".into());
        shared.with(|queue, now| {
            for n in 0..events {
                let record = EventRecord::new(0, Timestamp::UNIX_EPOCH, Category::Command, "command_started");
                queue.push(Some(if n % 2 == 0 { &a } else { &b }), record, now);
            }
        });
        let mut progress = shared.progress.subscribe();
        progress.wait_for(|progress| progress.written >= u64::from(events)).await.unwrap();
        shared.queue.lock().stop();
        shared.wake.notify_one();
        task.await.unwrap();
        sink.taken.lock().clone()
    }

    fn sizes(batches: &[EventBatch]) -> Vec<usize> {
        batches.iter().map(|batch| batch.inserts.len()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_written_in_order_and_in_batches() {
        let batches = batches(0, false, 1200).await;
        assert_eq!(sizes(&batches), [1000, 200]);
        let ids: Vec<_> = batches.iter().flat_map(|batch| &batch.inserts).map(|event| event.id).collect();
        assert!(ids.is_sorted());
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_kept_for_as_long_as_the_disk_is_full() {
        let batches = batches(100, true, 10).await;
        assert_eq!(sizes(&batches), [10]);
    }

    #[tokio::test(start_paused = true)]
    async fn events_that_the_store_does_not_take_are_given_up_and_counted() {
        let batches = batches(ATTEMPTS, false, 10).await;
        let gaps: Vec<_> = batches.iter().flat_map(|batch| &batch.inserts).collect();
        assert_eq!(gaps.len(), 2);
        for gap in gaps {
            assert_eq!(
                (gap.kind.as_ref(), gap.reason.as_deref(), gap.count),
                ("audit_gap", Some(STORE_FAILED), 5)
            );
        }
    }

    /// A store that fails now and then, and otherwise applies what it is given.
    #[derive(Default)]
    struct Moody {
        seed: AtomicU64,
        events: Mutex<BTreeMap<u64, EventRecord>>,
    }

    impl Moody {
        /// A number below `end`, the same in every run.
        fn random(&self, end: u64) -> u64 {
            let step = |seed: u64| {
                Some(seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
            };
            self.seed
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, step)
                .map_or(0, |seed| (seed >> 33) % end)
        }
    }

    impl Sink for Arc<Moody> {
        async fn write(&self, batch: &EventBatch) -> Result<(), StoreError> {
            if self.random(100) < 65 {
                return Err(StoreError::Cursor { cursor: "any failure".to_owned() });
            }
            let mut events = self.events.lock();
            for event in &batch.inserts {
                events.entry(event.id).or_insert_with(|| event.clone());
            }
            for update in &batch.updates {
                if let Some(event) = events.get_mut(&update.id()) {
                    update.apply(event);
                }
            }
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_decision_is_counted_once_however_the_store_fails() {
        let sink = Arc::new(Moody::default());
        let config =
            AuditConfig { queue: 500, fold_window: Duration::from_secs(30), ..AuditConfig::default() };
        let shared = Arc::new(Shared::new(&config, 0));
        let task = tokio::spawn(run(Arc::clone(&shared), Arc::clone(&sink), Duration::from_millis(50)));
        let (a, b): (Arc<str>, Arc<str>) = ("sbx-a".into(), "sbx-b".into());
        let mut decisions = 0;
        let mut open = Vec::new();
        for _ in 0..100_000 {
            let sandbox = if sink.random(3) == 0 { &a } else { &b };
            let (allowed, port) = (sink.random(4) == 0, u16::try_from(sink.random(30)).unwrap());
            let count = 1 + sink.random(3);
            decisions += if allowed { 1 } else { count };
            let flow = if allowed {
                flow(EventKind::EgressAllowed, port, 1)
            } else {
                flow(EventKind::EgressBlocked, port, count)
            };
            let id = shared.with(|queue, now| queue.flow(sandbox, flow, now));
            if allowed {
                open.push((Arc::clone(sandbox), id));
            }
            if sink.random(10) == 0
                && let Some((sandbox, id)) = open.pop()
            {
                shared.with(|queue, _| queue.finish(&sandbox, id, FlowTotals::default()));
            }
            if sink.random(30) == 0 {
                tokio::time::advance(Duration::from_millis(sink.random(1000))).await;
                tokio::task::yield_now().await;
            }
        }
        // Once the store is well again, what is left is written, and nothing is counted as lost any more.
        for _ in 0..50 {
            shared.queue.lock().request_flush();
            shared.wake.notify_one();
            sleep(Duration::from_secs(60)).await;
        }
        assert_eq!(shared.queue.lock().waiting(), 0);
        let events = sink.events.lock().clone();
        let is_gap = |event: &&EventRecord| event.kind == "audit_gap";
        let lost_totals = |event: &&EventRecord| event.reason.as_deref() == Some(TOTALS_LOST);
        let counted: u64 = events.values().filter(|event| !lost_totals(event)).map(|event| event.count).sum();
        assert_eq!(counted, decisions);
        let gaps: u64 = events.values().filter(is_gap).map(|event| event.count).sum();
        assert_eq!(gaps, shared.queue.lock().counters().dropped.values().sum::<u64>());
        assert!(gaps > 0 && gaps < decisions / 2, "{gaps} of {decisions}: the test tests nothing");
        assert!(events.values().any(|event| !is_gap(&event) && event.count > 3));
        task.abort();
    }

    fn flow(kind: EventKind, port: u16, count: u64) -> FlowEvent {
        FlowEvent {
            kind,
            verdict: Verdict { decision: Decision::Deny, rule: Rule::Default, reason: Reason::DefaultDeny },
            name: None,
            name_source: NameSource::None,
            address: None,
            port: Some(port),
            protocol: Protocol::Tcp,
            generation: 1,
            count,
        }
    }
}
