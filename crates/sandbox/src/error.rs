//! Why an operation on a sandbox failed.

use std::{io, path::PathBuf};

use init_protocol::{Failure, FailureKind};
use policy::{PolicyError, Widening};
use store::StoreError;

use crate::{fault::Fault, network::NetworkError, template::TemplateError};

/// Why an operation on a sandbox failed. The first ones are the caller's, the last ones the machine's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// No sandbox of this account has the name.
    #[error("no such sandbox")]
    NotFound,
    /// The sandbox is paused.
    #[error("the sandbox is paused")]
    Paused,
    /// The sandbox has ended.
    #[error("the sandbox has been killed")]
    Killed,
    /// Sandboxes cannot be paused on this machine.
    #[error("sandboxes cannot be paused on this machine, because it has no version 2 control groups")]
    CannotPause,
    /// The sandbox is still being made.
    #[error("the sandbox is being created")]
    Creating,
    /// No template has the name.
    #[error("no such template: {0}")]
    UnknownTemplate(String),
    /// The template has not been built, or its build failed.
    #[error("the template {0} is not ready; build it first")]
    TemplateNotReady(String),
    /// The network policy does not compile.
    #[error("invalid network policy: {0}")]
    InvalidPolicy(#[from] PolicyError),
    /// The network policy permits what the one in force does not.
    #[error("the policy permits more than the one in force: {0}")]
    PolicyWidens(#[from] Widening),
    /// The network policy could not be replaced.
    #[error("the network policy could not be changed; the one before is in force")]
    PolicyKept(#[source] NetworkError),
    /// The network policy was replaced and could not be stored, nor could the one before be put back.
    #[error("the new network policy is in force, but it could not be stored")]
    PolicyNotStored(#[source] NetworkError),
    /// The path is empty, too long, relative where it may not be, or not a regular file.
    #[error("invalid path: {0}")]
    InvalidPath(String),
    /// The sandbox has no such user.
    #[error("{0}")]
    UnknownUser(String),
    /// No such file or directory.
    #[error("{0}")]
    FileNotFound(String),
    /// The path is a directory.
    #[error("{0}")]
    IsDirectory(String),
    /// The path, or a component of it, is no directory.
    #[error("{0}")]
    NotDirectory(String),
    /// The path exists already.
    #[error("{0}")]
    AlreadyExists(String),
    /// The user may not do that inside the sandbox.
    #[error("{0}")]
    PermissionDenied(String),
    /// The disk is full.
    #[error("{0}")]
    NoSpace(String),
    /// More than the limit.
    #[error("{0}")]
    TooLarge(String),
    /// No running or remembered command has this process id.
    #[error("{0}")]
    NoSuchCommand(String),
    /// The command's standard input is closed, or was never a pipe.
    #[error("{0}")]
    StdinClosed(String),
    /// What was to be sent into the sandbox could not be read from its source.
    #[error("cannot read what is to be written")]
    Source(#[source] io::Error),
    /// The policy does not let anybody connect to the ports of the sandbox.
    #[error(
        "the network policy of the sandbox does not permit connections to its ports (allow_public_traffic is false)"
    )]
    PublicTrafficOff,
    /// No program inside listens on the port.
    #[error("nothing listens on port {0} in the sandbox")]
    NothingListens(u16),
    /// A program inside listens on the port, and does not accept connections.
    #[error("what listens on port {0} in the sandbox does not accept connections")]
    PortSilent(u16),
    /// The port could not be connected to for another reason.
    #[error("cannot connect to port {port} in the sandbox")]
    PortUnreachable {
        /// The port.
        port: u16,
        /// Why not.
        source: io::Error,
    },
    /// A limit of the machine or of the sandbox is reached; may be tried again.
    #[error("limit reached: {0}")]
    Limit(String),
    /// The sandbox's init does not answer, or not as it should.
    #[error("the sandbox does not answer: {0}")]
    InitUnreachable(String),
    /// The sandbox was started by an older version of this program, and its init does not know the operation.
    #[error(
        "the sandbox was started by an older version, which does not have this; create a new sandbox for it"
    )]
    InitTooOld,
    /// The operation failed inside the sandbox for another reason.
    #[error("{0}")]
    Inside(String),
    /// The sandbox could not be set up.
    #[error("cannot create the sandbox")]
    Setup(#[from] Fault),
    /// A file of the daemon's could not be worked on.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The sandbox's network could not be set up or changed.
    #[error("cannot {action} the sandbox's network")]
    Network {
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: NetworkError,
    },
    /// The template could not be used.
    #[error(transparent)]
    Template(TemplateError),
    /// State could not be written or read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manager is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

impl SandboxError {
    /// Whether the machine's disk, where the daemon keeps its data, is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Setup(fault) => {
                io::Error::from_raw_os_error(fault.errno).kind() == io::ErrorKind::StorageFull
            }
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Store(error) => error.is_full(),
            _ => false,
        }
    }
}

impl From<TemplateError> for SandboxError {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::Unknown(name) => Self::UnknownTemplate(name),
            TemplateError::NotReady(name) => Self::TemplateNotReady(name),
            other => Self::Template(other),
        }
    }
}

impl From<Failure> for SandboxError {
    fn from(Failure { kind, message }: Failure) -> Self {
        match kind {
            FailureKind::NotFound => Self::FileNotFound(message),
            FailureKind::IsDirectory => Self::IsDirectory(message),
            FailureKind::NotDirectory => Self::NotDirectory(message),
            FailureKind::AlreadyExists => Self::AlreadyExists(message),
            FailureKind::UnknownUser => Self::UnknownUser(message),
            FailureKind::Permission => Self::PermissionDenied(message),
            FailureKind::NoSpace => Self::NoSpace(message),
            FailureKind::TooLarge => Self::TooLarge(message),
            FailureKind::InvalidPath => Self::InvalidPath(message),
            FailureKind::NoSuchCommand => Self::NoSuchCommand(message),
            FailureKind::StdinClosed => Self::StdinClosed(message),
            FailureKind::Busy => Self::Limit(message),
            FailureKind::BadRequest | FailureKind::Version => Self::InitUnreachable(message),
            FailureKind::Io => Self::Inside(message),
        }
    }
}
