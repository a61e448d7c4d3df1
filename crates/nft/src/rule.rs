//! Rules: what must match, then what is done.
//!
//! [`rule`] starts a [`Match`]. Its type says what the rule has established about the packet: an address can be
//! compared only behind [`ipv4`](Match::ipv4) or [`ipv6`](Match::ipv6), a port only behind [`tcp`](Match::tcp) or
//! [`udp`](Match::udp), a reset be sent only behind `tcp`. The methods that end a rule return a [`Rule`], and only
//! that can be added to a chain.

mod tracking;

use std::marker::PhantomData;
use std::time::Duration;

use crate::established::{
    AddressFamily, AnyFamily, AnyProtocol, Icmp, Icmpv6, MessageType, OtherProtocol, Ports, Tcp, Udp, V4, V6,
    daddr, saddr,
};
use crate::expression::{
    Comparison, Expressions, Header, Membership, Meta, PacketField, Register, Reject, SetChange,
};
use crate::message::Writer;
use crate::object::Verdict;
use crate::range::{Address, AddressRange};
use crate::selector::{DPORT, Daddr, Dport, LookupKey, SPORT, Saddr, load};
use crate::set::{InterfaceName, Key};
use crate::uapi::nfproto;

pub use tracking::CtState;

/// Starts a rule that matches every packet.
pub fn rule() -> Match<AnyFamily, AnyProtocol> {
    Match { expressions: Expressions::default(), too_long: false, established: PhantomData }
}

/// A finished rule.
#[derive(Clone)]
pub struct Rule {
    expressions: Expressions,
    too_long: bool,
}

impl Rule {
    /// The expressions as they are sent, or `None` when a name in them is too long.
    pub(crate) fn expressions(&self) -> Option<&Writer> {
        (!self.too_long).then_some(self.expressions.writer())
    }
}

/// A rule under construction, which has established that a packet is of family `F` and of protocol `P`.
#[derive(Clone)]
#[must_use = "a rule has to be ended with a verdict or `end`, and added to a chain"]
pub struct Match<F, P> {
    expressions: Expressions,
    too_long: bool,
    established: PhantomData<(F, P)>,
}

/// What the routing tables say an address is (`RTN_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressType {
    /// An ordinary address elsewhere.
    Unicast = 1,
    /// An address of this namespace.
    Local = 2,
    /// A broadcast address.
    Broadcast = 3,
    /// A multicast group.
    Multicast = 5,
}

/// The ICMP or ICMPv6 error a refused packet is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No route to the network.
    NoRoute = 0,
    /// Nobody listens at the port.
    Port = 1,
    /// The host cannot be reached.
    Host = 2,
    /// Communication is administratively prohibited.
    AdminProhibited = 3,
}

/// Where a packet is logged to; read it with a [`LogSocket`](crate::LogSocket) of the same group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The NFLOG group.
    pub group: u16,
    /// A text of at most 127 bytes that each record carries.
    pub prefix: String,
    /// Bytes of the packet to copy; 0 leaves it to the reader.
    pub snaplen: u32,
    /// Records the kernel gathers before it wakes the reader; 0 leaves it to the reader.
    pub qthreshold: u16,
}

/// Matches that need nothing established.
impl<F, P> Match<F, P> {
    /// Came by this interface.
    pub fn iifname(self, name: &str) -> Self {
        self.interface(Meta::Iifname, Comparison::Equal, name)
    }

    /// Came by any other interface.
    pub fn iifname_not(self, name: &str) -> Self {
        self.interface(Meta::Iifname, Comparison::NotEqual, name)
    }

    /// Leaves by this interface.
    pub fn oifname(self, name: &str) -> Self {
        self.interface(Meta::Oifname, Comparison::Equal, name)
    }

    /// Leaves by any other interface.
    pub fn oifname_not(self, name: &str) -> Self {
        self.interface(Meta::Oifname, Comparison::NotEqual, name)
    }

    /// Has this mark.
    pub fn mark(self, mark: u32) -> Self {
        self.meta(Meta::Mark, Comparison::Equal, &mark.to_ne_bytes())
    }

