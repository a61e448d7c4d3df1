//! Requests that carried an idempotency key: a repeat gets the first one's answer.

use std::time::Duration;

use jiff::Timestamp;
use sqlx::Row;

use crate::{Inner, StoreError, error::doing, value::micros};

/// How long a request is remembered.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// What a request with an idempotency key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The first of its key. Do it, then call [`Idempotency::finish`] or [`Idempotency::abandon`].
    New,
    /// A repeat of a request that is not answered yet.
    InProgress,
    /// A repeat of a request that had this answer.
    Replay {
        /// The HTTP status.
        status: u16,
        /// The body.
        body: Vec<u8>,
    },
    /// The key was used for another body.
    BodyDiffers,
}

/// The table of requests with an idempotency key.
#[derive(Clone, Copy, Debug)]
pub struct Idempotency<'a> {
    pub(crate) store: &'a Inner,
}

impl Idempotency<'_> {
    /// Claims `key` for a request whose body has this hash. Of requests at the same moment exactly one is
    /// [`Begin::New`].
    pub async fn begin(&self, account: &str, key: &str, body_hash: &[u8]) -> Result<Begin, StoreError> {
        const ACTION: &str = "begin the request";
        let now = Timestamp::now();
        // One statement, so that a claim cannot come between the look and the write. An expired row is taken over.
        let claimed = sqlx::query(
            "INSERT INTO idempotency (account, key, body_hash, created_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (account, key) DO UPDATE SET body_hash = excluded.body_hash, status = NULL, body = NULL, \
             created_at = excluded.created_at WHERE created_at < ?",
        )
        .bind(account)
        .bind(key)
        .bind(body_hash)
        .bind(micros(now))
        .bind(micros(now - REPLAY_WINDOW))
        .execute(&self.store.writer)
        .await
        .map_err(doing(ACTION))?;
        if claimed.rows_affected() > 0 {
            return Ok(Begin::New);
        }

        let row =
            sqlx::query("SELECT body_hash, status, body FROM idempotency WHERE account = ? AND key = ?")
                .bind(account)
                .bind(key)
                .fetch_optional(&self.store.lookups)
                .await
                .map_err(doing(ACTION))?;
        // Abandoned between the two statements: the client is told to repeat, and its repeat will be new.
        let Some(row) = row else { return Ok(Begin::InProgress) };
        if row.try_get::<&[u8], _>("body_hash").map_err(doing(ACTION))? != body_hash {
            return Ok(Begin::BodyDiffers);
        }
        Ok(match row.try_get::<Option<u16>, _>("status").map_err(doing(ACTION))? {
            None => Begin::InProgress,
            Some(status) => Begin::Replay {
                status,
                body: row.try_get::<Option<Vec<u8>>, _>("body").map_err(doing(ACTION))?.unwrap_or_default(),
            },
        })
    }

    /// Records the answer of a begun request, for its repeats.
    pub async fn finish(&self, account: &str, key: &str, status: u16, body: &[u8]) -> Result<(), StoreError> {
        sqlx::query("UPDATE idempotency SET status = ?, body = ? WHERE account = ? AND key = ?")
            .bind(status)
            .bind(body)
            .bind(account)
            .bind(key)
            .execute(&self.store.writer)
            .await
            .map_err(doing("finish the request"))?;
        Ok(())
    }

    /// Gives the key of a begun request back, so that a repeat is a first again (the request failed without effect).
    pub async fn abandon(&self, account: &str, key: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM idempotency WHERE account = ? AND key = ? AND status IS NULL")
            .bind(account)
            .bind(key)
            .execute(&self.store.writer)
            .await
            .map_err(doing("abandon the request"))?;
        Ok(())
    }

    /// Forgets requests older than [`REPLAY_WINDOW`]. Says how many.
    pub async fn purge(&self) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM idempotency WHERE created_at < ?")
            .bind(micros(Timestamp::now() - REPLAY_WINDOW))
            .execute(&self.store.writer)
            .await
            .map_err(doing("forget old requests"))?;
        Ok(done.rows_affected())
    }

    /// Gives back the keys of requests that the previous process did not live to answer.
    pub(crate) async fn forget_interrupted(&self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM idempotency WHERE status IS NULL")
            .execute(&self.store.writer)
            .await
            .map_err(doing("forget interrupted requests"))?;
        Ok(())
    }
}
