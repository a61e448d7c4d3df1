//! Routes, and the rule that sends marked packets to a table of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::{Connection, Error, LinkIndex};

/// The table that every lookup ends in.
pub const MAIN_TABLE: u32 = 254;

/// The table of the namespace's own addresses, which is looked into first.
pub const LOCAL_TABLE: u32 = 255;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn raw(self) -> AddressFamily {
        match self {
            Self::V4 => AddressFamily::Inet,
            Self::V6 => AddressFamily::Inet6,
        }
    }
}

/// What a route does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Sends it out of the link.
    Unicast,
    /// Takes it as addressed to this host.
    Local,
}

/// A route to add.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The destinations it is for.
    pub destination: IpNet,
    /// The link it leads to.
    pub link: LinkIndex,
    /// The next hop; `None` when the destinations are reached directly.
    pub gateway: Option<IpAddr>,
    /// The source address of packets that have none yet.
    pub source: Option<IpAddr>,
    /// The table it stands in.
    pub table: u32,
    /// Of routes to the same destination in the same table, the one with the lowest number is taken; `None` is the
    /// kernel's default for the family.
    pub metric: Option<u32>,
    /// What it does.
    pub kind: RouteKind,
}

impl Route {
    /// A route in the main table without a next hop.
    pub fn direct(destination: IpNet, link: LinkIndex) -> Self {
        Self {
            destination,
            link,
            gateway: None,
            source: None,
            table: MAIN_TABLE,
            metric: None,
            kind: RouteKind::Unicast,
        }
    }
}

impl Connection {
    /// Adds a route, in place of one to the same destination with the same metric in the same table.
    ///
    /// # Errors
    /// [`Error::Route`] with what the kernel says.
    pub fn set_route(&mut self, route: &Route) -> Result<(), Error> {
        let refused = |source| Error::Route {
            action: "add",
            destination: route.destination,
            table: route.table,
            source,
        };
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)?.map_err(refused)
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// [`Error::Route`] with what the kernel says.
    pub fn delete_route(&mut self, route: &Route) -> Result<(), Error> {
        let refused = |source| Error::Route {
            action: "delete",
            destination: route.destination,
            table: route.table,
            source,
        };
        self.request(RouteNetlinkMessage::DelRoute(route_message(route)), 0)?.map_err(refused)
    }

    /// Sends packets of `family` that carry `mark` to `table`. A rule that is there already is no error.
    ///
    /// # Errors
    /// [`Error::Rule`] with what the kernel says.
    pub fn add_mark_rule(&mut self, family: Family, mark: u32, table: u32) -> Result<(), Error> {
        let mut message = RuleMessage::default();
        message.header.family = family.raw();
        message.header.action = RuleAction::ToTable;
        message.attributes.push(RuleAttribute::FwMark(mark));
        message.attributes.push(RuleAttribute::Table(table));
        let answer = self.request(RouteNetlinkMessage::NewRule(message), NLM_F_CREATE | NLM_F_EXCL)?;
        match answer {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(|source| Error::Rule { mark, table, source }),
        }
    }

    /// What packets are addressed to this host by its routes: its addresses, whole networks that are local, and the anycast
    /// and broadcast addresses of its links. Only the tables that every packet is looked up in count: what is local in
    /// another one, for marked packets, is a transparent proxy's.
    ///
    /// # Errors
    /// [`Error::List`] with what the kernel says.
    pub fn local_destinations(&mut self) -> Result<Vec<IpNet>, Error> {
        let request = RouteNetlinkMessage::GetRoute(RouteMessage::default());
        self.channel
            .dump(request, |answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => local_destination(&route),
                _ => None,
            })?
            .map_err(|source| Error::List { what: "routes", source })
    }

    /// Whether the main table has a default route of the family that leads somewhere (loopback does not count).
    ///
    /// # Errors
    /// [`Error::List`] with what the kernel says.
    pub fn has_default_route(&mut self, family: Family) -> Result<bool, Error> {
        let mut request = RouteMessage::default();
        request.header.address_family = family.raw();
        let found = self
            .channel
            .dump(RouteNetlinkMessage::GetRoute(request), |answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => leads_out(&route, family).then_some(()),
                _ => None,
            })?
            .map_err(|source| Error::List { what: "routes", source })?;
        Ok(!found.is_empty())
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = Family::of(route.destination.addr()).raw();
    message.header.destination_prefix_length = route.destination.prefix_len();
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = match route.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
    };
    message.header.scope = match (route.kind, route.gateway) {
        (RouteKind::Local, _) => RouteScope::Host,
        (RouteKind::Unicast, Some(_)) => RouteScope::Universe,
        (RouteKind::Unicast, None) => RouteScope::Link,
    };
    message.header.table = u8::try_from(route.table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    message.attributes.push(RouteAttribute::Table(route.table));
    if route.destination.prefix_len() > 0 {
        message.attributes.push(RouteAttribute::Destination(RouteAddress::from(route.destination.network())));
    }
    if let Some(gateway) = route.gateway {
        // The next hop needs no route of its own: it is the other end of the link.
        message.header.flags |= RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(gateway.into()));
    }
    if let Some(source) = route.source {
        message.attributes.push(RouteAttribute::PrefSource(source.into()));
    }
    if let Some(metric) = route.metric {
        message.attributes.push(RouteAttribute::Priority(metric));
    }
    message.attributes.push(RouteAttribute::Oif(route.link.get()));
    message
}

fn local_destination(route: &RouteMessage) -> Option<IpNet> {
    let header = &route.header;
    let mut table = u32::from(header.table);
    let mut destination = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(RouteAddress::Inet(address)) => destination = (*address).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = (*address).into(),
            _ => {}
        }
    }
    let is_taken = matches!(header.kind, RouteType::Local | RouteType::Anycast | RouteType::Broadcast);
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    (is_taken && matches!(table, LOCAL_TABLE | MAIN_TABLE)).then_some(destination)
}

fn leads_out(route: &RouteMessage, family: Family) -> bool {
    let header = &route.header;
    let mut table = u32::from(header.table);
    let mut link = None;
    let mut next_hops = false;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(_) | RouteAttribute::NhId(_) => next_hops = true,
            _ => {}
        }
    }
    header.address_family == family.raw()
        && header.destination_prefix_length == 0
        && header.kind == RouteType::Unicast
        && table == MAIN_TABLE
        && (next_hops || link.is_some_and(|index| index != LinkIndex::LOOPBACK.get()))
}
