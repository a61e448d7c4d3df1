//! `/proc` of the sandbox's own pid namespace, without what tells about or steers the machine.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    mount::MountAttrFlags,
};

use super::mounts;
use crate::fault::{Context as _, Fault};

/// Parts that show the machine's memory, keys, timers, hardware or other tenants.
const HIDDEN: &[&str] = &[
    "acpi",
    "asound",
    "interrupts",
    "kallsyms",
    "kcore",
    "keys",
    "kmsg",
    "kpagecount",
    "kpageflags",
    "latency_stats",
    "sched_debug",
    "scsi",
    "slabinfo",
    "timer_list",
    "timer_stats",
    "vmallocinfo",
];

/// Parts through which the machine's kernel is configured.
const READ_ONLY: &[&str] = &["bus", "driver", "dynamic_debug", "fs", "irq", "mtrr", "sys", "sysrq-trigger"];

/// Mounts `/proc` in `root`; `empty` is the read-only empty directory.
pub(super) fn mount(root: BorrowedFd<'_>, empty: BorrowedFd<'_>) -> Result<(), Fault> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = mounts::new("proc", &[], attributes)?;
    mounts::attach(&proc, mounts::own_directory(root, "proc")?, "/proc")?;
    for name in HIDDEN {
        hide(proc.as_fd(), name, empty)?;
    }
    for name in READ_ONLY {
        let Some(_) = open(proc.as_fd(), name)? else { continue };
        let tree = mounts::copy_of(proc.as_fd(), name)?;
        sys::mount::set_attributes(&tree, false, attributes | MountAttrFlags::MOUNT_ATTR_RDONLY)
            .during("make read-only", name)?;
        mounts::attach_at(&tree, proc.as_fd(), name)?;
    }
    Ok(())
}

/// Covers a directory with the empty one and a file with `/dev/null`. What this kernel does not have is skipped.
fn hide(proc: BorrowedFd<'_>, name: &str, empty: BorrowedFd<'_>) -> Result<(), Fault> {
    let Some(target) = open(proc, name)? else { return Ok(()) };
    let kind = FileType::from_raw_mode(fstat(&target).during("examine", name)?.st_mode);
    let cover = if kind == FileType::Directory {
        mounts::copy_of(empty, ".")?
    } else {
        mounts::copy_of(rustix::fs::CWD, "/dev/null")?
    };
    mounts::attach(&cover, target, name)
}

fn open(proc: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>, Fault> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match openat2(proc, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(error) => Err(error).during("open in /proc", name),
    }
}
