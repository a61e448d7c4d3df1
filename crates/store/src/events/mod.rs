//! The audit events.

mod query;
mod record;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

pub use self::{
    query::{EventPage, EventQuery, MAX_PAGE, Order},
    record::{Category, EventRecord, EventRule, RuleKind},
};
use crate::{
    Inner, StoreError,
    error::doing,
    value::{json, micros, signed},
};

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
        const ACTION: &str = "record events";
        let mut repeated = Vec::new();
        let mut finished = Vec::new();
        for update in &batch.updates {
            match *update {
                EventUpdate::Repeated { id, count, last_time } => {
                    repeated.push([signed(id), signed(count), micros(last_time)]);
                }
                EventUpdate::Finished { id, bytes_up, bytes_down, duration_ms } => {
                    finished.push([id, bytes_up, bytes_down, duration_ms].map(signed));
                }
            }
        }
        let inserts: Vec<Row<'_>> = batch.inserts.iter().map(Row::from).collect();

        let mut transaction = self.store.writer.begin_with("BEGIN IMMEDIATE").await.map_err(doing(ACTION))?;
        for (sql, rows) in [
            (INSERT, (!inserts.is_empty()).then(|| json(&inserts))),
            (UPDATE_REPEATED, (!repeated.is_empty()).then(|| json(&repeated))),
            (UPDATE_FINISHED, (!finished.is_empty()).then(|| json(&finished))),
        ] {
            if let Some(rows) = rows {
                sqlx::query(sql).bind(rows).execute(&mut *transaction).await.map_err(doing(ACTION))?;
            }
        }
        transaction.commit().await.map_err(doing(ACTION))
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

    /// Deletes up to `limit` events that are older than `before`. Says how many; fewer than `limit` means done.
    pub async fn prune(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let done =
            sqlx::query("DELETE FROM events WHERE id IN (SELECT id FROM events WHERE time < ? LIMIT ?)")
                .bind(micros(before))
                .bind(limit)
                .execute(&self.store.writer)
                .await
                .map_err(doing("delete old events"))?;
        Ok(done.rows_affected())
    }

    /// Deletes the oldest events, up to `limit`, of the sandbox that has the most: one that makes noise pushes out
    /// its own past, not that of others. Says whose and how many; `None` if there are no events.
    pub async fn prune_largest(&self, limit: u32) -> Result<Option<(Option<String>, u64)>, StoreError> {
        const ACTION: &str = "delete events of the largest sandbox";
        let largest: Option<Option<String>> = sqlx::query_scalar(
            "SELECT sandbox_id FROM events GROUP BY sandbox_id ORDER BY count(*) DESC LIMIT 1",
        )
        .fetch_optional(&self.store.readers)
        .await
        .map_err(doing(ACTION))?;
        let Some(sandbox) = largest else { return Ok(None) };
        let done = sqlx::query(
            "DELETE FROM events WHERE id IN (SELECT id FROM events WHERE sandbox_id IS ? ORDER BY id LIMIT ?)",
        )
        .bind(&sandbox)
        .bind(limit)
        .execute(&self.store.writer)
        .await
        .map_err(doing(ACTION))?;
        Ok(Some((sandbox, done.rows_affected())))
    }

    /// The bytes that the database has in use.
    pub async fn bytes_used(&self) -> Result<u64, StoreError> {
        let bytes: i64 = sqlx::query_scalar(
            "SELECT (pages.page_count - free.freelist_count) * size.page_size \
             FROM pragma_page_count AS pages, pragma_freelist_count AS free, pragma_page_size AS size",
        )
        .fetch_one(&self.store.readers)
        .await
        .map_err(doing("measure the database"))?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }
}

// A whole batch is one parameter, a JSON array: three statements for 500 rows, each prepared once.

const INSERT: &str = "INSERT INTO events (id, time, sandbox_id, category, type, decision, reason, rule, host, \
     host_source, address, port, protocol, generation, count, last_time, bytes_up, bytes_down, duration_ms, detail) \
     SELECT value->>'id', value->>'time', value->>'sandbox_id', value->>'category', value->>'type', \
     value->>'decision', value->>'reason', value->'rule', value->>'host', value->>'host_source', \
     value->>'address', value->>'port', value->>'protocol', value->>'generation', value->>'count', \
     value->>'last_time', value->>'bytes_up', value->>'bytes_down', value->>'duration_ms', value->'detail' \
     FROM json_each(?) WHERE TRUE ON CONFLICT (id) DO NOTHING";

const UPDATE_REPEATED: &str = "UPDATE events SET count = change.value->>1, last_time = change.value->>2 \
     FROM json_each(?) AS change WHERE events.id = change.value->>0";

const UPDATE_FINISHED: &str = "UPDATE events SET bytes_up = change.value->>1, bytes_down = change.value->>2, \
     duration_ms = change.value->>3 FROM json_each(?) AS change WHERE events.id = change.value->>0";

/// An event as `INSERT` reads it. What is absent becomes NULL (a JSON null would become the text `null`).
#[derive(Serialize)]
struct Row<'a> {
    id: i64,
    time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sandbox_id: Option<&'a str>,
    category: Category,
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<policy::Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a EventRule>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<i64>,
    count: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_time: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_up: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_down: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    duration_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a Value>,
}

impl<'a> From<&'a EventRecord> for Row<'a> {
    fn from(event: &'a EventRecord) -> Self {
        Self {
            id: signed(event.id),
            time: micros(event.time),
            sandbox_id: event.sandbox_id.as_deref(),
            category: event.category,
            kind: &event.kind,
            decision: event.decision,
            reason: event.reason.as_deref(),
            rule: event.rule.as_ref(),
            host: event.host.as_deref(),
            host_source: event.host_source.as_deref(),
            address: event.address,
            port: event.port,
            protocol: event.protocol.as_deref(),
            generation: event.generation.map(signed),
            count: signed(event.count),
            last_time: event.last_time.map(micros),
            bytes_up: event.bytes_up.map(signed),
            bytes_down: event.bytes_down.map(signed),
            duration_ms: event.duration_ms.map(signed),
            detail: event.detail.as_ref(),
        }
    }
}
