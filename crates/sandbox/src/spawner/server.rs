//! The spawner process: small and single-threaded, so that a fork of it is cheap and safe.
//!
//! It starts one child per request and forgets it; sandboxes outlive the spawner and the daemon. It ends when
//! the daemon's end of the socket is closed.

use std::{
    convert::Infallible,
    io::{self, IoSlice, IoSliceMut, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    process::ExitCode,
};

use rustix::{
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
    thread::ThreadNameSpaceType,
};
use sys::{
    spawn::{self, Child},
    userns::{self, IdRange},
};

use super::{
    child,
    protocol::{Fds, MAX_PACKET, Reply, Request},
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
    let mut packet = vec![0; MAX_PACKET];
    while let Some((length, fds)) = receive(socket, &mut packet)? {
        let request = packet.get(..length).unwrap_or_default();
        match handle(request, fds) {
            Ok(child) => {
                let reply = Reply::Started { pid: child.pid.as_raw_nonzero().get() };
                send(socket, &reply, Some(child.pidfd.as_fd()))?;
            }
            Err(fault) => send(socket, &Reply::Failed(fault), None)?,
        }
    }
    Ok(())
}

fn handle(request: &[u8], fds: Vec<OwnedFd>) -> Result<Child, Fault> {
    let request: Request =
        serde_json::from_slice(request).map_err(|error| Fault::new("read the request", error.to_string()))?;
    let fds = Fds::from_received(fds).ok_or_else(|| Fault::new("take over", "the descriptors"))?;
    let range = IdRange { first: request.first_id, count: IDS_PER_SANDBOX };
    let userns = userns::create(range).during("create the user namespace of", &request.hostname)?;
    // The network namespace exists already, the user namespace is joined last, and the control group namespace
    // is made when the process is in its control groups.
    let namespaces = ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
    spawn::fork_into(namespaces, fds.cgroup.as_ref().map(OwnedFd::as_fd), || {
        report(&fds, child::become_init(&request, &fds, &userns))
    })
    .during("start the first process of", &request.hostname)
}

/// In the child: says why it did not become init, and ends.
fn report(fds: &Fds, result: Result<Infallible, Fault>) -> Infallible {
    let Err(fault) = result;
    if let Ok(text) = serde_json::to_vec(&fault) {
        let status = fds.status.try_clone();
        let _ = status.and_then(|fd| std::fs::File::from(fd).write_all(&text));
    }
    spawn::exit(1)
}

/// The next packet with its descriptors, or `None` when the other end is closed.
fn receive(socket: &OwnedFd, packet: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(Fds::MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(packet)];
        recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet was cut short"));
    }
    Ok((received.bytes > 0).then_some((received.bytes, fds)))
}

fn send(socket: &OwnedFd, reply: &Reply, pidfd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = serde_json::to_vec(reply)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = pidfd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
