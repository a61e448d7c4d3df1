//! Links: network interfaces.

use std::{
    fmt, io,
    num::NonZeroU32,
    os::fd::{AsRawFd, BorrowedFd},
    time::{Duration, Instant},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, State},
};

use rustix::io::Errno;

use crate::{Connection, Error};

/// The index of a link in its namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkIndex(NonZeroU32);

impl LinkIndex {
    /// The loopback interface, which every namespace has, with this index.
    pub const LOOPBACK: Self = Self(NonZeroU32::MIN);

    /// The index as the kernel counts.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    pub(crate) fn new(index: u32) -> Option<Self> {
        NonZeroU32::new(index).map(Self)
    }
}

impl fmt::Display for LinkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a link has moved since it was created: bytes of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkBytes {
    /// What came in by it.
    pub received: u64,
    /// What went out by it.
    pub sent: u64,
}

/// A veth pair to create: two interfaces that are each other's wire, both down.
///
/// Both ends get the same hardware address and neither asks for neighbours (`IFF_NOARP`), so that frames reach the
/// other end without ARP or neighbour discovery. Multicast is off.
#[derive(Clone, Copy, Debug)]
pub struct Veth<'a> {
    /// The name of the end in the connection's namespace (at most 15 bytes).
    pub name: &'a str,
    /// The name of the other end.
    pub peer_name: &'a str,
    /// The namespace the other end is born in; moving it there later would take some 20 ms.
    pub peer_namespace: BorrowedFd<'a>,
    /// The hardware address of both ends; locally administered (second-lowest bit of the first byte set).
    pub hardware_address: [u8; 6],
}

impl Connection {
    /// The index of the link called `name`, if there is one.
    ///
    /// # Errors
    /// [`Error::FindLink`] with what the kernel says, other than that there is none.
    pub fn link_index(&mut self, name: &str) -> Result<Option<LinkIndex>, Error> {
        self.find_link(name, |link| LinkIndex::new(link.header.index))
    }

    /// How many bytes the link called `name` has moved, if there is one.
    ///
    /// # Errors
    /// [`Error::FindLink`] with what the kernel says, other than that there is none.
    pub fn link_bytes(&mut self, name: &str) -> Result<Option<LinkBytes>, Error> {
        self.find_link(name, |link| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Stats64(stats) => {
                    Some(LinkBytes { received: stats.rx_bytes, sent: stats.tx_bytes })
                }
                _ => None,
            })
        })
    }

    fn find_link<T>(
        &mut self,
        name: &str,
        mut take: impl FnMut(LinkMessage) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let found = self.channel.query(RouteNetlinkMessage::GetLink(message), |answer| match answer {
            RouteNetlinkMessage::NewLink(link) => take(link),
            _ => None,
        })?;
        found.or_else(|source| match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NODEV) => Ok(None),
            _ => Err(Error::FindLink { name: name.to_owned(), source }),
        })
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// [`Error::BringUp`] with what the kernel says.
    pub fn bring_up(&mut self, link: LinkIndex) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = link.get();
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0)?
            .map_err(|source| Error::BringUp { link, source })
    }

    /// Waits until a link that was brought up sends, or `limit` has passed; `false` if it does not. A link whose other
    /// end comes up later begins to send a moment after that, when the kernel has noticed; what goes by it until then
    /// is lost.
    ///
    /// # Errors
    /// [`Error::LinkState`] with what the kernel says.
    pub fn wait_until_running(&mut self, link: LinkIndex, limit: Duration) -> Result<bool, Error> {
        let deadline = Instant::now() + limit;
        loop {
            let mut message = LinkMessage::default();
            message.header.index = link.get();
            // The kernel notices at once when it is asked about this one link (since 6.8; before, soon).
            let is_running = self
                .channel
                .query(RouteNetlinkMessage::GetLink(message), |answer| match answer {
                    RouteNetlinkMessage::NewLink(link) => Some(is_running(&link)),
                    _ => None,
                })?
                .map_err(|source| Error::LinkState { link, source })?;
            if is_running == Some(true) || Instant::now() >= deadline {
                return Ok(is_running == Some(true));
            }
            std::thread::yield_now();
        }
    }

    /// Creates a veth pair and returns the index of the end in this namespace.
    ///
    /// # Errors
    /// [`Error::CreateVeth`] with what the kernel says; nothing is left behind.
    pub fn create_veth(&mut self, veth: &Veth<'_>) -> Result<LinkIndex, Error> {
        let refused = |source| Error::CreateVeth {
            name: veth.name.to_owned(),
            peer: veth.peer_name.to_owned(),
            source,
        };
        let mut peer = quiet_end(veth.peer_name, veth.hardware_address);
        peer.attributes.push(LinkAttribute::NetNsFd(veth.peer_namespace.as_raw_fd()));
        let mut message = quiet_end(veth.name, veth.hardware_address);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?.map_err(refused)?;
        self.link_index(veth.name)?.ok_or_else(|| refused(io::ErrorKind::NotFound.into()))
    }

    /// Deletes a link (of a veth pair: both ends). Takes some 15 ms: the kernel waits until nobody uses it.
    ///
    /// # Errors
    /// [`Error::DeleteLink`] with what the kernel says.
    pub fn delete_link(&mut self, link: LinkIndex) -> Result<(), Error> {
        let mut message = LinkMessage::default();
        message.header.index = link.get();
        self.request(RouteNetlinkMessage::DelLink(message), 0)?
            .map_err(|source| Error::DeleteLink { link, source })
    }
}

fn quiet_end(name: &str, hardware_address: [u8; 6]) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.flags = LinkFlags::Noarp;
    message.header.change_mask = LinkFlags::Noarp | LinkFlags::Multicast;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message.attributes.push(LinkAttribute::Address(hardware_address.to_vec()));
    message
}

fn is_running(link: &LinkMessage) -> bool {
    link.attributes.contains(&LinkAttribute::OperState(State::Up))
}
