//! Root file systems from tar archives.
//!
//! An archive is somebody else's: its names, links and ids are theirs to choose, so the `tar` crate only reads
//! entries, and every file is made here by a path that resolves inside the root.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    os::fd::{AsFd as _, OwnedFd},
    path::{Component, Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat, fsetxattr,
        futimens, linkat, mkdirat, mknodat, openat, statat, symlinkat,
    },
    io::Errno,
};
use tar::{Archive, Entry, EntryType};

use super::{
    Progress,
    error::{Doing as _, TemplateError},
    root::{Root, set_owner_and_mode},
};
use crate::remove::remove_at;

/// Unpacks an archive, compressed with gzip or not, into the directory `rootfs`.
pub(super) fn unpack_file(path: &Path, rootfs: &Path, progress: Progress<'_>) -> Result<(), TemplateError> {
    let file = File::open(path).doing("open", path)?;
    let root = Root::open(rootfs)?;
    unpack(decompressed(file, path)?, path, &root, Layering::Single, progress)
}

/// How an archive relates to what is in the root already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layering {
    /// It is all there is.
    Single,
    /// It changes the layers before it, and whiteouts delete from them (OCI image specification, layers).
    Layer,
}

/// A reader of the archive in `file`, whichever of the known compressions it has.
pub(super) fn decompressed(mut file: File, path: &Path) -> Result<Box<dyn Read>, TemplateError> {
    let mut start = Vec::new();
    (&file).take(4).read_to_end(&mut start).doing("read", path)?;
    file.seek(SeekFrom::Start(0)).doing("read", path)?;
    let file = BufReader::with_capacity(1 << 16, file);
    match start.as_slice() {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] | [0xfd, b'7', b'z', b'X'] | [b'B', b'Z', b'h', _] => {
            Err(refuse(path, "is compressed with zstd, xz or bzip2; decompress it first, or use gzip"))
        }
        _ => Ok(Box::new(file)),
    }
}

/// Unpacks a tar stream; `source` is its name in errors.
pub(super) fn unpack(
    stream: impl Read,
    source: &Path,
    root: &Root,
    layering: Layering,
    progress: Progress<'_>,
) -> Result<(), TemplateError> {
    let mut unpacking = Unpacking { root, source, made: HashSet::new(), directories: Vec::new(), skipped: 0 };
    let damaged = |error: io::Error| refuse(source, &format!("cannot be read as a tar archive: {error}"));
    let mut archive = Archive::new(stream);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        unpacking.entry(&mut entry, layering)?;
    }
    unpacking.restore_directory_times();
    let Unpacking { made, skipped, .. } = unpacking;
    progress(&format!("unpacked {} entries of {}", made.len(), source.display()));
    if skipped > 0 {
        progress(&format!("left out {skipped} device files"));
    }
    if made.is_empty() && layering == Layering::Single {
        return Err(refuse(source, "has no entries"));
    }
    Ok(())
}

struct Unpacking<'a> {
    root: &'a Root,
    source: &'a Path,
    /// What this archive has made, so that a whiteout only takes away what others have.
    made: HashSet<PathBuf>,
    /// Modification times of directories, to be set when nothing is made in them any more.
    directories: Vec<(PathBuf, Timestamps)>,
    skipped: u64,
}

/// The prefix of names that stand for a deletion.
const WHITEOUT: &str = ".wh.";
/// The name that stands for the deletion of everything beside it.
const OPAQUE: &str = ".wh..wh..opq";
/// The largest id of a sandbox; owners beyond it become nobody.
const NOBODY: u32 = 65534;

