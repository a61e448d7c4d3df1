//! Being told of connections that end.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use super::Entry;
use crate::error::Error;
use crate::message::Messages;
use crate::socket::{Incoming, Socket};
use crate::uapi::{ct, group, subsystem};

/// A socket that is told of each connection which the kernel forgets: because it was closed a while ago, because
/// nothing came for long, or because somebody [ended](super::Table) it. It is non-blocking: wait for it to become
/// readable, then call [`recv`](Self::recv) until it returns `None`.
pub struct Endings {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What one reading brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// The connections, in order.
    pub connections: Vec<Entry>,
    /// The kernel says that it could not tell of some, nobody knows how many: there was no room.
    pub overrun: bool,
    /// Messages that could not be read.
    pub malformed: u64,
}

/// One message is about one connection and takes some hundred bytes.
const DATAGRAM: usize = 1 << 14;

impl Endings {
    /// Opens a socket for the calling thread's network namespace, for which the kernel may hold so many bytes: a
    /// connection takes about one KiB. It is told of connections that have begun since.
    ///
    /// # Errors
    /// When there is no such socket, or this process may not have it.
    pub fn open(buffer: usize) -> Result<Self, Error> {
        let mut socket = Socket::open(buffer).map_err(Error::Open)?;
        socket.join(group::CONNTRACK_DESTROY).map_err(Error::Subscribe)?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM] })
    }

    /// Reads one datagram, or returns `None` when there is none.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn recv(&mut self) -> Result<Option<Ended>, Error> {
        match self.socket.receive(&mut self.buffer).map_err(Error::Receive)? {
            Incoming::Datagram(datagram) => Ok(Some(read(datagram))),
            Incoming::Overrun => Ok(Some(Ended { overrun: true, ..Ended::default() })),
            Incoming::Empty => Ok(None),
        }
    }
}

impl AsFd for Endings {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Endings {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn read(datagram: &[u8]) -> Ended {
    let mut ended = Ended::default();
    for message in Messages::new(datagram) {
        match message {
            Ok(message) if message.kind == (subsystem::CTNETLINK << 8 | ct::MSG_DELETE) => {
                match Entry::read(&message) {
                    Some(entry) => ended.connections.push(entry),
                    None => ended.malformed += 1,
                }
            }
            Ok(_) => {}
            Err(_) => ended.malformed += 1,
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_datagram_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let ended = read(&bytes);
            prop_assert!(ended.connections.len() <= bytes.len() / 16 + 1);
        }
    }
}
