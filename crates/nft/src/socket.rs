//! The netlink socket under a [`Connection`](crate::Connection) and a [`LogSocket`](crate::LogSocket).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

/// A socket to the netfilter of the namespace it was opened in.
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    /// Longest message that fits into the send buffer as it is.
    sendable: usize,
}

/// What came of reading one datagram.
pub(crate) enum Incoming<'a> {
    Datagram(&'a [u8]),
    /// Nothing there.
    Empty,
    /// The kernel had to drop datagrams because the receive buffer was full.
    Overrun,
}

impl Socket {
    /// Opens a socket in the calling thread's namespace, with a receive buffer of so many bytes.
    pub(crate) fn open(receive_buffer: usize) -> io::Result<Self> {
        let mut inner = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
        inner.bind_auto()?;
        // Errors explained in words, and without a copy of the message that caused them.
        inner.set_ext_ack(true)?;
        inner.set_cap_ack(true)?;
        let sendable = sockopt::socket_send_buffer_size(&inner)?;
        if sockopt::set_socket_recv_buffer_size_force(&inner, receive_buffer).is_err() {
            // Without CAP_NET_ADMIN on the machine: as much as its settings grant.
            sockopt::set_socket_recv_buffer_size(&inner, receive_buffer)?;
        }
        Ok(Self { inner, sendable: usable(sendable) })
    }

    /// Has the kernel send what it multicasts to a group (`NFNLGRP_*`).
    pub(crate) fn join(&mut self, group: u32) -> io::Result<()> {
        self.inner.add_membership(group)
    }

    /// Sends one datagram whole: the kernel has dealt with it when this returns.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.sendable {
            self.grow_send_buffer(bytes.len())?;
        }
        loop {
            match send(&self.inner, bytes, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads one datagram if there is one.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Incoming<'a>> {
        loop {
            return match recv(&self.inner, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
                Ok((_, length)) => match buffer.get(..length) {
                    Some(datagram) => Ok(Incoming::Datagram(datagram)),
                    None => Err(Errno::MSGSIZE.into()),
                },
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(Incoming::Empty),
                Err(Errno::NOBUFS) => Ok(Incoming::Overrun),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Waits until there is something to read; `false` when `limit` has passed before.
    pub(crate) fn wait(&self, limit: Instant) -> io::Result<bool> {
        loop {
            let left = limit.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Ok(false);
            }
            let timeout = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            match poll(&mut [PollFd::new(&self.inner, PollFlags::IN)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn grow_send_buffer(&mut self, bytes: usize) -> io::Result<()> {
        // The kernel doubles what it is given; the batch has to fit into that less some overhead.
        if sockopt::set_socket_send_buffer_size_force(&self.inner, bytes).is_err() {
            sockopt::set_socket_send_buffer_size(&self.inner, bytes)?;
        }
        self.sendable = usable(sockopt::socket_send_buffer_size(&self.inner)?);
        Ok(())
    }
}

/// What a netlink message may have of a send buffer.
fn usable(send_buffer: usize) -> usize {
    send_buffer.saturating_sub(32)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}
