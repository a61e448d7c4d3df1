//! The kernel's expressions: small operations on registers that a rule is a list of.
//!
//! A rule has 16 registers of four bytes. Values of more than four bytes take the registers that follow.

use std::time::Duration;

use crate::message::Writer;
use crate::object::Verdict;
use crate::set::milliseconds;
use crate::uapi::{data, expr, list, object};

/// A register, numbered from 0.
#[derive(Clone, Copy)]
pub(crate) struct Register(pub(crate) u32);

impl Register {
    /// Most values are loaded here, compared, and forgotten.
    pub(crate) const FIRST: Self = Self(0);
    /// Behind an IPv6 address in the first ones.
    pub(crate) const FIFTH: Self = Self(4);

    fn number(self) -> u32 {
        const REG32_00: u32 = 8;
        REG32_00 + self.0
    }
}

/// The register that ends or redirects the evaluation.
const VERDICT_REGISTER: u32 = 0;

/// `NFT_CT_MARK`.
const CT_MARK: u32 = 3;

/// `NFT_META_*`.
#[derive(Clone, Copy)]
pub(crate) enum Meta {
    Mark = 3,
    Iifname = 6,
    Oifname = 7,
    Skuid = 10,
    Nfproto = 15,
    L4proto = 16,
}

/// `NFT_PAYLOAD_*`.
#[derive(Clone, Copy)]
pub(crate) enum Header {
    Network = 1,
    Transport = 2,
}

/// A field of a packet's header.
#[derive(Clone, Copy)]
pub(crate) struct PacketField {
    pub(crate) header: Header,
    pub(crate) offset: u32,
    pub(crate) length: u32,
}

/// `NFT_CMP_*`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

/// Looked up, as it is or inverted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Membership {
    In,
    NotIn,
}

/// `NFT_DYNSET_OP_*`.
#[derive(Clone, Copy)]
pub(crate) enum SetChange {
    Add = 0,
    Update = 1,
}

/// `NFT_REJECT_*` with the code where there is one.
#[derive(Clone, Copy)]
pub(crate) enum Reject {
    TcpReset,
    Icmpx(u8),
}

/// The list of expressions of a rule, as it is sent.
#[derive(Clone, Default)]
pub(crate) struct Expressions(Writer);

impl Expressions {
    pub(crate) fn writer(&self) -> &Writer {
        &self.0
    }

