//! A small internet in network namespaces of its own, with the built daemon inside.
//!
//! ```text
//!  machine ── 127.0.0.1:PORT ─ forwarder ─▶ node namespace: the daemon and its sandboxes
//!                                             │ veth
//!                                             ▼
//!                                           world namespace: answers on *every* address; DNS, web servers, canaries
//! ```
//!
//! Nothing in it has a link to the machine's own network: no packet can leave the machine, whatever fails.

#![forbid(unsafe_code)]

mod client;
mod daemon;
mod dns;
mod lab;
mod log;
mod sinks;
mod web;
mod world;
mod zone;

pub use client::Client;
pub use daemon::Daemon;
pub use hyper::Method;
pub use lab::{Lab, LabConfig, sibling};
pub use log::Log;
pub use world::{NODE_V4, NODE_V6, World};
pub use zone::{Data, Zone};
