//! Watching directories for changes.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use init_protocol::{Change, ChangeKind, Failure, FailureKind, InitFrame, MAX_PATH, MAX_WATCHED, Target};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{CWD, Dir, FileType, OFlags};
use rustix::io::Errno;

use super::Access;
use super::path::{open, outside_init};
use crate::connection::Connection;
use crate::failure::{Result, failure};

/// Tells the changes in a directory, until the daemon gives up or the directory is gone.
pub(crate) fn watch(connection: &mut Connection, target: &Target, recursive: bool) -> Result<()> {
    let access = Access::new(target)?;
    let top = access.path.trim_end_matches('/').to_owned();
    let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
    let queue = queue.map_err(|error| failure("make a queue for changes", error))?;
    let mut watched = Watched { queue, recursive, directories: HashMap::new() };
    access.run(|| watched.add_tree(&top, OFlags::empty(), &mut Vec::new()))?;
    connection.send(&InitFrame::Watching)?;
    loop {
        let changes = access.run(|| watched.changes())?;
        let idle = changes.is_empty();
        for change in changes {
            connection.send(&InitFrame::Change(change))?;
        }
        connection.flush()?;
        if watched.directories.is_empty() {
            return connection.send(&InitFrame::End);
        }
        if idle {
            wait(connection, &watched.queue)?;
        }
    }
}

fn wait(connection: &Connection, queue: &OwnedFd) -> Result<()> {
    let mut fds = [PollFd::new(connection, PollFlags::RDHUP), PollFd::new(queue, PollFlags::IN)];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(failure("wait for changes", error)),
    }
    let [gone, _] = fds;
    if gone.revents().is_empty() {
        Ok(())
    } else {
        Err(Failure::new(FailureKind::Io, "the request was given up"))
    }
}

/// What is looked for. Reading is no change.
const LOOKED_FOR: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// Bytes of events that are read at a time.
const EVENTS: usize = 16 << 10;

struct Watched {
    queue: OwnedFd,
    recursive: bool,
    /// Paths, without the slash at the end, by the kernel's numbers.
    directories: HashMap<i32, String>,
}

impl Watched {
    /// Watches a directory, and if it is to be, those in it; notes what was found in them.
    fn add_tree(&mut self, top: &str, flags: OFlags, found: &mut Vec<Change>) -> Result<()> {
        let mut waiting = VecDeque::from([(top.to_owned(), flags)]);
        let mut first = true;
        while let Some((path, flags)) = waiting.pop_front() {
            let room = MAX_WATCHED.saturating_sub(self.directories.len() + waiting.len());
            match self.add(&path, flags, room, found) {
                Ok(below) => waiting.extend(below.into_iter().map(|path| (path, OFlags::NOFOLLOW))),
                Err(failure) if first || is_shortage(failure.kind) => return Err(failure),
                // Below the first: gone meanwhile, or not the user's to read.
                Err(_) => {}
            }
            first = false;
        }
        Ok(())
    }

    /// Watches one directory, if there is `room`, and gives those in it that are to be watched too.
    fn add(
        &mut self,
        path: &str,
        flags: OFlags,
        room: usize,
        found: &mut Vec<Change>,
    ) -> Result<Vec<String>> {
        let shown = if path.is_empty() { "/" } else { path };
        let too_many = || {
            let message = format!("{shown}: more than {MAX_WATCHED} directories to watch");
            Failure::new(FailureKind::TooLarge, message)
        };
        if room == 0 {
            return Err(too_many());
        }
        let fd = open(CWD, shown, OFlags::RDONLY | OFlags::DIRECTORY | flags);
        let fd = fd.map_err(|error| failure(shown, error))?;
        outside_init(&fd, shown)?;
        // Through the descriptor: the path may be something else by now.
        let by_number = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
        let number = inotify::add_watch(&self.queue, by_number, LOOKED_FOR);
        let number = number.map_err(|error| failure(format!("watch {shown}"), error))?;
        self.directories.insert(number, path.to_owned());
        if !self.recursive {
            return Ok(Vec::new());
        }
        // After watching began, so that nothing falls between.
        let mut below = Vec::new();
        let mut dir = Dir::new(fd).map_err(|error| failure(shown, error))?;
        while let Some(Ok(entry)) = dir.read() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let path = format!("{path}/{}", name.to_string_lossy());
            let directory = entry.file_type() == FileType::Directory;
            if directory && path.len() < MAX_PATH {
                if below.len() >= room {
                    return Err(too_many());
                }
                below.push(path.clone());
            }
            match found.len().cmp(&MAX_WATCHED) {
                Ordering::Less => found.push(Change { kind: ChangeKind::Create, path, directory }),
                Ordering::Equal => found.push(lost()),
                Ordering::Greater => {}
            }
        }
        Ok(below)
    }

    /// What has changed since the last call; empty if nothing has.
    fn changes(&mut self) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        let (mut new, mut moved) = (Vec::new(), Vec::new());
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut reader = Reader::new(&self.queue, &mut buffer);
        let mut begun = false;
        // One buffer at a time, whatever is in it.
        while !(begun && reader.is_buffer_empty()) {
            begun = true;
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(failure("read changes", error)),
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                changes.push(lost());
                continue;
            }
            if flags.contains(ReadFlags::IGNORED) {
                self.directories.remove(&event.wd());
                continue;
            }
            let Some(parent) = self.directories.get(&event.wd()) else { continue };
            let (Some(kind), Some(name)) = (kind(flags), event.file_name()) else { continue };
            let path = format!("{parent}/{}", name.to_string_lossy());
            let directory = flags.contains(ReadFlags::ISDIR);
            if directory && kind == ChangeKind::Create && self.recursive {
                new.push(path.clone());
            }
            if directory && kind == ChangeKind::Rename {
                moved.push(path.clone());
            }
            changes.push(Change { kind, path, directory });
        }
        for path in moved {
            self.forget(&path);
        }
        for path in new {
            // What came before it was watched is told as created; it may be told twice.
            match self.add_tree(&path, OFlags::NOFOLLOW, &mut changes) {
                Err(failure) if is_shortage(failure.kind) => return Err(failure),
                _ => {}
            }
        }
        Ok(changes)
    }
}

impl Watched {
    /// Stops watching a directory that has been moved, and those in it: if it is still in the tree, it is found again
    /// under its new name.
    fn forget(&mut self, moved: &str) {
        let within = |path: &str| {
            path.strip_prefix(moved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let gone = self.directories.extract_if(|_, path| within(path));
        for (number, _) in gone {
            // Fails only when it is gone already.
            let _ = inotify::remove_watch(&self.queue, number);
        }
    }
}

/// Says that something was not told.
fn lost() -> Change {
    Change { kind: ChangeKind::Lost, path: String::new(), directory: false }
}

/// Whether what cannot be watched is too much for this machine: then nothing more may be watched without a word.
fn is_shortage(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::TooLarge | FailureKind::NoSpace | FailureKind::Busy)
}

fn kind(flags: ReadFlags) -> Option<ChangeKind> {
    let kinds = [
        (ReadFlags::CREATE | ReadFlags::MOVED_TO, ChangeKind::Create),
        (ReadFlags::DELETE, ChangeKind::Remove),
        (ReadFlags::MOVED_FROM, ChangeKind::Rename),
        (ReadFlags::MODIFY, ChangeKind::Write),
        (ReadFlags::ATTRIB, ChangeKind::Chmod),
    ];
    kinds.into_iter().find(|(which, _)| flags.intersects(*which)).map(|(_, kind)| kind)
}
