//! Deleting the oldest events, so that it is told from tampering.
//!
//! What is deleted is always the beginning of a chain. The chain keeps the number and the link of the last thing that
//! is gone, and a record at its end says the same: who moves the one without the other is found.

use jiff::Timestamp;
use sqlx::{Row, SqliteConnection, SqlitePool};

use super::chain::{ChainHash, Heads, Pruned, Record, Retired, SERVICE, link_of};
use crate::{
    StoreError,
    error::doing,
    transaction,
    value::{micros, signed},
};

const RETENTION: &str = "retention";
const DATABASE_FULL: &str = "database_full";

/// Deletes up to `limit` events that are older than `before`. Says how many.
pub(super) async fn older_than(pool: &SqlitePool, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
    const ACTION: &str = "delete old events";
    let before = micros(before);
    transaction::run(pool, ACTION, async |connection: &mut SqliteConnection| {
        let streams = streams_with_old_events(connection, before, limit).await.map_err(doing(ACTION))?;
        let mut deleted = 0;
        for stream in streams {
            let left = u64::from(limit).saturating_sub(deleted);
            if left == 0 {
                break;
            }
            let cut = Cut { stream: &stream, before: Some(before), limit: left, reason: RETENTION };
            deleted += cut.make(connection).await.map_err(doing(ACTION))?;
        }
        Ok(deleted)
    })
    .await
}

/// Deletes the oldest events, up to `limit`, of the stream that has the most. Says whose and how many.
pub(super) async fn largest(
    pool: &SqlitePool,
    limit: u32,
) -> Result<Option<(Option<String>, u64)>, StoreError> {
    const ACTION: &str = "delete events of the largest sandbox";
    transaction::run(pool, ACTION, async |connection: &mut SqliteConnection| {
        let sandbox: Option<Option<String>> = sqlx::query_scalar(
            "SELECT sandbox_id FROM events GROUP BY sandbox_id ORDER BY count(*) DESC LIMIT 1",
        )
        .fetch_optional(&mut *connection)
        .await
        .map_err(doing(ACTION))?;
        let Some(sandbox) = sandbox else { return Ok(None) };
        let stream = sandbox.as_deref().unwrap_or(SERVICE);
        let cut = Cut { stream, before: None, limit: limit.into(), reason: DATABASE_FULL };
        let deleted = cut.make(connection).await.map_err(doing(ACTION))?;
        Ok(Some((sandbox, deleted)))
    })
    .await
}

/// The streams whose first event is too old. The service's chain also holds the records of other chains, which grow
/// old like events; those of its own pruning do not count, or each would bring about the next.
async fn streams_with_old_events(
    connection: &mut SqliteConnection,
    before: i64,
    limit: u32,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT stream FROM chains WHERE (SELECT time FROM events WHERE sandbox_id IS nullif(stream, '') \
         ORDER BY id LIMIT 1) < ?1 OR (stream = '' AND (SELECT time FROM chain_records \
         WHERE stream = '' AND kind <> 'pruned' ORDER BY seq LIMIT 1) < ?1) LIMIT ?2",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(connection)
    .await
}

/// The beginning of a chain that is to be deleted.
struct Cut<'a> {
    stream: &'a str,
    /// Only what is older, if that matters.
    before: Option<i64>,
    /// At most this many events.
    limit: u64,
    reason: &'static str,
}

/// Where it ends.
struct Edge {
    seq: i64,
    link: ChainHash,
    /// How many events are before it.
    events: u64,
    /// Whether no event is after it.
    is_all: bool,
}