impl Unpacking<'_> {
    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, layering: Layering) -> Result<(), TemplateError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        let path = entry.path().map_err(|error| refuse(self.source, &error.to_string()))?;
        let path = self.inside(&path)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The root itself: its owner and mode are given.
            return Ok(());
        };
        let parent_path = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let name = PathBuf::from(name);
        if layering == Layering::Layer
            && let Some(hidden) = name.to_str().filter(|name| name.starts_with(WHITEOUT))
        {
            return self.white_out(parent_path, hidden);
        }
        let parent = self.root.directory(parent_path)?;
        let made = self.make(entry, kind, &parent, &name).doing("unpack", &path)?;
        if let Made::Nothing = made {
            self.skipped += 1;
            return Ok(());
        }
        let times = modification_time(entry);
        match made {
            Made::Open(file) if kind == EntryType::Directory => {
                self.own(entry, &file, &path)?;
                self.directories.push((path.clone(), times));
            }
            Made::Open(file) => {
                self.own(entry, &file, &path)?;
                futimens(&file, &times).doing("set the time of", &path)?;
            }
            Made::Unopenable => {
                let (uid, gid) = owner(entry, self.source)?;
                let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                chownat(&parent, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .doing("give away", &path)?;
            }
            Made::Linked | Made::Nothing => {}
        }
        self.made.extend(path.ancestors().map(Path::to_owned));
        Ok(())
    }

    /// The path of an entry relative to the root, if it does not try to leave it.
    fn inside(&self, path: &Path) -> Result<PathBuf, TemplateError> {
        let mut inside = PathBuf::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => inside.push(name),
                Component::CurDir | Component::RootDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(refuse(
                        self.source,
                        &format!("has an entry outside of it: {}", path.display()),
                    ));
                }
            }
        }
        Ok(inside)
    }

    fn make(
        &self,
        entry: &mut Entry<'_, impl Read>,
        kind: EntryType,
        parent: &OwnedFd,
        name: &Path,
    ) -> io::Result<Made> {
        let existing = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error.into()),
        };
        let keep = kind == EntryType::Directory && existing == Some(FileType::Directory);
        if existing.is_some() && !keep {
            let name = std::ffi::CString::new(name.as_os_str().as_encoded_bytes())?;
            remove_at(parent.as_fd(), &name)?;
        }
        let link = |entry: &Entry<'_, _>| {
            let target = entry.link_name()?.map(std::borrow::Cow::into_owned);
            target.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a link without a target"))
        };
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                let mut file = File::from(openat(parent, name, flags, Mode::RUSR | Mode::WUSR)?);
                io::copy(entry, &mut file)?;
                Ok(Made::Open(file.into()))
            }
            EntryType::Directory => {
                if !keep {
                    mkdirat(parent, name, Mode::RWXU)?;
                }
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                Ok(Made::Open(openat(parent, name, flags, Mode::empty())?))
            }
            EntryType::Symlink => {
                symlinkat(link(entry)?, parent, name)?;
                Ok(Made::Unopenable)
            }
            EntryType::Link => {
                let target = self.inside(&link(entry)?).map_err(io::Error::other)?;
                let target = self.root.open_at(&target, OFlags::PATH | OFlags::NOFOLLOW, 0)?;
                linkat(&target, "", parent, name, AtFlags::EMPTY_PATH)?;
                Ok(Made::Linked)
            }
            EntryType::Fifo => {
                mknodat(parent, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                Ok(Made::Unopenable)
            }
            EntryType::Char | EntryType::Block => Ok(Made::Nothing),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("an entry of type {other:?}"))),
        }
    }

    /// Owner, mode and extended attributes of an open file or directory.
    fn own(
        &self,
        entry: &mut Entry<'_, impl Read>,
        file: &OwnedFd,
        path: &Path,
    ) -> Result<(), TemplateError> {
        let (uid, gid) = owner(entry, self.source)?;
        let mode = entry.header().mode().map_err(|error| refuse(self.source, &error.to_string()))?;
        set_owner_and_mode(file, uid, gid, mode & 0o7777).doing("set the owner and mode of", path)?;
        let Ok(Some(extensions)) = entry.pax_extensions() else { return Ok(()) };
        for extension in extensions.filter_map(Result::ok) {
            let name = extension.key().ok().and_then(|key| key.strip_prefix("SCHILY.xattr."));
            // Others would speak to the overlay, or to a security module of this machine.
            if let Some(name) =
                name.filter(|name| *name == "security.capability" || name.starts_with("user."))
            {
                fsetxattr(file, name, extension.value_bytes(), XattrFlags::empty())
                    .doing("set an attribute of", path)?;
            }
        }
        Ok(())
    }

    /// Deletes what the name of a whiteout stands for.
    fn white_out(&self, parent_path: &Path, name: &str) -> Result<(), TemplateError> {
        let parent = match self.root.open_at(parent_path, OFlags::RDONLY | OFlags::DIRECTORY, 0) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            other => other.doing("open", parent_path)?,
        };
        let remove = |name: &std::ffi::CStr| match remove_at(parent.as_fd(), name) {
            Err(error) if error != Errno::NOENT => Err(error).doing("delete in", parent_path),
            _ => Ok(()),
        };
        if name == OPAQUE {
            let below = parent_path.strip_prefix(".").unwrap_or(parent_path);
            let entries = rustix::fs::Dir::read_from(&parent).doing("list", parent_path)?;
            for entry in entries {
                let entry = entry.doing("list", parent_path)?;
                let name = entry.file_name();
                let path = below.join(Path::new(&*name.to_string_lossy()));
                if name != c"." && name != c".." && !self.made.contains(&path) {
                    remove(name)?;
                }
            }
            return Ok(());
        }
        let hidden = name.strip_prefix(WHITEOUT).unwrap_or_default();
        if hidden.is_empty() || hidden == "." || hidden == ".." || hidden.starts_with(WHITEOUT) {
            return Ok(());
        }
        remove(&std::ffi::CString::new(hidden).map_err(io::Error::other).doing("delete", hidden)?)
    }

    fn restore_directory_times(&self) {
        for (path, times) in &self.directories {
            // A later entry may have replaced it; a time is not worth a failure.
            if let Ok(directory) = self.root.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY, 0) {
                let _ = futimens(directory, times);
            }
        }
    }
}

