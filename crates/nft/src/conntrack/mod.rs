//! Tracked connections: how they end, and ending them.
//!
//! [`Endings`] tells of each connection that the kernel forgets, with what it amounted to; [`Table`] lists and ends
//! connections. Both see those of the network namespace in which they were opened.

mod endings;
mod entry;
mod table;

pub use endings::{Ended, Endings};
pub use entry::{Counters, Entry, Icmp, TcpState, Tuple};
pub use table::Table;
