//! Facts about this machine that a policy is compiled over.

use std::sync::Arc;

use anyhow::{Context, Result};
use policy::Floor;

/// The floor of this machine: the built-in one and the addresses of its interfaces.
pub(crate) fn floor() -> Result<Arc<Floor>> {
    let addresses = netns::Connection::open().and_then(|mut connection| connection.addresses());
    let addresses = addresses.context("listing the addresses of this machine")?;
    Ok(Arc::new(Floor::new(addresses.into_iter().map(|entry| entry.address.addr()))))
}
