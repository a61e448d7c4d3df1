//! Life cycle of sandboxes: root file system, cgroups, spawner, recovery.

pub mod cgroup;
mod client;
mod error;
mod fault;
mod ids;
mod manager;
mod network;
mod port;
mod process;
mod remove;
mod rootfs;
pub mod seccomp;
pub mod spawner;
pub mod template;

pub use client::{
    Command, CommandEvent, CommandInfo, CommandInput, Entry, EntryKind, Exec, ExitStatus, FileReader, Files,
    Follower, Kept, MAX_FILE, MAX_OUTPUT, OUTPUT_BUDGET, Output, SessionEvent, Watcher, WriteInfo,
};
pub use error::SandboxError;
pub use fault::Fault;
pub use ids::{IDS_PER_SANDBOX, InvalidSandboxId, SandboxId};
pub use init_protocol::{Change, ChangeKind, FollowFrom, Stream as OutputStream, TerminalSize};
pub use manager::{
    ChangedBy, Config, Create, DEFAULT_ACCOUNT_SANDBOXES, DEFAULT_IDS, Filter, GcReport, MEASURED_EVERY,
    MEASUREMENTS, Manager, Measurement, OnTimeout, PolicyChange, State, Stats, stored_policy,
};
pub use network::{Attachment, BoxFuture, Network, NetworkError, NetworkRequest};
pub use port::{Cut, PortConnection};
