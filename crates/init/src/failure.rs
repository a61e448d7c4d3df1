//! Errors of the system as the protocol tells them.

use std::fmt::Display;

use init_protocol::{Failure, FailureKind};
use rustix::io::Errno;

/// Result of an operation.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// The failure for a system error, `what` naming action and object: "read /etc/shadow".
pub(crate) fn failure(what: impl Display, error: impl Into<std::io::Error>) -> Failure {
    let error = error.into();
    let kind = error.raw_os_error().map_or(FailureKind::Io, |number| kind(Errno::from_raw_os_error(number)));
    Failure::new(kind, format!("{what}: {error}"))
}

fn kind(error: Errno) -> FailureKind {
    match error {
        Errno::NOENT => FailureKind::NotFound,
        Errno::ISDIR => FailureKind::IsDirectory,
        Errno::NOTDIR => FailureKind::NotDirectory,
        Errno::EXIST | Errno::NOTEMPTY => FailureKind::AlreadyExists,
        Errno::ACCESS | Errno::PERM | Errno::ROFS => FailureKind::Permission,
        Errno::NOSPC | Errno::DQUOT => FailureKind::NoSpace,
        Errno::FBIG | Errno::TOOBIG => FailureKind::TooLarge,
        Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO | Errno::INVAL => FailureKind::InvalidPath,
        Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM => FailureKind::Busy,
        _ => FailureKind::Io,
    }
}