    /// Has any other mark.
    pub fn mark_not(self, mark: u32) -> Self {
        self.meta(Meta::Mark, Comparison::NotEqual, &mark.to_ne_bytes())
    }

    /// Has a mark whose bits in `mask` are those of `mark`.
    pub fn mark_masked(mut self, mark: u32, mask: u32) -> Self {
        self.expressions.load_meta(Meta::Mark, Register::FIRST);
        self.expressions.mask(Register::FIRST, &mask.to_ne_bytes());
        self.compare(Comparison::Equal, &mark.to_ne_bytes())
    }

    /// Was sent by a socket of this user. Does not match what no socket of this namespace sent.
    pub fn skuid(self, uid: u32) -> Self {
        self.meta(Meta::Skuid, Comparison::Equal, &uid.to_ne_bytes())
    }

    /// Was sent by a socket of another user. Does not match what no socket of this namespace sent.
    pub fn skuid_not(self, uid: u32) -> Self {
        self.meta(Meta::Skuid, Comparison::NotEqual, &uid.to_ne_bytes())
    }

    /// Goes to an address of this kind.
    pub fn fib_daddr_type(mut self, kind: AddressType) -> Self {
        self.expressions.load_daddr_type(Register::FIRST);
        self.compare(Comparison::Equal, &(kind as u32).to_ne_bytes())
    }

    /// Goes to an address of any other kind.
    pub fn fib_daddr_type_not(mut self, kind: AddressType) -> Self {
        self.expressions.load_daddr_type(Register::FIRST);
        self.compare(Comparison::NotEqual, &(kind as u32).to_ne_bytes())
    }

    /// Belongs to a socket with `IP_TRANSPARENT`.
    pub fn socket_transparent(mut self) -> Self {
        self.expressions.load_socket_transparent(Register::FIRST);
        self.compare(Comparison::Equal, &[1])
    }

    /// Is within so many packets a second, of all packets that come to this rule.
    pub fn limit_per_second(mut self, packets: u64, burst: u32) -> Self {
        self.expressions.limit(packets, burst, false);
        self
    }

    /// Is beyond so many packets a second, of all packets that come to this rule.
    pub fn over_limit_per_second(mut self, packets: u64, burst: u32) -> Self {
        self.expressions.limit(packets, burst, true);
        self
    }

    /// Values of the packet are in a set.
    pub fn lookup(mut self, set: &str, key: impl LookupKey<F, P>) -> Self {
        load(&mut self.expressions, &key);
        self.expressions.lookup(set, Register::FIRST, Membership::In);
        self
    }

    /// Values of the packet are not in a set.
    pub fn lookup_not(mut self, set: &str, key: impl LookupKey<F, P>) -> Self {
        load(&mut self.expressions, &key);
        self.expressions.lookup(set, Register::FIRST, Membership::NotIn);
        self
    }
}

/// Statements that need nothing established: done once everything before them has matched.
impl<F, P> Match<F, P> {
    /// Puts values of the packet into a [dynamic](crate::Set::dynamic) set unless they are there. Nothing behind
    /// this is done for a packet that finds the set full.
    pub fn add_to_set(self, set: &str, key: impl LookupKey<F, P>, timeout: Option<Duration>) -> Self {
        self.change_set(set, SetChange::Add, key, timeout)
    }

    /// As [`add_to_set`](Self::add_to_set), and restarts the timeout of values that are there.
    pub fn update_set(self, set: &str, key: impl LookupKey<F, P>, timeout: Option<Duration>) -> Self {
        self.change_set(set, SetChange::Update, key, timeout)
    }

    /// Sets the packet's mark.
    pub fn set_mark(mut self, mark: u32) -> Self {
        self.expressions.load_value(&mark.to_ne_bytes(), Register::FIRST);
        self.expressions.store_meta(Meta::Mark, Register::FIRST);
        self
    }

