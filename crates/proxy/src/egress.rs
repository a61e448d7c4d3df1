//! What the proxy needs to know of, and do to, one sandbox.

use std::{any::Any, future::Future, net::IpAddr};

use policy::{FlowEvent, FlowTotals, HostName, InForce, Verdict};

/// One sandbox as its proxy sees it.
pub trait Egress: Send + Sync + 'static {
    /// The policy in force, with its generation. Cheap.
    fn in_force(&self) -> InForce;

    /// The names that the resolver bound to this address.
    fn names_bound_to(&self, address: IpAddr) -> Vec<HostName>;

    /// The addresses of a permitted name: its bindings, else looked up now, whatever the policy says of them. Not empty.
    fn addresses_of(&self, name: &HostName) -> impl Future<Output = Result<Vec<IpAddr>, NoAddress>> + Send;

    /// Keeps the binding of an address alive until the guard is dropped.
    fn hold(&self, address: IpAddr) -> Hold;

    /// Records a decision. Never blocks.
    fn record(&self, event: FlowEvent) -> EventId;

    /// Adds what the flow of an allowed event amounted to, when it ends. Never blocks.
    fn finish(&self, id: EventId, totals: FlowTotals);
}

/// Why there is no address of a permitted name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAddress {
    /// It has none, or none was found out: a text for the log.
    Failed(String),
    /// It was not looked up, because the sandbox is at one of its limits.
    Refused(Verdict),
}

/// A recorded event, for [`Egress::finish`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventId(pub u64);

/// Keeps a binding alive as long as it exists.
pub struct Hold(#[expect(dead_code, reason = "only its drop matters")] Option<Box<dyn Any + Send + Sync>>);

impl Hold {
    /// A hold that ends by dropping `guard`.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(guard)))
    }

    /// A hold on nothing, for addresses that have no binding.
    pub fn none() -> Self {
        Self(None)
    }
}
