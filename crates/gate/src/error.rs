//! What can go wrong.

use std::{io, net::SocketAddr};

/// Why a sandbox could not be attached, or its policy not be replaced.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The sandbox's network namespace could not be created.
    #[error("cannot create a network namespace")]
    CreateNamespace(#[source] io::Error),
    /// A network namespace could not be entered.
    #[error("cannot enter the network namespace of {0}")]
    EnterNamespace(&'static str, #[source] io::Error),
    /// A namespace's links, addresses, routes or parameters could not be set.
    #[error("cannot set up the network namespace of {0}")]
    SetUp(&'static str, #[source] netns::Error),
    /// A socket of the resolver or the proxy could not be made.
    #[error("cannot listen at {address} inside the sandbox's network namespace")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The packet filter could not be spoken to, or refused rules.
    #[error("cannot put the packet filter's rules of {0} in force")]
    Rules(&'static str, #[source] nft::Error),
    /// The log of refused packets could not be opened.
    #[error("cannot open the packet filter's log of {0}")]
    Log(&'static str, #[source] nft::Error),
    /// Connection tracking of the uplink could not be set up.
    #[error("cannot follow the connections of the uplink")]
    Tracking(#[source] nft::Error),
    /// A socket could not be given to the runtime.
    #[error("cannot watch a socket")]
    Watch(#[source] io::Error),
    /// The threads of the proxies do not start.
    #[error("cannot start the threads of the proxies")]
    Workers(#[source] io::Error),
    /// Every wire of this daemon is in use.
    #[error("no wire is free: the daemon has as many wired sandboxes as it can")]
    NoFreeWire,
    /// The link between the uplink namespace and the machine's could not be made.
    #[error("cannot link the uplink namespace to the machine's network")]
    Uplink(#[source] netns::Error),
    /// A task of the runtime was cut off: the daemon is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// The rules are in force, and do not do what they say.
    #[error("the sandbox's rules do not hold: {0}; it is cut off")]
    Unproven(String),
    /// The rules could not be tried: the daemon is out of something.
    #[error("the sandbox's rules cannot be tried")]
    Untried(#[source] io::Error),
    /// The daemon panicked; its log says where.
    #[error("a fault of the daemon, which its log tells")]
    Fault,
    /// The sandbox has been detached.
    #[error("the sandbox is detached from the gate")]
    Detached,
}
