//! Datagrams with their original destination.
//!
//! For sockets made by [`crate::net::bind_transparent_udp`]: the packet filter hands them datagrams to any address,
//! and the answer has to come from the address that was asked.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
    ptr,
};

/// Receives one datagram: its length in `buffer`, its source and the destination the sender meant.
/// A datagram longer than `buffer` is cut.
///
/// # Errors
/// `WouldBlock` when there is none; `InvalidData` when the kernel did not tell the original destination (the socket
/// lacks the option); else what `recvmsg(2)` says.
pub fn recv_orig_dst(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, SocketAddr)> {
    let mut source = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control = Control::default();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut message = empty_message();
    message.msg_name = source.as_mut_ptr().cast();
    message.msg_namelen = length_of::<libc::sockaddr_storage>()?;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    // SAFETY: every pointer in `message` refers to a local (or to `buffer`) that lives through the call, with its
    // true length beside it.
    let received = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: zeroed bytes are a valid sockaddr_storage, and the kernel wrote at most `msg_namelen` into it.
    let from = socket_address(unsafe { source.assume_init_ref() })
        .ok_or_else(|| invalid("datagram without a source address"))?;
    let destination =
        original_destination(&message).ok_or_else(|| invalid("datagram without its original destination"))?;
    Ok((length, from, destination))
}

/// Sends one datagram to `to` with the source address of `from`. The source port is the socket's own.
///
/// # Errors
/// `WouldBlock` when the socket's buffer is full; `InvalidInput` when the families differ; else what `sendmsg(2)`
/// says.
pub fn send_from(socket: impl AsFd, buffer: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<usize> {
    if from.is_ipv4() != to.is_ipv4() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "source and destination differ in family"));
    }
    let (mut name, name_length) = raw_address(to)?;
    let mut part = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
    let mut control = Control::default();
    let mut message = empty_message();
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = name_length;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_BYTES;
    message.msg_controllen = match from.ip() {
        IpAddr::V4(source) => put_control(
            &message,
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            },
        )?,
        IpAddr::V6(source) => put_control(
            &message,
            libc::IPPROTO_IPV6,
            libc::IPV6_PKTINFO,
            libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: source.octets() }, ipi6_ifindex: 0 },
        )?,
    };
    // SAFETY: every pointer in `message` refers to a local (or to `buffer`, which sendmsg only reads) that lives
    // through the call, with its true length beside it.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Room for one control message of each kind used here, aligned as `cmsghdr` has to be.
const CONTROL_BYTES: usize = 128;
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Default for Control {
    fn default() -> Self {
        Self([0; CONTROL_BYTES])
    }
}

fn empty_message() -> libc::msghdr {
    // SAFETY: msghdr is plain data of integers and pointers, for which all zeroes is a valid value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Writes the only control message of `message` and returns the space it takes.
fn put_control<T: Copy>(message: &libc::msghdr, level: i32, kind: i32, value: T) -> io::Result<usize> {
    let length = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: CMSG_SPACE and CMSG_LEN are arithmetic on their argument.
    let (space, full) = unsafe { (libc::CMSG_SPACE(length) as usize, libc::CMSG_LEN(length) as usize) };
    if space > message.msg_controllen {
        return Err(invalid("control message larger than its buffer"));
    }
    // SAFETY: the control buffer is `msg_controllen` bytes, aligned for cmsghdr and at least `space` long, so the
    // header and the data after it are inside; the write is unaligned-safe.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = full;
        ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
    }
    Ok(space)
}

