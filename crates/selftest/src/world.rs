//! The place of the attacks: a node for the gate and the sandbox, whose only way out is a world that is a canary on
//! every address, port and protocol. Neither has a link to the machine's own network.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    sync::Arc,
};

use anyhow::{Context, Result};
use netns::{Connection, LinkIndex, NetNs, Route, RouteKind, Veth, sysctl};

use crate::{
    names::Names,
    sinks::{self, Sightings, Sinks},
};

/// The node's addresses towards the world (RFC 5737, RFC 3849: of no network).
pub(crate) const NODE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 2)),
];
/// The world's end of the wire; the first is where the gate looks names up.
pub(crate) const WORLD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 1)),
];
/// The length of the prefix of each family.
const PREFIX: [u8; 2] = [30, 64];

const WORLD_LINK: &str = "node";
const NODE_LINK: &str = "eth0";
const HARDWARE_ADDRESS: [u8; 6] = [0x02, 0xba, 0x11, 0x00, 0x00, 0x02];

/// Both namespaces, with everything in them but the gate.
pub(crate) struct World {
    pub(crate) node: NetNs,
    pub(crate) world: NetNs,
    pub(crate) sightings: Arc<Sightings>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl World {
    /// Builds the namespaces and starts the canaries.
    pub(crate) fn build(names: Arc<Names>) -> Result<Self> {
        let (node, loopback) =
            NetNs::create_and(bring_loopback_up).context("creating the node's namespace")?;
        loopback?;
        let (world, linked) =
            NetNs::create_and(|| link_world(&node)).context("creating the world's namespace")?;
        linked.context("linking the world")?;
        node.run(link_node)?.context("linking the node")?;

        let sightings = Arc::new(Sightings::default());
        let (stop, _) = tokio::sync::watch::channel(false);
        let this = Self { node, world, sightings: Arc::clone(&sightings), stop };
        // They listen before anything else happens, so that nobody comes too early.
        let sinks = this.world.run(Sinks::open)?.context("opening the canaries of the world")?;
        let service = this.node.run(sinks::open_service)?.context("opening the canary of the node")?;
        let seen = Arc::clone(&sightings);
        this.spawn_in(&this.world, "selftest-world", move || async move { sinks.spawn(names, &seen) })?;
        this.spawn_in(&this.node, "selftest-node", move || async move {
            sinks::spawn_service(service, &sightings)
        })?;
        Ok(this)
    }

    /// Starts `task` on a thread with a runtime of its own in `namespace`. What it has spawned goes on until the world
    /// is dropped.
    fn spawn_in<F, Fut>(&self, namespace: &NetNs, name: &str, task: F) -> Result<()>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>>,
    {
        let mut stop = self.stop.subscribe();
        let namespace = namespace.try_clone()?;
        let sightings = Arc::clone(&self.sightings);
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let ended = namespace.run(move || -> Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async move {
                    task().await?;
                    let _ended = stop.changed().await;
                    Ok(())
                })
            });
            if let Err(error) = ended.map_err(anyhow::Error::from).and_then(|ended| ended) {
                // A canary that does not live proves nothing.
                sightings.fail(format!("{error:#}"));
            }
        })?;
        Ok(())
    }
}

fn bring_loopback_up() -> Result<()> {
    Ok(Connection::open()?.bring_up(LinkIndex::LOOPBACK)?)
}

fn everything() -> Result<[ipnet::IpNet; 2]> {
    Ok(["0.0.0.0/0".parse()?, "::/0".parse()?])
}

fn with_addresses(connection: &mut Connection, link: LinkIndex, addresses: [IpAddr; 2]) -> Result<()> {
    for (address, prefix) in addresses.into_iter().zip(PREFIX) {
        connection.add_address(link, ipnet::IpNet::new(address, prefix)?)?;
    }
    Ok(())
}

/// Inside the world: every address is its own, so that whatever is sent anywhere arrives.
fn link_world(node: &NetNs) -> Result<()> {
    bring_loopback_up()?;
    let mut connection = Connection::open()?;
    let link = connection.create_veth(&Veth {
        name: WORLD_LINK,
        peer_name: NODE_LINK,
        peer_namespace: node.as_fd(),
        hardware_address: HARDWARE_ADDRESS,
    })?;
    connection.bring_up(link)?;
    with_addresses(&mut connection, link, WORLD)?;
    for destination in everything()? {
        connection.set_route(&Route {
            kind: RouteKind::Local,
            ..Route::direct(destination, LinkIndex::LOOPBACK)
        })?;
    }
    accept_anything_from(WORLD_LINK)
}

/// The canaries have to see what a strict machine would drop as implausible, such as packets to 127.0.0.1.
pub(crate) fn accept_anything_from(interface: &str) -> Result<()> {
    for interface in ["all", interface] {
        sysctl::set(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
        sysctl::set(&format!("ipv4/conf/{interface}/route_localnet"), "1")?;
    }
    sinks::divert(interface)
}

fn link_node() -> Result<()> {
    let mut connection = Connection::open()?;
    let link = connection.link_index(NODE_LINK)?.context("the wire to the world is not there")?;
    connection.bring_up(link)?;
    with_addresses(&mut connection, link, NODE)?;
    for destination in everything()? {
        connection.set_route(&Route::direct(destination, link))?;
    }
    Ok(())
}
