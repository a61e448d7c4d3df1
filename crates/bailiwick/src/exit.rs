//! Exit codes: part of the interface, the same for every command.

use crate::remote::ApiFailure;

/// Everything went well, or the destination is permitted.
pub(crate) const OK: u8 = 0;
/// Something failed.
pub(crate) const FAILED: u8 = 1;
/// The input is not valid.
pub(crate) const BAD_INPUT: u8 = 2;
/// The destination is refused (`policy explain`).
pub(crate) const REFUSED: u8 = 3;

/// Input that is not valid: printed as it is, exit code [`BAD_INPUT`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadInput(pub String);

/// The exit code of an error.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    let bad_input = error.chain().any(|cause| {
        cause.is::<BadInput>()
            || cause.is::<policy::PolicyError>()
            || cause.is::<policy::HostNameError>()
            || cause.downcast_ref::<ApiFailure>().is_some_and(ApiFailure::is_bad_input)
    });
    if bad_input { BAD_INPUT } else { FAILED }
}