    /// Sets the packet's mark to what a map has for values of the packet; goes no further when it has nothing.
    pub fn set_mark_from(mut self, map: &str, key: impl LookupKey<F, P>) -> Self {
        load(&mut self.expressions, &key);
        self.expressions.lookup_value(map, Register::FIRST, Register::FIRST);
        self.expressions.store_meta(Meta::Mark, Register::FIRST);
        self
    }

    /// Counts packets and bytes in the rule itself.
    pub fn counter(mut self) -> Self {
        self.expressions.counter();
        self
    }

    /// Counts packets and bytes in a counter of the table; see [`Connection::counters`](crate::Connection::counters).
    pub fn count(mut self, counter: &str) -> Self {
        self.expressions.named_counter(counter);
        self
    }

    /// Reports the packet to a log group.
    pub fn log(mut self, log: &Log) -> Self {
        self.expressions.log(log.group, &log.prefix, log.snaplen, log.qthreshold);
        self
    }
}

/// Ends of a rule.
impl<F, P> Match<F, P> {
    /// The packet leaves this base chain and goes on.
    pub fn accept(self) -> Rule {
        self.verdict(&Verdict::Accept)
    }

    /// The packet is discarded without a word.
    pub fn drop(self) -> Rule {
        self.verdict(&Verdict::Drop)
    }

    /// Back to the chain that jumped here.
    pub fn ret(self) -> Rule {
        self.verdict(&Verdict::Return)
    }

    /// Continue in another chain, and come back.
    pub fn jump(self, chain: impl Into<String>) -> Rule {
        self.verdict(&Verdict::Jump(chain.into()))
    }

    /// Continue in another chain, without coming back here.
    pub fn goto(self, chain: impl Into<String>) -> Rule {
        self.verdict(&Verdict::Goto(chain.into()))
    }

    /// The verdict a map has for values of the packet; the next rule when it has none.
    pub fn vmap(mut self, map: &str, key: impl LookupKey<F, P>) -> Rule {
        load(&mut self.expressions, &key);
        self.expressions.lookup_verdict(map, Register::FIRST);
        self.end()
    }

    /// The packet is answered with an ICMP or ICMPv6 error, whichever its family wants.
    pub fn reject(mut self, answer: Unreachable) -> Rule {
        self.expressions.reject(Reject::Icmpx(answer as u8));
        self.end()
    }

    /// The packet gets the address of the interface it leaves by as its source. In `Nat` chains at `Postrouting`.
    pub fn masquerade(mut self) -> Rule {
        self.expressions.masquerade();
        self.end()
    }

    /// No verdict: the next rule is evaluated too.
    pub fn end(self) -> Rule {
        let too_long = self.too_long || self.expressions.writer().is_too_long();
        Rule { expressions: self.expressions, too_long }
    }
}

/// Establishing the family.
impl<P> Match<AnyFamily, P> {
    /// Is an IPv4 packet.
    pub fn ipv4(self) -> Match<V4, P> {
        self.meta(Meta::Nfproto, Comparison::Equal, &[nfproto::IPV4]).establish()
    }

    /// Is an IPv6 packet.
    pub fn ipv6(self) -> Match<V6, P> {
        self.meta(Meta::Nfproto, Comparison::Equal, &[nfproto::IPV6]).establish()
    }
}

/// Establishing the protocol.
impl<F> Match<F, AnyProtocol> {
    /// Is a TCP segment.
    pub fn tcp(self) -> Match<F, Tcp> {
        self.l4proto(6).establish()
    }

    /// Is a UDP datagram.
    pub fn udp(self) -> Match<F, Udp> {
        self.l4proto(17).establish()
    }

    /// Is of the protocol with this number.
    pub fn l4proto(self, protocol: u8) -> Match<F, OtherProtocol> {
        self.meta(Meta::L4proto, Comparison::Equal, &[protocol]).establish()
    }

    /// Is of any protocol but the one with this number.
    pub fn l4proto_not(self, protocol: u8) -> Self {
        self.meta(Meta::L4proto, Comparison::NotEqual, &[protocol])
    }
}

