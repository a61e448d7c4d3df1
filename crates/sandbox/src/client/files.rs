//! Files in a sandbox.

use std::{io, pin::pin};

use bytes::Bytes;
use init_protocol::{Bulk, Change, ClientFrame, InitFrame, MAX_ENTRIES, Request, Target};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};

use super::{Connection, Frames, InitClient, Input, ListRoom, unexpected};
use crate::error::SandboxError;

/// Most bytes of a file that is written through the API: 500 MiB.
pub const MAX_FILE: u64 = 500 << 20;

/// The files of one sandbox, used with the rights of a user inside.
///
/// Paths are absolute or relative to the user's home; a user that is `None` is `user`. Symbolic links lead
/// where they lead for that user inside; nothing here ever leaves the sandbox, because init does it all.
#[derive(Clone, Debug)]
pub struct Files {
    pub(crate) init: InitClient,
}

/// A file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The last component of its path.
    pub name: String,
    /// Its absolute path.
    pub path: String,
    /// What it is; of a link, what it leads to.
    pub kind: EntryKind,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// When it was last modified, in seconds since 1970.
    pub modified: i64,
}

/// What an [`Entry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory, or a link to one.
    Directory,
    /// Everything else.
    File,
}

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteInfo {
    /// Its absolute path.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
}

/// A file being read.
#[derive(Debug)]
pub struct FileReader {
    size: u64,
    frames: Frames,
    /// Closing this direction would give the operation up.
    _input: Input,
    ended: bool,
}

