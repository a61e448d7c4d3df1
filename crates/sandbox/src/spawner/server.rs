//! The spawner process: small and single-threaded, so that a fork of it is cheap and safe.
//!
//! It starts one shell per request and forgets it; sandboxes outlive the spawner and the daemon. It ends when the
//! daemon's end of the socket is closed.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    process::ExitCode,
};

use rustix::thread::ThreadNameSpaceType;
use sys::{
    spawn::{self, Child},
    userns::{self, IdRange},
};

use super::{
    packet,
    protocol::{Start, Started},
    shell,
};
use crate::{
    fault::{Context as _, Fault},
    ids::IDS_PER_SANDBOX,
};

/// Serves requests on descriptor 3 until the other end is closed: the whole of the spawner's process.
///
/// A program that uses this crate calls it, before anything else, when its first argument is
/// [`ARGUMENT`](super::ARGUMENT).
pub fn serve() -> ExitCode {
    match prepare().and_then(|socket| serve_socket(&socket)) {
        Ok(()) => ExitCode::SUCCESS,
        // The daemon sees the socket close, and says so.
        Err(_) => ExitCode::FAILURE,
    }
}

fn prepare() -> io::Result<OwnedFd> {
    let socket = spawn::take_inherited_fd()?;
    // A session of its own: an interrupt typed at the daemon's terminal is the daemon's to handle.
    let _ = rustix::process::setsid();
    spawn::reset_signals()?;
    spawn::reap_children_automatically()?;
    Ok(socket)
}

fn serve_socket(socket: &OwnedFd) -> io::Result<()> {
    while let Some((start, fds)) = packet::receive::<Start>(socket)? {
        match start_shell(&start, fds) {
            Ok(child) => {
                let pid = child.pid.as_raw_nonzero().get();
                packet::send(socket, &Started::Started { pid }, &[child.pidfd.as_fd()])?;
            }
            Err(fault) => packet::send(socket, &Started::Failed(fault), &[])?,
        }
    }
    Ok(())
}

fn start_shell(start: &Start, fds: Vec<OwnedFd>) -> Result<Child, Fault> {
    let mut fds = fds.into_iter();
    let control = fds.next().ok_or_else(|| Fault::new("take over", "the control socket"))?;
    let cgroup = fds.next();
    let range = IdRange { first: start.first_id, count: IDS_PER_SANDBOX };
    let userns = userns::create(range).during("create", "the user namespace")?;
    // The network namespace is joined later, the user namespace last, and the control group namespace is made
    // when the process is in its control groups.
    let namespaces = ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    let keep = [control.as_fd(), userns.as_fd()];
    spawn::fork_into(namespaces, cgroup.as_ref().map(OwnedFd::as_fd), &keep, || {
        shell::run(start, &control, &userns)
    })
    .during("start", "the first process")
}
