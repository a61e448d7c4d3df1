//! A logged packet: what the kernel says about it, and what its headers say.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::message::{Attributes, be16, be32, text};
use crate::uapi::packet;

/// A packet that a rule reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The text of the rule's [`Log`](crate::Log).
    pub prefix: String,
    /// The hook (`NF_INET_*`: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting).
    pub hook: u8,
    /// The packet's mark.
    pub mark: u32,
    /// Number of the record within its group.
    pub sequence: u32,
    /// User id of the sending socket, where there is one; in the user namespace of the reader.
    pub uid: Option<u32>,
    /// Group id of the sending socket, where there is one; in the user namespace of the reader.
    pub gid: Option<u32>,
    /// Index of the interface it came by.
    pub input: Option<u32>,
    /// Index of the interface it was to leave by.
    pub output: Option<u32>,
    /// What its headers say; `None` when not even addresses can be read.
    pub flow: Option<Flow>,
}

/// Where a packet came from and where it was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The transport protocol's number, behind IPv6 extension headers.
    pub protocol: u8,
    /// Source and destination port, for TCP, UDP, UDP-Lite, SCTP and DCCP; `None` for later fragments and where the copy ends.
    pub ports: Option<(u16, u16)>,
    /// The flags of a TCP header (the bits of RFC 9293, FIN lowest).
    pub tcp_flags: Option<u8>,
    /// Type and code of an ICMP or ICMPv6 message.
    pub icmp: Option<(u8, u8)>,
    /// The identifier in an ICMP or ICMPv6 message, if it is a query: one of echo, timestamp or address mask.
    pub icmp_id: Option<u16>,
}

impl Packet {
    /// Reads the attributes of one record. Nothing in it is indispensable but the sequence number.
    pub(crate) fn read(attributes: Attributes<'_>) -> Option<Self> {
        let number = |kind| attributes.find(kind).and_then(be32);
        Some(Self {
            prefix: attributes.find(packet::PREFIX).map(text).unwrap_or_default(),
            hook: attributes
                .find(packet::PACKET_HDR)
                .and_then(|header| header.get(2).copied())
                .unwrap_or_default(),
            mark: number(packet::MARK).unwrap_or_default(),
            sequence: number(packet::SEQ)?,
            uid: number(packet::UID),
            gid: number(packet::GID),
            input: number(packet::IFINDEX_INDEV),
            output: number(packet::IFINDEX_OUTDEV),
            flow: attributes.find(packet::PAYLOAD).and_then(Flow::read),
        })
    }
}

impl Flow {
    /// Reads the headers of an IPv4 or IPv6 packet, of which only the beginning may be there.
    pub fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => read_ipv4(packet),
            6 => read_ipv6(packet),
            _ => None,
        }
    }

    fn new(source: IpAddr, destination: IpAddr, protocol: u8, transport: Option<&[u8]>) -> Self {
        let header = transport.unwrap_or_default();
        let ports = || Some((be16(header)?, be16(header.get(2..)?)?));
        Self {
            source,
            destination,
            protocol,
            ports: has_ports(protocol).then(ports).flatten(),
            tcp_flags: (protocol == TCP).then(|| header.get(13).copied()).flatten(),
            icmp: matches!(protocol, ICMP | ICMPV6)
                .then(|| Some((*header.first()?, *header.get(1)?)))
                .flatten(),
            icmp_id: is_icmp_query(protocol, header).then(|| header.get(4..).and_then(be16)).flatten(),
        }
    }
}

/// Whether a protocol's header begins with two ports.
pub(crate) fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DCCP: u8 = 33;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const UDP_LITE: u8 = 136;

/// RFC 792 and RFC 950; RFC 4443.
fn is_icmp_query(protocol: u8, header: &[u8]) -> bool {
    matches!((protocol, header.first()), (ICMP, Some(0 | 8 | 13..=18)) | (ICMPV6, Some(128 | 129)))
}

/// RFC 791.
fn read_ipv4(packet: &[u8]) -> Option<Flow> {
    const OFFSET: u16 = 0x1fff;
    let address = |at| packet.get(at..)?.first_chunk::<4>().copied().map(Ipv4Addr::from);
    let (source, destination) = (address(12)?, address(16)?);
    let header_length = usize::from(packet.first()? & 0x0f) * 4;
    let is_first_fragment = be16(packet.get(6..)?)? & OFFSET == 0;
    let transport = (is_first_fragment && header_length >= 20).then(|| packet.get(header_length..)).flatten();
    Some(Flow::new(source.into(), destination.into(), *packet.get(9)?, transport))
}

/// RFC 8200.
fn read_ipv6(packet: &[u8]) -> Option<Flow> {
    let address = |at| packet.get(at..)?.first_chunk::<16>().copied().map(Ipv6Addr::from);
    let (source, destination) = (address(8)?, address(24)?);
    let (protocol, transport) = skip_extension_headers(*packet.get(6)?, packet.get(40..));
    Some(Flow::new(source.into(), destination.into(), protocol, transport))
}

