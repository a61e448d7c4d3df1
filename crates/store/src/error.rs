//! Why the store cannot do what it was asked.

use std::{
    io,
    path::{Path, PathBuf},
};

use sqlx::migrate::MigrateError;

/// Why the store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the directory open.
    #[error("the data directory {} is in use by {}", dir.display(), holder(*pid))]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// The process that holds it; `None` in the moment before it has written its number.
        pid: Option<u32>,
    },
    /// The directory exists, is not ours to change, and other users can enter it.
    #[error("the data directory {} has mode {mode:03o}, so other users can enter it; run `chmod 700` on it", dir.display())]
    NotPrivate {
        /// The data directory.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file or directory cannot be made or read.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error("cannot open the database {}", path.display())]
    Open {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: sqlx::Error,
    },
    /// The database is damaged, or not a database.
    #[error("the database {} is damaged ({detail}); restore it from a copy, or move it away to start anew", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The database was written by a later version of this program.
    #[error("the database {} has schema {found}, and this version knows up to {known}; use the newer program", path.display())]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The newest schema this program knows.
        known: i64,
    },
    /// The database was written by an earlier version of this program, which may still be running.
    #[error("the database {} has schema {found}, and this version needs {known}; start the daemon of this version first", path.display())]
    OlderSchema {
        /// The database.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The schema needed.
        known: i64,
    },
    /// The events of an earlier version are not in their chains yet.
    #[error("the events of an earlier version are not chained yet; the daemon does it when it starts")]
    Unchained,
    /// The database cannot be brought to this version's schema.
    #[error("cannot bring the database {} to the schema of this version", path.display())]
    Migrate {
        /// The database.
        path: PathBuf,
        /// Why not.
        source: Box<MigrateError>,
    },
    /// There is no room to write.
    #[error("cannot {action}: the disk is full")]
    Full {
        /// What was tried.
        action: &'static str,
    },
    /// Another program keeps the database locked.
    #[error("cannot {action}: another program keeps the database locked")]
    Busy {
        /// What was tried.
        action: &'static str,
    },
    /// A statement failed.
    #[error("cannot {action}")]
    Statement {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// A stored value is not what this version writes.
    #[error("the stored {what} {id:?} has an unreadable {column}: {detail}")]
    Decode {
        /// The kind of row.
        what: &'static str,
        /// Which row.
        id: String,
        /// Which column.
        column: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A page was asked for with a cursor that this store did not give out.
    #[error("{cursor:?} is not a cursor of this query")]
    Cursor {
        /// The cursor.
        cursor: String,
    },
}

impl StoreError {
    /// Whether trying again later may help (there may be room on the disk again).
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// Whether it is no fault of the request: there is no room on the disk, or another program keeps the database locked.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Busy { .. })
    }
}

/// The result of a statement that was meant to `action`.
pub(crate) fn doing(action: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |source| match primary_code(&source) {
        Some(SQLITE_FULL) => StoreError::Full { action },
        Some(SQLITE_BUSY) => StoreError::Busy { action },
        // The one writing connection is waiting for that, and nobody gets it.
        _ if matches!(source, sqlx::Error::PoolTimedOut) => StoreError::Busy { action },
        _ => StoreError::Statement { action, source },
    }
}

/// The result of opening the database at `path`.
pub(crate) fn opening(path: &Path, source: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    match primary_code(&source) {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => StoreError::Corrupt { path, detail: source.to_string() },
        Some(SQLITE_FULL) => StoreError::Full { action: "open the database" },
        _ => StoreError::Open { path, source },
    }
}

// Primary result codes, <https://sqlite.org/rescode.html>.
const SQLITE_BUSY: u32 = 5;
const SQLITE_CORRUPT: u32 = 11;
const SQLITE_FULL: u32 = 13;
const SQLITE_NOTADB: u32 = 26;

/// SQLite's primary result code: the low byte of the extended one that sqlx reports as text.
fn primary_code(error: &sqlx::Error) -> Option<u32> {
    let extended: u32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & 0xff)
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
