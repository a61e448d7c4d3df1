//! Reading files.

use std::fs::File;
use std::io::Read;

use init_protocol::{Bulk, Failure, FailureKind, InitFrame, MAX_CHUNK, Target};
use rustix::fs::{CWD, FileType, OFlags};

use super::Access;
use super::path::{invalid, locate, open, outside_init};
use super::pipe::Pipe;
use crate::connection::Connection;
use crate::failure::{Result, failure};

/// Sends a file.
pub(crate) fn read(connection: &mut Connection, target: &Target) -> Result<()> {
    let access = Access::new(target)?;
    let (mut file, size) = access.run(|| open_with_size(&access.path))?;
    connection.send(&InitFrame::Opened { size })?;
    if connection.takes_bulk() {
        pass_on(connection, &file)?;
    }
    // What could not be passed on. It also tells why, if something is wrong.
    let mut data = vec![0; MAX_CHUNK];
    loop {
        let count = file.read(&mut data).map_err(|error| failure(&access.path, error))?;
        match data.get(..count).filter(|read| !read.is_empty()) {
            Some(read) => connection.send_bytes(Bulk::File, read)?,
            None => return connection.send(&InitFrame::End),
        }
    }
}

/// Sends a file from where it is, without copying it, until it ends or cannot be sent in this way.
fn pass_on(connection: &mut Connection, file: &File) -> Result<()> {
    let Ok(pipe) = Pipe::new() else { return Ok(()) };
    connection.widen();
    // What the pipe holds is what there is: a frame has the length that was announced, even when the file becomes
    // shorter meanwhile.
    while let Ok(count @ 1..) = pipe.fill_from(file) {
        connection.send_from(Bulk::File, &pipe.from, count)?;
    }
    Ok(())
}

/// Opens a regular file with the rights of the calling thread.
///
/// # Errors
/// [`FailureKind::InvalidPath`] when it is not one.
pub(crate) fn open_regular(path: &str) -> Result<File> {
    open_with_size(path).map(|(file, _)| file)
}

fn open_with_size(path: &str) -> Result<(File, u64)> {
    // Looked at first: merely opening a FIFO or a device can change something.
    regular(path, FileType::from_raw_mode(locate(path)?.st_mode))?;
    let fd = open(CWD, path, OFlags::RDONLY).map_err(|error| failure(path, error))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| failure(path, error))?;
    // Again: the path may lead elsewhere by now.
    regular(path, FileType::from_raw_mode(stat.st_mode))?;
    outside_init(&fd, path)?;
    Ok((File::from(fd), u64::try_from(stat.st_size).unwrap_or(0)))
}

/// Refuses everything but regular files.
pub(super) fn regular(path: &str, kind: FileType) -> Result<()> {
    match kind {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Failure::new(FailureKind::IsDirectory, format!("{path}: is a directory"))),
        _ => Err(invalid(format!("{path}: not a regular file"))),
    }
}
