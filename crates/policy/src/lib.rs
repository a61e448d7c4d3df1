//! What a network policy means: parse it, compile it, judge flows by it.
//!
//! This crate is the one place that decides. The data path, `explain` and the dry run all call
//! [`Policy::judge`]. It does no I/O, reads no clock and is not async.

#![forbid(unsafe_code)]

mod addresses;
mod cover;
mod entry;
mod entry_list;
mod error;
mod event;
mod floor;
mod floor_list;
mod flow;
mod host;
mod kernel;
mod names;
mod patterns;
mod policy;
mod ports;
mod ranges;
mod rate;
mod spec;
mod verdict;
mod widening;

pub use entry::{Entry, Target};
pub use error::{EntryError, PolicyError, Warning, WarningKind};
pub use event::{EventKind, FlowEvent, FlowTotals, NameSource};
pub use floor::{Floor, FloorRule, FloorTarget};
pub use flow::{Flow, Protocol};
pub use host::{HostName, HostNameError};
pub use kernel::{AddressRule, KernelDefault, KernelView, Topology};
pub use policy::{InForce, MAX_ENTRIES, NameZone, Policy};
pub use ranges::{PRIVATE_RANGES, private_networks, public_networks};
pub use rate::{Bucket, Rate};
pub use spec::{EchMode, PolicySpec, RefusedNames};
pub use verdict::{Decision, List, Reason, Rule, Verdict};
pub use widening::Widening;
