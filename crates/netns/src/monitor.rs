//! Knowing that addresses or routes of a namespace changed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::Error;

/// A socket that becomes readable when addresses or routes of the opening thread's namespace change.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
}

// linux/rtnetlink.h: the legacy multicast group bits.
const GROUP_IPV4_ADDRESS: u32 = 0x10;
const GROUP_IPV4_ROUTE: u32 = 0x40;
const GROUP_IPV6_ADDRESS: u32 = 0x100;
const GROUP_IPV6_ROUTE: u32 = 0x400;

impl Monitor {
    /// Starts to listen. Changes from here on are reported.
    ///
    /// # Errors
    /// [`Error::Open`] when the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        let groups = GROUP_IPV4_ADDRESS | GROUP_IPV4_ROUTE | GROUP_IPV6_ADDRESS | GROUP_IPV6_ROUTE;
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(Error::Open)?;
        socket.bind(&SocketAddr::new(0, groups)).map_err(Error::Open)?;
        socket.set_non_blocking(true).map_err(Error::Open)?;
        Ok(Self { socket })
    }

    /// Takes all pending reports and says whether there were any. What changed is to be asked anew: reports may
    /// have been lost, which counts as one.
    ///
    /// # Errors
    /// What `recv(2)` says, except that there is nothing to read or that reports were lost.
    pub fn drain(&self) -> io::Result<bool> {
        let mut changed = false;
        let mut buffer = Vec::with_capacity(8192);
        loop {
            buffer.clear();
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    changed = true;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