impl Match<V4, AnyProtocol> {
    /// Is an ICMP message.
    pub fn icmp(self) -> Match<V4, Icmp> {
        self.l4proto(1).establish()
    }
}

impl Match<V6, AnyProtocol> {
    /// Is an ICMPv6 message.
    pub fn icmpv6(self) -> Match<V6, Icmpv6> {
        self.l4proto(58).establish()
    }
}

/// Addresses.
impl<F: AddressFamily, P> Match<F, P> {
    /// Comes from this address.
    pub fn saddr(self, address: F::Address) -> Self {
        self.address(saddr::<F>(), Comparison::Equal, address)
    }

    /// Comes from any other address.
    pub fn saddr_not(self, address: F::Address) -> Self {
        self.address(saddr::<F>(), Comparison::NotEqual, address)
    }

    /// Goes to this address.
    pub fn daddr(self, address: F::Address) -> Self {
        self.address(daddr::<F>(), Comparison::Equal, address)
    }

    /// Goes to any other address.
    pub fn daddr_not(self, address: F::Address) -> Self {
        self.address(daddr::<F>(), Comparison::NotEqual, address)
    }

    /// Comes from an address of this range.
    pub fn saddr_within(self, range: impl Into<AddressRange<F::Address>>) -> Self {
        self.address_range(saddr::<F>(), Comparison::Equal, range.into())
    }

    /// Comes from an address outside of this range.
    pub fn saddr_not_within(self, range: impl Into<AddressRange<F::Address>>) -> Self {
        self.address_range(saddr::<F>(), Comparison::NotEqual, range.into())
    }

    /// Goes to an address of this range.
    pub fn daddr_within(self, range: impl Into<AddressRange<F::Address>>) -> Self {
        self.address_range(daddr::<F>(), Comparison::Equal, range.into())
    }

    /// Goes to an address outside of this range.
    pub fn daddr_not_within(self, range: impl Into<AddressRange<F::Address>>) -> Self {
        self.address_range(daddr::<F>(), Comparison::NotEqual, range.into())
    }

    /// Comes from an address in a set.
    pub fn saddr_in(self, set: &str) -> Self {
        self.lookup(set, Saddr)
    }

    /// Comes from an address that is not in a set.
    pub fn saddr_not_in(self, set: &str) -> Self {
        self.lookup_not(set, Saddr)
    }

    /// Goes to an address in a set.
    pub fn daddr_in(self, set: &str) -> Self {
        self.lookup(set, Daddr)
    }

    /// Goes to an address that is not in a set.
    pub fn daddr_not_in(self, set: &str) -> Self {
        self.lookup_not(set, Daddr)
    }
}

/// Ports.
impl<F, P: Ports> Match<F, P> {
    /// Comes from this port.
    pub fn sport(self, port: u16) -> Self {
        self.packet(SPORT, Comparison::Equal, &port.to_be_bytes())
    }

    /// Comes from any other port.
    pub fn sport_not(self, port: u16) -> Self {
        self.packet(SPORT, Comparison::NotEqual, &port.to_be_bytes())
    }

    /// Goes to this port.
    pub fn dport(self, port: u16) -> Self {
        self.packet(DPORT, Comparison::Equal, &port.to_be_bytes())
    }

    /// Goes to any other port.
    pub fn dport_not(self, port: u16) -> Self {
        self.packet(DPORT, Comparison::NotEqual, &port.to_be_bytes())
    }

    /// Goes to a port in a set.
    pub fn dport_in(self, set: &str) -> Self {
        self.lookup(set, Dport)
    }

    /// Goes to a port that is not in a set.
    pub fn dport_not_in(self, set: &str) -> Self {
        self.lookup_not(set, Dport)
    }
}

/// Addresses and ports together.
impl<F: AddressFamily, P: Ports> Match<F, P> {
    /// Goes to an address and port in a set with those two fields.
    pub fn daddr_dport_in(self, set: &str) -> Self {
        self.lookup(set, (Daddr, Dport))
    }

