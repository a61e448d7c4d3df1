//! Typed nftables transactions, packet logs and tracked connections over netlink.
//!
//! A [`Connection`] talks to the nftables of the network namespace in which it was opened. A [`Batch`] collects
//! changes and [`Connection::commit`] applies them as one transaction: all of them, or none. Rules are built with
//! [`rule`], whose types let an address or a port be compared only where the rule has already established that
//! the packet has one.
//!
//! ```no_run
//! use nft::{Batch, Chain, ChainType, Connection, Field, Hook, Policy, Set, Table, priority, rule};
//! use std::net::Ipv4Addr;
//!
//! # fn main() -> Result<(), nft::Error> {
//! let table = Table::inet("fence").owned();
//! let mut batch = Batch::new();
//! batch
//!     .replace_table(&table)
//!     .add_set(&table, &Set::new("bound4", [Field::Ipv4]))
//!     .add_chain(&table, &Chain::base("output", ChainType::Filter, Hook::Output, priority::FILTER, Policy::Drop))
//!     .add_rule(&table, "output", rule().ipv4().tcp().daddr_in("bound4").accept())
//!     .add_rule(&table, "output", rule().tcp().reset())
//!     .add_element(&table, "bound4", Ipv4Addr::new(192, 0, 2, 1));
//! let mut connection = Connection::open()?;
//! connection.commit(batch)?;
//! # Ok(())
//! # }
//! ```
//!
//! [`LogSocket`] reads what a rule's [`Log`] statement sent to a group (NFLOG), with an exact count of what was
//! lost on the way. [`conntrack`] tells of tracked connections that end, with what they amounted to, and ends them.

mod batch;
mod connection;
pub mod conntrack;
mod describe;
mod error;
mod established;
mod expression;
#[doc(hidden)]
pub mod fuzz;
pub mod log;
mod message;
mod object;
mod packet;
mod range;
mod rule;
mod selector;
mod set;
mod socket;
mod uapi;

pub use batch::Batch;
pub use connection::{Connection, CounterValue, ElementInfo, TableInfo};
pub use error::Error;
pub use established::{
    AddressFamily, AnyFamily, AnyProtocol, Icmp, Icmpv6, MessageType, OtherProtocol, Ports, Tcp, Udp, V4, V6,
};
pub use log::{LogConfig, LogSocket, Received};
pub use object::{Chain, ChainType, Family, Hook, Policy, Table, Verdict, priority};
pub use packet::{Flow, Packet};
pub use range::{Address, AddressRange};
pub use rule::{AddressType, CtState, Log, Match, Rule, Unreachable, rule};
pub use selector::{Daddr, Dport, Iifname, LookupKey, Mark, Oifname, Protocol, Saddr, Skuid, Sport};
pub use set::{Element, Field, InterfaceName, Key, KeyPart, Set};
