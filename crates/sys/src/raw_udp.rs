//! Datagrams from an address and a port that the sender has no socket at.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with};

/// Sends datagrams of one address family whose source is whatever the caller says (`IPPROTO_RAW`). It receives nothing.
#[derive(Debug)]
pub struct RawUdp(OwnedFd);

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const UDP: u8 = 17;
const HOPS: u8 = 64;

impl RawUdp {
    /// For the family of `like`, in the namespace of the calling thread. What it sends carries `mark`. Needs `CAP_NET_RAW`
    /// and `CAP_NET_ADMIN` over that namespace.
    ///
    /// # Errors
    /// What `socket(2)` or `setsockopt(2)` says.
    pub fn open(like: SocketAddr, mark: u32) -> io::Result<Self> {
        let family = if like.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))?;
        crate::net::set_mark(&socket, mark)?;
        Ok(Self(socket))
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's buffer is full; `InvalidInput` when the families differ or it is too long; else what
    /// `sendto(2)` says.
    pub fn send(&self, data: &[u8], from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        let packet = packet(data, from, to)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a datagram that can be sent"))?;
        // The port is in the packet; here IPv6 would take it for a protocol.
        sendto(&self.0, &packet, SendFlags::NOSIGNAL, &SocketAddr::new(to.ip(), 0))?;
        Ok(())
    }
}

/// The datagram with its headers; `None` if it is too long, or source and destination differ in family.
fn packet(data: &[u8], from: SocketAddr, to: SocketAddr) -> Option<Vec<u8>> {
    let length = u16::try_from(UDP_HEADER + data.len()).ok()?;
    let mut packet = Vec::with_capacity(IPV6_HEADER + UDP_HEADER + data.len());
    let mut sum = Sum::default();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = length.checked_add(u16::try_from(IPV4_HEADER).ok()?)?;
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&total.to_be_bytes());
            // Not to be fragmented; the kernel fills in the identification and the checksum.
            packet.extend_from_slice(&[0, 0, 0x40, 0, HOPS, UDP, 0, 0]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            sum.add(&source.octets());
            sum.add(&destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&[UDP, HOPS]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            sum.add(&source.octets());
            sum.add(&destination.octets());
        }
        _ => return None,
    }
    sum.add(&[0, UDP]);
    sum.add(&length.to_be_bytes());
    let mut header = [0; UDP_HEADER];
    let fields = [from.port(), to.port(), length].map(u16::to_be_bytes);
    for (at, byte) in header.iter_mut().zip(fields.as_flattened()) {
        *at = *byte;
    }
    sum.add(&header);
    sum.add(data);
    let [.., high, low] = &mut header;
    [*high, *low] = sum.checksum().to_be_bytes();
    packet.extend_from_slice(&header);
    packet.extend_from_slice(data);
    Some(packet)
}

/// The sum of RFC 1071, over parts of which all but the last are even.
#[derive(Default)]
struct Sum(u64);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let (pairs, rest) = bytes.as_chunks::<2>();
        self.0 += pairs.iter().map(|pair| u64::from(u16::from_be_bytes(*pair))).sum::<u64>();
        self.0 += rest.iter().map(|byte| u64::from(*byte) << 8).sum::<u64>();
    }

    /// Of a datagram, where 0 would say that there is none (RFC 768).
    fn checksum(mut self) -> u16 {
        while self.0 > u64::from(u16::MAX) {
            self.0 = (self.0 & 0xffff) + (self.0 >> 16);
        }
        match !u16::try_from(self.0).unwrap_or_default() {
            0 => u16::MAX,
            sum => sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{IPV4_HEADER, IPV6_HEADER, Sum, UDP, packet};

    #[test]
    fn a_datagram_has_the_checksum_that_its_receiver_works_out_and_both_addresses_are_of_one_family() {
        for (from, to, header, addresses) in [
            ("8.8.8.8:53", "100.64.0.2:40000", IPV4_HEADER, 12..20),
            ("[2001:4860:4860::8888]:53", "[fd62:6169:6c69::2]:40000", IPV6_HEADER, 8..40),
        ] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            for data in [&b""[..], b"x", b"xy", &[0xff; 1231], &[0; 1232]] {
                let packet = packet(data, from, to).unwrap();
                let (ip, udp) = packet.split_at(header);
                assert_eq!(&udp[8..], data);
                let length = u16::try_from(udp.len()).unwrap().to_be_bytes();
                assert_eq!((&udp[..4], &udp[4..6]), (&[0, 53, 0x9c, 0x40][..], &length[..]));
                let mut sum = Sum::default();
                for part in [&ip[addresses.clone()], &[0, UDP], &length, udp] {
                    sum.add(part);
                }
                // The complement of what the sum with the checksum is: nothing, which is told as its other form.
                assert_eq!(sum.checksum(), u16::MAX);
            }
            assert_eq!(packet(&[0; 65_600], from, to), None);
        }
        assert_eq!(packet(b"x", "8.8.8.8:53".parse().unwrap(), "[::1]:4".parse().unwrap()), None);
    }
}
