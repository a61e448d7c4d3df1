//! Facts about this machine that a policy is compiled over.

use std::sync::Arc;

use anyhow::{Context, Result};
use policy::Floor;

/// The floor of this machine: the built-in one and what the machine takes for itself.
pub(crate) fn floor() -> Result<Arc<Floor>> {
    let own = netns::Connection::open().and_then(|mut connection| gate::own_networks(&mut connection));
    let own = own.context("listing the addresses of this machine")?;
    Ok(Arc::new(Floor::with_networks(own)))
}
