//! `/sys` with an allow-list of what programs ask for: processors, memory nodes, network interfaces of the
//! sandbox's own namespace. Firmware, buses, modules and the kernel's knobs are not there.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::{fs::CWD, mount::MountAttrFlags};

use super::mounts;
use crate::fault::{Context as _, Fault};

/// What is shown, parents before children. Links between them (`class/net/lo`) resolve inside.
const SHOWN: &[&str] = &[
    "class/net",
    "devices/system/cpu",
    "devices/system/node",
    "devices/virtual/net",
    "kernel/mm/transparent_hugepage",
];

/// Directories that exist and are empty, because programs look into them.
const EMPTY: &[&str] = &["block", "bus", "dev", "fs/cgroup"];

const SOURCE: &str = "sysfs";

/// Mounts `/sys` in `root`. The sysfs is a new one, so its interfaces are those of the caller's network namespace.
pub(super) fn mount(root: BorrowedFd<'_>) -> Result<(), Fault> {
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let source = mounts::new("sysfs", &[], restricted | MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    mounts::make_directory(CWD, SOURCE)?;
    mounts::attach_at(&source, CWD, SOURCE)?;

    let sys = mounts::new("tmpfs", &[("mode", "755"), ("size", "64k")], restricted)?;
    mounts::attach(&sys, mounts::own_directory(root, "sys")?, "/sys")?;
    for path in EMPTY {
        make_path(sys.as_fd(), path)?;
    }
    for path in SHOWN {
        if mounts::exists(&std::path::Path::new(SOURCE).join(path)) {
            make_path(sys.as_fd(), path)?;
            let tree = mounts::copy_of(source.as_fd(), path)?;
            mounts::attach_at(&tree, sys.as_fd(), path)?;
        }
    }
    sys::mount::set_attributes(&sys, false, MountAttrFlags::MOUNT_ATTR_RDONLY)
        .during("make read-only", "/sys")
}

fn make_path(at: BorrowedFd<'_>, path: &str) -> Result<(), Fault> {
    let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
    ends.filter_map(|end| path.get(..end)).try_for_each(|parent| mounts::make_directory(at, parent))
}
