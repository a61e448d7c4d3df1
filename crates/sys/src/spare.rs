//! A descriptor in reserve, for the moment in which the process has no other left.
//!
//! A listener whose process is at its limit of descriptors cannot accept, not even to refuse: whoever connects waits
//! in the kernel's queue, and to a client that is a server which says nothing. With a descriptor in reserve, the
//! connection is accepted in its place and reset.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with, getsockname, sockopt},
};

/// One for the process, because the limit is the process's.
static SPARE: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Takes the descriptor into reserve, if that has not been done. To be called as long as there are some left.
///
/// # Errors
/// When there is none any more.
pub fn reserve() -> io::Result<()> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    if spare.is_none() {
        *spare = Some(File::open("/dev/null")?.into());
    }
    Ok(())
}

/// Whether an error says that the process, or the system, has no descriptor left.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}

/// Resets the connection that has waited longest at a non-blocking listener, in the place of the descriptor in reserve.
/// Gives the address that the client connected to.
///
/// # Errors
/// `WouldBlock` when none waits; the limit again when there is nothing in reserve, or another thread was faster.
pub fn turn_away(listener: impl AsFd) -> io::Result<SocketAddr> {
    let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
    drop(spare.take());
    let turned_away = accept_and_reset(listener);
    // Nothing is in reserve if this fails; the next call finds out whether there is again.
    *spare = File::open("/dev/null").ok().map(OwnedFd::from);
    turned_away
}

fn accept_and_reset(listener: impl AsFd) -> io::Result<SocketAddr> {
    let client = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let to = SocketAddr::try_from(getsockname(&client)?)?;
    sockopt::set_socket_linger(&client, Some(Duration::ZERO))?;
    Ok(to)
}
