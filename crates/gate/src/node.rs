//! What the gate has to know of the machine: its own addresses, and whether it has an IPv6 path.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use netns::{Connection, Family};
use policy::Floor;

use crate::GateError;

/// The machine's network, as far as it matters.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The floor with the machine's own addresses on it.
    pub(crate) floor: Arc<Floor>,
    /// Whether there is an IPv6 default route.
    pub(crate) ipv6: bool,
    own: Vec<IpNet>,
}

impl Node {
    /// Asks the kernel about the calling thread's namespace; `protected` are further addresses for the floor.
    pub(crate) fn read(protected: &[IpAddr]) -> Result<Self, GateError> {
        Self::ask(protected).map_err(|error| GateError::SetUp("the machine", error))
    }

    /// A machine without a network.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let own = vec![IpAddr::from([192, 0, 2, 1]).into()];
        Self { floor: Arc::new(Floor::new([])), ipv6: false, own }
    }

    /// Whether another reading found the same.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.ipv6 == other.ipv6 && self.own == other.own
    }

    fn ask(protected: &[IpAddr]) -> Result<Self, netns::Error> {
        let mut connection = Connection::open()?;
        // What is on the floor anyway is left out: link-local addresses come and go with every link.
        let anyway = Floor::new([]);
        let own = own_networks(&mut connection)?;
        let protected = protected.iter().map(|address| IpNet::from(address.to_canonical()));
        let mut own: Vec<IpNet> =
            own.into_iter().chain(protected).filter(|network| anyway.covers(network).is_none()).collect();
        own.sort_unstable();
        own.dedup();
        let ipv6 = connection.has_default_route(Family::V6)?;
        Ok(Self { floor: Arc::new(Floor::with_networks(own.iter().copied())), ipv6, own })
    }
}

/// What the machine takes for itself: the addresses of its interfaces, and what its routes say is local.
///
/// # Errors
/// What the kernel says.
pub fn own_networks(connection: &mut Connection) -> Result<Vec<IpNet>, netns::Error> {
    let mut own = connection.local_destinations()?;
    for address in connection.addresses()? {
        // One that is not usable yet has no route, and those of a subnet's routers (RFC 4291 section 2.6.1, RFC 6164) come
        // with the first wire, when the machine begins to forward.
        let address = address.address;
        own.push(address.addr().into());
        if address.addr().is_ipv6() && address.prefix_len() < 127 {
            own.push(address.network().into());
        }
    }
    Ok(own)
}