impl FileReader {
    /// Its size when it was opened. It may have changed since, and is 0 for the files of `/proc`.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next part; `None` at the end. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>, SandboxError> {
        if self.ended {
            return Ok(None);
        }
        match self.frames.next().await? {
            InitFrame::Data(data) => Ok(Some(data.into_vec().into())),
            InitFrame::End => {
                self.ended = true;
                Ok(None)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// All of it, unless it is longer than `limit` bytes.
    pub async fn read_to_end(mut self, limit: usize) -> Result<Vec<u8>, SandboxError> {
        let mut all = Vec::new();
        while let Some(part) = self.next().await? {
            if all.len() + part.len() > limit {
                return Err(SandboxError::TooLarge(format!("the file has more than {limit} bytes")));
            }
            all.extend_from_slice(&part);
        }
        Ok(all)
    }
}

/// A directory that is watched. Dropping it ends that.
#[derive(Debug)]
pub struct Watcher {
    frames: Frames,
    /// Closing this direction would give the operation up.
    _input: Input,
    ended: bool,
}

impl Watcher {
    /// The next change; `None` when the directory is gone. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the sandbox ends or its init breaks the protocol.
    pub async fn next(&mut self) -> Result<Option<Change>, SandboxError> {
        if self.ended {
            return Ok(None);
        }
        match self.frames.next().await? {
            InitFrame::Change(change) => Ok(Some(change)),
            InitFrame::End => {
                self.ended = true;
                Ok(None)
            }
            other => Err(unexpected(&other)),
        }
    }
}

impl Files {
    /// Watches a directory for changes, and if `recursive` those in it.
    pub async fn watch(
        &self,
        path: &str,
        user: Option<&str>,
        recursive: bool,
    ) -> Result<Watcher, SandboxError> {
        let request = Request::Watch { target: target(path, user), recursive };
        let Connection { mut frames, input } = self.init.begin(request).await?;
        match frames.next().await? {
            InitFrame::Watching => Ok(Watcher { frames, _input: input, ended: false }),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens a regular file for reading.
    pub async fn read(&self, path: &str, user: Option<&str>) -> Result<FileReader, SandboxError> {
        let Connection { mut frames, input } = self.init.begin(Request::Read(target(path, user))).await?;
        match frames.next().await? {
            InitFrame::Opened { size } => Ok(FileReader { size, frames, _input: input, ended: false }),
            other => Err(unexpected(&other)),
        }
    }

    /// Writes a regular file of at most `limit` bytes, making missing parent directories. Until all of `source`
    /// has arrived the path shows what was there before.
    pub async fn write(
        &self,
        path: &str,
        user: Option<&str>,
        limit: u64,
        source: impl AsyncBufRead + Send + Unpin,
    ) -> Result<WriteInfo, SandboxError> {
        let request = Request::Write { target: target(path, user), limit };
        let Connection { mut frames, mut input } = self.init.begin(request).await?;
        input.widen();
        let mut answer = pin!(frames.next());
        // Init may refuse at any time and read no more, so its answer is awaited from the beginning.
        let frame = tokio::select! {
            frame = &mut answer => frame?,
            sent = feed(&mut input, source) => {
                match sent {
                    Err(error @ SandboxError::Source(_)) => return Err(error),
                    // Init hung up; why, it has said before.
                    Ok(()) | Err(_) => answer.await?,
                }
            }
        };
        match frame {
            InitFrame::Written { path, size } => Ok(WriteInfo { path, size }),
            other => Err(unexpected(&other)),
        }
    }

    /// Describes a file or directory.
    pub async fn info(&self, path: &str, user: Option<&str>) -> Result<Entry, SandboxError> {
        entry(self.init.ask(Request::Stat(target(path, user))).await?)
    }

    /// Whether there is anything at the path.
    pub async fn exists(&self, path: &str, user: Option<&str>) -> Result<bool, SandboxError> {
        self.init.decide(Request::Exists(target(path, user))).await
    }

    /// Lists a directory; with `depth` 2 its subdirectories too, and so on.
    ///
    /// # Errors
    /// [`SandboxError::TooLarge`] when that is over 100 000 entries or 16 MiB.
    pub async fn list(&self, path: &str, user: Option<&str>, depth: u32) -> Result<Vec<Entry>, SandboxError> {
        let request = Request::List { target: target(path, user), depth };
        let mut connection = self.init.begin(request).await?;
        let (mut entries, mut room) = (Vec::new(), ListRoom::new());
        loop {
            match connection.frames.next().await? {
                InitFrame::Done => return Ok(entries),
                frame if entries.len() < MAX_ENTRIES => {
                    let entry = entry(frame)?;
                    room.take("the entries", [entry.name.as_str(), &entry.path])?;
                    entries.push(entry);
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Makes a directory and its missing parents. `false` when it existed.
    pub async fn mkdir(&self, path: &str, user: Option<&str>) -> Result<bool, SandboxError> {
        self.init.decide(Request::Mkdir(target(path, user))).await
    }

    /// Removes a file, or a directory with all it contains. `false` when there was nothing.
    pub async fn remove(&self, path: &str, user: Option<&str>) -> Result<bool, SandboxError> {
        self.init.decide(Request::Remove(target(path, user))).await
    }

    /// Renames a file or directory and describes it under its new name.
    pub async fn rename(&self, from: &str, to: &str, user: Option<&str>) -> Result<Entry, SandboxError> {
        let request = Request::Rename { from: target(from, user), to: to.to_owned() };
        entry(self.init.ask(request).await?)
    }
}

fn target(path: &str, user: Option<&str>) -> Target {
    Target { user: user.map(str::to_owned), path: path.to_owned() }
}

fn entry(frame: InitFrame) -> Result<Entry, SandboxError> {
    match frame {
        InitFrame::Entry(init_protocol::Entry { name, path, kind, size, mode, modified }) => {
            let kind = match kind {
                init_protocol::EntryKind::Directory => EntryKind::Directory,
                init_protocol::EntryKind::File => EntryKind::File,
            };
            Ok(Entry { name, path, kind, size, mode, modified })
        }
        other => Err(unexpected(&other)),
    }
}

pub(super) async fn feed(
    input: &mut Input,
    mut source: impl AsyncBufRead + Unpin,
) -> Result<(), SandboxError> {
    loop {
        let part = match source.fill_buf().await {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other.map_err(SandboxError::Source)?,
        };
        if part.is_empty() {
            return input.send(&ClientFrame::End).await;
        }
        let part = part.get(..input.chunk()).unwrap_or(part);
        let length = part.len();
        input.send_bytes(Bulk::File, part).await?;
        source.consume(length);
    }
}