impl Cut<'_> {
    /// Deletes it. Says how many events that were.
    async fn make(&self, connection: &mut SqliteConnection) -> Result<u64, sqlx::Error> {
        let mut heads = Heads::new();
        heads.load(connection, [self.stream]).await?;
        let Some(edge) = self.edge(connection, &heads).await? else { return Ok(0) };
        if edge.is_all && self.stream != SERVICE {
            self.retire(&mut heads, &edge);
            self.delete(connection, i64::MAX).await?;
            sqlx::query("DELETE FROM chains WHERE stream = ?")
                .bind(self.stream)
                .execute(&mut *connection)
                .await?;
        } else {
            if self.stream == SERVICE {
                reopen(connection, &mut heads, edge.seq).await?;
            }
            heads.append(
                self.stream,
                &Record::Pruned(Pruned {
                    through: edge.seq,
                    link: edge.link.to_string(),
                    events: edge.events,
                    reason: self.reason.to_owned(),
                }),
            );
            let head = heads.head(self.stream);
            head.pruned_seq = edge.seq;
            head.pruned_link = edge.link;
            self.delete(connection, edge.seq).await?;
        }
        heads.store(connection).await?;
        Ok(edge.events)
    }

    fn retire(&self, heads: &mut Heads, edge: &Edge) {
        let head = heads.head(self.stream);
        let retired = Retired {
            stream: self.stream.to_owned(),
            seq: head.seq,
            link: head.link.to_string(),
            events: edge.events,
            reason: self.reason.to_owned(),
        };
        heads.forget(self.stream);
        heads.append(SERVICE, &Record::Retired(retired));
    }

    async fn delete(&self, connection: &mut SqliteConnection, through: i64) -> Result<(), sqlx::Error> {
        // The events of a chain are in the order of their ids, by which there is an index.
        sqlx::query(
            "DELETE FROM events WHERE sandbox_id IS nullif(?1, '') AND id < coalesce((SELECT id FROM events \
             WHERE sandbox_id IS nullif(?1, '') AND seq > ?2 ORDER BY id LIMIT 1), 9223372036854775807)",
        )
        .bind(self.stream)
        .bind(through)
        .execute(&mut *connection)
        .await?;
        sqlx::query("DELETE FROM chain_records WHERE stream = ? AND seq <= ?")
            .bind(self.stream)
            .bind(through)
            .execute(&mut *connection)
            .await?;
        Ok(())
    }

    /// Finds where it ends; `None` if there is nothing to delete.
    async fn edge(
        &self,
        connection: &mut SqliteConnection,
        heads: &Heads,
    ) -> Result<Option<Edge>, sqlx::Error> {
        let Some(head) = heads.get(self.stream) else { return Ok(None) };
        let is_old = |time: i64| self.before.is_none_or(|before| time < before);
        let rows = sqlx::query(
            "SELECT seq, link, time FROM events WHERE sandbox_id IS nullif(?, '') ORDER BY id LIMIT ?",
        )
        .bind(self.stream)
        .bind(signed(self.limit.saturating_add(1)))
        .fetch_all(&mut *connection)
        .await?;
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let mut kept = None;
        let mut old = Vec::new();
        for row in &rows {
            let seq: i64 = row.try_get("seq")?;
            if old.len() >= limit || !is_old(row.try_get("time")?) {
                kept = Some(seq);
                break;
            }
            old.push((seq, link_of(row, "link")?));
        }
        let is_all = kept.is_none();
        if self.stream != SERVICE {
            let events = count(&old);
            return Ok(old.pop().map(|(seq, link)| Edge { seq, link, events, is_all }));
        }

        // Between the service's events are the records of other chains.
        let end = [kept, self.first_young_record(connection).await?].into_iter().flatten().min();
        let end = end.map_or(head.seq, |first| first - 1);
        if end <= head.pruned_seq {
            return Ok(None);
        }
        old.retain(|(seq, _)| *seq <= end);
        let events = count(&old);
        let link = match old.pop() {
            Some((seq, link)) if seq == end => Some(link),
            _ => self.record_link(connection, end).await?,
        };
        Ok(link.map(|link| Edge { seq: end, link, events, is_all }))
    }

    async fn first_young_record(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<Option<i64>, sqlx::Error> {
        let Some(before) = self.before else { return Ok(None) };
        sqlx::query_scalar("SELECT min(seq) FROM chain_records WHERE stream = ? AND time >= ?")
            .bind(self.stream)
            .bind(before)
            .fetch_one(connection)
            .await
    }

    async fn record_link(
        &self,
        connection: &mut SqliteConnection,
        seq: i64,
    ) -> Result<Option<ChainHash>, sqlx::Error> {
        sqlx::query("SELECT link FROM chain_records WHERE stream = ? AND seq = ?")
            .bind(self.stream)
            .bind(seq)
            .fetch_optional(connection)
            .await?
            .map(|row| link_of(&row, "link"))
            .transpose()
    }
}

/// Says again of the chains that still exist that they do, if the record that said so is about to be deleted.
async fn reopen(
    connection: &mut SqliteConnection,
    heads: &mut Heads,
    through: i64,
) -> Result<(), sqlx::Error> {
    let streams: Vec<String> = sqlx::query_scalar("SELECT stream FROM chains WHERE opened <= ?")
        .bind(through)
        .fetch_all(&mut *connection)
        .await?;
    heads.load(connection, streams.iter().map(String::as_str)).await?;
    for stream in &streams {
        heads.open_again(stream);
    }
    Ok(())
}

fn count(events: &[(i64, ChainHash)]) -> u64 {
    u64::try_from(events.len()).unwrap_or(u64::MAX)
}
