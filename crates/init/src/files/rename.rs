//! Renaming files and directories.

use std::io;

use init_protocol::{InitFrame, Target};
use rustix::fs::{AtFlags, renameat, unlinkat};
use rustix::io::Errno;

use super::path::{Place, absolute, place};
use super::read::open_regular;
use super::write::Staged;
use super::{Access, entry_at};
use crate::connection::Connection;
use crate::failure::{Result, failure};

/// Renames what is at one path to another, and describes it there.
pub(crate) fn rename(connection: &mut Connection, from: &Target, to: &str) -> Result<()> {
    let access = Access::new(from)?;
    let to = absolute(&access.account, to)?;
    let entry = access.run(|| {
        let (source, target) = (place(&access.path)?, place(&to)?);
        match renameat(&source.directory, &source.name, &target.directory, &target.name) {
            Ok(()) => {}
            Err(Errno::XDEV) => move_file(&access, &source, &to)?,
            Err(Errno::NOENT) => return Err(failure(&access.path, Errno::NOENT)),
            Err(error) => return Err(failure(format!("{} to {to}", access.path), error)),
        }
        entry_at(&to)
    })?;
    connection.send(&InitFrame::Entry(entry))
}

/// Moves a regular file to another file system. Directories are not moved there: half of one could be left in
/// each place.
fn move_file(access: &Access, source: &Place, to: &str) -> Result<()> {
    let mut file = open_regular(&access.path).map_err(|_| {
        failure(format!("{} to {to}, only regular files can be moved so far", access.path), Errno::XDEV)
    })?;
    let mut staged = Staged::new(to, &access.account)?;
    let copied = io::copy(&mut file, staged.file()).and_then(|_| staged.copy_mode(&file));
    match copied {
        Ok(()) => staged.commit(to)?,
        Err(error) => {
            staged.discard();
            return Err(failure(to, error));
        }
    }
    let removed = unlinkat(&source.directory, &source.name, AtFlags::empty());
    removed.map_err(|error| failure(&access.path, error))
}
