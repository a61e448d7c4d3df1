//! What can go wrong, each with the object it went wrong with.

use std::io;

use rustix::io::Errno;

/// An action on nftables, on a packet log or on tracked connections that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket could be opened or configured.
    #[error("cannot open a netfilter netlink socket: {0}")]
    Open(#[source] io::Error),
    /// A batch or request could not be handed to the kernel. Nothing was changed.
    #[error("cannot send {bytes} bytes to nftables: {source}")]
    Send {
        /// Length of the whole batch or request.
        bytes: usize,
        /// What the kernel said; `EMSGSIZE` when the batch exceeds what this process may buffer.
        source: io::Error,
    },
    /// The answer could not be read.
    #[error("cannot read the answer of nftables: {0}")]
    Receive(#[source] io::Error),
    /// Something in the batch does not fit into a netlink attribute. Nothing was sent.
    #[error("{what} is too long for nftables")]
    TooLong {
        /// The object concerned.
        what: String,
    },
    /// The kernel refused a message, and with it the whole batch: nothing was changed.
    #[error("nftables refused to {action} (message {index} of the batch): {source}{}", detail_suffix(.detail))]
    Rejected {
        /// Position of the message in the batch, from 1; 0 is the transaction as a whole.
        index: u32,
        /// What the message asked for, e.g. ``add rule 3 of chain `output` of table `fence` ``.
        action: String,
        /// The kernel's error.
        source: io::Error,
        /// The kernel's own explanation (extended acknowledgement), where it gave one.
        detail: Option<String>,
    },
    /// A listing was refused.
    #[error("cannot list {what}: {source}")]
    List {
        /// What was to be listed.
        what: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A listing was interrupted by changes again and again.
    #[error("{what} changed each time while being listed")]
    Unsettled {
        /// What was to be listed.
        what: String,
    },
    /// The kernel neither confirmed nor refused, or its answer was lost: it is unknown whether the batch holds.
    #[error("nftables did not confirm the transaction")]
    Unconfirmed,
    /// The kernel's answer cannot be understood.
    #[error("malformed answer of nftables: {what}")]
    Malformed {
        /// The part concerned.
        what: &'static str,
    },
    /// The kernel does not tell of connections that end.
    #[error("cannot be told of tracked connections that end: {0}")]
    Subscribe(#[source] io::Error),
    /// The kernel refused a request about tracked connections.
    #[error("cannot {action}: {source}")]
    Conntrack {
        /// What was to be done.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A packet log group could not be taken; `EPERM` also when another socket of the namespace has it.
    #[error("cannot bind packet log group {group}: {source}")]
    BindGroup {
        /// The group.
        group: u16,
        /// The kernel's error.
        source: io::Error,
    },
}

impl Error {
    /// The kernel refused because an object named in the batch is absent.
    pub fn is_not_found(&self) -> bool {
        self.errno() == Some(Errno::NOENT)
    }

    /// The kernel refused because an object is in use.
    pub fn is_busy(&self) -> bool {
        self.errno() == Some(Errno::BUSY)
    }

    /// The kernel refused because an object exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// The kernel refused because this process may not do that, or because a table or a log group belongs to
    /// another socket.
    pub fn is_permission_denied(&self) -> bool {
        matches!(self.errno(), Some(Errno::PERM | Errno::ACCESS))
    }

    fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open(source)
            | Self::Receive(source)
            | Self::Subscribe(source)
            | Self::Conntrack { source, .. }
            | Self::Send { source, .. }
            | Self::Rejected { source, .. }
            | Self::List { source, .. }
            | Self::BindGroup { source, .. } => Errno::from_io_error(source),
            Self::TooLong { .. } | Self::Unsettled { .. } | Self::Unconfirmed | Self::Malformed { .. } => {
                None
            }
        }
    }
}

fn detail_suffix(detail: &Option<String>) -> String {
    detail.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}
