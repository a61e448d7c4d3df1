//! What a network policy means: parse it, compile it, judge flows by it.
//!
//! This crate is the one place that decides. The data path, `explain` and the dry run all call
//! [`Policy::judge`]. It does no I/O, reads no clock and is not async.

#![forbid(unsafe_code)]

mod entry;
mod error;
mod event;
mod floor;
mod flow;
mod host;
mod kernel;
mod policy;
mod spec;
mod verdict;

pub use entry::{Entry, Target};
pub use error::{EntryError, PolicyError, Warning};
pub use event::{EventKind, FlowEvent, FlowTotals, NameSource};
pub use floor::{Floor, FloorRule};
pub use flow::{Flow, Protocol};
pub use host::{HostName, HostNameError};
pub use kernel::{AddressRule, KernelDefault, KernelView, PRIVATE_RANGES, Topology};
pub use policy::{InForce, Policy};
pub use spec::{EchMode, PolicySpec, RefusedNames};
pub use verdict::{Decision, List, Reason, Rule, Verdict};
