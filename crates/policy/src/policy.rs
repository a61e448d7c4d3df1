//! The compiled policy.

use std::sync::Arc;

use crate::{Flow, Floor, HostName, KernelView, PolicyError, PolicySpec, Topology, Verdict, Warning};

/// A compiled policy: immutable, shared by every part of the data path.
#[derive(Debug)]
pub struct Policy {}

impl Policy {
    /// Parses and compiles `spec` over `floor`.
    pub fn compile(_spec: &PolicySpec, _floor: Arc<Floor>) -> Result<Self, PolicyError> {
        unimplemented!()
    }
    /// The policy as the user wrote it.
    pub fn spec(&self) -> &PolicySpec {
        unimplemented!()
    }
    /// What is accepted but probably not meant.
    pub fn warnings(&self) -> &[Warning] {
        unimplemented!()
    }
    /// The one function that decides.
    pub fn judge(&self, _flow: &Flow<'_>) -> Verdict {
        unimplemented!()
    }
    /// Whether an `allow_out` *address* entry (or an open default with no deny) covers this flow, name aside.
    pub fn kernel(&self) -> &KernelView {
        unimplemented!()
    }
    /// Whether the sandbox needs a wire.
    pub fn topology(&self) -> Topology {
        unimplemented!()
    }
}

/// A policy with the number of the generation in which it is in force. Generations of a sandbox count from 1.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Its generation.
    pub generation: u64,
}

#[allow(dead_code)]
fn _uses(_: &HostName) {}
