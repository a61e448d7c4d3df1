//! User namespaces with a chosen range of ids.

use std::{
    convert::Infallible,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Signal, Uid, pidfd_send_signal},
    thread::{ThreadNameSpaceType, capabilities, set_capabilities, set_thread_res_uid},
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
/// It belongs to the first id of the range: what the kernel counts of it outside (instances of inotify, among others,
/// which have a limit for each user: `user_namespaces(7)`) counts for that id and not for the caller, who has many.
///
/// The calling process must be single-threaded and privileged towards both ids and namespaces.
///
/// # Errors
/// As [`fork_into`]; `EPERM` without the right to map the range; `ENOSPC` at the machine's limit of namespaces.
pub fn create(range: IdRange) -> io::Result<OwnedFd> {
    let (mut made, told) = io::pipe()?;
    let child = fork_into(ThreadNameSpaceType::empty(), None, &[told.as_fd()], || {
        let error = enter_new(range.first).err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
        let _parent_is_gone = (&told).write_all(&error.to_ne_bytes());
        wait_for_ever()
    })?;
    drop(told);
    let mut error = [0; 4];
    let made = made.read_exact(&mut error).and_then(|()| match i32::from_ne_bytes(error) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    });
    let opened = made.and_then(|()| map_and_open(child.pid.as_raw_nonzero().get(), range));
    let killed = pidfd_send_signal(&child.pidfd, Signal::KILL);
    // The namespace must not be handed out while a process with all rights over it still lives.
    let mut ended = [PollFd::new(&child.pidfd, PollFlags::IN)];
    killed.and_then(|()| rustix::io::retry_on_intr(|| poll(&mut ended, None)))?;
    opened
}

/// Puts this process, which has one thread, into a new user namespace that belongs to `owner`.
fn enter_new(owner: u32) -> io::Result<()> {
    let (root, owner) = (Uid::ROOT, Uid::from_raw(owner));
    let privileges = capabilities(None)?;
    // The owner is the effective id. The real one stays: limits for it would become those of the namespace.
    set_thread_res_uid(root, owner, root)?;
    // Whoever is not root in effect has none in effect, and machines may let only the privileged make such namespaces.
    set_capabilities(None, privileges)?;
    // SAFETY: changes namespaces of the calling thread only, and takes no pointer.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
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
