//! Single mounts: made detached, then attached at a descriptor, so that no path is walked twice.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
    },
};

use crate::{
    fault::{Context as _, Fault},
    spawner::BindMount,
};

/// Makes a detached mount of a new file system. An option without a value is a flag.
pub(super) fn new(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Fault> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).during("make a file system of type", kind)?;
    fsconfig_set_string(context.as_fd(), "source", kind).during("name the source of", kind)?;
    for (key, value) in options {
        let set = if value.is_empty() {
            fsconfig_set_flag(context.as_fd(), *key)
        } else {
            fsconfig_set_string(context.as_fd(), *key, *value)
        };
        set.during(&format!("set {key}={value} on a file system of type"), kind)?;
    }
    fsconfig_create(context.as_fd()).during("create a file system of type", kind)?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).during("mount a", kind)
}

/// A detached copy of the mount at `path`, only what is there and nothing mounted below it.
pub(super) fn copy_of(at: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd, Fault> {
    let path = path.as_ref();
    open_tree(at, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .during("copy the mount at", path)
}

/// As [`copy_of`], showing its owners through `userns`.
pub(super) fn idmapped_copy_of(path: &Path, userns: BorrowedFd<'_>) -> Result<OwnedFd, Fault> {
    let tree = copy_of(CWD, path)?;
    sys::mount::set_idmap(&tree, userns).during("map the owners of", path)?;
    Ok(tree)
}

/// Attaches a detached mount at a path that this program chose.
pub(super) fn attach_at(mount: &OwnedFd, at: impl AsFd, path: impl AsRef<Path>) -> Result<(), Fault> {
    let path = path.as_ref();
    move_mount(mount, c"", at, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).during("mount at", path)
}

/// Attaches a detached mount on what `target` is open on; `name` is for the error.
pub(super) fn attach(mount: &OwnedFd, target: impl AsFd, name: &str) -> Result<(), Fault> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags).during("mount at", name)
}

/// Opens a directory by a path in which nothing may be a symbolic link.
pub(super) fn open_directory(at: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = path.as_ref();
    openat2(at, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS).during("open the directory", path)
}

/// Opens the directory `name` of the sandbox's root, making it when the template has none.
pub(super) fn own_directory(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Fault> {
    make_directory(root, name)?;
    open_directory(root, name)
}

/// Makes a directory with the mode 755 unless it exists.
pub(super) fn make_directory(at: impl AsFd, name: impl AsRef<Path>) -> Result<(), Fault> {
    let name = name.as_ref();
    match mkdirat(at, name, Mode::from_raw_mode(0o755)) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other.during("make the directory", name),
    }
}

/// A read-only directory with nothing in it, to be copied over directories that are to look empty.
pub(super) fn empty_directory() -> Result<OwnedFd, Fault> {
    make_directory(CWD, EMPTY)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let empty = new("tmpfs", &[("mode", "755"), ("size", "0"), ("nr_inodes", "1")], attributes)?;
    attach_at(&empty, CWD, EMPTY)?;
    Ok(empty)
}

/// Shows a directory or file of the machine at a path inside, making the path when it does not exist.
pub(super) fn bind(root: BorrowedFd<'_>, bind: &BindMount, userns: BorrowedFd<'_>) -> Result<(), Fault> {
    let tree = idmapped_copy_of(&bind.source, userns)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if bind.read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    sys::mount::set_attributes(&tree, false, attributes).during("restrict the mount of", &bind.source)?;
    let kind = fstat(&tree).during("examine", &bind.source)?.st_mode;
    let is_directory = FileType::from_raw_mode(kind) == FileType::Directory;
    let target = make_target(root, &bind.target, is_directory)?;
    attach(&tree, target, &bind.target.display().to_string())
}

const EMPTY: &str = "empty";

/// Opens `path` below the sandbox's root, making what is missing. Symbolic links resolve inside the root.
fn make_target(root: BorrowedFd<'_>, path: &Path, is_directory: bool) -> Result<OwnedFd, Fault> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut walked = PathBuf::from(".");
    let mut names = path.components().filter(|part| matches!(part, Component::Normal(_))).peekable();
    while let Some(name) = names.next() {
        walked.push(name);
        // Always from the root, so that an absolute link is one of the sandbox's and not of the machine's.
        if names.peek().is_some() || is_directory {
            make_in_root(root, &walked)?;
        } else {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            openat2(root, &walked, flags, Mode::from_raw_mode(0o644), inside)
                .during("make the file", &walked)?;
        }
    }
    openat2(root, &walked, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), inside).during("open", &walked)
}

/// Makes the last directory of `path` unless something is there; its parents exist.
fn make_in_root(root: BorrowedFd<'_>, path: &Path) -> Result<(), Fault> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let parent = openat2(root, parent, flags, Mode::empty(), inside).during("open", parent)?;
    make_directory(parent, name)
}

/// Whether the machine has `path` at all; for parts that not every kernel offers.
pub(super) fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}
