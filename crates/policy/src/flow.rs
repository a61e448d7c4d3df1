//! What is judged.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::HostName;

/// One flow, as far as it is known at the moment of judging.
///
/// The resolver knows a name and no port; the kernel an address and no name; the proxy all of it.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The name the client claims (TLS SNI, HTTP Host) or asks for (DNS).
    pub name: Option<&'a HostName>,
    /// The address the flow goes to, or would go to.
    pub address: Option<IpAddr>,
    /// The destination port; `None` asks about "some port" (the resolver's question).
    pub port: Option<u16>,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// ICMP or ICMPv6
    Icmp,
    /// Any other, by its IP protocol number.
    Other(u8),
}
