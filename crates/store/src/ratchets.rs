//! The ratchet tokens: what may narrow the policy of one sandbox. Only a hash of each is kept.

use std::fmt;

use jiff::Timestamp;
use sqlx::{Row, sqlite::SqliteRow};

use crate::{
    Inner, StoreError,
    error::doing,
    value::{Reader, micros},
};

/// A ratchet token as it is stored: what proves it, never the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct RatchetRecord {
    /// Its id.
    pub id: String,
    /// The sandbox whose policy it narrows.
    pub sandbox_id: String,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
}

impl fmt::Debug for RatchetRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RatchetRecord")
            .field("id", &self.id)
            .field("sandbox_id", &self.sandbox_id)
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

/// The table of ratchet tokens. Changes are on the disk before the call returns.
#[derive(Clone, Copy, Debug)]
pub struct Ratchets<'a> {
    pub(crate) store: &'a Inner,
}

impl Ratchets<'_> {
    /// Writes a new token, in the place of the one that its sandbox has, if there is one.
    ///
    /// # Errors
    /// Also if there is no such sandbox, or there already is a token of this id or hash.
    pub async fn put(&self, ratchet: &RatchetRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO ratchets (sandbox_id, id, hash, created_at) VALUES (?, ?, ?, ?) \
             ON CONFLICT (sandbox_id) DO UPDATE SET id = excluded.id, hash = excluded.hash, \
             created_at = excluded.created_at",
        )
        .bind(&ratchet.sandbox_id)
        .bind(&ratchet.id)
        .bind(ratchet.hash.as_slice())
        .bind(micros(ratchet.created_at))
        .execute(&self.store.durable)
        .await
        .map_err(doing("record the ratchet token"))?;
        Ok(())
    }

    /// The token of this hash with the account of its sandbox, unless that is in `state`, one in which it has ended.
    pub async fn by_hash(
        &self,
        hash: &[u8; 32],
        ended: &str,
    ) -> Result<Option<(RatchetRecord, String)>, StoreError> {
        sqlx::query(
            "SELECT ratchets.*, sandboxes.account FROM ratchets JOIN sandboxes ON sandboxes.id = sandbox_id \
             WHERE hash = ? AND state <> ?",
        )
        .bind(hash.as_slice())
        .bind(ended)
        .fetch_optional(&self.store.lookups)
        .await
        .map_err(doing("find the ratchet token"))?
        .map(|row| read(&row))
        .transpose()
    }

    /// Removes the token of a sandbox, for good, and gives its id if there was one.
    pub async fn revoke(&self, sandbox_id: &str) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("DELETE FROM ratchets WHERE sandbox_id = ? RETURNING id")
            .bind(sandbox_id)
            .fetch_optional(&self.store.durable)
            .await
            .map_err(doing("revoke the ratchet token"))
    }
}

fn read(row: &SqliteRow) -> Result<(RatchetRecord, String), StoreError> {
    let id: String = row.try_get("id").map_err(doing("read a ratchet token"))?;
    let r = Reader::new(row, "ratchet token", id.clone());
    let hash = r.get::<&[u8]>("hash")?.try_into().map_err(|e| r.unreadable("hash", e))?;
    let sandbox_id = r.get("sandbox_id")?;
    Ok((RatchetRecord { id, sandbox_id, hash, created_at: r.time("created_at")? }, r.get("account")?))
}