    /// Goes to an address and port that are not in a set with those two fields.
    pub fn daddr_dport_not_in(self, set: &str) -> Self {
        self.lookup_not(set, (Daddr, Dport))
    }

    /// Hands the packet to the transparent socket at this address and port, without changing the packet. Goes no
    /// further when there is none. In `Filter` chains at `Prerouting`; a mark has to route the packet to this
    /// namespace.
    pub fn tproxy(mut self, address: F::Address, port: u16) -> Self {
        self.expressions.load_value(Key::single(&address).as_bytes(), Register::FIRST);
        self.expressions.load_value(&port.to_be_bytes(), Register::FIFTH);
        self.expressions.tproxy(F::NFPROTO, Register::FIRST, Register::FIFTH);
        self
    }
}

impl<F> Match<F, Tcp> {
    /// Opens a connection: of FIN, SYN, RST and ACK only SYN is set.
    pub fn syn(self) -> Self {
        self.tcp_flags(0x17, 0x02)
    }

    /// Of the flags in `mask` (the bits of RFC 9293, FIN lowest) exactly those in `value` are set.
    pub fn tcp_flags(mut self, mask: u8, value: u8) -> Self {
        const FLAGS: PacketField = PacketField { header: Header::Transport, offset: 13, length: 1 };
        self.expressions.load_packet(FLAGS, Register::FIRST);
        self.expressions.mask(Register::FIRST, &[mask]);
        self.compare(Comparison::Equal, &[value])
    }

    /// Answers with a TCP reset, and the packet goes no further.
    pub fn reset(mut self) -> Rule {
        self.expressions.reject(Reject::TcpReset);
        self.end()
    }
}

impl<F, P: MessageType> Match<F, P> {
    /// Has this message type.
    pub fn icmp_type(self, kind: u8) -> Self {
        const TYPE: PacketField = PacketField { header: Header::Transport, offset: 0, length: 1 };
        self.packet(TYPE, Comparison::Equal, &[kind])
    }
}

/// What the methods above are made of.
impl<F, P> Match<F, P> {
    fn establish<G, Q>(self) -> Match<G, Q> {
        Match { expressions: self.expressions, too_long: self.too_long, established: PhantomData }
    }

    fn compare(mut self, comparison: Comparison, value: &[u8]) -> Self {
        self.expressions.compare(Register::FIRST, comparison, value);
        self
    }

    fn meta(mut self, key: Meta, comparison: Comparison, value: &[u8]) -> Self {
        self.expressions.load_meta(key, Register::FIRST);
        self.compare(comparison, value)
    }

    fn packet(mut self, field: PacketField, comparison: Comparison, value: &[u8]) -> Self {
        self.expressions.load_packet(field, Register::FIRST);
        self.compare(comparison, value)
    }

    fn interface(mut self, key: Meta, comparison: Comparison, name: &str) -> Self {
        match InterfaceName::new(name) {
            Some(name) => self.meta(key, comparison, name.as_bytes()),
            None => {
                self.too_long = true;
                self
            }
        }
    }

    fn address<A: Address>(self, field: PacketField, comparison: Comparison, address: A) -> Self {
        self.packet(field, comparison, Key::single(&address).as_bytes())
    }

    fn address_range<A: Address>(
        mut self,
        field: PacketField,
        comparison: Comparison,
        range: AddressRange<A>,
    ) -> Self {
        let (first, last) = (Key::single(&range.first()), Key::single(&range.last()));
        self.expressions.load_packet(field, Register::FIRST);
        self.expressions.compare_range(Register::FIRST, comparison, first.as_bytes(), last.as_bytes());
        self
    }

    fn change_set(
        mut self,
        set: &str,
        change: SetChange,
        key: impl LookupKey<F, P>,
        timeout: Option<Duration>,
    ) -> Self {
        load(&mut self.expressions, &key);
        self.expressions.change_set(set, change, Register::FIRST, timeout);
        self
    }

    fn verdict(mut self, verdict: &Verdict) -> Rule {
        self.expressions.verdict(verdict);
        self.end()
    }
}
