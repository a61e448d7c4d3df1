//! Working inside a root file system that somebody else has made: no path leads out of it, whatever links it has.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, mkdirat, openat, openat2,
    },
    io::Errno,
};

use super::error::{Doing as _, TemplateError};

/// The user that commands run as unless they say otherwise.
pub(super) const USER: &str = "user";
/// Its home.
pub(super) const HOME: &str = "/home/user";
/// Its id, where the template does not use it for somebody else.
pub(super) const USER_ID: u32 = 1000;

/// An open root file system.
pub(super) struct Root {
    fd: OwnedFd,
    /// Where it is, for errors.
    path: PathBuf,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self, TemplateError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).doing("open", path)?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens a path; links resolve as they will in the sandbox.
    pub(super) fn open_at(&self, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
        let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode), inside)
    }

    /// The directory at a path, and those leading to it, made with the mode 755 where they are missing.
    pub(super) fn directory(&self, path: &Path) -> Result<OwnedFd, TemplateError> {
        const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
        match self.open_at(path, DIRECTORY, 0) {
            Err(Errno::NOENT) => {}
            other => return other.doing("open", self.path.join(path)),
        }
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
            let parent =
                self.directory(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })?;
            mkdirat(&parent, name, Mode::from_raw_mode(0o755)).doing("make", self.path.join(path))?;
            let made = openat(&parent, name, DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty());
            return made.doing("open", self.path.join(path));
        }
        Err(Errno::NOENT).doing("open", self.path.join(path))
    }

    /// A directory with this mode, made or changed.
    pub(super) fn directory_with_mode(&self, path: &str, mode: u32) -> Result<(), TemplateError> {
        self.directory(Path::new(path))?;
        let directory = self.open_at(Path::new(path), OFlags::RDONLY | OFlags::DIRECTORY, 0);
        directory.and_then(|fd| fchmod(fd, Mode::from_raw_mode(mode))).doing("make", self.path.join(path))
    }

    /// The text of a file; empty when there is none.
    pub(super) fn read(&self, path: &str) -> Result<String, TemplateError> {
        let fd = match self.open_at(Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK, 0) {
            Err(Errno::NOENT) => return Ok(String::new()),
            other => other.doing("open", self.path.join(path))?,
        };
        let mut text = String::new();
        File::from(fd).take(MAX_TEXT).read_to_string(&mut text).doing("read", self.path.join(path))?;
        Ok(text)
    }

    /// Writes a text file owned by root.
    pub(super) fn write(&self, path: &str, mode: u32, text: &str) -> Result<(), TemplateError> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NONBLOCK;
        let fd = self.open_at(Path::new(path), flags, mode).doing("make", self.path.join(path))?;
        File::from(fd).write_all(text.as_bytes()).doing("write", self.path.join(path))
    }

    /// Adds what every sandbox relies on and a template may lack: the user, its home, mount points.
    pub(super) fn complete(&self) -> Result<(), TemplateError> {
        for (path, mode) in [
            ("dev", 0o755),
            ("proc", 0o555),
            ("sys", 0o555),
            ("etc", 0o755),
            ("tmp", 0o1777),
            ("root", 0o700),
        ] {
            self.directory_with_mode(path, mode)?;
        }
        let id = self.add_user()?;
        let home = self.directory(Path::new(HOME.trim_start_matches('/')))?;
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        chownat(home.as_fd(), "", Some(uid), Some(gid), AtFlags::EMPTY_PATH).doing("give away", HOME)
    }

    /// Adds the user to the password and group files unless it is there. Gives its id.
    fn add_user(&self) -> Result<u32, TemplateError> {
        let passwd = self.read("etc/passwd")?;
        let group = self.read("etc/group")?;
        if let Some(id) = id_of(&passwd, USER) {
            return Ok(id);
        }
        // Images often have a user 1000 of another name.
        let taken = |id: u32| has_id(&passwd, id) || has_id(&group, id);
        let id = (USER_ID..60_000).find(|&id| !taken(id)).unwrap_or(USER_ID);
        let has_bash = self.open_at(Path::new("bin/bash"), OFlags::PATH, 0).is_ok();
        let shell = if has_bash { "/bin/bash" } else { "/bin/sh" };
        let root = if id_of(&passwd, "root").is_none() { "root:x:0:0:root:/root:/bin/sh\n" } else { "" };
        let with = |old: &str, line: &str| {
            let separator = if old.is_empty() || old.ends_with('\n') { "" } else { "\n" };
            format!("{old}{separator}{line}")
        };
        let entry = format!("{root}{USER}:x:{id}:{id}::{HOME}:{shell}\n");
        self.write("etc/passwd", 0o644, &with(&passwd, &entry))?;
        if id_of(&group, USER).is_none() {
            self.write("etc/group", 0o644, &with(&group, &format!("{USER}:x:{id}:\n")))?;
        }
        let shadow = self.read("etc/shadow")?;
        self.write("etc/shadow", 0o640, &with(&shadow, &format!("{USER}:!:::::::\n")))?;
        Ok(id)
    }
}

/// Owner and mode of an open file; the owner first, because changing it clears set-id bits.
pub(super) fn set_owner_and_mode(file: &OwnedFd, uid: u32, gid: u32, mode: u32) -> Result<(), Errno> {
    fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    fchmod(file, Mode::from_raw_mode(mode))
}

/// The longest text file that is read: password and group files are small.
const MAX_TEXT: u64 = 1 << 20;

/// The id of a name in a password or group file.
fn id_of(text: &str, name: &str) -> Option<u32> {
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    fields.filter(|fields| fields.first() == Some(&name)).find_map(|fields| fields.get(2)?.parse().ok())
}

fn has_id(text: &str, id: u32) -> bool {
    text.lines().any(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(id))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    fn new() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = Root::open(dir.path()).expect("root");
        (dir, root)
    }

    #[test]
    fn a_bare_root_gets_a_user_with_a_home() {
        let (dir, root) = new();
        root.complete().expect("complete");
        root.complete().expect("a second time changes nothing");
        let passwd = root.read("etc/passwd").expect("passwd");
        assert_eq!(passwd, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n");
        let home = std::fs::metadata(dir.path().join("home/user")).expect("home");
        assert_eq!((home.uid(), home.gid()), (1000, 1000));
    }

    #[test]
    fn a_user_1000_of_another_name_stays_and_ours_gets_the_next_id() {
        let (_dir, root) = new();
        root.directory(Path::new("etc")).expect("etc");
        root.write("etc/passwd", 0o644, "node:x:1000:1000::/home/node:/bin/sh").expect("passwd");
        root.complete().expect("complete");
        let passwd = root.read("etc/passwd").expect("passwd");
        assert!(passwd.starts_with("node:x:1000:1000::/home/node:/bin/sh\nroot:x:0:0:"), "{passwd}");
        assert!(passwd.ends_with("user:x:1001:1001::/home/user:/bin/sh\n"), "{passwd}");
    }

    #[test]
    fn links_that_lead_out_of_the_root_lead_back_into_it() {
        let outside = tempfile::tempdir().expect("temporary directory");
        let (dir, root) = new();
        symlink(outside.path(), dir.path().join("etc")).expect("link");
        symlink("../../../..", dir.path().join("up")).expect("link");
        let _ = root.directory(Path::new("etc/x"));
        let _ = root.directory(Path::new("up/y")).expect("inside");
        assert!(dir.path().join("y").is_dir());
        assert_eq!(std::fs::read_dir(outside.path()).expect("outside").count(), 0);
    }
}
