//! Pipes through which the kernel passes bytes on between sockets and files without copying them to init.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use init_protocol::MAX_BULK;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// A pipe that is empty between two uses.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) from: File,
    pub(super) into: OwnedFd,
}

impl Pipe {
    /// A pipe for [`MAX_BULK`] bytes, or for fewer where so much is not granted.
    pub(super) fn new() -> rustix::io::Result<Self> {
        let (from, into) = pipe_with(PipeFlags::CLOEXEC)?;
        let _ = fcntl_setpipe_size(&into, MAX_BULK);
        Ok(Self { from: File::from(from), into })
    }

    /// Moves the beginning of a file's rest into the pipe, and gives how much that is: 0 at the end of the file.
    ///
    /// # Errors
    /// Also when such a file cannot be passed on.
    pub(super) fn fill_from(&self, file: &File) -> rustix::io::Result<usize> {
        loop {
            match splice(file, None, &self.into, None, MAX_BULK, SpliceFlags::empty()) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Moves all of the so many bytes that are in the pipe into a file.
    pub(super) fn empty_into(&self, file: &mut File, length: usize) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            match splice(&self.from, None, &*file, None, left, SpliceFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => left = left.saturating_sub(count),
                Err(Errno::INTR) => {}
                // Such a file takes nothing from a pipe.
                Err(Errno::INVAL) => {
                    let mut rest = Vec::new();
                    (&self.from).take(left as u64).read_to_end(&mut rest)?;
                    return file.write_all(&rest);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
