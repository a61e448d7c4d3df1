//! Requests that carried an idempotency key: a repeat gets the first one's answer.

use std::{
    collections::HashSet,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use sqlx::{Row as _, sqlite::SqliteRow};

use crate::{
    Inner, StoreError,
    error::doing,
    value::{json, micros, signed},
};

/// How long a request is remembered.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// What a request with an idempotency key is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The first of its key. Do it, then call [`Idempotency::finish`], [`Idempotency::abandon`] or
    /// [`Idempotency::release`].
    New,
    /// An earlier request of its key was not answered, and nobody works on it any more (the process died, or could not
    /// write), but it may have made this sandbox. If that lives, it is the answer; if not, this is as [`Self::New`].
    Interrupted {
        /// The sandbox's id.
        sandbox: String,
    },
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

/// The requests that this process works on, by account and key. A row without a status is that of a request that is being
/// worked on only if it is in here.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<HashSet<(String, String)>>);

impl Claims {
    fn all(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        // A set is whole whatever happened beside it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, account: &str, key: &str) -> Option<Taken<'_>> {
        let is_new = self.all().insert((account.to_owned(), key.to_owned()));
        is_new.then(|| self.held(account, key))
    }

    /// One that was taken and kept.
    fn held(&self, account: &str, key: &str) -> Taken<'_> {
        Taken { claims: self, claim: Some((account.to_owned(), key.to_owned())) }
    }
}

/// A claim that is given back unless it is kept.
struct Taken<'a> {
    claims: &'a Claims,
    claim: Option<(String, String)>,
}

impl Taken<'_> {
    fn keep(mut self) {
        self.claim = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(claim) = &self.claim {
            self.claims.all().remove(claim);
        }
    }
}

/// What is stored of a request.
struct Row {
    body_hash: Vec<u8>,
    answer: Option<(u16, Vec<u8>)>,
    sandbox: Option<String>,
}

impl Idempotency<'_> {
    /// Claims `key` for a request whose body has this hash. Of requests at the same moment exactly one is
    /// [`Begin::New`] or [`Begin::Interrupted`]; that holds the claim, in this process, until it is given back.
    pub async fn begin(&self, account: &str, key: &str, body_hash: &[u8]) -> Result<Begin, StoreError> {
        const ACTION: &str = "begin the request";
        let Some(taken) = self.store.claims.take(account, key) else {
            // The row may not be written yet, or be gone by now.
            let row = self.find(account, key, ACTION).await?;
            let differs = row.is_some_and(|row| row.body_hash != body_hash);
            return Ok(if differs { Begin::BodyDiffers } else { Begin::InProgress });
        };
        let now = Timestamp::now();
        // Free is what has expired, and what was neither answered nor came as far as to name its sandbox.
        let claimed = sqlx::query(
            "INSERT INTO idempotency (account, key, body_hash, created_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (account, key) DO UPDATE SET body_hash = excluded.body_hash, status = NULL, body = NULL, \
             sandbox = NULL, created_at = excluded.created_at \
             WHERE created_at < ? OR (status IS NULL AND sandbox IS NULL)",
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
            taken.keep();
            return Ok(Begin::New);
        }
        // Forgotten between the two statements: the client is told to repeat, and its repeat will be new.
        let Some(row) = self.find(account, key, ACTION).await? else { return Ok(Begin::InProgress) };
        if row.body_hash != body_hash {
            return Ok(Begin::BodyDiffers);
        }
        Ok(match (row.answer, row.sandbox) {
            (Some((status, body)), _) => Begin::Replay { status, body },
            (None, Some(sandbox)) => {
                taken.keep();
                Begin::Interrupted { sandbox }
            }
            (None, None) => Begin::InProgress,
        })
    }

    async fn find(&self, account: &str, key: &str, action: &'static str) -> Result<Option<Row>, StoreError> {
        let select = "SELECT body_hash, status, body, sandbox FROM idempotency WHERE account = ? AND key = ?";
        let row = sqlx::query(select)
            .bind(account)
            .bind(key)
            .fetch_optional(&self.store.lookups)
            .await
            .map_err(doing(action))?;
        let read = |row: SqliteRow| {
            let status: Option<u16> = row.try_get("status")?;
            let body: Option<Vec<u8>> = row.try_get("body")?;
            Ok(Row {
                body_hash: row.try_get("body_hash")?,
                answer: status.map(|status| (status, body.unwrap_or_default())),
                sandbox: row.try_get("sandbox")?,
            })
        };
        row.map(read).transpose().map_err(doing(action))
    }

    /// Says of a begun request which sandbox it makes, before that can live without this process.
    pub async fn assign(&self, account: &str, key: &str, sandbox: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE idempotency SET sandbox = ? WHERE account = ? AND key = ? AND status IS NULL")
            .bind(sandbox)
            .bind(account)
            .bind(key)
            .execute(&self.store.writer)
            .await
            .map_err(doing("name the sandbox of the request"))?;
        Ok(())
    }

    /// Records the answer of a begun request, for its repeats, and gives the claim back; that also if it fails.
    pub async fn finish(&self, account: &str, key: &str, status: u16, body: &[u8]) -> Result<(), StoreError> {
        let _given_back = self.store.claims.held(account, key);
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

    /// Gives the key of a begun request back, so that a repeat is a first again (the request failed without effect);
    /// that also if it fails.
    pub async fn abandon(&self, account: &str, key: &str) -> Result<(), StoreError> {
        let _given_back = self.store.claims.held(account, key);
        sqlx::query("DELETE FROM idempotency WHERE account = ? AND key = ? AND status IS NULL")
            .bind(account)
            .bind(key)
            .execute(&self.store.writer)
            .await
            .map_err(doing("abandon the request"))?;
        Ok(())
    }

    /// Gives the claim of a begun request back without saying what became of it: a repeat finds that out.
    pub fn release(&self, account: &str, key: &str) {
        drop(self.store.claims.held(account, key));
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

    /// Forgets answers of accounts that have newer ones of `most_bytes` already. Says how many.
    pub async fn purge_beyond(&self, most_bytes: u64) -> Result<u64, StoreError> {
        const ACTION: &str = "forget answers that take too much";
        // Found by a reader, because all of them are looked at; the length of a body is known without reading it.
        let found: Vec<(String, String)> = sqlx::query_as(
            "SELECT account, key FROM (SELECT account, key, sum(octet_length(body) + 256) OVER \
             (PARTITION BY account ORDER BY created_at DESC, key) AS bytes FROM idempotency \
             WHERE status IS NOT NULL) WHERE bytes > ?",
        )
        .bind(signed(most_bytes))
        .fetch_all(&self.store.readers)
        .await
        .map_err(doing(ACTION))?;
        if found.is_empty() {
            return Ok(0);
        }
        let done = sqlx::query(
            "DELETE FROM idempotency WHERE status IS NOT NULL AND (account, key) IN \
             (SELECT value ->> 0, value ->> 1 FROM json_each(?))",
        )
        .bind(json(&found))
        .execute(&self.store.writer)
        .await
        .map_err(doing(ACTION))?;
        Ok(done.rows_affected())
    }

    /// Gives back the keys of requests that the previous process did not live to answer, and that did not come as far as
    /// to name their sandbox.
    pub(crate) async fn forget_interrupted(&self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM idempotency WHERE status IS NULL AND sandbox IS NULL")
            .execute(&self.store.writer)
            .await
            .map_err(doing("forget interrupted requests"))?;
        Ok(())
    }
}
