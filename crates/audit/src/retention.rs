//! The task that deletes what is too old or too much.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use store::{Store, StoreError};
use tokio::time::sleep;

use crate::{AuditConfig, Shared};

/// The reason of an `audit_gap`: the database was too large, and a sandbox lost its oldest events before their time.
const DATABASE_FULL: &str = "database_full";
/// The state of sandboxes that have ended, as it is stored.
const KILLED: &str = "killed";
/// How many events one statement deletes, and how long others may write before the next.
const STEP: u32 = 2000;
const WORTHWHILE: u64 = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// The calendar's time, but never further on than the time that has passed: a clock that is set ahead must not delete
/// what is not old.
struct Calendar {
    started: Timestamp,
    /// By the clock of the machine's start, which nobody sets and which counts the time that the machine sleeps.
    since: SignedDuration,
}

impl Calendar {
    fn now(&self, clock: Timestamp, since_boot: SignedDuration) -> Timestamp {
        let passed = since_boot.saturating_sub(self.since);
        self.started.checked_add(passed).map_or(clock, |steady| steady.min(clock))
    }
}

fn since_boot() -> SignedDuration {
    let now = clock_gettime(ClockId::Boottime);
    SignedDuration::new(now.tv_sec, i32::try_from(now.tv_nsec).unwrap_or_default())
}

pub(crate) async fn run(shared: Arc<Shared>, store: Store, config: AuditConfig) {
    let calendar = Calendar { started: Timestamp::now(), since: since_boot() };
    loop {
        let now = calendar.now(Timestamp::now(), since_boot());
        if let Err(error) = prune(&shared, &store, &config, now).await {
            tracing::warn!(%error, "old events cannot be deleted");
        }
        if let Err(error) = forget_sandboxes(&store, &config, now).await {
            tracing::warn!(%error, "sandboxes that have ended cannot be forgotten");
        }
        sleep(config.prune_every.max(PAUSE)).await;
    }
}

async fn prune(
    shared: &Shared,
    store: &Store,
    config: &AuditConfig,
    now: Timestamp,
) -> Result<(), StoreError> {
    // A retention that reaches back before the calendar begins keeps everything.
    if let Ok(before) = now.checked_sub(config.retention) {
        while store.events().prune(before, STEP).await? >= u64::from(STEP) {
            sleep(PAUSE).await;
        }
    }
    if store.events().database_bytes().await? <= config.max_bytes {
        return Ok(());
    }
    // Events are not to pay for what is no event, however much that is.
    let others = store.events().other_bytes().await?;
    while store.events().database_bytes().await?.saturating_sub(others) > config.max_bytes {
        let Some((sandbox, count)) = store.events().prune_largest(STEP).await? else { return Ok(()) };
        shared.with(|queue, _| queue.gap(sandbox.map(Into::into), DATABASE_FULL, count));
        if count < WORTHWHILE {
            // If the largest has so few, it is not the events that fill the database.
            return Ok(());
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Forgets sandboxes that have ended so long ago that none of their events is left, and those with which an account takes
/// too much.
async fn forget_sandboxes(store: &Store, config: &AuditConfig, now: Timestamp) -> Result<(), StoreError> {
    if let Ok(before) = now.checked_sub(config.retention) {
        while store.sandboxes().prune(KILLED, before, STEP).await? >= u64::from(STEP) {
            sleep(PAUSE).await;
        }
    }
    while store.sandboxes().prune_beyond(KILLED, config.killed_bytes, STEP).await? >= u64::from(STEP) {
        sleep(PAUSE).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_ahead_makes_no_event_older_and_one_that_is_set_back_is_believed() {
        let hour = SignedDuration::from_hours(1);
        let started: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let calendar = Calendar { started, since: hour * 5 };
        let now = |clock| calendar.now(clock, hour * 6);
        assert_eq!(now(started + hour), started + hour);
        assert_eq!(now(started + hour * 10_000), started + hour);
        assert_eq!(now(started - hour), started - hour);
    }

    #[test]
    fn events_grow_older_while_the_machine_sleeps() {
        // The clock that goes on meanwhile (the steady one stands still).
        let [before, now] = [clock_gettime(ClockId::Boottime).tv_sec, since_boot().as_secs()];
        assert!((before..=clock_gettime(ClockId::Boottime).tv_sec).contains(&now));
        let week = SignedDuration::from_hours(7 * 24);
        let started: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let calendar = Calendar { started, since: SignedDuration::ZERO };
        assert_eq!(calendar.now(started + week, week), started + week);
    }
}
