//! The task that deletes what is too old or too much.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use store::{Store, StoreError};
use tokio::time::sleep;

use crate::{AuditConfig, Shared};

/// The reason of an `audit_gap`: the database was too large, and a sandbox lost its oldest events before their time.
const DATABASE_FULL: &str = "database_full";
/// How many events one statement deletes, and how long others may write before the next.
const STEP: u32 = 2000;
const WORTHWHILE: u64 = 10;
const PAUSE: Duration = Duration::from_millis(20);

pub(crate) async fn run(shared: Arc<Shared>, store: Store, config: AuditConfig) {
    loop {
        if let Err(error) = prune(&shared, &store, &config).await {
            tracing::warn!(%error, "old events cannot be deleted");
        }
        sleep(config.prune_every.max(PAUSE)).await;
    }
}

async fn prune(shared: &Shared, store: &Store, config: &AuditConfig) -> Result<(), StoreError> {
    // A retention that reaches back before the calendar begins keeps everything.
    if let Ok(before) = Timestamp::now().checked_sub(config.retention) {
        while store.events().prune(before, STEP).await? >= u64::from(STEP) {
            sleep(PAUSE).await;
        }
    }
    while store.events().bytes_used().await? > config.max_bytes {
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
