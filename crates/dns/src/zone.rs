//! What the resolver needs to know of, and do to, one sandbox.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use policy::{FlowEvent, HostName, InForce};

use crate::Budget;

/// One sandbox as its resolver sees it.
pub trait Zone: Send + Sync + 'static {
    /// The policy in force, with its generation. Cheap.
    fn in_force(&self) -> InForce;

    /// Makes the answers reachable; the reply is sent only after this returned `Ok`.
    ///
    /// `ttl` is the least time for which the binding has to live. `generation` is that of the policy which
    /// permitted the answer.
    ///
    /// # Errors
    /// See [`BindRefused`]: nothing was bound then, and the reply is not sent.
    fn bind(
        &self,
        name: &HostName,
        addresses: &[IpAddr],
        ttl: Duration,
        generation: u64,
    ) -> Result<(), BindRefused>;

    /// The sink address of a refused name, one per name and sandbox; `None` when no more can be given out.
    fn sink(&self, name: &HostName) -> Option<Ipv4Addr>;

    /// Is told of each message that comes, before anything is made of it. Never blocks.
    fn asked(&self) {}

    /// What the sandbox may still ask.
    fn budget(&self) -> &Budget;

    /// Records a decision. Never blocks.
    fn record(&self, event: FlowEvent);

    /// Records that a refused name was asked for IPv6 addresses, of which there are none said to be, unless its sink address
    /// is asked for a moment before or after: most clients ask for both, and the connection to the sink is what is recorded
    /// then. Never blocks.
    fn record_if_alone(&self, event: FlowEvent);

    /// Whether the node has an IPv6 path; without one AAAA answers are empty.
    fn ipv6(&self) -> bool;
}

/// Why answers could not be made reachable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindRefused {
    /// The sandbox's bindings are at their limit.
    #[error("the sandbox's bindings are at their limit")]
    Limit,
    /// The policy changed meanwhile: the answer has to be judged again.
    #[error("the policy was replaced meanwhile")]
    Superseded,
    /// The kernel refused the set update.
    #[error("the kernel refused the binding: {0}")]
    Kernel(String),
}
