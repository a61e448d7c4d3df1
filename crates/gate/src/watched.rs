//! Descriptors that the runtime watches.

use std::os::fd::AsRawFd;

use netns::Monitor;
use nft::LogSocket;
use tokio::io::unix::AsyncFd;

use crate::GateError;

/// A type whose descriptor is the same one as long as the value lives, and its own.
pub(crate) trait Descriptor: AsRawFd {}
impl Descriptor for LogSocket {}
impl Descriptor for Monitor {}

/// Has the runtime watch a descriptor.
pub(crate) fn watched<T: Descriptor>(inner: T) -> Result<AsyncFd<T>, GateError> {
    #[expect(deprecated, reason = "what its successor needs `unsafe` for is what `Descriptor` says")]
    AsyncFd::new(inner).map_err(GateError::Watch)
}
