//! Listing directories.

use std::ffi::{CStr, CString};

use init_protocol::{Entry, EntryKind, Failure, FailureKind, InitFrame, MAX_ENTRIES, MAX_PATH, Target};
use rustix::fs::{AtFlags, CWD, Dir, OFlags, Stat, statat};

use super::path::{open, outside_init};
use super::{Access, entry};
use crate::connection::Connection;
use crate::failure::{Result, failure};

/// Sends the entries of a directory, each directory's sorted by name and followed by its own.
pub(crate) fn list(connection: &mut Connection, target: &Target, depth: u32) -> Result<()> {
    let access = Access::new(target)?;
    access.run(|| walk(connection, access.path.trim_end_matches('/'), depth.max(1)))?;
    connection.send(&InitFrame::Done)
}

fn walk(connection: &mut Connection, top: &str, depth: u32) -> Result<()> {
    let mut left = MAX_ENTRIES;
    // Entries still to be sent, the next one last; with what is left of the depth below them.
    let mut waiting: Vec<(Found, u32)> = Vec::new();
    let entries = directory(if top.is_empty() { "/" } else { top }, top, OFlags::empty(), &mut left)?;
    waiting.extend(entries.into_iter().rev().map(|found| (found, depth - 1)));
    while let Some((found, below)) = waiting.pop() {
        let path = found.entry.path.clone();
        let descend = found.real_directory && below > 0 && path.len() < MAX_PATH;
        connection.send(&InitFrame::Entry(found.entry))?;
        if descend {
            match directory(&path, &path, OFlags::NOFOLLOW, &mut left) {
                Ok(entries) => waiting.extend(entries.into_iter().rev().map(|found| (found, below - 1))),
                Err(failure) if failure.kind == FailureKind::TooLarge => return Err(failure),
                // Gone meanwhile, or not the user's to read: it has been listed, and that is all there is.
                Err(_) => {}
            }
        }
    }
    Ok(())
}

struct Found {
    entry: Entry,
    /// A directory, and not through a symbolic link, which could lead in circles.
    real_directory: bool,
}

/// The entries of one directory, sorted by name. `prefix` is its path without the slash at the end.
fn directory(path: &str, prefix: &str, flags: OFlags, left: &mut usize) -> Result<Vec<Found>> {
    let fd = open(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | flags);
    let fd = fd.map_err(|error| failure(path, error))?;
    outside_init(&fd, path)?;
    let mut dir = Dir::new(fd).map_err(|error| failure(path, error))?;
    let mut names: Vec<CString> = Vec::new();
    while let Some(found) = dir.read() {
        let found = found.map_err(|error| failure(path, error))?;
        let name = found.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        *left = left.checked_sub(1).ok_or_else(|| {
            Failure::new(FailureKind::TooLarge, format!("{path}: more than {MAX_ENTRIES} entries to list"))
        })?;
        names.push(name.to_owned());
    }
    names.sort_unstable();
    Ok(names.iter().filter_map(|name| found(&dir, prefix, name)).collect())
}

/// An entry of a directory; `None` if it is gone already.
fn found(dir: &Dir, prefix: &str, name: &CStr) -> Option<Found> {
    let fd = dir.fd().ok()?;
    let itself: Stat = statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let is_link = rustix::fs::FileType::from_raw_mode(itself.st_mode).is_symlink();
    // Of a link, what it leads to, if anything.
    let shown = if is_link { statat(fd, name, AtFlags::empty()).unwrap_or(itself) } else { itself };
    let entry = entry(&format!("{prefix}/{}", name.to_string_lossy()), &shown);
    let real_directory = !is_link && entry.kind == EntryKind::Directory;
    Some(Found { entry, real_directory })
}
