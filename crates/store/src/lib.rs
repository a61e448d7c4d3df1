//! State and events in SQLite.
//!
//! One directory belongs to one daemon: [`Store::open`] takes a lock on it that ends with the process. Inside is
//! one database in WAL mode with a single writing connection and a few reading ones.
//!
//! # What survives what
//!
//! A write has reached the operating system when its call returns, so **everything answered survives the death of
//! the daemon**, however it dies. Power loss is another matter, and each table has what it needs:
//!
//! - API keys, accounts and ratchet tokens are synced to the disk before the call returns: a revoked one must not come back.
//! - Sandboxes, idempotency records and events are not (`synchronous = NORMAL`). A sandbox does not outlive the
//!   machine's power, so a lost row describes nothing that still exists; what it left on the disk is found by the
//!   sandbox manager's collection. It buys two orders of magnitude: a write costs tens of microseconds.
//!
//! The database itself stays consistent in both cases. After power loss it is as it was at some moment shortly
//! before.

#![forbid(unsafe_code)]

mod accounts;
mod directory;
mod error;
mod events;
mod idempotency;
mod keys;
mod ratchets;
mod revocations;
mod sandboxes;
mod schema;
mod transaction;
mod usage;
mod value;

use std::{path::Path, sync::Arc, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub use crate::{
    accounts::{AccountRecord, Accounts},
    error::StoreError,
    events::{
        Category, ChainHash, ChainHashError, ChainReport, EventBatch, EventPage, EventQuery, EventRecord,
        EventRule, EventUpdate, Events, Finding, MAX_PAGE, Order, Problem, RuleKind,
    },
    idempotency::{Begin, Idempotency, REPLAY_WINDOW},
    keys::{KeyRecord, Keys, MAX_KEYS, MAX_REVOKED_KEYS, Revocation},
    ratchets::{RatchetRecord, Ratchets},
    sandboxes::{
        InvalidSandboxCursor, PAGE_BYTES, SandboxCursor, SandboxFilter, SandboxPage, SandboxRecord, Sandboxes,
    },
    usage::{Day, Metered, MoreUsage, Usage, UsageDay},
};
use crate::{directory::DirectoryLock, revocations::Revocations};

/// The database's file name inside the data directory.
pub const DATABASE: &str = "bailiwick.db";
/// The lock's file name inside the data directory.
pub const LOCK: &str = "lock";

/// How long a statement waits for another connection's write to end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Reading connections: queries of the API, beside the one writer.
const READERS: u32 = 4;
/// Reading connections for what is found by its key, which is quick, and which every request needs: a query that takes
/// long, of whomever, does not keep others from being let in.
const LOOKUPS: u32 = 2;

/// An open data directory. Clones share it; the lock is released when the last one is gone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// One connection, so that writers queue here in order and never meet `SQLITE_BUSY`.
    writer: SqlitePool,
    /// One connection with `synchronous = FULL`: a commit on it is on the disk when it returns.
    durable: SqlitePool,
    readers: SqlitePool,
    lookups: SqlitePool,
    claims: idempotency::Claims,
    /// Nothing is revoked through a store that was opened only to read.
    revocations: Option<Revocations>,
    /// Held for its lifetime by the one daemon of the directory.
    _lock: Option<DirectoryLock>,
}

