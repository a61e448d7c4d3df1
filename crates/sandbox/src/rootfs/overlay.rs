//! The overlays: read-only template layers below, one writable directory per sandbox on top.
//!
//! Layers and the writable directory are idmapped: on disk everything is owned by 0 to 65535, whichever range the
//! sandbox has, so templates are shared and what a sandbox wrote can become a template.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::{
    fs::{CWD, StatVfsMountFlags, fstatvfs},
    mount::MountAttrFlags,
    thread::{CapabilitiesSecureBits, set_capabilities_secure_bits},
};

use super::{RootPlan, mounts};
use crate::fault::{Context as _, Fault};

/// What is written below `/`, in the writable directory.
pub(crate) const UPPER: &str = "upper";
/// Overlay's own working space for [`UPPER`].
pub(crate) const WORK: &str = "work";
/// What is written below a `/usr` that is the machine's.
pub(crate) const USR_UPPER: &str = "usr-upper";
/// Overlay's own working space for [`USR_UPPER`].
pub(crate) const USR_WORK: &str = "usr-work";
/// The assembled root, relative to the stage.
pub(super) const ROOT: &str = "root";

const WRITABLE: &str = "w";
const USR: &str = "usr";

/// Attaches idmapped copies of everything the overlays need to the stage, which is the current directory.
///
/// Overlay takes detached mounts as layers only since Linux 6.15; attached to the stage they work on all.
pub(super) fn prepare_layers(plan: &RootPlan, userns: BorrowedFd<'_>) -> Result<(), Fault> {
    let usr = plan.usr.iter().map(|path| (path, USR.to_owned()));
    let layers = plan.layers.iter().enumerate().map(|(index, path)| (path, layer_name(index)));
    for (path, name) in layers.chain(usr).chain([(&plan.writable, WRITABLE.to_owned())]) {
        let tree = mounts::idmapped_copy_of(path, userns)?;
        mounts::make_directory(CWD, &name)?;
        mounts::attach_at(&tree, CWD, &name)?;
    }
    Ok(())
}

/// Makes files from here on owned by `first_id`, which is root inside, while keeping all privileges.
///
/// Overlay works on the writable directory as whoever mounted it, and an id outside the mapped range cannot be
/// stored there: overlay would find its working directory unusable and quietly be read-only.
pub(super) fn act_as(first_id: u32) -> Result<(), Fault> {
    set_capabilities_secure_bits(CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .during("keep the privileges of", "the mounting process")?;
    sys::spawn::set_fs_ids(first_id, first_id).during("set the file system ids of", "the mounting process")
}

/// Mounts the root overlay on the stage and opens it.
pub(super) fn mount_root(plan: &RootPlan) -> Result<OwnedFd, Fault> {
    let lower: Vec<_> = (0..plan.layers.len()).map(layer_name).collect();
    let root = overlay(&lower.join(":"), UPPER, WORK)?;
    mounts::make_directory(CWD, ROOT)?;
    mounts::attach_at(&root, CWD, ROOT)?;
    Ok(root)
}

/// Mounts the overlay of the machine's `/usr` in the root.
pub(super) fn mount_usr(root: BorrowedFd<'_>) -> Result<(), Fault> {
    let target = mounts::own_directory(root, "usr")?;
    let usr = overlay(USR, USR_UPPER, USR_WORK)?;
    mounts::attach(&usr, target, "/usr")
}

fn overlay(lower: &str, upper: &str, work: &str) -> Result<OwnedFd, Fault> {
    let upper = format!("{WRITABLE}/{upper}");
    let work = format!("{WRITABLE}/{work}");
    // volatile: what a sandbox writes need not outlive the machine, so fsync may be free.
    let options =
        [("lowerdir", lower), ("upperdir", upper.as_str()), ("workdir", work.as_str()), ("volatile", "")];
    let mount = mounts::new("overlay", &options, MountAttrFlags::MOUNT_ATTR_NODEV)?;
    let state = fstatvfs(mount.as_fd()).during("examine the overlay of", lower)?;
    if state.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Fault::new("mount read-write the overlay of", lower));
    }
    Ok(mount)
}

fn layer_name(index: usize) -> String {
    format!("l{index}")
}
