//! The accounts: who owns sandboxes, by the name that API keys speak for.

use jiff::Timestamp;
use sqlx::{Row, sqlite::SqliteRow};

use crate::{Inner, StoreError, error::doing, value::Reader};

/// An account as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountRecord {
    /// Its name.
    pub id: String,
    /// When its first key was made.
    pub created_at: Timestamp,
}

/// The table of accounts. An account begins with its first key ([`Keys::put`](crate::Keys::put)) and is kept when the
/// last one is revoked.
#[derive(Clone, Copy, Debug)]
pub struct Accounts<'a> {
    pub(crate) store: &'a Inner,
}

impl Accounts<'_> {
    /// The account of this name.
    pub async fn get(&self, id: &str) -> Result<Option<AccountRecord>, StoreError> {
        sqlx::query("SELECT * FROM accounts WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.store.lookups)
            .await
            .map_err(doing("find the account"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// All accounts, by name.
    pub async fn list(&self) -> Result<Vec<AccountRecord>, StoreError> {
        let rows = sqlx::query("SELECT * FROM accounts ORDER BY id")
            .fetch_all(&self.store.readers)
            .await
            .map_err(doing("list the accounts"))?;
        rows.iter().map(read).collect()
    }
}

fn read(row: &SqliteRow) -> Result<AccountRecord, StoreError> {
    let id: String = row.try_get("id").map_err(doing("read an account"))?;
    let r = Reader::new(row, "account", id.clone());
    Ok(AccountRecord { id, created_at: r.time("created_at")? })
}
