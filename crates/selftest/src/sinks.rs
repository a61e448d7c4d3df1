//! Canaries: whatever reaches the world, on any address, port and protocol, is a sighting.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
};

use anyhow::{Context, Result};
use nft::{Batch, Chain, ChainType, Connection, Hook, Policy, Table, priority, rule};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::{authority, names::Names};

/// Port of the sockets that everything is diverted to.
const SINK_PORT: u16 = 9;
/// Mark of diverted packets.
const MARK: u32 = 1;
/// A port of the node that a service of the machine listens on, for attacks on it.
pub(crate) const SERVICE_PORT: u16 = 9100;
/// How much of what a client says is kept, in bytes.
const MAX_KEPT: usize = 256 * 1024;
/// The most sightings that are kept; one more is a failure of the whole test.
const MAX_SIGHTINGS: usize = 100_000;
const DNS: u16 = 53;

/// How something reached the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP connection.
    Tcp,
    /// A datagram.
    Udp,
    /// A packet of another protocol, with its number.
    Packet(u8),
    /// A connection to a service of the node itself.
    Node,
}

/// Something that reached the world.
#[derive(Clone, Debug)]
pub(crate) struct Sighting {
    pub(crate) kind: Kind,
    /// Where it was meant to go.
    pub(crate) destination: IpAddr,
    /// The port, if it has one.
    pub(crate) port: Option<u16>,
    /// The name that was asked for, if it is a DNS query.
    pub(crate) query: Option<String>,
    /// What was said.
    pub(crate) bytes: Vec<u8>,
}

/// A sighting in which texts are found fast.
pub(crate) struct Indexed {
    pub(crate) sighting: Sighting,
    /// Every run of as many hexadecimal digits as a canary has.
    canaries: HashSet<Vec<u8>>,
    /// What was said, in lower case, and the same without the bounds of TLS records.
    said: [Vec<u8>; 2],
}

impl Indexed {
    pub(crate) fn new(sighting: Sighting) -> Self {
        let said =
            [sighting.bytes.to_ascii_lowercase(), without_records(&sighting.bytes).to_ascii_lowercase()];
        let query = sighting.query.as_deref().unwrap_or_default().to_ascii_lowercase().into_bytes();
        let canaries = said
            .iter()
            .chain([&query])
            .flat_map(|bytes| bytes.windows(CANARY))
            .filter(|part| is_canary(part));
        Self { canaries: canaries.map(<[u8]>::to_vec).collect(), said, sighting }
    }

    /// Whether this is of what left that trace.
    pub(crate) fn has(&self, trace: &Trace) -> bool {
        match trace {
            Trace::None => false,
            Trace::Canary(canary) => self.canaries.contains(canary.as_bytes()),
            Trace::Query(name) => {
                self.sighting.query.as_ref().is_some_and(|query| query.eq_ignore_ascii_case(name))
            }
            Trace::Text(text) => {
                let text = text.to_ascii_lowercase().into_bytes();
                self.said.iter().any(|said| said.windows(text.len().max(1)).any(|part| part == text))
            }
        }
    }
}

/// How an attempt is known again in the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trace {
    /// By a text that nothing else has: [`CANARY`] hexadecimal digits.
    Canary(String),
    /// By a query for exactly this name.
    Query(String),
    /// By any text in what was said.
    Text(String),
    /// Not at all.
    None,
}

/// How long a canary is.
const CANARY: usize = 32;

fn is_canary(text: &[u8]) -> bool {
    text.len() == CANARY && text.iter().all(u8::is_ascii_hexdigit)
}

/// The content of TLS records, as far as there are any: a text may be spread over many.
fn without_records(bytes: &[u8]) -> Vec<u8> {
    let (mut content, mut rest) = (Vec::new(), bytes);
    while let [20..=23, 3, _, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (inside, behind) = after.split_at(length);
        content.extend_from_slice(inside);
        rest = behind;
    }
    content
}

/// Everything that reached the world.
#[derive(Default)]
pub(crate) struct Sightings {
    seen: parking_lot::Mutex<Vec<Sighting>>,
    failure: parking_lot::Mutex<Option<String>>,
}

impl Sightings {
    /// All so far.
    ///
    /// # Errors
    /// When a canary has failed: what it did not see proves nothing then.
    pub(crate) fn all(&self) -> Result<Vec<Sighting>> {
        if let Some(failure) = &*self.failure.lock() {
            anyhow::bail!("a canary of the world has failed, so nothing is proved: {failure}");
        }
        Ok(self.seen.lock().clone())
    }

