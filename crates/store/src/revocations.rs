//! How a process that trusts a key for a while notices that one was revoked by another process.
//!
//! Every revocation makes a file beside the database one byte longer. Its length is asked for with one system call that
//! touches no disk, where a query would take a hundred times as long.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use crate::{StoreError, directory};

/// The file's name inside the data directory.
const FILE: &str = "revocations";

/// The open file.
#[derive(Debug)]
pub(crate) struct Revocations(File);

impl Revocations {
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        directory::open_log(&dir.join(FILE)).map(Self)
    }

    /// How many there have been. Never less than before.
    pub(crate) fn count(&self) -> io::Result<u64> {
        self.0.metadata().map(|metadata| metadata.len())
    }

    /// One more, which is in the database already.
    pub(crate) fn add(&self) -> io::Result<()> {
        (&self.0).write_all(b".")
    }
}
