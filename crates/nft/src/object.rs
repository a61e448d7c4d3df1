//! Tables, chains and verdicts.

use crate::message::Writer;
use crate::uapi::{data, nfproto, verdict};

/// The packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6 together.
    Inet,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

impl Family {
    pub(crate) fn nfproto(self) -> u8 {
        match self {
            Self::Inet => nfproto::INET,
            Self::Ipv4 => nfproto::IPV4,
            Self::Ipv6 => nfproto::IPV6,
        }
    }

    pub(crate) fn from_nfproto(value: u8) -> Option<Self> {
        [Self::Inet, Self::Ipv4, Self::Ipv6].into_iter().find(|family| family.nfproto() == value)
    }
}

/// A table: what holds chains, sets and counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    family: Family,
    name: String,
    owned: bool,
}

impl Table {
    /// A table of `family`. Names have at most 255 bytes.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into(), owned: false }
    }

    /// A table for IPv4 and IPv6 packets.
    pub fn inet(name: impl Into<String>) -> Self {
        Self::new(Family::Inet, name)
    }

    /// Ties the table to the [`Connection`](crate::Connection) that creates it: nobody else, not even root, can
    /// change it, and it disappears when the connection is dropped or its process ends (and any copy of the socket
    /// is closed: a forked child has one until it executes its program).
    pub fn owned(mut self) -> Self {
        self.owned = true;
        self
    }

    /// The table's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The packets it sees.
    pub fn family(&self) -> Family {
        self.family
    }

    pub(crate) fn is_owned(&self) -> bool {
        self.owned
    }
}

/// What kind of base chain: which of the kernel's actions its rules may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainType {
    /// Any hook; no address translation.
    Filter,
    /// [`Hook::Output`] only; a changed mark or address makes the kernel look up the route again.
    Route,
    /// Address translation, evaluated for the first packet of a connection.
    Nat,
}

impl ChainType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Route => "route",
            Self::Nat => "nat",
        }
    }
}

/// Where in a packet's way a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Received, not yet routed.
    Prerouting,
    /// For a socket of this namespace.
    Input,
    /// Passing through.
    Forward,
    /// Sent by a socket of this namespace.
    Output,
    /// About to leave.
    Postrouting,
}

impl Hook {
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// The customary priorities; a lower one is earlier.
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// Connection tracking itself.
    pub const CONNTRACK: i32 = -200;
    /// Changing packets and marks.
    pub const MANGLE: i32 = -150;
    /// Destination address translation.
    pub const DSTNAT: i32 = -100;
    /// Filtering.
    pub const FILTER: i32 = 0;
    /// After filtering.
    pub const SECURITY: i32 = 50;
    /// Source address translation.
    pub const SRCNAT: i32 = 100;
}

/// What happens to a packet that no rule of a base chain decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes on.
    Accept,
    /// It is discarded without a word.
    Drop,
}

impl Policy {
    pub(crate) fn verdict(self) -> u32 {
        match self {
            Self::Accept => 1,
            Self::Drop => 0,
        }
    }
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub(crate) name: String,
    pub(crate) base: Option<Base>,
}

/// Where a base chain is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) kind: ChainType,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    pub(crate) policy: Policy,
}

impl Chain {
    /// A chain that packets enter by a jump.
    pub fn regular(name: impl Into<String>) -> Self {
        Self { name: name.into(), base: None }
    }

    /// A chain that packets enter at a hook. See [`priority`] for the customary values.
    pub fn base(name: impl Into<String>, kind: ChainType, hook: Hook, priority: i32, policy: Policy) -> Self {
        Self { name: name.into(), base: Some(Base { kind, hook, priority, policy }) }
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It leaves this base chain and goes on.
    Accept,
    /// It is discarded without a word.
    Drop,
    /// Back to the chain that jumped here; in a base chain, its policy.
    Return,
    /// Continue in another chain, and come back.
    Jump(String),
    /// Continue in another chain, without coming back here.
    Goto(String),
}

impl Verdict {
    /// Writes the content of a data attribute.
    pub(crate) fn write(&self, writer: &mut Writer) {
        let (code, chain) = match self {
            Self::Accept => (verdict::ACCEPT, None),
            Self::Drop => (verdict::DROP, None),
            Self::Return => (verdict::RETURN, None),
            Self::Jump(chain) => (verdict::JUMP, Some(chain)),
            Self::Goto(chain) => (verdict::GOTO, Some(chain)),
        };
        writer.nest(data::VERDICT, |writer| {
            writer.u32(data::VERDICT_CODE, code.cast_unsigned());
            if let Some(chain) = chain {
                writer.text(data::VERDICT_CHAIN, chain);
            }
        });
    }
}