fn original_destination(message: &libc::msghdr) -> Option<SocketAddr> {
    // SAFETY: `message` was filled by recvmsg; the CMSG functions stay inside `msg_controllen`, and the kernel
    // writes whole control messages only (a cut one would be shorter, which `cmsg_len` shows).
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let kind = ((*header).cmsg_level, (*header).cmsg_type);
            let space = (*header).cmsg_len;
            let data = libc::CMSG_DATA(header);
            if kind == (libc::SOL_IP, libc::IP_ORIGDSTADDR) && space >= full_length::<libc::sockaddr_in>() {
                return Some(v4_address(&ptr::read_unaligned(data.cast())));
            }
            if kind == (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)
                && space >= full_length::<libc::sockaddr_in6>()
            {
                return Some(v6_address(&ptr::read_unaligned(data.cast())));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn full_length<T>() -> usize {
    let length = u32::try_from(size_of::<T>()).unwrap_or(u32::MAX);
    // SAFETY: CMSG_LEN is arithmetic on its argument.
    unsafe { libc::CMSG_LEN(length) as usize }
}

fn socket_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let storage: *const libc::sockaddr_storage = storage;
    // SAFETY: sockaddr_storage is at least as large and as aligned as each address type, all of which are plain
    // data; the family says which one it is.
    unsafe {
        match i32::from((*storage).ss_family) {
            libc::AF_INET => Some(v4_address(&*storage.cast())),
            libc::AF_INET6 => Some(v6_address(&*storage.cast())),
            _ => None,
        }
    }
}

fn v4_address(raw: &libc::sockaddr_in) -> SocketAddr {
    SocketAddrV4::new(Ipv4Addr::from(u32::from_be(raw.sin_addr.s_addr)), u16::from_be(raw.sin_port)).into()
}

fn v6_address(raw: &libc::sockaddr_in6) -> SocketAddr {
    SocketAddrV6::new(
        Ipv6Addr::from(raw.sin6_addr.s6_addr),
        u16::from_be(raw.sin6_port),
        raw.sin6_flowinfo,
        raw.sin6_scope_id,
    )
    .into()
}

fn raw_address(address: SocketAddr) -> io::Result<(libc::sockaddr_storage, libc::socklen_t)> {
    let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let length = match address {
        SocketAddr::V4(address) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::sa_family_t::try_from(libc::AF_INET).map_err(io::Error::other)?,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from(*address.ip()).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large and aligned enough for sockaddr_in.
            unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in>().write(raw) };
            length_of::<libc::sockaddr_in>()?
        }
        SocketAddr::V6(address) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::sa_family_t::try_from(libc::AF_INET6).map_err(io::Error::other)?,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: sockaddr_storage is large and aligned enough for sockaddr_in6.
            unsafe { storage.as_mut_ptr().cast::<libc::sockaddr_in6>().write(raw) };
            length_of::<libc::sockaddr_in6>()?
        }
    };
    // SAFETY: it was zeroed, which is a valid value, and then overwritten in part by plain data.
    Ok((unsafe { storage.assume_init() }, length))
}

fn length_of<T>() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::{
        io::ErrorKind,
        net::{SocketAddr, UdpSocket},
        time::Duration,
    };

    use super::{recv_orig_dst, send_from};
    use crate::net::bind_transparent_udp;

    fn exchange(server: &str) {
        // On loopback, where every 127/8 address is local: the one asked is told, and another one answers.
        let server: SocketAddr = server.parse().unwrap();
        let socket = bind_transparent_udp(server, 2).unwrap();
        let server = socket.local_addr().unwrap();
        let client = UdpSocket::bind((server.ip(), 0)).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 64];
        let empty = recv_orig_dst(&socket, &mut buffer).unwrap_err();
        assert_eq!(empty.kind(), ErrorKind::WouldBlock);

        client.send_to(b"question", server).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let (length, from, asked) = recv_orig_dst(&socket, &mut buffer).unwrap();
        assert_eq!(
            (&buffer[..length], from, asked),
            (&b"question"[..], client.local_addr().unwrap(), server)
        );

        let mut answering = asked;
        if let SocketAddr::V4(address) = &mut answering {
            address.set_ip("127.77.0.1".parse().unwrap());
        }
        assert_eq!(send_from(&socket, b"answer", answering, from).unwrap(), 6);
        let (length, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"answer"[..], answering));
    }

    #[test]
    fn the_original_destination_is_told_and_can_answer_over_ipv4() {
        exchange("127.0.0.1:0");
    }

    #[test]
    fn the_original_destination_is_told_and_can_answer_over_ipv6() {
        exchange("[::1]:0");
    }

    #[test]
    fn an_answer_in_the_other_family_is_an_error() {
        let socket = bind_transparent_udp("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let refused = send_from(&socket, b"x", "[::1]:53".parse().unwrap(), "127.0.0.1:9".parse().unwrap());
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}
