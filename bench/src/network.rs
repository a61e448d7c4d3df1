//! The namespaces of the relay figures. None of them has a link to the machine's own network.
//!
//! ```text
//!  sandbox (made by the gate) ── node ─────────┐
//!  client ── veth ── HAProxy, unbound ── veth ─┤ world: the answering server, a DNS authority
//!  client ── veth ── router ── veth ───────────┤
//!  client ── veth ── masquerading router ── veth┘
//! ```

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
};

use anyhow::{Context, Result};
use netns::{Connection, Family, LinkIndex, NetNs, Route, RouteKind, Veth, sysctl};
use nft::{Batch, Chain, ChainType, CtState, Hook, Policy, Table, priority, rule};

/// Where the server of the world answers; a public address, because a policy refuses the special ones.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
/// The server's port.
pub(crate) const SERVER_PORT: u16 = 443;
/// The world's DNS authority.
pub(crate) const AUTHORITY: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
/// The transparent port of the peer's proxy.
pub(crate) const PEER_PORT: u16 = 8443;
/// The router's address on the side of its client.
pub(crate) const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 129);

/// All namespaces but those of sandboxes.
pub(crate) struct Network {
    /// Where the gate runs, as it would on a machine.
    pub(crate) node: NetNs,
    /// Where the servers run.
    pub(crate) world: NetNs,
    /// A client behind a transparent proxy.
    pub(crate) proxied: Routed,
    /// A client behind a plain router.
    pub(crate) routed: Routed,
    /// A client behind a router that tracks and masquerades, as container engines do.
    pub(crate) masqueraded: Routed,
}

/// A client and what stands between it and the world.
pub(crate) struct Routed {
    pub(crate) client: NetNs,
    pub(crate) router: NetNs,
}

impl Network {
    /// Makes them.
    pub(crate) fn build() -> Result<Self> {
        let this = Self {
            node: namespace()?,
            world: namespace()?,
            proxied: Routed { client: namespace()?, router: namespace()? },
            routed: Routed { client: namespace()?, router: namespace()? },
            masqueraded: Routed { client: namespace()?, router: namespace()? },
        };
        this.world.run(world_addresses)??;
        join(&this.world, &this.node, 0)?;
        join(&this.world, &this.proxied.router, 4)?;
        join(&this.world, &this.routed.router, 8)?;
        join(&this.world, &this.masqueraded.router, 12)?;
        for routed in [&this.proxied, &this.routed, &this.masqueraded] {
            join(&routed.router, &routed.client, 128)?;
            routed.router.run(|| sysctl::set("ipv4/ip_forward", "1"))??;
        }
        this.world.run(|| route_back(8, 128))??;
        this.proxied.router.run(divert)??;
        this.masqueraded.router.run(masquerade)??;
        Ok(this)
    }
}

/// Bounds TIME_WAIT, which would otherwise fill with what the generators leave and slow both sides down at random.
/// To be run inside a namespace.
pub(crate) fn bound_time_wait() -> Result<()> {
    Ok(sysctl::set("ipv4/tcp_max_tw_buckets", "64")?)
}

fn namespace() -> Result<NetNs> {
    let (namespace, made) = NetNs::create_and(|| {
        Connection::open()?.bring_up(LinkIndex::LOOPBACK)?;
        bound_time_wait()
    })
    .context("creating a namespace")?;
    made?;
    Ok(namespace)
}

/// Everything that is asked for is here.
fn world_addresses() -> Result<()> {
    let mut connection = Connection::open()?;
    for local in ["93.184.0.0/16", "9.9.9.9/32"] {
        connection.set_route(&Route {
            kind: RouteKind::Local,
            ..Route::direct(local.parse()?, LinkIndex::LOOPBACK)
        })?;
    }
    Ok(())
}

/// A wire between two namespaces, with the addresses `198.51.100.(base+1)` and `+2`; the far one sends everything
/// that is not its own over it.
fn join(near: &NetNs, far: &NetNs, base: u8) -> Result<()> {
    let (near_name, far_name) = (format!("n{base}"), format!("f{base}"));
    near.run(|| -> Result<()> {
        let mut connection = Connection::open()?;
        let link = connection.create_veth(&Veth {
            name: &near_name,
            peer_name: &far_name,
            peer_namespace: far.as_fd(),
            hardware_address: [0x02, 0xbe, 0, 0, 0, base],
        })?;
        connection.bring_up(link)?;
        Ok(connection.add_address(link, format!("{}/30", host(base, 1)).parse()?)?)
    })??;
    far.run(|| -> Result<()> {
        let mut connection = Connection::open()?;
        let link = connection.link_index(&far_name)?.context("the far end is not there")?;
        connection.bring_up(link)?;
        connection.add_address(link, format!("{}/30", host(base, 2)).parse()?)?;
        let default = Route::direct("0.0.0.0/0".parse()?, link);
        Ok(connection.set_route(&Route { gateway: Some(host(base, 1).into()), ..default })?)
    })?
}

fn host(base: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, base + number)
}

/// The world's way to a network behind a router.
fn route_back(router: u8, network: u8) -> Result<()> {
    let mut connection = Connection::open()?;
    let link =
        connection.link_index(&format!("n{router}"))?.context("the wire to the router is not there")?;
    let route = Route::direct(format!("{}/30", host(network, 0)).parse()?, link);
    Ok(connection.set_route(&Route { gateway: Some(IpAddr::V4(host(router, 2))), ..route })?)
}

/// Hands the client's TCP connections to the proxy in the same namespace.
fn divert() -> Result<()> {
    const MARK: u32 = 1;
    const TABLE: u32 = 100;
    let mut connection = Connection::open()?;
    let everything = "0.0.0.0/0".parse()?;
    connection.add_mark_rule(Family::V4, MARK, TABLE)?;
    connection.set_route(&Route {
        table: TABLE,
        kind: RouteKind::Local,
        ..Route::direct(everything, LinkIndex::LOOPBACK)
    })?;
    let table = Table::inet("bench");
    let mut batch = Batch::new();
    batch
        .replace_table(&table)
        .add_chain(
            &table,
            &Chain::base("prerouting", ChainType::Filter, Hook::Prerouting, priority::MANGLE, Policy::Accept),
        )
        .add_rule(
            &table,
            "prerouting",
            rule()
                .iifname("n128")
                .ipv4()
                .tcp()
                .tproxy(Ipv4Addr::LOCALHOST, PEER_PORT)
                .set_mark(MARK)
                .accept(),
        );
    Ok(nft::Connection::open()?.commit(batch)?)
}

/// Gives what the client sends the router's own address, and lets in what belongs to it.
fn masquerade() -> Result<()> {
    let table = Table::inet("bench");
    let filter = Chain::base("forward", ChainType::Filter, Hook::Forward, priority::FILTER, Policy::Drop);
    let nat = Chain::base("translate", ChainType::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    let replies = CtState::ESTABLISHED | CtState::RELATED;
    let mut batch = Batch::new();
    batch
        .replace_table(&table)
        .add_chain(&table, &filter)
        .add_chain(&table, &nat)
        .add_rule(&table, "forward", rule().ct_state(replies).accept())
        .add_rule(&table, "forward", rule().iifname("n128").accept())
        .add_rule(&table, "translate", rule().oifname("f12").masquerade());
    Ok(nft::Connection::open()?.commit(batch)?)
}
