//! One tracked connection, as the kernel tells it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::message::{Attributes, Message, Writer, be16, be32, be64};
use crate::packet::{self, Flow};
use crate::uapi::{ct, nfproto};

/// What tells a connection from others, as its first packet had it (or the first reply).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The transport protocol's number.
    pub protocol: u8,
    /// Source and destination port, for TCP, UDP, UDP-Lite, SCTP and DCCP.
    pub ports: Option<(u16, u16)>,
    /// Which ICMP or ICMPv6 query it is.
    pub icmp: Option<Icmp>,
}

/// An ICMP or ICMPv6 query, or the answer to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Icmp {
    /// Its identifier.
    pub id: u16,
    /// The message type.
    pub kind: u8,
    /// The code.
    pub code: u8,
}

/// What went one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// Where a TCP connection stood (`TCP_CONNTRACK_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState(pub(crate) u8);

impl TcpState {
    /// Both sides have closed it.
    pub const TIME_WAIT: Self = Self(7);
    /// One side has reset it.
    pub const CLOSE: Self = Self(8);

    /// Whether nothing more is to come.
    pub fn is_over(self) -> bool {
        matches!(self, Self::TIME_WAIT | Self::CLOSE)
    }
}

/// A tracked connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As its first packet had it.
    pub original: Tuple,
    /// As replies have it when they come: behind address translation.
    pub reply: Tuple,
    /// Tells it from most others that have the same tuple, before and after. Not from all: the kernel makes it of the
    /// tuple and of where it keeps the connection, which may be the same place when one makes room for the next.
    pub id: u32,
    /// Its mark; 0 if nobody marked it.
    pub mark: u32,
    /// In the direction of the first packet; zero unless the namespace keeps accounts.
    pub sent: Counters,
    /// In the other direction; zero unless the namespace keeps accounts.
    pub received: Counters,
    /// How long it existed, if it has ended and the namespace keeps times.
    pub age: Option<Duration>,
    /// How long it would still have existed without any more packets, in whole seconds; zero when its time was over.
    pub remaining: Duration,
    /// Whether traffic both ways was seen that lasted, so that it is kept for longer.
    pub is_assured: bool,
    /// Where it stands, if it is TCP.
    pub tcp: Option<TcpState>,
}

impl Tuple {
    /// That of the connection which this packet begins.
    pub fn of(flow: &Flow) -> Self {
        let icmp = flow.icmp.zip(flow.icmp_id).map(|((kind, code), id)| Icmp { id, kind, code });
        Self {
            source: flow.source,
            destination: flow.destination,
            protocol: flow.protocol,
            ports: flow.ports,
            icmp,
        }
    }

    /// That of a connection whose replies have this one, with the same ICMP type as `original`.
    pub fn inverted(&self, original: &Self) -> Self {
        let icmp = self.icmp.zip(original.icmp).map(|(reply, original)| Icmp { id: reply.id, ..original });
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            ports: self.ports.map(|(source, destination)| (destination, source)),
            icmp,
        }
    }

    /// `NFPROTO_*` of its addresses.
    pub(crate) fn nfproto(&self) -> u8 {
        if self.source.is_ipv4() { nfproto::IPV4 } else { nfproto::IPV6 }
    }

    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let parts = Attributes::new(bytes);
        let ip = Attributes::new(parts.find(ct::TUPLE_IP)?);
        let address = |v4, v6| {
            let v4 = ip.find(v4).and_then(|value| <[u8; 4]>::try_from(value).ok()).map(Ipv4Addr::from);
            let v6 = || ip.find(v6).and_then(|value| <[u8; 16]>::try_from(value).ok()).map(Ipv6Addr::from);
            v4.map(IpAddr::from).or_else(|| v6().map(IpAddr::from))
        };
        let transport = Attributes::new(parts.find(ct::TUPLE_PROTO)?);
        let protocol = transport.find(ct::PROTO_NUM)?.first().copied()?;
        let number = |kind| transport.find(kind).and_then(be16);
        let icmp = |[id, kind, code]: [u16; 3]| {
            let byte = |kind| transport.find(kind).and_then(|value| value.first().copied());
            Some(Icmp { id: number(id)?, kind: byte(kind)?, code: byte(code)? })
        };
        Some(Self {
            source: address(ct::IP_V4_SRC, ct::IP_V6_SRC)?,
            destination: address(ct::IP_V4_DST, ct::IP_V6_DST)?,
            protocol,
            // The kernel has ports for others too, which mean something else there.
            ports: packet::has_ports(protocol)
                .then(|| number(ct::PROTO_SRC_PORT).zip(number(ct::PROTO_DST_PORT)))
                .flatten(),
            icmp: icmp(ct::ICMP).or_else(|| icmp(ct::ICMPV6)),
        })
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.nest(ct::TUPLE_IP, |writer| match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                writer.attribute(ct::IP_V4_SRC, &source.octets());
                writer.attribute(ct::IP_V4_DST, &destination.octets());
            }
            (source, destination) => {
                writer.attribute(ct::IP_V6_SRC, &v6(source).octets());
                writer.attribute(ct::IP_V6_DST, &v6(destination).octets());
            }
        });
        writer.nest(ct::TUPLE_PROTO, |writer| {
            writer.u8(ct::PROTO_NUM, self.protocol);
            let ports = self.ports.or((self.protocol == GRE).then_some((0, 0)));
            if let Some((source, destination)) = ports {
                writer.u16(ct::PROTO_SRC_PORT, source);
                writer.u16(ct::PROTO_DST_PORT, destination);
            }
            if let Some(icmp) = self.icmp {
                let [id, kind, code] = if self.source.is_ipv4() { ct::ICMP } else { ct::ICMPV6 };
                writer.u16(id, icmp.id);
                writer.u8(kind, icmp.kind);
                writer.u8(code, icmp.code);
            }
        });
    }
}

