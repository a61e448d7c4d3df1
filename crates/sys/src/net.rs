//! Sockets with options the standard library cannot set.
//!
//! All sockets made here are non-blocking and close on exec.

use std::{
    io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
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
    use std::net::SocketAddr;

    use super::{bind_transparent_udp, listen_transparent};
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
}
