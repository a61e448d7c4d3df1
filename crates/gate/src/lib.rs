//! Attaches a sandbox's network namespace to its policy.
//!
//! Every sandbox has a network namespace with a loopback and, under a policy of names, no interface to anywhere. The
//! only ways out are sockets that the gate opened inside: a resolver and a transparent proxy. Packets get there by
//! the namespace's packet filter, or are refused by it. A policy with address entries, or an open one, has a *wire*
//! besides: an interface to the *uplink* namespace, where the same is checked a second time.
//!
//! - Whatever goes wrong with the rules of a namespace without a wire, there is nowhere to go.
//! - The rules are not tied to the daemon and stay when it dies; its sockets, the uplink and every wire do not.
//! - A policy is put in force in one transaction, and then what it does not permit is cut.
//! - [`policy::Policy::judge`] decides; the packet filter is made from the same compiled policy, and each packet that
//!   it refuses is recorded with the verdict of that function.

#![forbid(unsafe_code)]

mod addresses;
mod attachment;
mod bindings;
mod error;
mod events;
mod fence;
#[cfg(test)]
mod fixture;
mod gate;
mod ledger;
mod limits;
mod member;
mod meter;
mod namespace;
mod node;
mod ports;
mod proof;
mod revoke;
mod ruleset;
mod sandbox;
mod sink;
mod stats;
mod tracking;
mod uplink;
mod uplink_rules;
mod watched;
mod wired;

pub use addresses::{GATE_V4, GATE_V6, SANDBOX_V4, SANDBOX_V6};
pub use attachment::{Attachment, AttachmentInfo};
pub use bindings::{BindingLimits, MAX_LIFE, MIN_LIFE};
pub use dns::Limits as NameLimits;
pub use error::GateError;
pub use gate::{AttachRequest, Gate, GateConfig};
pub use limits::Limits;
pub use member::Broken;
pub use node::own_networks;
pub use proxy::{ByteLimits, Limits as FlowLimits};
pub use stats::GateStats;
pub use wired::WireLimits;
