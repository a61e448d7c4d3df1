//! The root file system of a sandbox, built inside the sandbox's own mount namespace.
//!
//! Everything here runs in the child that becomes the sandbox's init. No mount is ever made in the daemon's
//! namespace, so when the last process of a sandbox ends, its mounts are gone, whatever happened before.

mod dev;
mod mounts;
mod overlay;
mod proc;
mod sysfs;

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
};

use rustix::{
    fs::CWD,
    mount::{MountAttrFlags, MountPropagationFlags, UnmountFlags, mount_change, unmount},
    process::{chdir, fchdir, pivot_root},
};
use serde::{Deserialize, Serialize};

use crate::{
    fault::{Context as _, Fault},
    spawner::BindMount,
};

pub(crate) use overlay::{UPPER, USR_UPPER, USR_WORK, WORK};

/// What a root file system is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RootPlan {
    /// The read-only layers, the topmost first.
    pub layers: Vec<PathBuf>,
    /// A directory of the machine that becomes `/usr`, below a writable layer of its own.
    pub usr: Option<PathBuf>,
    /// The directory that takes what is written ([`UPPER`] and [`WORK`] are in it).
    pub writable: PathBuf,
    /// An empty directory: the root is put together on it before it becomes the root.
    pub stage: PathBuf,
    /// Directories of the machine to show inside.
    pub binds: Vec<BindMount>,
    /// The size of `/dev/shm` in bytes.
    pub shm_bytes: u64,
}

/// Puts the root together. The caller is in its own mount, pid and network namespaces and has all privileges of
/// the machine; `userns` is the user namespace it will join, whose id 0 is `first_id` on the machine.
///
/// Afterwards the caller's file system ids are `first_id`, and [`enter`] is the next step.
pub(crate) fn assemble(plan: &RootPlan, userns: BorrowedFd<'_>, first_id: u32) -> Result<(), Fault> {
    // Before anything is mounted, or it would also appear in the machine's namespace.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .during("detach the mounts from", "/")?;
    let stage = mounts::new("tmpfs", &[("mode", "700"), ("size", "256k")], MountAttrFlags::empty())?;
    mounts::attach_at(&stage, CWD, &plan.stage)?;
    // Relative paths from here: they are what the sandbox sees in its mount table.
    chdir(&plan.stage).during("enter", &plan.stage)?;
    overlay::prepare_layers(plan, userns)?;
    overlay::act_as(first_id)?;
    let root = overlay::mount_root(plan)?;
    if plan.usr.is_some() {
        overlay::mount_usr(root.as_fd())?;
    }
    let empty = mounts::empty_directory()?;
    proc::mount(root.as_fd(), empty.as_fd())?;
    sysfs::mount(root.as_fd())?;
    dev::mount(root.as_fd(), first_id, plan.shm_bytes)?;
    for bind in &plan.binds {
        mounts::bind(root.as_fd(), bind, userns)?;
    }
    Ok(())
}

/// Makes the assembled root the root of the caller and lets go of the machine's.
pub(crate) fn enter() -> Result<(), Fault> {
    let root = mounts::open_directory(CWD, overlay::ROOT)?;
    fchdir(&root).during("enter", "the new root")?;
    // Both at the same place: the old root ends up on top of the new one and is taken off next, so no directory
    // for it is needed inside.
    pivot_root(".", ".").during("make the root", "the new root")?;
    unmount(".", UnmountFlags::DETACH).during("unmount", "the old root")?;
    chdir("/").during("enter", "/")
}