    pub(crate) fn load_meta(&mut self, key: Meta, register: Register) {
        self.push("meta", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, key as u32);
        });
    }

    pub(crate) fn store_meta(&mut self, key: Meta, register: Register) {
        self.push("meta", |writer| {
            writer.u32(2, key as u32);
            writer.u32(3, register.number());
        });
    }

    pub(crate) fn load_packet(&mut self, field: PacketField, register: Register) {
        self.push("payload", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, field.header as u32);
            writer.u32(3, field.offset);
            writer.u32(4, field.length);
        });
    }

    pub(crate) fn load_value(&mut self, value: &[u8], register: Register) {
        self.push("immediate", |writer| {
            writer.u32(1, register.number());
            writer.nest(2, |writer| writer.attribute(data::VALUE, value));
        });
    }

    pub(crate) fn load_ct_state(&mut self, register: Register) {
        const STATE: u32 = 0;
        self.push("ct", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, STATE);
        });
    }

    pub(crate) fn load_ct_mark(&mut self, register: Register) {
        self.push("ct", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, CT_MARK);
        });
    }

    pub(crate) fn store_ct_mark(&mut self, register: Register) {
        self.push("ct", |writer| {
            writer.u32(2, CT_MARK);
            writer.u32(4, register.number());
        });
    }

    /// The kind of the destination address (`RTN_*`), by the routing tables.
    pub(crate) fn load_daddr_type(&mut self, register: Register) {
        const ADDRESS_TYPE: u32 = 3;
        const DADDR: u32 = 2;
        self.push("fib", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, ADDRESS_TYPE);
            writer.u32(3, DADDR);
        });
    }

    /// Whether the socket the packet belongs to is transparent (one byte); no match without a socket.
    pub(crate) fn load_socket_transparent(&mut self, register: Register) {
        const TRANSPARENT: u32 = 0;
        self.push("socket", |writer| {
            writer.u32(1, TRANSPARENT);
            writer.u32(2, register.number());
        });
    }

    /// Continues only if the register compares so.
    pub(crate) fn compare(&mut self, register: Register, comparison: Comparison, value: &[u8]) {
        self.push("cmp", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, comparison as u32);
            writer.nest(3, |writer| writer.attribute(data::VALUE, value));
        });
    }

    /// Continues only if the register is between two values (`Equal`) or outside (`NotEqual`).
    pub(crate) fn compare_range(
        &mut self,
        register: Register,
        comparison: Comparison,
        first: &[u8],
        last: &[u8],
    ) {
        self.push("range", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, comparison as u32);
            writer.nest(3, |writer| writer.attribute(data::VALUE, first));
            writer.nest(4, |writer| writer.attribute(data::VALUE, last));
        });
    }

    /// Clears the bits that `mask` does not have.
    pub(crate) fn mask(&mut self, register: Register, mask: &[u8]) {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        self.push("bitwise", |writer| {
            writer.u32(1, register.number());
            writer.u32(2, register.number());
            writer.u32(3, length);
            writer.nest(4, |writer| writer.attribute(data::VALUE, mask));
            writer.nest(5, |writer| writer.attribute(data::VALUE, &vec![0; mask.len()]));
        });
    }

    /// Continues only if the registers from `key` on are (not) in the set.
    pub(crate) fn lookup(&mut self, set: &str, key: Register, membership: Membership) {
        const INVERT: u32 = 1;
        self.push("lookup", |writer| {
            writer.text(1, set);
            writer.u32(2, key.number());
            if membership == Membership::NotIn {
                writer.u32(5, INVERT);
            }
        });
    }

    /// Loads the value a map has for the key; no match without one.
    pub(crate) fn lookup_value(&mut self, map: &str, key: Register, value: Register) {
        self.push("lookup", |writer| {
            writer.text(1, map);
            writer.u32(2, key.number());
            writer.u32(3, value.number());
        });
    }

    /// Takes the verdict a map has for the key; no match without one.
    pub(crate) fn lookup_verdict(&mut self, map: &str, key: Register) {
        self.push("lookup", |writer| {
            writer.text(1, map);
            writer.u32(2, key.number());
            writer.u32(3, VERDICT_REGISTER);
        });
    }

    /// Puts the key into a set; no match when the set is full.
    pub(crate) fn change_set(
        &mut self,
        set: &str,
        change: SetChange,
        key: Register,
        timeout: Option<Duration>,
    ) {
        self.push("dynset", |writer| {
            writer.text(1, set);
            writer.u32(3, change as u32);
            writer.u32(4, key.number());
            if let Some(timeout) = timeout {
                writer.u64(6, milliseconds(timeout));
            }
        });
    }

    pub(crate) fn counter(&mut self) {
        self.push("counter", |_| {});
    }

    pub(crate) fn named_counter(&mut self, name: &str) {
        self.push("objref", |writer| {
            writer.u32(1, object::TYPE_COUNTER);
            writer.text(2, name);
        });
    }

    /// Continues only while the rate is below (or, inverted, above) so many packets a second.
    pub(crate) fn limit(&mut self, per_second: u64, burst: u32, inverted: bool) {
        const SECOND: u64 = 1;
        const PACKETS: u32 = 0;
        self.push("limit", |writer| {
            writer.u64(1, per_second);
            writer.u64(2, SECOND);
            writer.u32(3, burst);
            writer.u32(4, PACKETS);
            writer.u32(5, u32::from(inverted));
        });
    }

    pub(crate) fn log(&mut self, group: u16, prefix: &str, snaplen: u32, qthreshold: u16) {
        self.push("log", |writer| {
            writer.u16(1, group);
            if !prefix.is_empty() {
                writer.text(2, prefix);
            }
            // A length of 0 would mean that nothing is copied.
            if snaplen > 0 {
                writer.u32(3, snaplen);
            }
            if qthreshold > 0 {
                writer.u16(4, qthreshold);
            }
        });
    }

    pub(crate) fn reject(&mut self, reject: Reject) {
        const TCP_RESET: u32 = 1;
        const ICMPX_UNREACHABLE: u32 = 2;
        self.push("reject", |writer| match reject {
            Reject::TcpReset => writer.u32(1, TCP_RESET),
            Reject::Icmpx(code) => {
                writer.u32(1, ICMPX_UNREACHABLE);
                writer.u8(2, code);
            }
        });
    }

    /// Hands the packet to a transparent socket at the address and port in two registers.
    pub(crate) fn tproxy(&mut self, nfproto: u8, address: Register, port: Register) {
        self.push("tproxy", |writer| {
            writer.u32(1, u32::from(nfproto));
            writer.u32(2, address.number());
            writer.u32(3, port.number());
        });
    }

    pub(crate) fn masquerade(&mut self) {
        self.push("masq", |_| {});
    }

    pub(crate) fn notrack(&mut self) {
        self.push("notrack", |_| {});
    }

    pub(crate) fn verdict(&mut self, verdict: &Verdict) {
        self.push("immediate", |writer| {
            writer.u32(1, VERDICT_REGISTER);
            writer.nest(2, |writer| verdict.write(writer));
        });
    }

    fn push(&mut self, name: &str, attributes: impl FnOnce(&mut Writer)) {
        self.0.nest(list::ELEM, |writer| {
            writer.text(expr::NAME, name);
            writer.nest(expr::DATA, attributes);
        });
    }
}
