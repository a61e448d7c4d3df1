//! Writing files, so that nobody ever sees half of one.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use init_protocol::{Bulk, ClientFrame, Failure, FailureKind, InitFrame, Target};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Uid, fchmod, fchown, openat, readlinkat, renameat,
    unlinkat,
};
use rustix::io::Errno;

use super::Access;
use super::path::{Place, ensure_place, is_procfs, open, split};
use super::pipe::Pipe;
use super::read::regular;
use crate::accounts::Account;
use crate::connection::{Connection, Part, bad_request};
use crate::failure::{Result, failure};

/// Receives a file.
pub(crate) fn write(connection: &mut Connection, target: &Target, limit: u64) -> Result<()> {
    let access = Access::new(target)?;
    let mut staged = access.run(|| Staged::new(&access.path, &access.account))?;
    let received = receive(connection, staged.file(), &access.path, limit);
    let size = access.run(|| match received {
        Ok(size) => staged.commit(&access.path).map(|()| size),
        Err(failure) => {
            staged.discard();
            Err(failure)
        }
    })?;
    connection.send(&InitFrame::Written { path: access.path, size })
}

fn receive(connection: &mut Connection, file: &mut File, path: &str, limit: u64) -> Result<u64> {
    let pipe = Pipe::new().map_err(|error| failure(format!("make a pipe for {path}"), error))?;
    let mut size = 0u64;
    loop {
        let (data, missing) = match connection.receive_part()? {
            Part::Frame(ClientFrame::Data(data)) => (data.into_vec(), 0),
            Part::Begun { kind: Bulk::File, data, missing } => (data, missing),
            Part::Frame(ClientFrame::End) => return Ok(size),
            _ => return Err(bad_request("this frame has no place while a file is written")),
        };
        size = size.saturating_add(data.len() as u64).saturating_add(missing as u64);
        if size > limit {
            let message = format!("{path}: more than {limit} bytes");
            return Err(Failure::new(FailureKind::TooLarge, message));
        }
        file.write_all(&data).map_err(|error| failure(path, error))?;
        let mut left = missing;
        while left > 0 {
            let count = connection.receive_into(&pipe.into, left)?;
            pipe.empty_into(file, count).map_err(|error| failure(path, error))?;
            left = left.saturating_sub(count);
        }
    }
}

/// Most symbolic links followed to the file that is written.
const LINKS: usize = 40;

/// A file that is being written, and takes its place when it is complete.
#[derive(Debug)]
pub(super) struct Staged {
    place: Place,
    existing: Option<Stat>,
    file: File,
    /// Its name for the time being, in the same directory; `None` if it has none, and its content will be
    /// copied into the existing file.
    name: Option<String>,
}

impl Staged {
    /// Begins to write the file at a path, as the user whose rights the calling thread has. Links are followed,
    /// missing directories made.
    pub(super) fn new(path: &str, account: &Account) -> Result<Self> {
        if path.ends_with('/') {
            return Err(failure(path, Errno::ISDIR));
        }
        let (place, existing) = resolve(path)?;
        let report = |error| failure(path, error);
        let own = account.credentials.uid;
        if existing.is_some() {
            check_writable(&place).map_err(report)?;
        }
        // The new file would not belong to the old one's owner.
        let foreign = existing.is_some_and(|existing| existing.st_uid != own && own != 0);
        if !foreign {
            match named(&place, existing.as_ref(), account) {
                Ok((file, name)) => return Ok(Self { place, existing, file, name: Some(name) }),
                // The directory is not the user's to change, but the file is.
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS) if existing.is_some() => {}
                Err(error) => return Err(report(error)),
            }
        }
        let file =
            openat(CWD, "/tmp", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR);
        let file = File::from(file.map_err(|error| failure(format!("make room in /tmp for {path}"), error))?);
        Ok(Self { place, existing, file, name: None })
    }

    /// Where to write.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it the mode of another file.
    pub(super) fn copy_mode(&self, other: &File) -> io::Result<()> {
        let mode = rustix::fs::fstat(other)?.st_mode;
        Ok(fchmod(&self.file, Mode::from_raw_mode(mode & PERMISSIONS))?)
    }

    /// Puts it in its place.
    pub(super) fn commit(mut self, path: &str) -> Result<()> {
        let Place { directory, name } = &self.place;
        let replaced = match &self.name {
            Some(temporary) => renameat(directory, temporary, directory, name),
            None => Err(Errno::XDEV),
        };
        let done = match replaced {
            // Something is mounted on the file, or it has no name: its content goes there.
            Err(Errno::BUSY | Errno::XDEV) if self.existing.is_some() => self.overwrite(),
            result => result.map_err(io::Error::from),
        };
        if done.is_err() || replaced.is_err() {
            self.discard();
        }
        done.map_err(|error| failure(path, error))
    }

    /// Forgets it.
    pub(super) fn discard(self) {
        if let Some(name) = &self.name {
            let _ = unlinkat(&self.place.directory, name, AtFlags::empty());
        }
    }

    fn overwrite(&mut self) -> io::Result<()> {
        let target = open(&self.place.directory, &self.place.name, OFlags::WRONLY | OFlags::NOFOLLOW)?;
        let mut target = File::from(target);
        self.file.rewind()?;
        target.set_len(0)?;
        io::copy(&mut self.file, &mut target).map(|_| ())
    }
}

