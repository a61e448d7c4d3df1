//! Sockets with options the standard library cannot set.
//!
//! All sockets made here are non-blocking and close on exec.

use std::{
    io,
    mem::MaybeUninit,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with, sockopt};

/// A TCP listener that accepts connections to any address which the packet filter hands to it (`tproxy`).
///
/// It may be bound to an address that no interface has. What it accepts, and what the kernel sends for it, carries
/// `mark`. The local address of an accepted socket is the destination the client meant.
/// Needs `CAP_NET_ADMIN` over the thread's network namespace.
///
/// # Errors
/// What the failing system call says; `AddrInUse` when the port is taken.
pub fn listen_transparent(address: SocketAddr, mark: u32, backlog: i32) -> io::Result<TcpListener> {
    listen_with(address, mark, backlog, |_| Ok(()))
}

/// As [`listen_transparent`], as one of several listeners at the same address, among which the kernel spreads
/// connections (`SO_REUSEPORT`). Only sockets of the same user can be among them.
///
/// # Errors
/// As [`listen_transparent`].
pub fn listen_transparent_shared(address: SocketAddr, mark: u32, backlog: i32) -> io::Result<TcpListener> {
    listen_with(address, mark, backlog, |socket| Ok(sockopt::set_socket_reuseport(socket, true)?))
}

fn listen_with(
    address: SocketAddr,
    mark: u32,
    backlog: i32,
    prepare: impl Fn(&OwnedFd) -> io::Result<()>,
) -> io::Result<TcpListener> {
    let socket = socket_with(family_of(address), SocketType::STREAM, FLAGS, Some(ipproto::TCP))?;
    // Connections of an earlier daemon may still be in TIME_WAIT.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    prepare(&socket)?;
    prepare_transparent(&socket, address, mark)?;
    bind(&socket, &address)?;
    listen(&socket, backlog)?;
    Ok(TcpListener::from(socket))
}

/// A UDP socket that receives datagrams to any address which the packet filter hands to it, tells their original
/// destination ([`crate::udp::recv_orig_dst`]) and can answer from it ([`crate::udp::send_from`]).
///
/// Needs `CAP_NET_ADMIN` over the thread's network namespace.
///
/// # Errors
/// What the failing system call says; `AddrInUse` when the port is taken.
pub fn bind_transparent_udp(address: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
    let socket = socket_with(family_of(address), SocketType::DGRAM, FLAGS, Some(ipproto::UDP))?;
    prepare_transparent(&socket, address, mark)?;
    match address {
        SocketAddr::V4(_) => set_flag(&socket, libc::SOL_IP, libc::IP_RECVORIGDSTADDR)?,
        SocketAddr::V6(_) => set_flag(&socket, libc::SOL_IPV6, libc::IPV6_RECVORIGDSTADDR)?,
    }
    bind(&socket, &address)?;
    Ok(UdpSocket::from(socket))
}

/// Sets `TCP_DEFER_ACCEPT` on a listener: a connection is accepted when its client has sent something, or ended its
/// stream, and of a silent one only after `limit` (rounded up to when the kernel would repeat its answer: 1, 3, 7 s, …).
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn defer_accept(listener: impl AsFd, limit: Duration) -> io::Result<()> {
    let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX);
    set_option(listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, seconds)
}

/// Sets `SO_MARK`: the mark of every packet the socket sends. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn set_mark(socket: impl AsFd, mark: u32) -> io::Result<()> {
    set_option(socket, libc::SOL_SOCKET, libc::SO_MARK, mark)
}

/// Has a packet socket (`AF_PACKET`) leave out what this host sends itself (`PACKET_IGNORE_OUTGOING`, Linux 4.20).
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn ignore_outgoing(socket: impl AsFd) -> io::Result<()> {
    set_option(socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
}

/// Bounds what a TCP socket takes that cannot be sent yet (`TCP_NOTSENT_LOWAT`): it is full, and not writable, while so many
/// bytes or more wait in it. What is under way to the peer does not count.
///
/// # Errors
/// What `setsockopt(2)` says.
pub fn set_unsent_limit(socket: impl AsFd, bytes: u32) -> io::Result<()> {
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bytes)
}

/// Whether a TCP socket waits for its peer to answer, and for how long the peer has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Whether data, or a probe of a peer that is silent or takes nothing, was sent that the peer has not acknowledged.
    pub awaited: bool,
    /// How long ago the peer acknowledged anything, to the millisecond.
    pub last: Duration,
}

