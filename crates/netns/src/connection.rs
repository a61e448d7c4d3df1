//! A connection to the routing part of the kernel.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::{Error, netlink::Channel};

/// An rtnetlink socket. It is about the namespace of the thread that opened it, whichever thread uses it.
///
/// Calls block only for as long as the kernel works on the request.
#[derive(Debug)]
pub struct Connection {
    pub(crate) channel: Channel,
}

impl Connection {
    /// Opens a connection to the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Open`] when the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { channel: Channel::open(NETLINK_ROUTE)? })
    }

    pub(crate) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<std::io::Result<()>, Error> {
        self.channel.request(message, flags)
    }
}