/// Permission bits that a file keeps when it is written. The set-id bits are lost, as with any writing.
const PERMISSIONS: u32 = 0o777;

/// Where the file of a path is, links followed, and what is there now.
fn resolve(path: &str) -> Result<(Place, Option<Stat>)> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let report = |error| failure(&path, error);
        let place = ensure_place(&path)?;
        if is_procfs(&place.directory) {
            return Err(report(Errno::ACCESS));
        }
        let found = match open(&place.directory, &place.name, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok((place, None)),
            Err(error) => return Err(report(error)),
        };
        let stat = rustix::fs::fstat(&found).map_err(report)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Symlink {
            regular(&path, kind)?;
            return Ok((place, Some(stat)));
        }
        let link = readlinkat(&place.directory, &place.name, Vec::new()).map_err(report)?;
        let link = link.into_string().map_err(|_| report(Errno::ILSEQ))?;
        let (parent, _) = split(&path)?;
        path = if link.starts_with('/') { link } else { format!("{}/{link}", parent.trim_end_matches('/')) };
    }
    Err(failure(path, Errno::LOOP))
}

/// Whether the user may write to the existing file: being allowed to replace it is not enough.
fn check_writable(place: &Place) -> rustix::io::Result<()> {
    match open(&place.directory, &place.name, OFlags::WRONLY | OFlags::NOFOLLOW) {
        // A program that is running can be replaced, though not written to.
        Ok(_) | Err(Errno::TXTBSY) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A new file with a name of its own, with owner and mode of the one it will replace.
fn named(place: &Place, existing: Option<&Stat>, account: &Account) -> rustix::io::Result<(File, String)> {
    let (fd, name) = loop {
        let name = temporary_name();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&place.directory, &name, flags, Mode::from_raw_mode(0o666)) {
            Ok(fd) => break (fd, name),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    };
    if let Some(existing) = existing {
        let kept = keep(&fd, existing, account);
        if let Err(error) = kept {
            let _ = unlinkat(&place.directory, &name, AtFlags::empty());
            return Err(error);
        }
    }
    Ok((File::from(fd), name))
}

fn keep(fd: &std::os::fd::OwnedFd, existing: &Stat, account: &Account) -> rustix::io::Result<()> {
    let owned = fchown(fd, Some(Uid::from_raw(existing.st_uid)), Some(Gid::from_raw(existing.st_gid)));
    if account.credentials.uid == 0 {
        owned?;
    }
    // Otherwise the owner is right already, and a group the user is not in cannot be kept.
    fchmod(fd, Mode::from_raw_mode(existing.st_mode & PERMISSIONS))
}

/// A name that no other file has, as good as certainly.
fn temporary_name() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    format!(".bailiwick-{now:x}-{:x}", COUNT.fetch_add(1, Ordering::Relaxed))
}
