//! What `rustix` lacks of the new mount API: attributes of detached mounts.
//!
//! The rest (`fsopen`, `fsmount`, `open_tree`, `move_mount`) is safe in `rustix::mount`.

use std::{
    io,
    mem::size_of,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    ptr,
};

use rustix::mount::MountAttrFlags;

/// Makes `mount` show the owners of its files through `userns`: an id on disk appears as the id that the user
/// namespace maps it to.
///
/// `mount` must be a mount that nothing else uses yet (`open_tree` with `OPEN_TREE_CLONE`, or `fsmount`).
///
/// # Errors
/// `EINVAL` when the file system does not support idmapped mounts, `EPERM` without `CAP_SYS_ADMIN` over the file
/// system.
pub fn set_idmap(mount: impl AsFd, userns: impl AsFd) -> io::Result<()> {
    let userns = u64::try_from(userns.as_fd().as_raw_fd()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let attributes = MountAttr { set: MOUNT_ATTR_IDMAP, userns, ..MountAttr::default() };
    mount_setattr(mount.as_fd(), false, attributes)
}

/// Sets attributes of `mount`, and of everything mounted below it when `recursive`.
pub fn set_attributes(mount: impl AsFd, recursive: bool, attributes: MountAttrFlags) -> io::Result<()> {
    let attributes = MountAttr { set: u64::from(attributes.bits()), ..MountAttr::default() };
    mount_setattr(mount.as_fd(), recursive, attributes)
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: MountAttr) -> io::Result<()> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let fd: RawFd = mount.as_raw_fd();
    // SAFETY: the path is a NUL-terminated empty string, `attributes` is a live struct of the size given, and the
    // kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            ptr::from_ref(&attributes),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use rustix::{
        fs::CWD,
        mount::{OpenTreeFlags, open_tree},
    };

    use super::*;

    #[test]
    fn an_idmap_needs_a_user_namespace() {
        let Ok(tree) =
            open_tree(CWD, "/usr", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        else {
            eprintln!("SKIP no right to clone a mount here");
            return;
        };
        let not_a_namespace = std::fs::File::open("/dev/null").expect("/dev/null");
        let error = set_idmap(&tree, &not_a_namespace).expect_err("a file is no user namespace");
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
