//! Reading files.

use std::fs::File;
use std::io::Read;

use init_protocol::{Failure, FailureKind, InitFrame, MAX_CHUNK, Target};
use rustix::fs::{CWD, FileType, OFlags};

use super::Access;
use super::path::{invalid, locate, open, outside_init};
use crate::connection::Connection;
use crate::failure::{Result, failure};

/// Sends a file.
pub(crate) fn read(connection: &mut Connection, target: &Target) -> Result<()> {
    let access = Access::new(target)?;
    let (mut file, size) = access.run(|| open_with_size(&access.path))?;
    connection.send(&InitFrame::Opened { size })?;
    loop {
        let mut data = vec![0; MAX_CHUNK];
        let count = file.read(&mut data).map_err(|error| failure(&access.path, error))?;
        if count == 0 {
            return connection.send(&InitFrame::End);
        }
        data.truncate(count);
        connection.send(&InitFrame::Data(data.into()))?;
    }
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