    pub(crate) fn fail(&self, what: String) {
        self.failure.lock().get_or_insert(what);
    }

    fn add(&self, sighting: Sighting) -> usize {
        let mut seen = self.seen.lock();
        if seen.len() >= MAX_SIGHTINGS {
            self.fail(format!("more than {MAX_SIGHTINGS} things reached the world"));
            return MAX_SIGHTINGS;
        }
        seen.push(sighting);
        seen.len() - 1
    }

    fn asked(&self, index: usize, query: Option<String>) {
        if let Some(sighting) = self.seen.lock().get_mut(index) {
            sighting.query = query;
        }
    }

    fn extend(&self, index: usize, bytes: &[u8]) {
        if let Some(sighting) = self.seen.lock().get_mut(index) {
            let room = MAX_KEPT.saturating_sub(sighting.bytes.len()).min(bytes.len());
            sighting.bytes.extend_from_slice(bytes.get(..room).unwrap_or_default());
        }
    }
}

/// Diverts all TCP and UDP that comes in by `interface` to the sinks. Runs inside the world.
pub(crate) fn divert(interface: &str) -> Result<()> {
    let table = Table::inet(format!("sinks_{interface}"));
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
    Connection::open().context("opening nfnetlink")?.commit(batch).context("diverting to the canaries")
}

/// The sockets of the canaries, opened inside the world.
pub(crate) struct Sinks {
    tcp: Vec<std::net::TcpListener>,
    udp: Vec<std::net::UdpSocket>,
    packets: OwnedFd,
}

impl Sinks {
    /// Opens them in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let address = SocketAddr::new(address, SINK_PORT);
            tcp.push(sys::net::listen_transparent(address, 0, 1024).context("for TCP")?);
            udp.push(sys::net::bind_transparent_udp(address, 0).context("for UDP")?);
        }
        Ok(Self { tcp, udp, packets: packet_socket().context("for other protocols")? })
    }

    /// Serves until the runtime ends.
    pub(crate) fn spawn(self, names: Arc<Names>, seen: &Arc<Sightings>) -> Result<()> {
        for listener in self.tcp {
            spawn(
                seen,
                accept(TcpListener::from_std(listener)?, Kind::Tcp, Arc::clone(&names), Arc::clone(seen)),
            );
        }
        for socket in self.udp {
            spawn(seen, datagrams(UdpSocket::from_std(socket)?, Arc::clone(&names), Arc::clone(seen)));
        }
        // Tokio has no type of its own for packet sockets; what it does with a datagram socket fits.
        let socket = UdpSocket::from_std(std::net::UdpSocket::from(self.packets))?;
        spawn(seen, packets(socket, Arc::clone(seen)));
        Ok(())
    }
}

/// Spawns a canary, whose end is a failure.
fn spawn(seen: &Arc<Sightings>, canary: impl Future<Output = io::Result<()>> + Send + 'static) {
    let seen = Arc::clone(seen);
    tokio::spawn(async move {
        if let Err(error) = canary.await {
            seen.fail(error.to_string());
        }
    });
}

/// A service of the machine, on every address of the node.
pub(crate) fn open_service() -> Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, SERVICE_PORT))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Serves it until the runtime ends.
pub(crate) fn spawn_service(listener: std::net::TcpListener, seen: &Arc<Sightings>) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    spawn(seen, accept(listener, Kind::Node, Arc::default(), Arc::clone(seen)));
    Ok(())
}

async fn accept(
    listener: TcpListener,
    kind: Kind,
    names: Arc<Names>,
    seen: Arc<Sightings>,
) -> io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let destination = stream.local_addr()?;
        let index = seen.add(Sighting {
            kind,
            destination: destination.ip().to_canonical(),
            port: Some(destination.port()),
            query: None,
            bytes: Vec::new(),
        });
        let (names, seen) = (Arc::clone(&names), Arc::clone(&seen));
        // How a connection ends is not of interest: what was said on it is kept.
        tokio::spawn(async move { serve(stream, destination, index, &names, &seen).await });
    }
}

