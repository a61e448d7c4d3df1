//! A sandbox's network namespace: what is in it before the first process of the sandbox runs.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    time::Duration,
};

use dns::Datagrams;
use netns::{Connection, Family, LinkIndex, NetNs, Route, RouteKind, sysctl};
use nft::{LogConfig, LogSocket};
use sys::raw_udp::RawUdp;

use crate::{
    GateError,
    addresses::{
        DIVERT_MARK, DIVERT_TABLE, DNS_PORT, FIRST_PORT, LOG_GROUP, LOOPBACK_METRIC, OWN_MARK, PROXY_PORTS,
        ProxyPorts, RESOLVER_PORT, SANDBOX_V4, SANDBOX_V6, WIRE, everything, gate_sockets, is_wire_address,
        resolver_sockets,
    },
    ruleset::SNAPLEN,
};

/// The daemon's ends inside a sandbox's namespace.
pub(crate) struct Interior {
    /// The packet filter.
    pub(crate) filter: nft::Connection,
    /// The log of refused packets.
    pub(crate) log: LogSocket,
    pub(crate) dns_udp: [Datagrams; 2],
    /// The port of `dns_udp`.
    pub(crate) dns_port: u16,
    pub(crate) dns_tcp: [TcpListener; 2],
    /// In groups, within which the kernel spreads connections: those of each address family and port.
    pub(crate) proxy: Vec<Vec<TcpListener>>,
    /// The ports of `proxy`.
    pub(crate) proxy_ports: ProxyPorts,
}

const WHOSE: &str = "the sandbox";

/// A new namespace and what the daemon has open in it. There are no rules yet, and no way out either.
pub(crate) fn create() -> Result<(NetNs, Interior), GateError> {
    let (namespace, interior) = NetNs::create_and(|| {
        prepare().map_err(|error| GateError::SetUp(WHOSE, error))?;
        Interior::open()
    })
    .map_err(GateError::CreateNamespace)?;
    Ok((namespace, interior?))
}

/// As [`create`], for a namespace that a sandbox lives in already, under rules of an earlier daemon.
pub(crate) fn adopt(namespace: &NetNs) -> Result<Interior, GateError> {
    namespace
        .run(|| {
            prepare().and_then(|()| forget_wires()).map_err(|error| GateError::SetUp(WHOSE, error))?;
            Interior::open()
        })
        .map_err(|error| GateError::EnterNamespace(WHOSE, error))?
}

impl Interior {
    fn open() -> Result<Self, GateError> {
        let config = LogConfig {
            group: LOG_GROUP,
            snaplen: SNAPLEN,
            qthreshold: 64,
            timeout: Duration::from_millis(10),
            ..LogConfig::default()
        };
        let (proxy_ports, proxy) = listen_on_free_ports()?;
        let (dns_port, dns_udp) = resolver_datagrams()?;
        Ok(Self {
            filter: nft::Connection::open().map_err(|error| GateError::Rules(WHOSE, error))?,
            log: LogSocket::open(&config).map_err(|error| GateError::Log(WHOSE, error))?,
            dns_udp,
            dns_port,
            dns_tcp: both(gate_sockets(RESOLVER_PORT), |address| listen(address, DNS_BACKLOG))?,
            proxy,
            proxy_ports,
        })
    }
}

const DNS_BACKLOG: i32 = 64;
const PROXY_BACKLOG: i32 = 1024;
/// On how many of the proxies' threads a sandbox's connections are spread: so many, so that one that is busy does not
/// hold up all others, and no more, because each costs every sandbox four sockets.
const PROXY_LISTENERS: usize = 2;
/// A client of the web that says nothing for so long is accepted all the same, and has the time then that all have for
/// their first bytes. A proxy that hears of others when there is something to read is woken once for each and not twice.
const SILENCE: Duration = Duration::from_secs(1);

fn own_addresses() -> [IpAddr; 2] {
    [SANDBOX_V4.into(), SANDBOX_V6.into()]
}