impl Store {
    /// Opens the data directory `dir`, which is created (mode 0700) if it does not exist, and brings the database
    /// up to this version's schema.
    ///
    /// # Errors
    /// [`StoreError::Locked`] if another daemon has it, [`StoreError::NotPrivate`] if other users can enter it,
    /// [`StoreError::Corrupt`] and [`StoreError::NewerSchema`] if the database cannot be used.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        directory::make_private(dir)?;
        let lock = DirectoryLock::take(dir)?;
        let store = Self::connect(dir, Some(lock)).await?;
        store.idempotency().forget_interrupted().await?;
        Ok(store)
    }

    /// Opens the data directory beside a daemon that may be running, to manage keys. Sandboxes belong to the daemon
    /// and must not be changed through this.
    ///
    /// # Errors
    /// As [`Store::open`], but [`StoreError::Locked`] only if the database is of an older version and the daemon,
    /// which then is, too, is running.
    pub async fn open_beside(dir: &Path) -> Result<Self, StoreError> {
        directory::make_private(dir)?;
        // A daemon of an older version must not find another schema under its feet.
        let lock = if schema::is_current(&dir.join(DATABASE)).await? {
            None
        } else {
            Some(DirectoryLock::take(dir)?)
        };
        let store = Self::connect(dir, None).await;
        drop(lock);
        store
    }

    /// Opens the data directory only to read, beside a daemon that may be running. Writing through this fails.
    ///
    /// # Errors
    /// [`StoreError::Open`] if there is no database, [`StoreError::OlderSchema`] and [`StoreError::NewerSchema`] if
    /// it is of another version, [`StoreError::Corrupt`] if it is damaged.
    pub async fn open_read_only(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(DATABASE);
        schema::require_current(&path).await?;
        let options = options(&path).read_only(true).create_if_missing(false);
        let readers = pool(READERS).connect_lazy_with(options);
        Ok(Self {
            inner: Arc::new(Inner {
                writer: readers.clone(),
                durable: readers.clone(),
                lookups: readers.clone(),
                claims: idempotency::Claims::default(),
                readers,
                revocations: None,
                _lock: None,
            }),
        })
    }

    async fn connect(dir: &Path, lock: Option<DirectoryLock>) -> Result<Self, StoreError> {
        let path = dir.join(DATABASE);
        directory::create_private_file(&path)?;

        let options = options(&path).journal_mode(SqliteJournalMode::Wal);
        let writer = pool(1).connect_with(options.clone()).await.map_err(|e| error::opening(&path, e))?;
        schema::migrate(&writer, &path).await?;
        schema::check(&writer, &path).await?;
        events::adopt(&writer).await?;

        Ok(Self {
            inner: Arc::new(Inner {
                writer,
                durable: pool(1).connect_lazy_with(options.clone().synchronous(SqliteSynchronous::Full)),
                readers: pool(READERS).connect_lazy_with(options.clone().pragma("query_only", "on")),
                claims: idempotency::Claims::default(),
                lookups: pool(LOOKUPS).connect_lazy_with(options.pragma("query_only", "on")),
                revocations: Some(Revocations::open(dir)?),
                _lock: lock,
            }),
        })
    }

    /// The sandboxes, past and present.
    pub fn sandboxes(&self) -> Sandboxes<'_> {
        Sandboxes { store: &self.inner }
    }

    /// The accounts.
    pub fn accounts(&self) -> Accounts<'_> {
        Accounts { store: &self.inner }
    }

    /// The API keys.
    pub fn keys(&self) -> Keys<'_> {
        Keys { store: &self.inner }
    }

    /// The ratchet tokens.
    pub fn ratchets(&self) -> Ratchets<'_> {
        Ratchets { store: &self.inner }
    }

    /// What accounts have used.
    pub fn usage(&self) -> Usage<'_> {
        Usage { store: &self.inner }
    }

    /// The requests that carried an idempotency key.
    pub fn idempotency(&self) -> Idempotency<'_> {
        Idempotency { store: &self.inner }
    }

    /// The audit events.
    pub fn events(&self) -> Events<'_> {
        Events { store: &self.inner }
    }

    /// Closes the connections after what they are doing, which also folds the write-ahead log into the database.
    /// Later calls on clones fail.
    pub async fn close(&self) {
        self.inner.readers.close().await;
        self.inner.lookups.close().await;
        self.inner.durable.close().await;
        self.inner.writer.close().await;
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(BUSY_TIMEOUT)
        .foreign_keys(true)
        .thread_name(|n| format!("sqlite-{n}"))
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        // A connection to a file does not go stale, so none is tested or renewed.
        .test_before_acquire(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .acquire_timeout(BUSY_TIMEOUT)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::Timestamp;

    use super::*;

    #[tokio::test]
    async fn a_database_of_a_newer_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        sqlx::query("INSERT INTO _sqlx_migrations SELECT 9, 'later', installed_on, TRUE, checksum, 0 FROM _sqlx_migrations LIMIT 1")
            .execute(&store.inner.writer)
            .await
            .unwrap();
        drop(store);
        let refused = Store::open(dir.path()).await.unwrap_err();
        assert!(matches!(refused, StoreError::NewerSchema { found: 9, known: 8, .. }), "{refused:?}");
    }

    #[tokio::test]
    async fn a_full_disk_is_called_so_and_can_be_written_again_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let limit = async |pages: u32| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&store.inner.writer).await.unwrap();
        };
        let mut event = EventRecord::new(1, Timestamp::UNIX_EPOCH, Category::Network, "egress_blocked");
        event.detail = Some("x".repeat(1 << 20).into());
        let batch = EventBatch { inserts: vec![event], updates: Vec::new() };

        limit(30).await;
        let refused = store.events().write(&batch).await.unwrap_err();
        assert!(refused.is_full(), "{refused:?}");
        assert_eq!(store.events().last_id().await.unwrap(), 0);
        limit(1000).await;
        store.events().write(&batch).await.unwrap();
        assert_eq!(store.events().last_id().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn queries_that_take_long_keep_no_key_from_being_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let hash = [7; 32];
        let key = KeyRecord {
            id: "key-1".to_owned(),
            account: "acme".to_owned(),
            name: "ci".to_owned(),
            hash,
            masked: "m".to_owned(),
            created_at: Timestamp::UNIX_EPOCH,
            revoked: false,
        };
        assert!(store.keys().put(&key).await.unwrap());
        assert_eq!(store.idempotency().begin("acme", "k", b"hash").await.unwrap(), Begin::New);
        // As many queries as there can be at a time, none of which ends.
        let mut queries = Vec::new();
        for _ in 0..READERS {
            queries.push(store.inner.readers.acquire().await.unwrap());
        }
        assert!(store.inner.readers.try_acquire().is_none());
        assert_eq!(store.keys().by_hash(&hash).await.unwrap(), Some(key));
        assert_eq!(store.ratchets().by_hash(&hash, "running").await.unwrap(), None);
        assert_eq!(store.sandboxes().get("sbx-00000000").await.unwrap(), None);
        assert_eq!(store.idempotency().begin("acme", "k", b"hash").await.unwrap(), Begin::InProgress);
    }

    #[tokio::test]
    async fn a_request_whose_failure_cannot_be_written_does_not_keep_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let begin = async || store.idempotency().begin("acme", "k", b"hash").await.unwrap();
        assert_eq!(begin().await, Begin::New);
        // As a full disk does.
        let refuse =
            "CREATE TRIGGER refuse BEFORE DELETE ON idempotency BEGIN SELECT RAISE(ABORT, 'full'); END";
        sqlx::query(refuse).execute(&store.inner.writer).await.unwrap();
        assert_eq!(begin().await, Begin::InProgress);
        store.idempotency().abandon("acme", "k").await.unwrap_err();
        assert_eq!(begin().await, Begin::New);
    }

    #[tokio::test]
    async fn what_was_answered_survives_a_crash() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(dir.path()).await.unwrap();
        assert_eq!(store.idempotency().begin("acme", "k", b"hash").await.unwrap(), Begin::New);
        store.idempotency().finish("acme", "k", 201, b"{}").await.unwrap();
        // What the system has of the files at this moment is what a killed process leaves behind.
        for name in [DATABASE.to_owned(), format!("{DATABASE}-wal")] {
            fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
        }
        let after = Store::open(copy.path()).await.unwrap();
        let replay = Begin::Replay { status: 201, body: b"{}".to_vec() };
        assert_eq!(after.idempotency().begin("acme", "k", b"hash").await.unwrap(), replay);
    }
}
