//! Life cycle of sandboxes: root file system, cgroups, spawner, recovery.

mod fault;
mod ids;
mod rootfs;
pub mod seccomp;
pub mod spawner;

pub use fault::Fault;
pub use ids::{IDS_PER_SANDBOX, InvalidSandboxId, SandboxId};
