//! Deleting what a sandbox left on the disk.
//!
//! A sandbox chooses names, depth and links below its directories, so nothing here follows a path: every step is
//! one name below an open directory, symbolic links are removed and not followed, and a mount point in the way
//! stops everything before anything behind it is touched.

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, renameat, unlinkat},
    io::Errno,
};

use crate::fault::{Context as _, Fault};

/// Deletes a directory with everything in it. Nothing being there is no failure.
///
/// # Errors
/// With `EXDEV` when something is mounted at or below `path`; what is mounted is untouched.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Fault> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Fault::new("delete", path.display().to_string()));
    };
    let parent = match open_parent(parent) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.during("open", parent)?,
    };
    let name = CString::new(name.as_encoded_bytes()).map_err(io::Error::other).during("delete", path)?;
    match remove_at(parent.as_fd(), &name) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).during("delete", path),
    }
}

/// Directories deeper than this are first moved up, which bounds open descriptors whatever a sandbox has built.
const MAX_DEPTH: usize = 64;

/// How often a directory is read again that was not empty after all, though nothing was moved into it.
const MAX_PASSES: usize = 16;

fn open_parent(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat2(CWD, path, DIRECTORY, Mode::empty(), ResolveFlags::empty())
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Opens one directory below another, and nothing that is mounted there.
fn open_below(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    openat2(at, name, DIRECTORY, Mode::empty(), resolve)
}

/// As [`remove_tree`], for a name in an open directory; it must be there.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<()> {
    let top = match open_below(parent, name) {
        Err(Errno::NOTDIR | Errno::LOOP) => return unlinkat(parent, name, AtFlags::empty()),
        other => other?,
    };
    let (mut moved, mut in_vain) = (0, 0);
    while in_vain < MAX_PASSES {
        let moved_before = moved;
        empty(&top, &mut moved)?;
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            // Deep directories were moved up here and are next.
            Err(Errno::NOTEMPTY) if moved > moved_before => {}
            Err(Errno::NOTEMPTY) => in_vain += 1,
            other => return other,
        }
    }
    Err(Errno::NOTEMPTY)
}

/// An open directory on the way down, with its name in the one above.
struct Level {
    entries: Dir,
    name: CString,
}

/// Removes what is in `top`, as far as it does not go deeper than [`MAX_DEPTH`]; that is moved into `top`.
fn empty(top: &OwnedFd, moved: &mut u64) -> rustix::io::Result<()> {
    let level =
        |fd: OwnedFd, name: &CStr| Ok::<_, Errno>(Level { entries: Dir::new(fd)?, name: name.into() });
    let mut levels = vec![level(open_below(top.as_fd(), c".")?, c".")?];
    while let depth = levels.len()
        && let Some(current) = levels.last_mut()
    {
        let Some(entry) = next_entry(&mut current.entries)? else {
            let Some(done) = levels.pop() else { break };
            if let Some(above) = levels.last() {
                match unlinkat(above.entries.fd()?, &done.name, AtFlags::REMOVEDIR) {
                    // A file system may leave entries out of a listing while it changes: look again.
                    Err(Errno::NOTEMPTY) => {
                        let again = open_below(above.entries.fd()?, &done.name)?;
                        levels.push(level(again, &done.name)?);
                    }
                    other => other?,
                }
            }
            continue;
        };
        let (name, kind) = entry;
        let here = current.entries.fd()?;
        if kind != FileType::Directory && kind != FileType::Unknown {
            unlinkat(here, &name, AtFlags::empty())?;
            continue;
        }
        match open_below(here, &name) {
            Err(Errno::NOTDIR | Errno::LOOP) => unlinkat(here, &name, AtFlags::empty())?,
            Err(error) => return Err(error),
            Ok(below) if depth < MAX_DEPTH => levels.push(level(below, &name)?),
            Ok(_) => move_up(here, &name, top, moved)?,
        }
    }
    Ok(())
}

fn next_entry(entries: &mut Dir) -> rustix::io::Result<Option<(CString, FileType)>> {
    for entry in entries {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Ok(Some((entry.file_name().to_owned(), entry.file_type())));
        }
    }
    Ok(None)
}

fn move_up(from: impl AsFd, name: &CStr, top: &OwnedFd, moved: &mut u64) -> rustix::io::Result<()> {
    loop {
        *moved += 1;
        match renameat(from.as_fd(), name, top, format!("deep-{moved}")) {
            // The sandbox has such a name itself.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_is_gone_and_what_its_links_point_to_is_not() {
        let outer = tempfile::tempdir().expect("temporary directory");
        let kept = outer.path().join("kept");
        fs::create_dir(&kept).expect("directory");
        fs::write(kept.join("file"), "precious").expect("file");
        let tree = outer.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c")).expect("directories");
        fs::write(tree.join("a/file"), "").expect("file");
        std::os::unix::fs::symlink(&kept, tree.join("a/link")).expect("link");
        std::os::unix::fs::symlink("/", tree.join("root")).expect("link");
        fs::hard_link(kept.join("file"), tree.join("hard")).expect("hard link");
        remove_tree(&tree).expect("removal");
        assert!(!tree.exists());
        assert_eq!(fs::read_to_string(kept.join("file")).expect("kept"), "precious");
        remove_tree(&tree).expect("a second removal");
        remove_tree(&tree.join("x/y")).expect("nothing to remove");
    }

    #[test]
    fn a_link_is_removed_itself() {
        let outer = tempfile::tempdir().expect("temporary directory");
        let link = outer.path().join("link");
        std::os::unix::fs::symlink("/usr", &link).expect("link");
        remove_tree(&link).expect("removal");
        assert!(fs::symlink_metadata(&link).is_err());
    }

    #[test]
    fn a_tree_deeper_than_any_path_or_descriptor_table_is_removed() {
        let outer = tempfile::tempdir().expect("temporary directory");
        let tree = outer.path().join("tree");
        fs::create_dir(&tree).expect("directory");
        let mut at = openat2(CWD, &tree, DIRECTORY, Mode::empty(), ResolveFlags::empty()).expect("open");
        for depth in 0..1000 {
            let name = if depth % 7 == 0 { "deep-1" } else { "a-directory-with-a-long-name" };
            mkdirat(&at, name, Mode::RWXU).expect("mkdir");
            mkdirat(&at, "beside", Mode::RWXU).expect("mkdir");
            at = openat2(&at, name, DIRECTORY, Mode::empty(), ResolveFlags::empty()).expect("open");
        }
        drop(at);
        remove_tree(&tree).expect("removal");
        assert!(!tree.exists());
    }
}
