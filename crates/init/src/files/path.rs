//! Paths: their form, and how they are opened.

use std::os::fd::{AsFd, OwnedFd};

use init_protocol::{Failure, FailureKind, MAX_PATH};
use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, Stat};
use rustix::io::Errno;
use rustix::path::Arg;

use crate::accounts::Account;
use crate::failure::{Result, failure};

/// The absolute path for what a request says: relative paths start at the user's home.
///
/// # Errors
/// [`FailureKind::InvalidPath`].
pub(crate) fn absolute(account: &Account, path: &str) -> Result<String> {
    if path.is_empty() {
        return Err(invalid("the path is empty"));
    }
    if path.contains('\0') {
        return Err(invalid("the path contains NUL"));
    }
    let path = match path.strip_prefix('/') {
        Some(_) => path.to_owned(),
        None => format!("{}/{path}", account.home.trim_end_matches('/')),
    };
    if path.len() >= MAX_PATH {
        return Err(invalid(format!("a path may have {} bytes, this one has {}", MAX_PATH - 1, path.len())));
    }
    Ok(path)
}

/// What is at a path, following symbolic links.
pub(super) fn locate(path: &str) -> Result<Stat> {
    locate_with(path, OFlags::empty())
}

/// What is at a path, and a symbolic link itself if it is one.
pub(super) fn locate_link(path: &str) -> Result<Stat> {
    locate_with(path, OFlags::NOFOLLOW)
}

fn locate_with(path: &str, flags: OFlags) -> Result<Stat> {
    let fd = open(CWD, path, OFlags::PATH | flags).map_err(|error| failure(path, error))?;
    outside_init(&fd, path)?;
    rustix::fs::fstat(&fd).map_err(|error| failure(path, error))
}

/// Opens something relative to a directory, without magic links, without waiting for the other side of a FIFO
/// and without gaining a terminal.
pub(super) fn open(directory: impl AsFd, path: impl Arg, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    // With O_PATH the kernel takes hardly any other flag.
    let more = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK | OFlags::NOCTTY };
    rustix::fs::openat2(directory, path, flags | more, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

/// Refuses init's own files in procfs: a thread of init may read them, whoever it works for.
pub(super) fn outside_init(fd: &OwnedFd, path: &str) -> Result<()> {
    if !is_procfs(fd) {
        return Ok(());
    }
    let number = std::os::fd::AsRawFd::as_raw_fd(fd);
    let real = rustix::fs::readlink(format!("/proc/thread-self/fd/{number}"), Vec::new());
    let real = real.map_err(|error| failure(path, error))?;
    let own = format!("/proc/{}", std::process::id());
    let rest = real.to_bytes().strip_prefix(own.as_bytes());
    if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/")) {
        return Err(failure(path, Errno::ACCESS));
    }
    Ok(())
}

/// Whether something is in procfs, where names are not files.
pub(super) fn is_procfs(fd: impl AsFd) -> bool {
    rustix::fs::fstatfs(fd).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC)
}

/// A directory and a name in it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) directory: OwnedFd,
    pub(super) name: String,
}

/// The directory of a path and the last component, which need not exist.
///
/// # Errors
/// [`FailureKind::InvalidPath`] when the path ends in the root directory, `.` or `..`; what opening the
/// directory gives.
pub(super) fn place(path: &str) -> Result<Place> {
    let (parent, name) = split(path)?;
    let directory =
        open(CWD, parent, OFlags::PATH | OFlags::DIRECTORY).map_err(|error| failure(path, error))?;
    outside_init(&directory, path)?;
    Ok(Place { directory, name: name.to_owned() })
}

/// Like [`place`], making missing directories.
pub(super) fn ensure_place(path: &str) -> Result<Place> {
    let (parent, name) = split(path)?;
    let (directory, _) = ensure_directory(parent)?;
    Ok(Place { directory, name: name.to_owned() })
}

/// Parent and last component of an absolute path.
pub(super) fn split(path: &str) -> Result<(&str, &str)> {
    let trimmed = path.trim_end_matches('/');
    let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", ""));
    match name {
        "" | "." | ".." => Err(invalid(format!("{path:?} does not end in a name"))),
        _ => Ok((if parent.is_empty() { "/" } else { parent }, name)),
    }
}

/// Opens a directory, making it and its parents where they are missing; whether it was missing.
pub(super) fn ensure_directory(path: &str) -> Result<(OwnedFd, bool)> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    match open(CWD, path, flags) {
        Ok(directory) => return outside_init(&directory, path).map(|()| (directory, false)),
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failure(path, error)),
    }
    let mut directory = open(CWD, "/", flags).map_err(|error| failure(path, error))?;
    let mut created = false;
    for component in path.split('/').filter(|component| !component.is_empty()) {
        let step = open(&directory, component, flags).or_else(|error| match error {
            Errno::NOENT => {
                match rustix::fs::mkdirat(&directory, component, Mode::from_raw_mode(0o777)) {
                    Ok(()) => created = true,
                    // Somebody was faster, or it is a link that leads nowhere.
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                open(&directory, component, flags)
            }
            error => Err(error),
        });
        directory = step.map_err(|error| failure(path, error))?;
    }
    outside_init(&directory, path)?;
    Ok((directory, created))
}

/// A path that cannot be used for what is asked.
pub(super) fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::InvalidPath, message)
}

/// Whether a failure says that there is nothing at the path.
pub(super) fn is_absent(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::NotFound | FailureKind::NotDirectory)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sys::process::Credentials;

    use super::*;

    fn user() -> Account {
        Account {
            name: "user".into(),
            credentials: Credentials { uid: 1000, gid: 1000, groups: vec![] },
            home: "/home/user".into(),
            shell: "/bin/sh".into(),
        }
    }

    #[test]
    fn relative_paths_start_at_home_and_absolute_ones_stay_as_they_are() {
        assert_eq!(absolute(&user(), "a/b").unwrap(), "/home/user/a/b");
        assert_eq!(absolute(&user(), "/a/../b").unwrap(), "/a/../b");
        let root = Account { home: "/".into(), ..user() };
        assert_eq!(absolute(&root, "a").unwrap(), "/a");
    }

    #[test]
    fn empty_and_overlong_paths_and_nul_are_invalid() {
        let fits = format!("/{}", "a".repeat(MAX_PATH - 2));
        assert!(absolute(&user(), &fits).is_ok());
        for path in ["", "a\0b", &format!("{fits}a"), &"a/".repeat(MAX_PATH)] {
            assert_eq!(absolute(&user(), path).unwrap_err().kind, FailureKind::InvalidPath);
        }
    }

    #[test]
    fn a_path_is_split_into_directory_and_name() {
        assert_eq!(split("/a/b/c//").unwrap(), ("/a/b", "c"));
        assert_eq!(split("/a").unwrap(), ("/", "a"));
        for path in ["/", "//", "/a/..", "/a/.", "/.."] {
            assert_eq!(split(path).unwrap_err().kind, FailureKind::InvalidPath, "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_absolute_and_short_enough(path in "(\\PC|[/.]){0,80}") {
            if let Ok(path) = absolute(&user(), &path) {
                prop_assert!(path.starts_with('/') && path.len() < MAX_PATH && !path.contains('\0'));
                if let Ok((parent, name)) = split(&path) {
                    prop_assert!(parent.starts_with('/') && !name.is_empty() && !name.contains('/'));
                }
            }
        }
    }
}
