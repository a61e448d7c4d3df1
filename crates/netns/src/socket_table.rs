//! The sockets of a namespace (`sock_diag(7)`): listing them, and destroying one.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{Error, Family, netlink::Channel};

/// The socket table of the namespace of the thread that opened it.
#[derive(Debug)]
pub struct SocketTable {
    channel: Channel,
}

/// The transports whose sockets can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// A socket that is connected to somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketEntry {
    /// Its transport.
    pub transport: Transport,
    /// Its own address.
    pub local: SocketAddr,
    /// Its peer's address. An IPv4 peer of an IPv6 socket is told as the IPv4 address.
    pub remote: SocketAddr,
    /// Whether it is a TCP connection that came in and that its listener has not got yet.
    pub is_opening: bool,
    family: u8,
    identity: [u8; IDENTITY_BYTES],
}

impl SocketTable {
    /// Opens the table of the calling thread's namespace.
    ///
    /// # Errors
    /// [`Error::Open`] when the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { channel: Channel::open(NETLINK_SOCK_DIAG)? })
    }

    /// The sockets of one transport and family that have a peer. Listeners and those on the way out are left out.
    ///
    /// # Errors
    /// [`Error::List`] with what the kernel says.
    pub fn connected(&mut self, transport: Transport, family: Family) -> Result<Vec<SocketEntry>, Error> {
        let request = Diagnosis::Request {
            kind: SOCK_DIAG_BY_FAMILY,
            body: request_body(raw_family(family), raw_transport(transport), STATES, [0; IDENTITY_BYTES]),
        };
        self.channel
            .dump(request, |answer| match answer {
                Diagnosis::Request { .. } => None,
                Diagnosis::Answer(body) => socket_entry(transport, &body),
            })?
            .map_err(|source| Error::List { what: "sockets", source })
    }

    /// Destroys a socket: its owner's calls fail with `ECONNABORTED`, a TCP peer gets a reset. A socket that is
    /// gone already is no error.
    ///
    /// # Errors
    /// [`Error::DestroySocket`] with what the kernel says.
    pub fn destroy(&mut self, socket: &SocketEntry) -> Result<(), Error> {
        let body = request_body(socket.family, raw_transport(socket.transport), u32::MAX, socket.identity);
        match self.channel.request(Diagnosis::Request { kind: SOCK_DESTROY, body }, 0)? {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| Error::DestroySocket { remote: socket.remote.ip(), source }),
        }
    }
}

// linux/sock_diag.h, linux/inet_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `struct inet_diag_sockid`.
const IDENTITY_BYTES: usize = 48;
/// `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = 8 + IDENTITY_BYTES;
const SYN_RECV: u8 = 3;
/// ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING. A connected UDP socket is
/// "established".
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << SYN_RECV | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

fn raw_family(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn raw_transport(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

fn request_body(
    family: u8,
    transport: u8,
    states: u32,
    identity: [u8; IDENTITY_BYTES],
) -> [u8; REQUEST_BYTES] {
    let mut body = [0; REQUEST_BYTES];
    let (head, tail) = body.split_at_mut(8);
    let [a, b, c, d] = states.to_ne_bytes();
    head.copy_from_slice(&[family, transport, 0, 0, a, b, c, d]);
    tail.copy_from_slice(&identity);
    body
}

/// `struct inet_diag_msg`: family, state, timer, retransmissions, then the identity.
pub(crate) fn socket_entry(transport: Transport, body: &[u8]) -> Option<SocketEntry> {
    let family = *body.first()?;
    let identity: [u8; IDENTITY_BYTES] = body.get(4..4 + IDENTITY_BYTES)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(identity.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = identity.get(at..at + 16)?.try_into().ok()?;
        Some(if family == raw_family(Family::V4) {
            let [a, b, c, d, ..] = octets;
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(octets).to_canonical()
        })
    };
    let local = SocketAddr::new(address(4)?, port(0)?);
    let remote = SocketAddr::new(address(20)?, port(2)?);
    let is_opening = *body.get(1)? == SYN_RECV;
    Some(SocketEntry { transport, local, remote, is_opening, family, identity })
}

/// What goes over the socket: a request as it is sent, or an answer's bytes.
pub(crate) enum Diagnosis {
    Request { kind: u16, body: [u8; REQUEST_BYTES] },
    Answer(Vec<u8>),
}

impl NetlinkSerializable for Diagnosis {
    fn message_type(&self) -> u16 {
        match self {
            Self::Request { kind, .. } => *kind,
            Self::Answer(_) => SOCK_DIAG_BY_FAMILY,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::Request { body, .. } => body.len(),
            Self::Answer(body) => body.len(),
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::Request { body, .. } => buffer.copy_from_slice(body),
            Self::Answer(body) => buffer.copy_from_slice(body),
        }
    }
}

impl NetlinkDeserializable for Diagnosis {
    type Error = Infallible;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self::Answer(payload.to_vec()))
    }
}
