//! What a rule can have established about a packet, as types: its family and its transport protocol.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::expression::{Header, PacketField};
use crate::range::Address;
use crate::uapi::nfproto;

/// Nothing is known about the family yet.
#[derive(Clone, Copy, Debug)]
pub struct AnyFamily;
/// An IPv4 packet.
#[derive(Clone, Copy, Debug)]
pub struct V4;
/// An IPv6 packet.
#[derive(Clone, Copy, Debug)]
pub struct V6;

/// Nothing is known about the transport protocol yet.
#[derive(Clone, Copy, Debug)]
pub struct AnyProtocol;
/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub struct Tcp;
/// A UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct Udp;
/// An ICMP message.
#[derive(Clone, Copy, Debug)]
pub struct Icmp;
/// An ICMPv6 message.
#[derive(Clone, Copy, Debug)]
pub struct Icmpv6;
/// A protocol given by its number.
#[derive(Clone, Copy, Debug)]
pub struct OtherProtocol;

/// A family whose addresses a rule can look at.
pub trait AddressFamily {
    /// Its addresses.
    type Address: Address;
    /// The kernel's number for it.
    #[doc(hidden)]
    const NFPROTO: u8;
    /// Where its header has the source address.
    #[doc(hidden)]
    const SADDR_OFFSET: u32;
    /// How long an address is; the destination follows the source.
    #[doc(hidden)]
    const ADDRESS_LENGTH: u32;
}

impl AddressFamily for V4 {
    type Address = Ipv4Addr;
    const NFPROTO: u8 = nfproto::IPV4;
    const SADDR_OFFSET: u32 = 12;
    const ADDRESS_LENGTH: u32 = 4;
}

impl AddressFamily for V6 {
    type Address = Ipv6Addr;
    const NFPROTO: u8 = nfproto::IPV6;
    const SADDR_OFFSET: u32 = 8;
    const ADDRESS_LENGTH: u32 = 16;
}

/// The source address in a packet's header.
pub(crate) fn saddr<F: AddressFamily>() -> PacketField {
    PacketField { header: Header::Network, offset: F::SADDR_OFFSET, length: F::ADDRESS_LENGTH }
}

/// The destination address in a packet's header.
pub(crate) fn daddr<F: AddressFamily>() -> PacketField {
    PacketField { offset: F::SADDR_OFFSET + F::ADDRESS_LENGTH, ..saddr::<F>() }
}

/// A protocol with ports.
pub trait Ports {}
impl Ports for Tcp {}
impl Ports for Udp {}

/// A protocol whose messages have a type.
pub trait MessageType {}
impl MessageType for Icmp {}
impl MessageType for Icmpv6 {}
