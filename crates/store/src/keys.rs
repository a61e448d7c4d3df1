//! The API keys. Only a hash of each is kept.

use std::fmt;

use jiff::Timestamp;
use sqlx::{Row, sqlite::SqliteRow};

use crate::{
    Inner, StoreError,
    error::doing,
    transaction,
    value::{Reader, micros},
};

/// How many keys of an account can be in force.
pub const MAX_KEYS: u32 = 100;
/// How many revoked keys of an account are still listed, the newest ones.
pub const MAX_REVOKED_KEYS: u32 = 100;

/// An API key as it is stored: what proves it, never the key itself.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its id.
    pub id: String,
    /// The account it speaks for.
    pub account: String,
    /// A name for people.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// The key with its middle left out, to recognise it by.
    pub masked: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Whether it no longer opens anything.
    pub revoked: bool,
}

impl fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRecord")
            .field("id", &self.id)
            .field("account", &self.account)
            .field("name", &self.name)
            .field("masked", &self.masked)
            .field("created_at", &self.created_at)
            .field("revoked", &self.revoked)
            .finish_non_exhaustive()
    }
}

/// The table of API keys. Changes are on the disk before the call returns.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a> {
    pub(crate) store: &'a Inner,
}

/// What became of a key that was to be revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// It was in force and is not any more.
    Done,
    /// It had been revoked before.
    Before,
    /// There is no such key.
    NoSuchKey,
}

impl Keys<'_> {
    /// Writes a new key, and its account if this is its first. `false` if [`MAX_KEYS`] of the account are in force: then
    /// nothing is written.
    ///
    /// # Errors
    /// Also if there already is a key of this id or hash.
    pub async fn put(&self, key: &KeyRecord) -> Result<bool, StoreError> {
        const ACTION: &str = "record the key";
        transaction::run(&self.store.durable, ACTION, async |connection| {
            let written = sqlx::query(
                "INSERT INTO keys (id, account, name, hash, masked, created_at, revoked) \
                 SELECT ?, ?, ?, ?, ?, ?, ? WHERE (SELECT count(*) FROM keys WHERE account = ? AND NOT revoked) < ?",
            )
            .bind(&key.id)
            .bind(&key.account)
            .bind(&key.name)
            .bind(key.hash.as_slice())
            .bind(&key.masked)
            .bind(micros(key.created_at))
            .bind(key.revoked)
            .bind(&key.account)
            .bind(MAX_KEYS)
            .execute(&mut *connection)
            .await
            .map_err(doing(ACTION))?;
            if written.rows_affected() == 0 {
                return Ok(false);
            }
            sqlx::query("INSERT OR IGNORE INTO accounts (id, created_at) VALUES (?, ?)")
                .bind(&key.account)
                .bind(micros(key.created_at))
                .execute(&mut *connection)
                .await
                .map_err(doing(ACTION))?;
            sqlx::query(
                "DELETE FROM keys WHERE account = ? AND revoked AND id NOT IN (SELECT id FROM keys \
                 WHERE account = ? AND revoked ORDER BY created_at DESC, id LIMIT ?)",
            )
            .bind(&key.account)
            .bind(&key.account)
            .bind(MAX_REVOKED_KEYS)
            .execute(&mut *connection)
            .await
            .map_err(doing(ACTION))?;
            Ok(true)
        })
        .await
    }

    /// The key of this hash, unless it is revoked.
    pub async fn by_hash(&self, hash: &[u8; 32]) -> Result<Option<KeyRecord>, StoreError> {
        sqlx::query("SELECT * FROM keys WHERE hash = ? AND NOT revoked")
            .bind(hash.as_slice())
            .fetch_optional(&self.store.lookups)
            .await
            .map_err(doing("find the key"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// All keys of an account, or of all accounts, revoked ones too, oldest first.
    pub async fn list(&self, account: Option<&str>) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM keys WHERE ? IS NULL OR account = ? ORDER BY created_at, id")
            .bind(account)
            .bind(account)
            .fetch_all(&self.store.readers)
            .await
            .map_err(doing("list the keys"))?;
        rows.iter().map(read).collect()
    }

    /// Revokes a key, for good; with an account only if it is of that. [`Self::revocations`] is another number
    /// afterwards.
    pub async fn revoke(&self, account: Option<&str>, id: &str) -> Result<Revocation, StoreError> {
        const ACTION: &str = "revoke the key";
        let done = sqlx::query(
            "UPDATE keys SET revoked = TRUE WHERE id = ? AND (? IS NULL OR account = ?) AND NOT revoked",
        )
        .bind(id)
        .bind(account)
        .bind(account)
        .execute(&self.store.durable)
        .await
        .map_err(doing(ACTION))?;
        if done.rows_affected() > 0 {
            self.tell();
            return Ok(Revocation::Done);
        }
        let there: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM keys WHERE id = ? AND (? IS NULL OR account = ?))",
        )
        .bind(id)
        .bind(account)
        .bind(account)
        .fetch_one(&self.store.lookups)
        .await
        .map_err(doing(ACTION))?;
        Ok(if there { Revocation::Before } else { Revocation::NoSuchKey })
    }

    /// A number that changes when a key is revoked, by this process or by another one; `None` when it cannot be read.
    /// While it stays, a key that was in force is.
    pub fn revocations(&self) -> Option<u64> {
        self.store.revocations.as_ref()?.count().ok()
    }

    /// The key is revoked whether or not this is told; who trusts keys for a while does so for seconds.
    fn tell(&self) {
        if let Some(revocations) = &self.store.revocations {
            // What cannot be told is noticed when that time is over.
            let _ = revocations.add();
        }
    }
}

fn read(row: &SqliteRow) -> Result<KeyRecord, StoreError> {
    let id: String = row.try_get("id").map_err(doing("read a key"))?;
    let r = Reader::new(row, "key", id.clone());
    let hash = r.get::<&[u8]>("hash")?.try_into().map_err(|e| r.unreadable("hash", e))?;
    Ok(KeyRecord {
        id,
        account: r.get("account")?,
        name: r.get("name")?,
        hash,
        masked: r.get("masked")?,
        created_at: r.time("created_at")?,
        revoked: r.get("revoked")?,
    })
}
