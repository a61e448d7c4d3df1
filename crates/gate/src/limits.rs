//! What one sandbox may use of what all share.

use crate::{BindingLimits, FlowLimits, NameLimits, WireLimits};

/// The limits of each sandbox. Whatever is over one of them is refused at once, with an event that says which.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Connections through the proxy.
    pub flows: FlowLimits,
    /// Flows that the kernel forwards.
    pub wires: WireLimits,
    /// DNS queries, and the names of permitted zones.
    pub names: NameLimits,
    /// Addresses that names were bound to.
    pub bindings: BindingLimits,
}
