//! What the probe sends.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt},
};

use super::{Bytes, Outcome};

/// The most bytes of an answer that are read.
const MAX_ANSWER: usize = 64 * 1024;
/// How long the pieces of a connection are apart: enough that each is sent in a packet of its own.
const BETWEEN_PIECES: Duration = Duration::from_micros(200);

/// Connects, sends the pieces and reads what comes of it.
pub(super) fn tcp(to: SocketAddr, pieces: &[Bytes], from: Option<IpAddr>, wait: Duration) -> Outcome {
    match connect(to, from, wait) {
        Ok(stream) => speak(stream, pieces, wait).1,
        Err(outcome) => outcome,
    }
}

/// As [`tcp`], and hands the connection on if it is still open.
pub(super) fn hold(to: SocketAddr, data: &[u8], wait: Duration, keep: impl FnOnce(TcpStream)) -> Outcome {
    let stream = match connect(to, None, wait) {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let (stream, outcome) = speak(stream, &[Bytes(data.to_vec())], wait);
    if !matches!(outcome, Outcome::Reset | Outcome::Closed) {
        keep(stream);
    }
    outcome
}

/// Sends on an open connection, and waits for its end.
pub(super) fn held(mut stream: TcpStream, data: &[u8], wait: Duration) -> Outcome {
    let deadline = Instant::now() + wait;
    if stream.write_all(data).is_err() {
        return Outcome::Reset;
    }
    let mut buffer = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            return Outcome::Silence;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Outcome::Closed,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Outcome::Silence;
            }
            Err(_) => return Outcome::Reset,
        }
    }
}

/// Sends a datagram and reads the answer.
pub(super) fn udp(to: SocketAddr, data: &[u8], from: Option<IpAddr>, wait: Duration) -> Outcome {
    let exchange = || -> io::Result<Outcome> {
        let socket = match from {
            Some(from) => UdpSocket::from(bound(SocketType::DGRAM, from)?),
            None => UdpSocket::bind(SocketAddr::new(unspecified(to), 0))?,
        };
        socket.set_broadcast(true)?;
        socket.set_read_timeout(Some(wait))?;
        socket.connect(to)?;
        socket.send(data)?;
        let mut buffer = vec![0; MAX_ANSWER];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(Outcome::Data(Bytes(buffer)))
    };
    exchange().unwrap_or_else(|error| failure(&error))
}

/// Sends an echo request and reads the reply.
pub(super) fn ping(to: IpAddr, data: &[u8], wait: Duration) -> Outcome {
    let (family, protocol, kind) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let exchange = || -> io::Result<Outcome> {
        let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol))?;
        // What the standard library does with a datagram socket fits.
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(wait))?;
        socket.connect(SocketAddr::new(to, 0))?;
        let mut request = vec![kind, 0, 0, 0, 0, 1, 0, 1];
        request.extend_from_slice(data);
        socket.send(&request)?;
        let mut buffer = vec![0; MAX_ANSWER];
        let length = socket.recv(&mut buffer)?;
        buffer.truncate(length);
        Ok(Outcome::Data(Bytes(buffer)))
    };
    exchange().unwrap_or_else(|error| failure(&error))
}

/// Listens on an own address, connects to it and exchanges a word.
pub(super) fn own(at: SocketAddr) -> Outcome {
    let exchange = || -> io::Result<Outcome> {
        let listener = TcpListener::bind(at)?;
        let wait = Duration::from_secs(3);
        let mut client = TcpStream::connect_timeout(&listener.local_addr()?, wait)?;
        let (mut server, _) = listener.accept()?;
        server.write_all(b"self")?;
        client.set_read_timeout(Some(wait))?;
        let mut word = [0; 4];
        client.read_exact(&mut word)?;
        Ok(Outcome::Done)
    };
    exchange().unwrap_or_else(|error| failure(&error))
}

/// The own address of what is sent there; nothing is sent.
pub(super) fn source(to: SocketAddr) -> Outcome {
    let own = || -> io::Result<Outcome> {
        let socket = UdpSocket::bind(SocketAddr::new(unspecified(to), 0))?;
        socket.connect(to)?;
        Ok(Outcome::Data(Bytes(socket.local_addr()?.ip().to_string().into_bytes())))
    };
    own().unwrap_or_else(|error| failure(&error))
}

fn connect(to: SocketAddr, from: Option<IpAddr>, wait: Duration) -> Result<TcpStream, Outcome> {
    let connected = match from {
        None => TcpStream::connect_timeout(&to, wait),
        Some(from) => bound(SocketType::STREAM, from).and_then(|socket| {
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(wait))?;
            rustix::net::connect(&socket, &to)?;
            Ok(TcpStream::from(socket))
        }),
    };
    connected.map_err(|error| failure(&error))
}

/// A socket with a source address that may be nobody's here.
fn bound(kind: SocketType, from: IpAddr) -> io::Result<OwnedFd> {
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let protocol: Option<Protocol> = None;
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    match from {
        IpAddr::V4(_) => sockopt::set_ip_freebind(&socket, true)?,
        IpAddr::V6(_) => sockopt::set_ipv6_freebind(&socket, true)?,
    }
    bind(&socket, &SocketAddr::new(from, 0))?;
    Ok(socket)
}

fn unspecified(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Sends the pieces, and reads until it is clear what is answered.
fn speak(mut stream: TcpStream, pieces: &[Bytes], wait: Duration) -> (TcpStream, Outcome) {
    let deadline = Instant::now() + wait;
    let mut cut = stream.set_nodelay(true).is_err();
    for (number, piece) in pieces.iter().enumerate() {
        if number > 0 {
            std::thread::sleep(BETWEEN_PIECES);
        }
        // What was answered before the connection was cut can still be read.
        if stream.write_all(&piece.0).is_err() {
            cut = true;
            break;
        }
    }
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let ended = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() {
            break Outcome::Silence;
        }
        match stream.read(&mut buffer) {
            Ok(0) => break if cut { Outcome::Reset } else { Outcome::Closed },
            Ok(length) => answer.extend_from_slice(buffer.get(..length).unwrap_or_default()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break Outcome::Silence;
            }
            Err(_) => break Outcome::Reset,
        }
        // HTTP ends by itself; of anything else the beginning is enough.
        if (answer.len() >= 7 && !answer.starts_with(b"HTTP/")) || answer.len() >= MAX_ANSWER {
            break Outcome::Silence;
        }
    };
    let outcome = if answer.is_empty() { ended } else { said(&answer) };
    (stream, outcome)
}

/// What an answer is, by its first bytes.
fn said(answer: &[u8]) -> Outcome {
    match answer.first() {
        Some(0x16) => Outcome::ServerHello,
        Some(0x15) => Outcome::Alert(answer.get(6).copied().unwrap_or_default()),
        _ if answer.starts_with(b"HTTP/1.") => {
            let text = String::from_utf8_lossy(answer);
            let statuses =
                text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok());
            Outcome::Http(statuses.collect())
        }
        _ => Outcome::Data(Bytes(answer.get(..answer.len().min(600)).unwrap_or_default().to_vec())),
    }
}

fn failure(error: &io::Error) -> Outcome {
    let timed_out = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
    // A connection that is being made when its time is over.
    if timed_out || error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) {
        Outcome::Silence
    } else {
        Outcome::Refused(error.to_string())
    }
}
