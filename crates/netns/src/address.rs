//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
};

use crate::{Connection, Error, LOCAL_TABLE, LinkIndex, Route, RouteKind};

/// An address that a link has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceAddress {
    /// The link.
    pub link: LinkIndex,
    /// The address, with the length of its prefix.
    pub address: IpNet,
}

impl Connection {
    /// Gives a link an address. It is usable and reachable at once: no duplicate address detection takes place.
    /// An address that is there already is no error.
    ///
    /// # Errors
    /// [`Error::Address`] with what the kernel says.
    pub fn add_address(&mut self, link: LinkIndex, address: IpNet) -> Result<(), Error> {
        let message = RouteNetlinkMessage::NewAddress(address_message(link, address));
        let refused = |source| Error::Address { action: "add", address, link, source };
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)?.map_err(refused)?;
        // The kernel makes an IPv6 address reachable later, from a work queue, which may take a second.
        if address.addr().is_ipv6() { self.set_route(&host_route(link, address)) } else { Ok(()) }
    }

    /// Takes an address from a link.
    ///
    /// # Errors
    /// [`Error::Address`] with what the kernel says.
    pub fn delete_address(&mut self, link: LinkIndex, address: IpNet) -> Result<(), Error> {
        let message = RouteNetlinkMessage::DelAddress(address_message(link, address));
        let refused = |source| Error::Address { action: "delete", address, link, source };
        self.request(message, 0)?.map_err(refused)?;
        if address.addr().is_ipv4() {
            return Ok(());
        }
        match self.delete_route(&host_route(link, address)) {
            // The kernel has taken it with the address.
            Err(error) if error.is_no_such_route() => Ok(()),
            deleted => deleted,
        }
    }

    /// All addresses of the namespace, loopback included.
    ///
    /// # Errors
    /// [`Error::List`] with what the kernel says.
    pub fn addresses(&mut self) -> Result<Vec<InterfaceAddress>, Error> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        self.channel
            .dump(request, |answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => interface_address(&message),
                _ => None,
            })?
            .map_err(|source| Error::List { what: "addresses", source })
    }
}

/// What makes packets to the address stay here.
fn host_route(link: LinkIndex, address: IpNet) -> Route {
    Route { kind: RouteKind::Local, table: LOCAL_TABLE, ..Route::direct(address.addr().into(), link) }
}

fn address_message(link: LinkIndex, address: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.prefix_len = address.prefix_len();
    message.header.flags = AddressHeaderFlags::empty();
    message.header.scope = AddressScope::Universe;
    message.header.index = link.get();
    message.attributes.push(AddressAttribute::Local(address.addr()));
    message.attributes.push(AddressAttribute::Address(address.addr()));
    if address.addr().is_ipv6() {
        let mut flags = AddressFlags::Nodad;
        if address.prefix_len() == address.max_prefix_len() {
            // There are no neighbours to have a route to.
            flags |= AddressFlags::Noprefixroute;
        }
        message.attributes.push(AddressAttribute::Flags(flags));
    }
    message
}

/// IPv4 has `Local` (and `Address`, which is the peer's on a point-to-point link); IPv6 often only `Address`.
pub(crate) fn interface_address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address: IpAddr = local.or(any)?;
    Some(InterfaceAddress {
        link: LinkIndex::new(message.header.index)?,
        address: IpNet::new(address, message.header.prefix_len).ok()?,
    })
}
