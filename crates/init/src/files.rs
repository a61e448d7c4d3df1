//! File operations on behalf of a user.
//!
//! Everything that touches a path runs with the file-system rights of that user ([`Access::run`]), on the one
//! thread that serves the connection. Paths are resolved without the kernel's magic links (`/proc/PID/fd/…`),
//! through which init's own descriptors could be reached, and init's own directory in procfs is out of bounds.
//! Symbolic links are followed otherwise: there is nothing outside the sandbox's root they could lead to.

mod list;
mod path;
mod pipe;
mod read;
mod remove;
mod rename;
mod watch;
mod write;

use init_protocol::{Entry, EntryKind, InitFrame, Target};
use rustix::fs::{FileType, Stat};

pub(crate) use list::list;
pub(crate) use path::absolute;
pub(crate) use read::{open_regular, read};
pub(crate) use remove::remove;
pub(crate) use rename::rename;
pub(crate) use watch::watch;
pub(crate) use write::write;

use crate::accounts::{self, Account};
use crate::connection::Connection;
use crate::failure::{Result, failure};

/// Describes what is at a path.
pub(crate) fn stat(connection: &mut Connection, target: &Target) -> Result<()> {
    let access = Access::new(target)?;
    let entry = access.run(|| entry_at(&access.path))?;
    connection.send(&InitFrame::Entry(entry))
}

/// Tells whether there is anything at a path.
pub(crate) fn exists(connection: &mut Connection, target: &Target) -> Result<()> {
    let access = Access::new(target)?;
    let there = access.run(|| match entry_at(&access.path) {
        Ok(_) => Ok(true),
        Err(failure) if path::is_absent(&failure) => Ok(false),
        Err(failure) => Err(failure),
    })?;
    connection.send(&InitFrame::Bool(there))
}

/// Makes a directory and its missing parents, and tells whether it was not there.
pub(crate) fn mkdir(connection: &mut Connection, target: &Target) -> Result<()> {
    let access = Access::new(target)?;
    let (_, created) = access.run(|| path::ensure_directory(&access.path))?;
    connection.send(&InitFrame::Bool(created))
}

/// A path and the user who uses it.
#[derive(Debug)]
struct Access {
    account: Account,
    /// Absolute.
    path: String,
}

impl Access {
    fn new(target: &Target) -> Result<Self> {
        let account = accounts::lookup(target.user.as_deref())?;
        let path = absolute(&account, &target.path)?;
        Ok(Self { account, path })
    }

    /// Runs an operation with the user's rights.
    fn run<T>(&self, operation: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = sys::process::with_user(&self.account.credentials, operation);
        result.map_err(|error| failure(format!("become user {}", self.account.name), error))?
    }
}

/// The entry at a path; a symbolic link that leads nowhere is an entry of its own.
fn entry_at(path: &str) -> Result<Entry> {
    let stat = match path::locate(path) {
        Ok(stat) => stat,
        Err(missing) => path::locate_link(path).map_err(|_| missing)?,
    };
    Ok(entry(path, &stat))
}

fn entry(path: &str, stat: &Stat) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => EntryKind::Directory,
        _ => EntryKind::File,
    };
    let trimmed = path.trim_end_matches('/');
    let name = trimmed.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/");
    Entry {
        name: name.to_owned(),
        path: path.to_owned(),
        kind,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        modified: stat.st_mtime,
    }
}