/// At the port that is asked, whose replies are the cheapest. Something in the sandbox may have taken that while no daemon was
/// there: then at one that it cannot take.
fn resolver_datagrams() -> Result<(u16, [Datagrams; 2]), GateError> {
    let bind = |address| sys::net::bind_transparent_udp(address, OWN_MARK);
    match both(resolver_sockets(), bind) {
        Err(GateError::Listen { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {
            let sockets = both(gate_sockets(RESOLVER_PORT), |address| {
                Ok(Datagrams::with_replies(bind(address)?, RawUdp::open(address, OWN_MARK)?))
            })?;
            Ok((RESOLVER_PORT, sockets))
        }
        sockets => Ok((DNS_PORT, sockets?.map(Datagrams::from))),
    }
}

/// Makes loopback the default route for whatever is not wired anywhere, or not any more: it stays inside, whatever
/// the rules say. Every destination is a local one then, as it has to be for what turns round to the daemon.
fn route_to_loopback(connection: &mut Connection) -> Result<(), netns::Error> {
    for (destination, source) in everything().into_iter().zip(own_addresses()) {
        connection.set_route(&Route {
            source: Some(source),
            kind: RouteKind::Local,
            metric: Some(LOOPBACK_METRIC),
            ..Route::direct(destination, LinkIndex::LOOPBACK)
        })?;
    }
    Ok(())
}

/// Loopback, addresses, routes, parameters. Does no harm where it has been done before.
fn prepare() -> Result<(), netns::Error> {
    for (name, value) in PARAMETERS {
        sysctl::set(name, value)?;
    }
    let mut connection = Connection::open()?;
    connection.bring_up(LinkIndex::LOOPBACK)?;
    for address in own_addresses() {
        connection.add_address(LinkIndex::LOOPBACK, address.into())?;
    }
    route_to_loopback(&mut connection)?;
    for destination in everything() {
        let family = Family::of(destination.addr());
        connection.add_mark_rule(family, DIVERT_MARK, DIVERT_TABLE)?;
        connection.set_route(&Route {
            table: DIVERT_TABLE,
            kind: RouteKind::Local,
            ..Route::direct(destination, LinkIndex::LOOPBACK)
        })?;
    }
    Ok(())
}

/// Below `/proc/sys/net`. Nobody inside owns the namespace, so nobody inside can change them.
const PARAMETERS: [(&str, &str); 13] = [
    // The sandbox may listen on any port but the gate's and send ICMP echo requests without rights over the network.
    ("ipv4/ip_unprivileged_port_start", FIRST_PORT),
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/ip_forward", "0"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    // Diverted packets arrive by loopback with addresses that do not belong there.
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/lo/rp_filter", "0"),
    ("ipv6/conf/all/forwarding", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    // No link-local addresses: nothing on the wire asks for neighbours.
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_redirects", "0"),
];

/// Removes what an earlier daemon's wire left behind.
fn forget_wires() -> Result<(), netns::Error> {
    let mut connection = Connection::open()?;
    if let Some(link) = connection.link_index(WIRE)? {
        match connection.delete_link(link) {
            // The kernel is taking the dead daemon's namespace down, and was faster.
            Err(error) if error.is_no_such_device() => {}
            other => other?,
        }
    }
    for own in connection.addresses()? {
        if is_wire_address(own.address.addr()) {
            connection.delete_address(own.link, own.address)?;
        }
    }
    Ok(())
}

fn listen_on_free_ports() -> Result<(ProxyPorts, Vec<Vec<TcpListener>>), GateError> {
    let mut taken = None;
    for ports in PROXY_PORTS {
        match proxy_listeners(ports) {
            Err(GateError::Listen { address, source }) if source.kind() == io::ErrorKind::AddrInUse => {
                taken = Some(GateError::Listen { address, source });
            }
            other => return other.map(|listeners| (ports, listeners)),
        }
    }
    Err(taken.expect("there are ports, and they were either listened on or taken"))
}

fn proxy_listeners(ports: ProxyPorts) -> Result<Vec<Vec<TcpListener>>, GateError> {
    let web = both(gate_sockets(ports.web), |address| {
        let listeners = listen_as_several(address)?;
        listeners.iter().try_for_each(|listener| sys::net::defer_accept(listener, SILENCE))?;
        Ok(listeners)
    })?;
    let other = both(gate_sockets(ports.other), listen_as_several)?;
    Ok([web, other].into_iter().flatten().collect())
}

fn listen_as_several(address: SocketAddr) -> io::Result<Vec<TcpListener>> {
    let listener = || sys::net::listen_transparent_shared(address, OWN_MARK, PROXY_BACKLOG);
    std::iter::repeat_with(listener).take(PROXY_LISTENERS).collect()
}

fn listen(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    sys::net::listen_transparent(address, OWN_MARK, backlog)
}

fn both<T>(
    addresses: [SocketAddr; 2],
    open: impl Fn(SocketAddr) -> io::Result<T>,
) -> Result<[T; 2], GateError> {
    let [v4, v6] = addresses;
    let open = |address| open(address).map_err(|source| GateError::Listen { address, source });
    Ok([open(v4)?, open(v6)?])
}
