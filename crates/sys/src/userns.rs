//! User namespaces with a chosen range of ids.

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::fd::OwnedFd,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Signal, pidfd_send_signal},
    thread::ThreadNameSpaceType,
};

use crate::spawn::fork_into;

/// A run of user and group ids on the machine that appear as 0, 1, 2, … in a user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// What id 0 inside is on the machine.
    pub first: u32,
    /// How many ids the namespace has.
    pub count: u32,
}

/// Creates a user namespace whose ids are `range`, kept alive by the returned descriptor alone.
///
/// The calling process must be single-threaded and privileged towards both ids and namespaces.
///
/// # Errors
/// As [`fork_into`]; `EPERM` without the right to map the range; `ENOSPC` at the machine's limit of namespaces.
pub fn create(range: IdRange) -> io::Result<OwnedFd> {
    let child = fork_into(ThreadNameSpaceType::USER, None, &[], wait_for_ever)?;
    let opened = map_and_open(child.pid.as_raw_nonzero().get(), range);
    let killed = pidfd_send_signal(&child.pidfd, Signal::KILL);
    // The namespace must not be handed out while a process with all rights over it still lives.
    let mut ended = [PollFd::new(&child.pidfd, PollFlags::IN)];
    killed.and_then(|()| rustix::io::retry_on_intr(|| poll(&mut ended, None)))?;
    opened
}

fn map_and_open(pid: i32, range: IdRange) -> io::Result<OwnedFd> {
    let map = format!("0 {} {}\n", range.first, range.count);
    for file in ["uid_map", "gid_map"] {
        // One write: the kernel takes the whole map at once and only once.
        OpenOptions::new().write(true).open(format!("/proc/{pid}/{file}"))?.write_all(map.as_bytes())?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

fn wait_for_ever() -> Infallible {
    loop {
        let _ = poll(&mut [], None);
    }
}
