//! What can go wrong.

use std::{io, net::IpAddr};

use ipnet::IpNet;

use crate::LinkIndex;

/// A request the kernel refused, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The netlink socket could not be made.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
    /// A request could not be sent, or its answer not be received.
    #[error("cannot talk to the kernel over netlink")]
    Exchange(#[source] io::Error),
    /// The kernel's answer could not be parsed.
    #[error("the kernel's netlink answer cannot be parsed: {0}")]
    Answer(String),
    /// A link could not be looked up.
    #[error("cannot look up the link {name}")]
    FindLink {
        /// Its name.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A veth pair could not be created.
    #[error("cannot create the veth pair {name} and {peer}")]
    CreateVeth {
        /// The end in the caller's namespace.
        name: String,
        /// The other end.
        peer: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A link's state could not be changed.
    #[error("cannot bring up link {link}")]
    BringUp {
        /// Its index.
        link: LinkIndex,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A link's state could not be read.
    #[error("cannot read the state of link {link}")]
    LinkState {
        /// Its index.
        link: LinkIndex,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A link could not be deleted.
    #[error("cannot delete link {link}")]
    DeleteLink {
        /// Its index.
        link: LinkIndex,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// An address could not be added or deleted.
    #[error("cannot {action} address {address} of link {link}")]
    Address {
        /// `add` or `delete`.
        action: &'static str,
        /// The address with its prefix length.
        address: IpNet,
        /// The link's index.
        link: LinkIndex,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A route could not be added or deleted.
    #[error("cannot {action} the route to {destination} in table {table}")]
    Route {
        /// `add` or `delete`.
        action: &'static str,
        /// Where it leads.
        destination: IpNet,
        /// Its table.
        table: u32,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A routing rule could not be added.
    #[error("cannot add the rule that sends mark {mark:#x} to table {table}")]
    Rule {
        /// The mark it matches.
        mark: u32,
        /// The table it leads to.
        table: u32,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A list of the kernel's could not be read.
    #[error("cannot list the {what} of the namespace")]
    List {
        /// Of what.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A socket could not be destroyed.
    #[error("cannot destroy the socket connected to {remote}")]
    DestroySocket {
        /// Its peer.
        remote: IpAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter could not be set.
    #[error("cannot set the kernel parameter {name} to {value}")]
    Sysctl {
        /// Its name, with slashes.
        name: String,
        /// The value that was to be set.
        value: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter could not be read.
    #[error("cannot read the kernel parameter {name}")]
    ReadSysctl {
        /// Its name, with slashes.
        name: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the link asked about is not there (any more).
    pub fn is_no_such_device(&self) -> bool {
        self.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
    }

    /// Whether the route asked about is not there (any more).
    pub fn is_no_such_route(&self) -> bool {
        self.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
    }

    /// The kernel's error number, where there is one.
    pub fn raw_os_error(&self) -> Option<i32> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<io::Error>() {
                return io.raw_os_error();
            }
            cause = error.source();
        }
        None
    }
}
