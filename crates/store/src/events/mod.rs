//! The audit events.

mod adopt;
mod chain;
mod columns;
mod prune;
mod query;
mod record;
mod statement;
mod verify;
mod write;

use std::collections::BTreeSet;

use jiff::Timestamp;

use self::chain::SERVICE;

pub(crate) use self::adopt::run as adopt;
pub use self::{
    chain::{ChainHash, ChainHashError},
    query::{EventPage, EventQuery, MAX_PAGE, Order},
    record::{Category, EventRecord, EventRule, RuleKind},
    verify::{ChainReport, Finding, Problem},
};
use crate::{Inner, StoreError, error::doing};

/// What one transaction writes: first the new events, then the changes.
#[derive(Clone, Debug, Default)]
pub struct EventBatch {
    /// New events. An id that is stored already is left as it is, so a batch may be written again.
    pub inserts: Vec<EventRecord>,
    /// Changes to stored events, or to those of `inserts`.
    pub updates: Vec<EventUpdate>,
}

impl EventBatch {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.inserts.is_empty() && self.updates.is_empty()
    }
}

/// A change to a stored event. Events that are not there any more are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventUpdate {
    /// It happened again.
    Repeated {
        /// The event.
        id: u64,
        /// How often by now.
        count: u64,
        /// When last.
        last_time: Timestamp,
    },
    /// Its flow ended.
    Finished {
        /// The event.
        id: u64,
        /// Bytes from the sandbox.
        bytes_up: u64,
        /// Bytes to the sandbox.
        bytes_down: u64,
        /// How long it was open.
        duration_ms: u64,
    },
}

impl EventUpdate {
    /// The event that it changes.
    pub fn id(&self) -> u64 {
        match self {
            Self::Repeated { id, .. } | Self::Finished { id, .. } => *id,
        }
    }

    /// Makes the change to a copy of its event.
    pub fn apply(&self, event: &mut EventRecord) {
        match *self {
            Self::Repeated { count, last_time, .. } => {
                event.count = count;
                event.last_time = Some(last_time);
            }
            Self::Finished { bytes_up, bytes_down, duration_ms, .. } => {
                event.bytes_up = Some(bytes_up);
                event.bytes_down = Some(bytes_down);
                event.duration_ms = Some(duration_ms);
            }
        }
    }
}

/// The table of audit events.
#[derive(Clone, Copy, Debug)]
pub struct Events<'a> {
    pub(crate) store: &'a Inner,
}

impl Events<'_> {
    /// Writes a batch in one transaction.
    pub async fn write(&self, batch: &EventBatch) -> Result<(), StoreError> {
        write::run(&self.store.writer, batch).await
    }

    /// A page of the events that `query` asks for.
    ///
    /// # Errors
    /// [`StoreError::Cursor`] if its cursor is not one of this query's.
    pub async fn query(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        query::run(&self.store.readers, query).await
    }

    /// The largest id there is; 0 if there is none.
    pub async fn last_id(&self) -> Result<u64, StoreError> {
        let id: Option<i64> = sqlx::query_scalar("SELECT max(id) FROM events")
            .fetch_one(&self.store.readers)
            .await
            .map_err(doing("find the last event"))?;
        Ok(id.and_then(|id| u64::try_from(id).ok()).unwrap_or(0))
    }

    /// Deletes up to `limit` events that are older than `before`: of each sandbox its first events, up to the first
    /// that is not (the clock may have jumped in between). Says how many; fewer than `limit` means done.
    pub async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        prune::older_than(&self.store.writer, before, limit).await
    }

    /// Deletes the oldest events, up to `limit`, of the sandbox that has the most: one that makes noise pushes out
    /// its own past, not that of others. Says whose and how many; `None` if there are no events.
    pub async fn prune_largest(&self, limit: u32) -> Result<Option<(Option<String>, u64)>, StoreError> {
        prune::largest(&self.store.writer, limit).await
    }

    /// Whose events there are chains of: sandboxes, and `None` for the service itself, which comes first.
    pub async fn chains(&self) -> Result<Vec<Option<String>>, StoreError> {
        let streams = verify::streams(&self.store.readers).await?;
        Ok(streams.into_iter().map(|stream| Some(stream).filter(|stream| stream != SERVICE)).collect())
    }

    /// Checks the chain of a sandbox's events, or of the service's own; `None` if there is none. The memory it takes
    /// does not grow with the number of events.
    ///
    /// The report's `met` names those of the `wanted` hashes that are links of the chain.
    ///
    /// # Errors
    /// [`StoreError::Unchained`] if the events of an older version have not been chained yet.
    pub async fn verify(
        &self,
        sandbox: Option<&str>,
        wanted: &BTreeSet<ChainHash>,
    ) -> Result<Option<ChainReport>, StoreError> {
        verify::run(&self.store.readers, sandbox.unwrap_or(SERVICE), wanted).await
    }

    /// The bytes that the events have in use, with everything that belongs to them. What else is in the database is
    /// measured by reading all of it, so whoever asks often looks at [`Self::database_bytes`] first.
    pub async fn bytes_used(&self) -> Result<u64, StoreError> {
        let others = self.other_bytes().await?;
        Ok(self.database_bytes().await?.saturating_sub(others))
    }

    /// The bytes that the whole database has in use.
    pub async fn database_bytes(&self) -> Result<u64, StoreError> {
        let bytes: i64 = sqlx::query_scalar(
            "SELECT (pages.page_count - free.freelist_count) * size.page_size \
             FROM pragma_page_count AS pages, pragma_freelist_count AS free, pragma_page_size AS size",
        )
        .fetch_one(&self.store.readers)
        .await
        .map_err(doing("measure the database"))?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// The bytes of the tables and indexes of the database that hold no events.
    pub async fn other_bytes(&self) -> Result<u64, StoreError> {
        const ACTION: &str = "measure what is no event";
        let names: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_schema WHERE rootpage > 0 \
             AND tbl_name NOT IN ('events', 'chains', 'chain_records', 'unchained')",
        )
        .fetch_all(&self.store.readers)
        .await
        .map_err(doing(ACTION))?;
        let mut total: u64 = 0;
        for name in names {
            // One at a time, because only a name given like this keeps the others from being read.
            let bytes: Option<i64> =
                sqlx::query_scalar("SELECT pgsize FROM dbstat WHERE name = ? AND aggregate = TRUE")
                    .bind(name)
                    .fetch_optional(&self.store.readers)
                    .await
                    .map_err(doing(ACTION))?;
            total = total.saturating_add(bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0));
        }
        Ok(total)
    }
}
