//! The task that writes what was recorded.

use std::{future::Future, sync::Arc, time::Duration};

use store::{EventBatch, EventUpdate, Store, StoreError};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    Shared,
    follow::Update,
    queue::{Drained, Moment, Owner},
};

/// How many events one transaction holds. Other writes wait for it, so it is kept to a few milliseconds.
pub(crate) const BATCH: usize = 500;

/// The reason of an `audit_gap`: the store refused the events.
const STORE_FAILED: &str = "store_failed";
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
        shared.wake.notified().await;
        wait_until_due(&shared, gather).await;
        let (taken, last) = {
            let mut queue = shared.queue.lock();
            (queue.take(Moment::now()), queue.is_stopping())
        };
        let drained = taken.sort();
        tell_followers(&shared, &drained);
        let Drained { events, changes, sequence } = drained;
        write_all(&shared, &sink, EventBatch { inserts: events, updates: strip(changes) }).await;
        shared.progress.send_modify(|progress| {
            progress.written = sequence;
            progress.closed = last;
        });
        if last {
            return;
        }
    }
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
        .map(|(sandbox, change)| Update::Changed { sandbox: sandbox.clone(), change: change.clone() });
    for update in events.chain(changes) {
        // Fails only if the last follower has just gone.
        let _ = shared.live.send(update);
    }
}

/// Writes in transactions of up to [`BATCH`] events.
async fn write_all(shared: &Shared, sink: &impl Sink, mut all: EventBatch) {
    while !all.is_empty() {
        let inserts = take(&mut all.inserts);
        // A change must not come before its event.
        let updates = if all.inserts.is_empty() { take(&mut all.updates) } else { Vec::new() };
        write(shared, sink, EventBatch { inserts, updates }).await;
    }
}

fn take<T>(from: &mut Vec<T>) -> Vec<T> {
    let rest = from.split_off(from.len().min(BATCH));
    std::mem::replace(from, rest)
}

/// Writes one transaction, again and again as long as the disk is full, a few times otherwise.
async fn write(shared: &Shared, sink: &impl Sink, batch: EventBatch) {
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let error = match sink.write(&batch).await {
            Ok(()) => {
                if attempt > 1 {
                    tracing::info!("events are stored again");
                }
                return shared.progress.send_modify(|progress| progress.failing = None);
            }
            Err(error) => Arc::new(error),
        };
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
            return give_up(shared, batch);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Counts what is lost, each event with what it stood for.
fn give_up(shared: &Shared, batch: EventBatch) {
    shared.with(|queue, _| {
        for event in batch.inserts {
            queue.gap(event.sandbox_id.map(Into::into), STORE_FAILED, event.count);
        }
    });
}

fn strip(changes: Vec<(Owner, EventUpdate)>) -> Vec<EventUpdate> {
    changes.into_iter().map(|(_, change)| change).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use jiff::Timestamp;
    use parking_lot::Mutex;
    use store::{Category, EventRecord};

    use super::*;
    use crate::AuditConfig;

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
        assert_eq!(sizes(&batches), [500, 500, 200]);
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
}