/// The protocol behind the extension headers, and where it begins unless the copy or a fragment ends before it.
fn skip_extension_headers(first: u8, rest: Option<&[u8]>) -> (u8, Option<&[u8]>) {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    const MOBILITY: u8 = 135;
    // Each kind is to occur once, destination options twice; what has more is not worth reading on.
    const MOST: usize = 8;

    let (mut protocol, mut rest) = (first, rest);
    for _ in 0..MOST {
        let length = match (protocol, rest) {
            (FRAGMENT, Some(header)) => {
                let is_first = header.get(2..).and_then(be16).is_some_and(|offset| offset & !7 == 0);
                if !is_first {
                    return (header.first().copied().unwrap_or(protocol), None);
                }
                8
            }
            (AUTHENTICATION, Some(header)) => {
                header.get(1).map_or(8, |length| (usize::from(*length) + 2) * 4)
            }
            (HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY, Some(header)) => {
                header.get(1).map_or(8, |length| (usize::from(*length) + 1) * 8)
            }
            _ => break,
        };
        let Some(next) = rest.and_then(|header| header.first().copied()) else { break };
        rest = rest.and_then(|header| header.get(length..));
        protocol = next;
    }
    (protocol, rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An IPv4 header of 20 bytes and what follows.
    fn ipv4(protocol: u8, fragment: u16, transport: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 198, 51, 100, 2];
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet.extend_from_slice(transport);
        packet
    }

    /// An IPv6 header and what follows.
    fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(&"2001:db8::2".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend_from_slice(rest);
        packet
    }

    const SYN: [u8; 20] = [0xc0, 0x00, 0x01, 0xbb, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_syn_has_addresses_ports_and_flags() {
        let flow = Flow::read(&ipv4(TCP, 0, &SYN)).unwrap();
        assert_eq!(flow.source, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(flow.destination, IpAddr::from([198, 51, 100, 2]));
        assert_eq!((flow.protocol, flow.ports, flow.tcp_flags), (TCP, Some((49152, 443)), Some(2)));
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let flow = Flow::read(&ipv4(UDP, 185, &SYN)).unwrap();
        assert_eq!((flow.protocol, flow.ports), (UDP, None));
        let first = Flow::read(&ipv4(UDP, 0x2000, &SYN)).unwrap();
        assert_eq!(first.ports, Some((49152, 443)));
        let v6 = Flow::read(&ipv6(44, &[&[UDP, 0, 0x05, 0xc8, 0, 0, 0, 1][..], &SYN].concat())).unwrap();
        assert_eq!((v6.protocol, v6.ports), (UDP, None));
    }

    #[test]
    fn a_copy_that_ends_early_still_has_addresses() {
        let flow = Flow::read(&ipv4(TCP, 0, &SYN[..3])).unwrap();
        assert_eq!((flow.ports, flow.tcp_flags), (None, None));
        assert_eq!(Flow::read(&ipv4(TCP, 0, &SYN)[..19]), None);
    }

    #[test]
    fn extension_headers_are_skipped() {
        let hop_by_hop = [60, 0, 0, 0, 0, 0, 0, 0];
        let destination = [44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let fragment = [TCP, 0, 0, 1, 0, 0, 0, 9];
        let rest = [&hop_by_hop[..], &destination, &fragment, &SYN].concat();
        let flow = Flow::read(&ipv6(0, &rest)).unwrap();
        assert_eq!((flow.protocol, flow.ports, flow.tcp_flags), (TCP, Some((49152, 443)), Some(2)));
    }

    #[test]
    fn a_chain_of_extension_headers_without_end_is_given_up() {
        let rest = [60, 0, 0, 0, 0, 0, 0, 0].repeat(1000);
        let flow = Flow::read(&ipv6(60, &rest)).unwrap();
        assert_eq!((flow.protocol, flow.ports), (60, None));
    }

    #[test]
    fn an_icmp_message_has_type_and_code() {
        let flow = Flow::read(&ipv4(ICMP, 0, &[8, 0, 0, 0])).unwrap();
        assert_eq!((flow.icmp, flow.ports, flow.icmp_id), (Some((8, 0)), None, None));
        let flow = Flow::read(&ipv4(ICMP, 0, &[8, 0, 0, 0, 0x12, 0x34])).unwrap();
        assert_eq!(flow.icmp_id, Some(0x1234));
        let unreachable = Flow::read(&ipv4(ICMP, 0, &[3, 1, 0, 0, 0x12, 0x34])).unwrap();
        assert_eq!(unreachable.icmp_id, None);
    }

    proptest! {
        #[test]
        fn any_packet_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Flow::read(&bytes);
            let _ = Packet::read(Attributes::new(&bytes));
        }

        #[test]
        fn any_ipv6_packet_is_read_without_panic(
            next in prop::sample::select(vec![0_u8, 43, 44, 51, 60, 135, 6]),
            rest in proptest::collection::vec(prop::sample::select(vec![0_u8, 1, 6, 43, 44, 51, 60, 135, 255]), 0..200),
        ) {
            prop_assert!(Flow::read(&ipv6(next, &rest)).is_some());
        }
    }
}
