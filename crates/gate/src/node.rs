//! What the gate has to know of the machine: its own addresses, and whether it has an IPv6 path.

use std::{net::IpAddr, sync::Arc};

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
    addresses: Vec<IpAddr>,
}

impl Node {
    /// Asks the kernel about the calling thread's namespace; `protected` are further addresses for the floor.
    pub(crate) fn read(protected: &[IpAddr]) -> Result<Self, GateError> {
        Self::ask(protected).map_err(|error| GateError::SetUp("the machine", error))
    }

    /// A machine without a network.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        let addresses = vec![IpAddr::from([192, 0, 2, 1])];
        Self { floor: Arc::new(Floor::new([])), ipv6: false, addresses }
    }

    /// Whether another reading found the same.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.ipv6 == other.ipv6 && self.addresses == other.addresses
    }

    fn ask(protected: &[IpAddr]) -> Result<Self, netns::Error> {
        let mut connection = Connection::open()?;
        // What is on the floor anyway is left out: link-local addresses come and go with every link.
        let anyway = Floor::new([]);
        let own = connection.addresses()?.into_iter().map(|own| own.address.addr());
        let mut addresses: Vec<IpAddr> = own
            .chain(protected.iter().copied())
            .filter(|address| anyway.address(*address).is_none())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let ipv6 = connection.has_default_route(Family::V6)?;
        Ok(Self { floor: Arc::new(Floor::new(addresses.iter().copied())), ipv6, addresses })
    }
}
