//! Removing files and directories.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd};

use init_protocol::{InitFrame, Target};
use rustix::fs::{AtFlags, Dir, OFlags, unlinkat};
use rustix::io::Errno;

use super::Access;
use super::path::{Place, invalid, is_absent, open, place};
use crate::connection::Connection;
use crate::failure::{Result, failure};

/// Removes what is at a path, and tells whether there was anything.
pub(crate) fn remove(connection: &mut Connection, target: &Target) -> Result<()> {
    let access = Access::new(target)?;
    let removed = access.run(|| match place(&access.path) {
        Ok(place) => remove_at(&place, &access.path),
        Err(failure) if is_absent(&failure) => Ok(false),
        Err(failure) => Err(failure),
    })?;
    connection.send(&InitFrame::Bool(removed))
}

/// Deepest directory that is removed: one descriptor each. Whoever builds deeper ones has a shell to remove them.
const DEPTH: usize = 512;

/// Times a directory is read again because something has appeared in it meanwhile.
const ROUNDS: usize = 8;

fn remove_at(place: &Place, path: &str) -> Result<bool> {
    match unlinkat(&place.directory, &place.name, AtFlags::empty()) {
        Ok(()) => return Ok(true),
        Err(Errno::NOENT) => return Ok(false),
        // What the kernel says about directories.
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(failure(path, error)),
    }
    for _ in 0..ROUNDS {
        match unlinkat(&place.directory, &place.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST) => empty(place, path)?,
            Err(error) => return Err(failure(path, error)),
        }
    }
    Err(failure(path, Errno::NOTEMPTY))
}

/// Removes everything in a directory, without ever following a link or resolving a path of more than one name.
fn empty(place: &Place, path: &str) -> Result<()> {
    let report = |error| failure(path, error);
    let name = CString::new(place.name.as_str()).map_err(|_| invalid("the path contains NUL"))?;
    let mut nested = vec![(enter(place.directory.as_fd(), &name).map_err(report)?, name)];
    while let Some((directory, name)) = nested.last_mut() {
        let Some(entry) = directory.read() else {
            let name = std::mem::take(name);
            nested.pop();
            if let Some((parent, _)) = nested.last() {
                leave(parent, &name).map_err(report)?;
            }
            continue;
        };
        let entry = entry.map_err(report)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let parent = directory.fd().map_err(report)?;
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => {
                let inner = (enter(parent, name).map_err(report)?, name.to_owned());
                nested.push(inner);
                if nested.len() > DEPTH {
                    return Err(invalid(format!("{path}: directories nested deeper than {DEPTH}")));
                }
            }
            Err(error) => return Err(report(error)),
        }
    }
    Ok(())
}

fn enter(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Dir> {
    Dir::new(open(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?)
}

/// Removes a directory that was emptied. If something has appeared in it, the next round finds it.
fn leave(parent: &Dir, name: &CStr) -> rustix::io::Result<()> {
    match unlinkat(parent.fd()?, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    }
}
