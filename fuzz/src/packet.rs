//! What a logged packet is said to be is what another program reads in it.

use std::net::IpAddr;

use etherparse::{Icmpv4Type, Icmpv6Type, Ipv6ExtensionSlice, NetSlice, SlicedPacket, TransportSlice};
use nft::Flow;

pub fn check(bytes: &[u8]) {
    let ours = Flow::read(bytes);
    // A copy that ends early says less, and nothing else.
    let cut = Flow::read(&bytes[..bytes.len() / 2]);
    if let Some(cut) = cut {
        let whole = ours.expect("more bytes say less");
        assert_eq!((cut.source, cut.destination), (whole.source, whole.destination));
        assert!(cut.ports.is_none() || cut.ports == whole.ports);
        assert!(cut.tcp_flags.is_none() || cut.tcp_flags == whole.tcp_flags);
        assert!(cut.icmp.is_none() || cut.icmp == whole.icmp);
        assert!(cut.icmp_id.is_none() || cut.icmp_id == whole.icmp_id);
    }
    // The other program wants all of the packet.
    let Ok(packet) = SlicedPacket::from_ip(bytes) else { return };
    let flow = ours.expect("a whole packet can be read");
    let (source, destination, is_later_fragment) = network(packet.net.as_ref());
    assert_eq!((flow.source, flow.destination), (source, destination));
    if is_later_fragment {
        let transport = (flow.ports, flow.tcp_flags, flow.icmp, flow.icmp_id);
        assert_eq!(transport, (None, None, None, None), "the middle of a message is read as its header");
    } else {
        check_transport(&flow, packet.transport.as_ref());
    }
}

/// Source, destination, and whether it is a part of a packet other than its beginning.
fn network(net: Option<&NetSlice<'_>>) -> (IpAddr, IpAddr, bool) {
    match net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header();
            let addresses = (header.source_addr(), header.destination_addr());
            (addresses.0.into(), addresses.1.into(), header.fragments_offset().value() > 0)
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            let addresses = (header.source_addr(), header.destination_addr());
            let is_later = ip.extensions().clone().into_iter().any(|extension| match extension {
                Ipv6ExtensionSlice::Fragment(fragment) => fragment.fragment_offset().value() > 0,
                _ => false,
            });
            (addresses.0.into(), addresses.1.into(), is_later)
        }
        other => panic!("no IP packet: {other:?}"),
    }
}

fn check_transport(flow: &Flow, transport: Option<&TransportSlice<'_>>) {
    let (mut ports, mut flags, mut icmp, mut icmp_id) = (None, None, None, None);
    let protocol = match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            ports = Some((tcp.source_port(), tcp.destination_port()));
            flags = tcp.slice().get(13).copied();
            6
        }
        Some(TransportSlice::Udp(udp)) => {
            ports = Some((udp.source_port(), udp.destination_port()));
            17
        }
        Some(TransportSlice::Icmpv4(message)) => {
            icmp = Some((message.type_u8(), message.code_u8()));
            icmp_id = match message.icmp_type() {
                Icmpv4Type::EchoRequest(echo) | Icmpv4Type::EchoReply(echo) => Some(echo.id),
                Icmpv4Type::TimestampRequest(times) | Icmpv4Type::TimestampReply(times) => Some(times.id),
                // Codes that no query has, and queries it does not know.
                _ => flow.icmp_id,
            };
            1
        }
        Some(TransportSlice::Icmpv6(message)) => {
            icmp = Some((message.type_u8(), message.code_u8()));
            icmp_id = match message.icmp_type() {
                Icmpv6Type::EchoRequest(echo) | Icmpv6Type::EchoReply(echo) => Some(echo.id),
                _ => flow.icmp_id,
            };
            58
        }
        Some(TransportSlice::Igmp(_)) | None => return,
    };
    let ours = (flow.ports, flow.tcp_flags, flow.icmp, flow.icmp_id);
    // Headers between IP's and the transport's may be too many to be worth reading on.
    if flow.protocol == protocol {
        assert_eq!(ours, (ports, flags, icmp, icmp_id));
    } else {
        assert_eq!(ours, (None, None, None, None));
    }
}