enum Made {
    /// A file or directory, open.
    Open(OwnedFd),
    /// Something that is not to be opened.
    Unopenable,
    /// Another name of a file that has its owner already.
    Linked,
    /// Nothing: device files do not work in a sandbox.
    Nothing,
}

fn owner<R: Read>(entry: &Entry<'_, R>, source: &Path) -> Result<(u32, u32), TemplateError> {
    let damaged = |error: io::Error| refuse(source, &error.to_string());
    let known =
        |id: u64| u32::try_from(id).ok().filter(|id| *id < crate::ids::IDS_PER_SANDBOX).unwrap_or(NOBODY);
    let header = entry.header();
    Ok((known(header.uid().map_err(damaged)?), known(header.gid().map_err(damaged)?)))
}

fn modification_time<R: Read>(entry: &Entry<'_, R>) -> Timestamps {
    let seconds = entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

pub(super) fn refuse(path: &Path, detail: &str) -> TemplateError {
    TemplateError::Archive { path: path.to_owned(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, symlink},
    };

    use tar::{Builder, Header};

    use super::*;

    fn header(kind: EntryType, mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000);
        header.set_size(size);
        header
    }

    fn file(archive: &mut Builder<Vec<u8>>, path: &str, text: &str) {
        let mut header = header(EntryType::Regular, 0o4755, text.len() as u64);
        // Set without the checks of the crate, which refuses to write what is to be refused.
        let name = header.as_gnu_mut().expect("gnu header");
        name.name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        archive.append(&header, text.as_bytes()).expect("append");
    }

    fn link(archive: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, target: &str) {
        archive.append_link(&mut header(kind, 0o777, 0), path, target).expect("append");
    }

    fn unpack_into(dir: &Path, archive: Builder<Vec<u8>>, layering: Layering) -> Result<(), TemplateError> {
        let bytes = archive.into_inner().expect("archive");
        let root = Root::open(dir).expect("root");
        unpack(bytes.as_slice(), Path::new("test.tar"), &root, layering, &mut |_| ())
    }

    #[test]
    fn owners_modes_and_links_are_kept() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut archive = Builder::new(Vec::new());
        file(&mut archive, "./usr/bin/tool", "text");
        link(&mut archive, EntryType::Symlink, "bin", "usr/bin");
        link(&mut archive, EntryType::Link, "usr/bin/again", "usr/bin/tool");
        // Through a link, as later layers of images often do.
        file(&mut archive, "bin/other", "other");
        unpack_into(dir.path(), archive, Layering::Single).expect("unpacked");
        let tool = fs::metadata(dir.path().join("usr/bin/tool")).expect("tool");
        assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777, tool.mtime()), (7, 8, 0o4755, 1_000_000));
        assert_eq!(tool.nlink(), 2);
        assert_eq!(fs::read_to_string(dir.path().join("usr/bin/other")).expect("other"), "other");
    }

    #[test]
    fn an_entry_that_leaves_the_root_is_refused() {
        for path in ["../escape", "a/../../escape", "/../escape"] {
            let outer = tempfile::tempdir().expect("temporary directory");
            let dir = outer.path().join("root");
            fs::create_dir(&dir).expect("directory");
            let mut archive = Builder::new(Vec::new());
            file(&mut archive, path, "x");
            let refused = unpack_into(&dir, archive, Layering::Single);
            assert!(matches!(refused, Err(TemplateError::Archive { .. })), "{path}: {refused:?}");
            assert!(!outer.path().join("escape").exists());
        }
    }

    #[test]
    fn a_link_that_leads_out_leads_nowhere() {
        let outside = tempfile::tempdir().expect("temporary directory");
        fs::write(outside.path().join("secret"), "secret").expect("file");
        let dir = tempfile::tempdir().expect("temporary directory");
        let target = outside.path().display().to_string();
        let mut archive = Builder::new(Vec::new());
        link(&mut archive, EntryType::Symlink, "out", &target);
        file(&mut archive, "out/file", "x");
        let _ = unpack_into(dir.path(), archive, Layering::Single);
        let mut archive = Builder::new(Vec::new());
        link(&mut archive, EntryType::Symlink, "out", &target);
        link(&mut archive, EntryType::Link, "stolen", "out/secret");
        assert!(unpack_into(dir.path(), archive, Layering::Single).is_err());
        assert_eq!(fs::read_dir(outside.path()).expect("outside").count(), 1);
        assert!(!dir.path().join("stolen").exists());
    }

    #[test]
    fn an_entry_replaces_a_link_and_not_what_it_points_to() {
        let dir = tempfile::tempdir().expect("temporary directory");
        fs::write(dir.path().join("real"), "real").expect("file");
        symlink("real", dir.path().join("name")).expect("link");
        let mut archive = Builder::new(Vec::new());
        file(&mut archive, "name", "new");
        unpack_into(dir.path(), archive, Layering::Single).expect("unpacked");
        assert_eq!(fs::read_to_string(dir.path().join("real")).expect("real"), "real");
        assert_eq!(fs::read_to_string(dir.path().join("name")).expect("name"), "new");
    }

    #[test]
    fn a_layer_deletes_from_those_below_and_nothing_of_its_own() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for path in ["a/old", "b/old", "b/deep/old"] {
            fs::create_dir_all(dir.path().join(path).parent().expect("parent")).expect("directory");
            fs::write(dir.path().join(path), "").expect("file");
        }
        let mut archive = Builder::new(Vec::new());
        file(&mut archive, "a/.wh.old", "");
        file(&mut archive, "b/new", "");
        file(&mut archive, "b/.wh..wh..opq", "");
        file(&mut archive, "c/.wh.absent", "");
        unpack_into(dir.path(), archive, Layering::Layer).expect("unpacked");
        let exists = |path: &str| dir.path().join(path).exists();
        assert!(!exists("a/old") && !exists("b/old") && !exists("b/deep") && exists("b/new"));
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = Root::open(dir.path()).expect("root");
        for bytes in [&b"this is not a tar archive at all"[..], &[0xff; 2048], &[]] {
            let refused = unpack(bytes, Path::new("x"), &root, Layering::Single, &mut |_| ());
            assert!(matches!(refused, Err(TemplateError::Archive { .. })), "{refused:?}");
        }
    }
}
