//! Network namespaces, links, addresses, routes and rules.
//!
//! [`Connection`] speaks rtnetlink, synchronously, about the namespace of the thread that opened it (use
//! [`sys::netns::NetNs::run`] to be inside one). [`Monitor`] reports that addresses or routes changed.
//! [`SocketTable`] lists and destroys sockets of a namespace. [`sysctl`] sets its parameters.

mod address;
mod connection;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod link;
mod monitor;
mod netlink;
mod route;
mod socket_table;
pub mod sysctl;

pub use address::InterfaceAddress;
pub use connection::Connection;
pub use error::Error;
pub use link::{LinkBytes, LinkIndex, Veth};
pub use monitor::Monitor;
pub use route::{Family, LOCAL_TABLE, MAIN_TABLE, Route, RouteKind};
pub use socket_table::{SocketEntry, SocketTable, Transport};
pub use sys::netns::NetNs;
