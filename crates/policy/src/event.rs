//! What the data path says of a decision, before it is a stored event.

use std::{net::IpAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{HostName, Protocol, Verdict};

/// One decision about one flow (or one HTTP request, or one DNS query).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// What kind of decision.
    pub kind: EventKind,
    /// The verdict with its rule and reason.
    pub verdict: Verdict,
    /// The name concerned, if one is known.
    pub name: Option<HostName>,
    /// How the name was learned.
    pub name_source: NameSource,
    /// The destination address.
    pub address: Option<IpAddr>,
    /// The destination port.
    pub port: Option<u16>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The policy generation that judged.
    pub generation: u64,
    /// How many identical decisions this stands for; 1 for most.
    pub count: u64,
}

/// The kinds of network events, by their names in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A new flow was permitted.
    EgressAllowed,
    /// A new flow was refused.
    EgressBlocked,
    /// An established flow was cut by a policy change, or because the sandbox has moved as many bytes as it may.
    EgressRevoked,
    /// A DNS query was refused.
    DnsBlocked,
}

impl EventKind {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 4] =
        [Self::EgressAllowed, Self::EgressBlocked, Self::EgressRevoked, Self::DnsBlocked];

    /// The word for it in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EgressAllowed => "egress_allowed",
            Self::EgressBlocked => "egress_blocked",
            Self::EgressRevoked => "egress_revoked",
            Self::DnsBlocked => "dns_blocked",
        }
    }
}

/// How the name of a flow was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameSource {
    /// The TLS server name.
    Sni,
    /// The HTTP Host header.
    Host,
    /// A DNS query, or a binding or sink address that one made.
    Dns,
    /// No name is known.
    None,
}

/// What a flow amounted to, known when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTotals {
    /// Bytes from the sandbox to the destination.
    pub bytes_up: u64,
    /// Bytes from the destination to the sandbox.
    pub bytes_down: u64,
    /// How long it was open.
    pub duration: Duration,
}