/// Answers in the protocol that is spoken, so that a permitted flow can be seen to come and go.
async fn serve(
    mut stream: TcpStream,
    destination: SocketAddr,
    index: usize,
    names: &Names,
    seen: &Sightings,
) -> io::Result<()> {
    let mut said = Vec::new();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return stream.shutdown().await;
        }
        seen.extend(index, bytes);
        said.extend_from_slice(bytes);
        let is_closing = has(&said, CLOSE);
        let answer = match said.as_slice() {
            // What comes after a ServerHello is not asked for.
            [0x16, ..] => Some(SERVER_HELLO.to_vec()),
            _ if destination.port() == DNS => authority::answer_stream(&said, names).map(|(query, reply)| {
                seen.asked(index, query);
                reply
            }),
            _ if has(&said, b" HTTP/") => has(&said, b"\r\n\r\n").then(|| ANSWER.to_vec()),
            _ => Some(said.clone()),
        };
        if let Some(answer) = answer {
            stream.write_all(&answer).await?;
            if is_closing {
                return stream.shutdown().await;
            }
            said.clear();
        }
        if said.len() > MAX_KEPT {
            return Ok(());
        }
    }
}

fn has(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text))
}

/// A handshake record of TLS 1.2 with the first bytes of a ServerHello.
const SERVER_HELLO: &[u8] = &[0x16, 0x03, 0x03, 0x00, 0x06, 0x02, 0x00, 0x00, 0x26, 0x03, 0x03];
const CLOSE: &[u8] = b"\r\nconnection: close\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Type: text/plain\r\n\r\ncanary\n";

async fn datagrams(socket: UdpSocket, names: Arc<Names>, seen: Arc<Sightings>) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || sys::udp::recv_orig_dst(&socket, &mut buffer));
        let Ok((length, source, destination)) = received else { continue };
        let data = buffer.get(..length).unwrap_or_default();
        let reply = (destination.port() == DNS).then(|| authority::answer(data, &names)).flatten();
        let (query, reply) = match reply {
            Some((query, reply)) => (Some(query), reply),
            // Echoed, so that a permitted datagram can be seen to come and go.
            None => (None, data.to_vec()),
        };
        seen.add(Sighting {
            kind: Kind::Udp,
            destination: destination.ip().to_canonical(),
            port: Some(destination.port()),
            query,
            bytes: data.to_vec(),
        });
        // A reply that cannot be sent is a permitted flow that is found not to work.
        let _sent =
            sys::net::bind_transparent_udp(destination, 0).and_then(|from| from.send_to(&reply, source));
    }
}

/// A socket that sees every packet of the world, whatever its protocol.
fn packet_socket() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
    // ETH_P_ALL in network byte order, as packet(7) wants it.
    let all = std::num::NonZeroU32::new(u32::from(3u16.to_be())).map(Protocol::from_raw);
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, all)?;
    // What the world answers has not reached it.
    sys::net::ignore_outgoing(&socket)?;
    Ok(socket)
}

async fn packets(socket: UdpSocket, seen: Arc<Sightings>) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || {
            let flags = rustix::net::RecvFlags::empty();
            Ok(rustix::net::recv(&socket, &mut buffer[..], flags)?.0)
        });
        let Ok(length) = received else { continue };
        if let Some(sighting) = describe(buffer.get(..length).unwrap_or_default()) {
            seen.add(sighting);
        }
    }
}

/// An IP packet that the sinks for TCP and UDP do not tell of, unless it is of the wire's own life: neighbour
/// discovery, reports of multicast groups, and errors that the node's kernel sends about flows of its own.
fn describe(packet: &[u8]) -> Option<Sighting> {
    const IGMP: u8 = 2;
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    let (destination, protocol, rest): (IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
            (Ipv4Addr::from(address).into(), *packet.get(9)?, packet.get(header..)?)
        }
        6 => {
            let address: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
            (Ipv6Addr::from(address).into(), *packet.get(6)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let is_group = destination.is_multicast() || destination == IpAddr::V4(Ipv4Addr::BROADCAST);
    let kind = rest.first().copied();
    let is_own = match protocol {
        TCP | UDP => !is_group,
        IGMP => true,
        1 => matches!(kind, Some(3 | 11 | 12)),
        // Errors, multicast listener reports and neighbour discovery (RFC 4443, 2710, 3810, 4861).
        58 => matches!(kind, Some(1..=4 | 130..=137 | 143)),
        // Hop-by-hop options, before the reports of multicast listeners.
        0 => destination.is_multicast(),
        _ => false,
    };
    if is_own {
        return None;
    }
    let port = matches!(protocol, TCP | UDP)
        .then(|| rest.get(2..4).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes))
        .flatten();
    let destination = destination.to_canonical();
    Some(Sighting { kind: Kind::Packet(protocol), destination, port, query: None, bytes: rest.to_vec() })
}

#[cfg(test)]
mod tests;
