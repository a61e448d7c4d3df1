//! Packets with descriptors over a sequential-packet socket. Every message between daemon, spawner and shells is one.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};

/// The longest packet that is accepted.
const MAX_PACKET: usize = 64 * 1024;

/// The most descriptors that a packet has.
const MAX_FDS: usize = 8;

/// Two connected sockets.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet.
///
/// # Errors
/// `InvalidInput` when it is too long or has too many descriptors; `EPIPE` when the other end is closed.
pub(super) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// The next packet with its descriptors, or `None` when the other end is closed.
pub(super) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut packet)];
        recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet was cut short"));
    }
    Ok(Some((serde_json::from_slice(packet.get(..received.bytes).unwrap_or_default())?, fds)))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _};

    use super::*;

    #[test]
    fn a_packet_arrives_whole_with_its_descriptors() {
        let (one, other) = pair().expect("pair");
        let file = File::open("/proc/self/status").expect("file");
        send(&one, &"text", &[file.as_fd(), file.as_fd()]).expect("send");
        send(&one, &7, &[]).expect("send");
        let (text, fds): (String, _) = receive(&other).expect("receive").expect("a packet");
        assert_eq!((text.as_str(), fds.len()), ("text", 2));
        let mut read = String::new();
        File::from(fds.into_iter().next().expect("one")).read_to_string(&mut read).expect("read");
        assert!(read.starts_with("Name:"));
        assert_eq!(receive::<u32>(&other).expect("receive").expect("a packet").0, 7);
        drop(one);
        assert!(receive::<u32>(&other).expect("receive").is_none());
    }

    #[test]
    fn what_is_too_long_is_refused_by_its_sender() {
        let (one, _other) = pair().expect("pair");
        let refused = send(&one, &"x".repeat(MAX_PACKET), &[]).expect_err("too long");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
}