/// What the kernel knows of the answers of a TCP socket's peer (`TCP_INFO`).
///
/// # Errors
/// What `getsockopt(2)` says, as for a socket that is not TCP.
pub fn answers(socket: impl AsFd) -> io::Result<Answers> {
    let size = size_of::<libc::tcp_info>();
    let mut length = libc::socklen_t::try_from(size).map_err(io::Error::other)?;
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    // SAFETY: the pointer and the length describe `info`, which lives through the call, and of which the kernel writes no
    // more than that; the descriptor is borrowed for its duration.
    let result = unsafe {
        let fd = socket.as_fd().as_raw_fd();
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is made of integers only, and all of it was zero before the kernel wrote into it.
    let info = unsafe { info.assume_init() };
    Ok(Answers {
        awaited: info.tcpi_unacked > 0 || info.tcpi_probes > 0,
        last: Duration::from_millis(info.tcpi_last_ack_recv.into()),
    })
}

const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

fn family_of(address: SocketAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 }
}

fn prepare_transparent(socket: impl AsFd + Copy, address: SocketAddr, mark: u32) -> io::Result<()> {
    match address {
        SocketAddr::V4(_) => set_flag(socket, libc::SOL_IP, libc::IP_TRANSPARENT)?,
        SocketAddr::V6(_) => {
            sockopt::set_ipv6_v6only(socket, true)?;
            set_flag(socket, libc::SOL_IPV6, libc::IPV6_TRANSPARENT)?;
        }
    }
    set_mark(socket, mark)
}

fn set_flag(socket: impl AsFd, level: i32, name: i32) -> io::Result<()> {
    set_option(socket, level, name, 1)
}

/// All options set here take a C `int`.
fn set_option(socket: impl AsFd, level: i32, name: i32, value: u32) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<u32>()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe `value`, which lives through the call; the descriptor is borrowed
    // for its duration.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use super::{answers, bind_transparent_udp, defer_accept, listen_transparent, set_unsent_limit};
    use crate::netns::NetNs;

    #[test]
    fn transparent_sockets_bind_to_addresses_no_interface_has() {
        let (_namespace, results) = NetNs::create_and(|| {
            ["192.0.2.1:853", "[2001:db8::1]:853"].map(|text| {
                let address: SocketAddr = text.parse().unwrap();
                (
                    listen_transparent(address, 2, 16).and_then(|socket| socket.local_addr()),
                    bind_transparent_udp(address, 2).and_then(|socket| socket.local_addr()),
                    address,
                )
            })
        })
        .unwrap();
        for (tcp, udp, address) in results {
            assert_eq!(tcp.unwrap(), address);
            assert_eq!(udp.unwrap(), address);
        }
    }

    /// The two ends of a connection.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_connection_is_accepted_when_its_client_has_sent_something_and_elsewhere_at_once() {
        let [deferring, other] = [true, false].map(|defers| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            if defers {
                defer_accept(&listener, Duration::from_secs(60)).unwrap();
            }
            listener
        });
        let connect = |listener: &TcpListener| TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut client = connect(&deferring);
        deferring.set_nonblocking(true).unwrap();
        assert_eq!(deferring.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        client.write_all(b"x").unwrap();
        deferring.set_nonblocking(false).unwrap();
        deferring.accept().unwrap();
        let _silent = connect(&other);
        other.accept().unwrap();
    }

    #[test]
    fn a_socket_whose_peer_does_not_read_takes_little_and_loses_nothing() {
        const LIMIT: u32 = 128 << 10;
        let (mut client, mut server) = pair();
        // Small, so that not much is under way.
        rustix::net::sockopt::set_socket_recv_buffer_size(&client, 64 << 10).unwrap();
        set_unsent_limit(&server, LIMIT).unwrap();
        server.set_nonblocking(true).unwrap();
        let mut taken = 0;
        let error = loop {
            match server.write(&[1; 4096]) {
                Ok(count) => taken += count,
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(taken < 1 << 20, "{taken} bytes");
        drop(server);
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), taken);
    }

    #[test]
    fn who_answers_is_told_from_who_owes_an_answer() {
        let (mut client, mut server) = pair();
        server.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
        let last = answers(&server).unwrap();
        assert!(!last.awaited && last.last.as_secs() < 60, "{last:?}");
        assert!(answers(std::os::unix::net::UnixStream::pair().unwrap().0).is_err());
    }
}
