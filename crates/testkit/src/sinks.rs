//! Canaries: whatever reaches the world, on any address, port and protocol, becomes a line of the sink log.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use anyhow::{Context, Result};
use nft::{Batch, Chain, ChainType, Connection, Hook, Policy, Table, priority, rule};
use tokio::{
    io::Interest,
    net::{TcpListener, UdpSocket},
};

use crate::{
    log::Log,
    web::{self, Visit},
};

/// Port of the listener and the socket that everything is diverted to.
const SINK_PORT: u16 = 9;
/// The DNS authority answers for itself.
const DNS_PORT: u16 = 53;
/// Mark of diverted packets.
const MARK: u32 = 1;

/// Diverts all TCP and UDP that comes in by `interface` (but DNS) to the sinks. Runs inside the world.
pub(crate) fn divert(interface: &str) -> Result<()> {
    let table = Table::inet("lab");
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_chain(
        &table,
        &Chain::base("prerouting", ChainType::Filter, Hook::Prerouting, priority::MANGLE, Policy::Accept),
    );
    macro_rules! divert {
        ($family:ident, $protocol:ident, $address:expr) => {
            batch.add_rule(
                &table,
                "prerouting",
                rule()
                    .iifname(interface)
                    .$family()
                    .$protocol()
                    .dport_not(DNS_PORT)
                    .tproxy($address, SINK_PORT)
                    .set_mark(MARK)
                    .accept(),
            )
        };
    }
    divert!(ipv4, tcp, Ipv4Addr::LOCALHOST);
    divert!(ipv4, udp, Ipv4Addr::LOCALHOST);
    divert!(ipv6, tcp, Ipv6Addr::LOCALHOST);
    divert!(ipv6, udp, Ipv6Addr::LOCALHOST);
    Connection::open().context("opening nfnetlink")?.commit(batch).context("diverting to the sinks")
}

/// The sockets of the sinks, opened inside the world.
pub(crate) struct Sinks {
    tcp: Vec<std::net::TcpListener>,
    udp: Vec<std::net::UdpSocket>,
    packets: OwnedFd,
}

impl Sinks {
    /// Opens the sockets in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let mut sinks =
            Self { tcp: Vec::new(), udp: Vec::new(), packets: packet_socket().context("a packet socket")? };
        for address in addresses {
            let address = SocketAddr::new(address, SINK_PORT);
            sinks.tcp.push(sys::net::listen_transparent(address, 0, 1024).context("the TCP sink")?);
            sinks.udp.push(sys::net::bind_transparent_udp(address, 0).context("the UDP sink")?);
        }
        Ok(sinks)
    }

    /// Serves until the runtime ends.
    pub(crate) fn spawn(self, tls: &tls::LeafAcceptor, log: &Log) -> Result<()> {
        for listener in self.tcp {
            tokio::spawn(accept(TcpListener::from_std(listener)?, tls.clone(), log.clone()));
        }
        for socket in self.udp {
            tokio::spawn(datagrams(UdpSocket::from_std(socket)?, log.clone()));
        }
        // Tokio has no type of its own for packet sockets; what it does with a datagram socket fits.
        let packet_socket = std::net::UdpSocket::from(self.packets);
        tokio::spawn(packets(UdpSocket::from_std(packet_socket)?, log.clone()));
        Ok(())
    }
}

async fn accept(listener: TcpListener, tls: tls::LeafAcceptor, log: Log) -> io::Result<()> {
    loop {
        let (stream, source) = listener.accept().await?;
        let destination = stream.local_addr()?;
        let visit = Visit { destination, source };
        log.line(&web::entry(visit, "connect", serde_json::json!({})));
        let (tls, log) = (tls.clone(), log.clone());
        tokio::spawn(async move { web::serve(stream, visit, tls, log).await });
    }
}

async fn datagrams(socket: UdpSocket, log: Log) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || sys::udp::recv_orig_dst(&socket, &mut buffer));
        let Ok((length, source, destination)) = received else { continue };
        let data = buffer.get(..length).unwrap_or_default();
        log.line(&serde_json::json!({
            "kind": "data", "protocol": "udp", "destination": destination.ip().to_string(),
            "port": destination.port(), "source": source.to_string(), "data": String::from_utf8_lossy(data),
        }));
        // Echoed, so that a permitted datagram can be seen to come and go; from where it went to, port included.
        let answered =
            sys::net::bind_transparent_udp(destination, 0).and_then(|from| from.send_to(data, source));
        if let Err(error) = answered {
            log.line(
                &serde_json::json!({ "kind": "no echo", "protocol": "udp", "error": error.to_string() }),
            );
        }
    }
}

/// A socket that sees every packet of the world, whatever its protocol.
fn packet_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
    // ETH_P_ALL in network byte order, as packet(7) wants it.
    let all = std::num::NonZeroU32::new(u32::from(3u16.to_be())).map(Protocol::from_raw);
    Ok(socket_with(
        AddressFamily::PACKET,
        SocketType::DGRAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        all,
    )?)
}

async fn packets(socket: UdpSocket, log: Log) -> io::Result<()> {
    let mut buffer = vec![0; 2048];
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || {
            let flags = rustix::net::RecvFlags::empty();
            Ok(rustix::net::recv(&socket, &mut buffer[..], flags)?.0)
        });
        let Ok(length) = received else { continue };
        if let Some(line) = describe(buffer.get(..length).unwrap_or_default()) {
            log.line(&line);
        }
    }
}

/// A line for an IP packet that is not ordinary TCP or UDP: those are the sinks' own to tell.
/// Neighbour discovery and multicast reports of the lab's own links are left out.
fn describe(packet: &[u8]) -> Option<serde_json::Value> {
    let (source, destination, protocol): (IpAddr, IpAddr, u8) = match packet.first()? >> 4 {
        4 => {
            let address = |at: usize| -> Option<[u8; 4]> { packet.get(at..at + 4)?.try_into().ok() };
            (Ipv4Addr::from(address(12)?).into(), Ipv4Addr::from(address(16)?).into(), *packet.get(9)?)
        }
        6 => {
            let address = |at: usize| -> Option<[u8; 16]> { packet.get(at..at + 16)?.try_into().ok() };
            (Ipv6Addr::from(address(8)?).into(), Ipv6Addr::from(address(24)?).into(), *packet.get(6)?)
        }
        _ => return None,
    };
    let own_link =
        destination.is_multicast() || matches!(source, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let neighbour_discovery = protocol == 58 && matches!(packet.get(40), Some(133..=137));
    if protocol == 6 || protocol == 17 || own_link || neighbour_discovery {
        return None;
    }
    Some(serde_json::json!({
        "kind": "packet", "protocol": protocol, "source": source.to_string(),
        "destination": destination.to_string(),
    }))
}