/// The tracker tells its connections apart by a key in the place of ports, which is zero without its helper.
const GRE: u8 = 47;

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

impl Entry {
    /// Whether it is a TCP connection of which nothing more is to come.
    pub fn is_over(&self) -> bool {
        self.tcp.is_some_and(TcpState::is_over)
    }

    /// Reads what the kernel says of a connection. Only the two tuples are indispensable.
    pub(crate) fn read(message: &Message<'_>) -> Option<Self> {
        let attributes = message.attributes();
        let number = |kind| attributes.find(kind).and_then(be32);
        let tcp = || {
            let of_protocol = Attributes::new(attributes.find(ct::PROTOINFO)?);
            let tcp = Attributes::new(of_protocol.find(ct::PROTOINFO_TCP)?);
            tcp.find(ct::TCP_STATE)?.first().copied().map(TcpState)
        };
        let age = || {
            let times = Attributes::new(attributes.find(ct::TIMESTAMP)?);
            let at = |kind| times.find(kind).and_then(be64).filter(|time| *time > 0);
            Some(Duration::from_nanos(at(ct::TIMESTAMP_STOP)?.saturating_sub(at(ct::TIMESTAMP_START)?)))
        };
        Some(Self {
            original: Tuple::read(attributes.find(ct::TUPLE_ORIG)?)?,
            reply: Tuple::read(attributes.find(ct::TUPLE_REPLY)?)?,
            id: number(ct::ID).unwrap_or_default(),
            mark: number(ct::MARK).unwrap_or_default(),
            sent: attributes.find(ct::COUNTERS_ORIG).map(Counters::read).unwrap_or_default(),
            received: attributes.find(ct::COUNTERS_REPLY).map(Counters::read).unwrap_or_default(),
            age: age(),
            remaining: Duration::from_secs(number(ct::TIMEOUT).unwrap_or_default().into()),
            is_assured: number(ct::STATUS).unwrap_or_default() & ct::STATUS_ASSURED != 0,
            tcp: tcp(),
        })
    }
}

