//! `/dev`: the handful of devices that are safe for anybody, an own set of terminals, shared memory.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::{
    fs::{CWD, Mode, OFlags, openat, symlinkat},
    mount::MountAttrFlags,
};

use super::mounts;
use crate::fault::{Context as _, Fault};

const DEVICES: &[&str] = &["full", "null", "random", "tty", "urandom", "zero"];

const LINKS: &[(&str, &str)] = &[
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
];

/// The group `tty` of Debian and its relatives, which terminals belong to.
const TTY_GROUP: u32 = 5;

/// Mounts `/dev` in `root`. The mounts are made outside the user namespace, so owners are given as the machine
/// sees them: `first_id` is root inside.
pub(super) fn mount(root: BorrowedFd<'_>, first_id: u32, shm_bytes: u64) -> Result<(), Fault> {
    let owner = first_id.to_string();
    let terminals = first_id.saturating_add(TTY_GROUP).to_string();
    let shm_bytes = shm_bytes.to_string();
    let no_programs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let owned = [("uid", owner.as_str()), ("gid", owner.as_str())];

    let options = [("mode", "755"), ("size", "64k"), ("nr_inodes", "128"), owned[0], owned[1]];
    // Not nodev: the devices are bind mounts with their own attributes, but /dev itself can hold none that open.
    let dev = mounts::new("tmpfs", &options, no_programs | MountAttrFlags::MOUNT_ATTR_NODEV)?;
    mounts::attach(&dev, mounts::own_directory(root, "dev")?, "/dev")?;
    for device in DEVICES {
        let tree = mounts::copy_of(CWD, format!("/dev/{device}"))?;
        sys::mount::set_attributes(&tree, false, no_programs).during("restrict", device)?;
        touch(dev.as_fd(), device)?;
        mounts::attach_at(&tree, dev.as_fd(), device)?;
    }
    let options = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", terminals.as_str()), ("max", "64")];
    mounts::make_directory(dev.as_fd(), "pts")?;
    mounts::attach_at(&mounts::new("devpts", &options, no_programs)?, dev.as_fd(), "pts")?;

    let options = [("mode", "1777"), ("size", shm_bytes.as_str()), owned[0], owned[1]];
    let attributes = no_programs | MountAttrFlags::MOUNT_ATTR_NODEV;
    mounts::make_directory(dev.as_fd(), "shm")?;
    mounts::attach_at(&mounts::new("tmpfs", &options, attributes)?, dev.as_fd(), "shm")?;

    LINKS
        .iter()
        .try_for_each(|(target, name)| symlinkat(*target, dev.as_fd(), *name).during("make the link", name))
}

fn touch(dev: BorrowedFd<'_>, name: &str) -> Result<(), Fault> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    openat(dev, name, flags, Mode::from_raw_mode(0o644)).map(drop).during("make the file", name)
}
