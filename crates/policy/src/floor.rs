//! What no policy can permit.

use std::net::IpAddr;

/// The floor: built-in addresses and names, and the node's own addresses.
#[derive(Clone, Debug)]
pub struct Floor {}

/// One line of the floor list.
#[derive(Clone, Debug)]
pub struct FloorRule {}

impl Floor {
    /// The built-in floor plus the node's own addresses (and any other the operator adds).
    pub fn new(_node_addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        unimplemented!()
    }
    /// The networks of the floor, for kernel sets.
    pub fn networks(&self) -> Vec<ipnet::IpNet> {
        unimplemented!()
    }
}