impl Counters {
    fn read(bytes: &[u8]) -> Self {
        let number = |kind| Attributes::new(bytes).find(kind).and_then(be64).unwrap_or_default();
        Self { packets: number(ct::COUNTERS_PACKETS), bytes: number(ct::COUNTERS_BYTES) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::message::{Head, Messages};
    use crate::uapi::subsystem;
    use proptest::prelude::*;

    /// A message about a connection, as the kernel writes one.
    pub(crate) fn message(entry: &Entry) -> Vec<u8> {
        let mut writer = Writer::default();
        let kind = subsystem::CTNETLINK << 8 | ct::MSG_DELETE;
        let head = Head { kind, flags: 0, sequence: 0, family: entry.original.nfproto(), resource: 0 };
        writer.message(head, |writer| {
            writer.nest(ct::TUPLE_ORIG, |writer| entry.original.write(writer));
            writer.nest(ct::TUPLE_REPLY, |writer| entry.reply.write(writer));
            writer.u32(ct::STATUS, if entry.is_assured { ct::STATUS_ASSURED } else { 0 });
            if !entry.remaining.is_zero() {
                writer.u32(ct::TIMEOUT, u32::try_from(entry.remaining.as_secs()).unwrap());
            }
            if let Some(TcpState(state)) = entry.tcp {
                writer.nest(ct::PROTOINFO, |writer| {
                    writer.nest(ct::PROTOINFO_TCP, |writer| writer.u8(ct::TCP_STATE, state));
                });
            }
            writer.u32(ct::MARK, entry.mark);
            writer.u32(ct::ID, entry.id);
            for (kind, counters) in [(ct::COUNTERS_ORIG, entry.sent), (ct::COUNTERS_REPLY, entry.received)] {
                writer.nest(kind, |writer| {
                    writer.u64(ct::COUNTERS_PACKETS, counters.packets);
                    writer.u64(ct::COUNTERS_BYTES, counters.bytes);
                });
            }
            if let Some(age) = entry.age {
                writer.nest(ct::TIMESTAMP, |writer| {
                    writer.u64(ct::TIMESTAMP_START, 1_000);
                    writer.u64(ct::TIMESTAMP_STOP, 1_000 + u64::try_from(age.as_nanos()).unwrap());
                });
            }
        });
        writer.into_bytes()
    }

    fn read(bytes: &[u8]) -> Option<Entry> {
        Messages::new(bytes).next()?.ok().as_ref().and_then(Entry::read)
    }

    fn any_tuple() -> impl Strategy<Value = Tuple> {
        let v4 = (any::<[u8; 4]>(), any::<[u8; 4]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
        let v6 = (any::<[u8; 16]>(), any::<[u8; 16]>()).prop_map(|(a, b)| (IpAddr::from(a), IpAddr::from(b)));
        let numbers = any::<(u16, u16, u8, u8)>();
        let protocol = prop::sample::select(vec![1_u8, 6, 17, 47, 50, 58, 132]);
        (prop_oneof![v4, v6], protocol, numbers).prop_map(|((source, destination), protocol, numbers)| {
            let (a, b, kind, code) = numbers;
            Tuple {
                source,
                destination,
                protocol,
                ports: packet::has_ports(protocol).then_some((a, b)),
                icmp: matches!(protocol, 1 | 58).then_some(Icmp { id: a, kind, code }),
            }
        })
    }

    prop_compose! {
        fn any_entry()(
            original in any_tuple(),
            reply in any_tuple(),
            (id, mark) in any::<(u32, u32)>(),
            counts in any::<[u64; 4]>(),
            age in proptest::option::of(0_u32..),
            remaining in any::<u32>(),
            is_assured in any::<bool>(),
            tcp in proptest::option::of(any::<u8>()),
        ) -> Entry {
            Entry {
                original,
                reply,
                id,
                mark,
                sent: Counters { packets: counts[0], bytes: counts[1] },
                received: Counters { packets: counts[2], bytes: counts[3] },
                age: age.map(|age| Duration::from_micros(age.into())),
                remaining: Duration::from_secs(remaining.into()),
                is_assured,
                tcp: tcp.map(TcpState),
            }
        }
    }

    #[test]
    fn a_tuple_is_that_of_the_packet_that_begins_the_connection() {
        let mut flow = Flow {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: 17,
            ports: Some((1000, 53)),
            tcp_flags: None,
            icmp: None,
            icmp_id: None,
        };
        assert_eq!(Tuple::of(&flow).ports, Some((1000, 53)));
        (flow.protocol, flow.ports, flow.icmp, flow.icmp_id) = (1, None, Some((8, 0)), Some(7));
        let echo = Tuple::of(&flow);
        assert_eq!(echo.icmp, Some(Icmp { id: 7, kind: 8, code: 0 }));
        // As the reply has it, behind translation of the address and of the identifier.
        let reply = Tuple {
            source: flow.destination,
            destination: "192.0.2.9".parse().unwrap(),
            icmp: Some(Icmp { id: 9, kind: 0, code: 0 }),
            ..echo
        };
        let outside = reply.inverted(&echo);
        assert_eq!(outside.source, reply.destination);
        assert_eq!(outside.icmp, Some(Icmp { id: 9, kind: 8, code: 0 }));
    }

    proptest! {
        #[test]
        fn what_the_kernel_says_of_a_connection_is_read_back(entry in any_entry()) {
            prop_assert_eq!(read(&message(&entry)), Some(entry));
        }

        #[test]
        fn any_message_is_read_without_panic(
            entry in any_entry(),
            place in any::<prop::sample::Index>(),
            noise in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut bytes = message(&entry);
            let start = place.index(bytes.len());
            for (to, from) in bytes[start..].iter_mut().zip(noise) {
                *to ^= from;
            }
            let _ = read(&bytes);
            let _ = Tuple::read(&bytes);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (read(&bytes), Tuple::read(&bytes));
        }
    }
}
