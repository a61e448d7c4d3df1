//! The API keys. Only a hash of each is kept.

use std::fmt;

use jiff::Timestamp;
use sqlx::{Row, sqlite::SqliteRow};

use crate::{
    Inner, StoreError,
    error::doing,
    value::{Reader, micros},
};

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

impl Keys<'_> {
    /// Writes a new key.
    ///
    /// # Errors
    /// Also if there already is a key of this id or hash.
    pub async fn put(&self, key: &KeyRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO keys (id, account, name, hash, masked, created_at, revoked) VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(&key.id)
        .bind(&key.account)
        .bind(&key.name)
        .bind(key.hash.as_slice())
        .bind(&key.masked)
        .bind(micros(key.created_at))
        .bind(key.revoked)
        .execute(&self.store.durable)
        .await
        .map_err(doing("record the key"))?;
        Ok(())
    }

    /// The key of this hash, unless it is revoked.
    pub async fn by_hash(&self, hash: &[u8; 32]) -> Result<Option<KeyRecord>, StoreError> {
        sqlx::query("SELECT * FROM keys WHERE hash = ? AND NOT revoked")
            .bind(hash.as_slice())
            .fetch_optional(&self.store.readers)
            .await
            .map_err(doing("find the key"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// All keys of an account, revoked ones too, oldest first.
    pub async fn list(&self, account: &str) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM keys WHERE account = ? ORDER BY created_at, id")
            .bind(account)
            .fetch_all(&self.store.readers)
            .await
            .map_err(doing("list the keys"))?;
        rows.iter().map(read).collect()
    }

    /// Revokes a key of an account, for good. Says whether there was one to revoke.
    pub async fn revoke(&self, account: &str, id: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE keys SET revoked = TRUE WHERE account = ? AND id = ? AND NOT revoked")
            .bind(account)
            .bind(id)
            .execute(&self.store.durable)
            .await
            .map_err(doing("revoke the key"))?;
        Ok(done.rows_affected() > 0)
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
