//! Breaking the sandbox's network on purpose, to see that the selftest finds it.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use netns::{Connection, LinkIndex, NetNs, Route, Veth};
use serde::{Deserialize, Serialize};

use crate::world::{World, accept_anything_from};

/// A way to break it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sabotage {
    /// The rules of its packet filter are removed. Where there is no wire, nothing passes any more.
    Rules,
    /// The rules are removed, and a wire is laid past the gate.
    Wire,
}

impl Sabotage {
    /// The word, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Rules => "rules",
            Self::Wire => "wire",
        }
    }
}

const OUTSIDE: &str = "past";
const INSIDE: &str = "past0";
const HARDWARE_ADDRESS: [u8; 6] = [0x02, 0xba, 0x11, 0x00, 0x00, 0x03];
/// Preferred to every route of the gate's.
const METRIC: u32 = 1;

/// Breaks the network in `sandbox`.
pub(crate) fn commit(way: Sabotage, sandbox: &NetNs, world: &World) -> Result<()> {
    sandbox.run(remove_rules)?.context("removing the rules")?;
    if way == Sabotage::Wire {
        world.world.run(|| lay(sandbox))?.context("laying a wire past the gate")?;
        sandbox.run(take_wire)?.context("using the wire past the gate")?;
    }
    Ok(())
}

fn remove_rules() -> Result<()> {
    let mut batch = nft::Batch::new();
    batch.del_table(&nft::Table::inet("bailiwick"));
    Ok(nft::Connection::open()?.commit(batch)?)
}

fn lay(sandbox: &NetNs) -> Result<()> {
    let mut connection = Connection::open()?;
    let link = connection.create_veth(&Veth {
        name: OUTSIDE,
        peer_name: INSIDE,
        peer_namespace: sandbox.as_fd(),
        hardware_address: HARDWARE_ADDRESS,
    })?;
    connection.bring_up(link)?;
    for address in ["192.0.2.1/30", "2001:db8:fe::1/64"] {
        connection.add_address(link, address.parse()?)?;
    }
    accept_anything_from(OUTSIDE)
}

fn take_wire() -> Result<()> {
    let mut connection = Connection::open()?;
    let link: LinkIndex = connection.link_index(INSIDE)?.context("the wire is not there")?;
    connection.bring_up(link)?;
    for address in ["192.0.2.2/30", "2001:db8:fe::2/64"] {
        connection.add_address(link, address.parse()?)?;
    }
    for destination in ["0.0.0.0/0", "::/0"] {
        connection.set_route(&Route { metric: Some(METRIC), ..Route::direct(destination.parse()?, link) })?;
    }
    Ok(())
}
