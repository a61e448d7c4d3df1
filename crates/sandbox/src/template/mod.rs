//! Templates: the read-only layers that sandboxes start from.
//!
//! One directory per template, `<name>/{manifest.json, rootfs/}`, owned on disk by ids 0 to 65535. A template is
//! made in a hidden directory and renamed when it is complete. One that is replaced or removed stays, hidden,
//! while sandboxes use it: each user holds a shared lock on its directory.

mod archive;
mod debian;
mod error;
mod host;
mod oci;
mod root;

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use rustix::{
    fs::{CWD, FlockOperation, Mode, OFlags, flock, openat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

pub use error::TemplateError;

use crate::remove::remove_tree;
use error::Doing as _;

/// Takes the lines that a build says about its progress.
pub type Progress<'a> = &'a mut dyn FnMut(&str);

/// The templates this program can make by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// A skeleton with the machine's own `/usr` below. Made in a moment; the default of `bailiwick run`.
    Host,
    /// The machine's distribution with a shell, `curl`, `git` and certificates, from its packages.
    Base,
    /// As [`Self::Base`], with Python instead of `git`.
    Python,
    /// The same with Node.js, npm and npx.
    Node,
    /// With both: what servers of the Model Context Protocol are written in.
    McpServer,
}

impl Builtin {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Host, Self::Base, Self::Python, Self::Node, Self::McpServer];

    /// The template's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Base => "base",
            Self::Python => "python",
            Self::Node => "node",
            Self::McpServer => "mcp-server",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.name() == name)
    }
}

/// What a template says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this form: 1.
    pub version: u32,
    /// The template's name.
    pub name: String,
    /// What its root file system is made of.
    pub kind: TemplateKind,
    /// Where it came from, for people.
    pub source: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What a root file system is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateKind {
    /// A whole one.
    Rootfs,
    /// A skeleton; `/usr` is the machine's.
    Host,
}

/// A template, ready to be used and not to be deleted while this is held.
#[derive(Clone, Debug)]
pub struct Template {
    /// What it says about itself.
    pub manifest: Manifest,
    rootfs: PathBuf,
    _in_use: Arc<OwnedFd>,
}

impl Template {
    /// Its id in the API.
    pub fn id(&self) -> String {
        format!("{ID_PREFIX}{}", self.manifest.name)
    }

    pub(crate) fn layers(&self) -> Vec<PathBuf> {
        vec![self.rootfs.clone()]
    }

    pub(crate) fn usr(&self) -> Option<PathBuf> {
        (self.manifest.kind == TemplateKind::Host).then(|| PathBuf::from("/usr"))
    }
}

/// The directory that holds all templates.
#[derive(Clone, Debug)]
pub struct Templates {
    dir: PathBuf,
}

impl Templates {
    /// Opens the directory, which is made if it does not exist. Only root may enter it, because programs in it
    /// can be set-user-id root.
    pub fn open(dir: &Path) -> Result<Self, TemplateError> {
        fs::create_dir_all(dir).doing("make", dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).doing("restrict access to", dir)?;
        let dir = dir.canonicalize().doing("find", dir)?;
        Ok(Self { dir })
    }

    /// All that can be used, by name.
    pub fn list(&self) -> Result<Vec<Manifest>, TemplateError> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).doing("list", &self.dir)? {
            let name = entry.doing("list", &self.dir)?.file_name();
            if let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) {
                match self.get(name) {
                    Ok(template) => all.push(template.manifest),
                    // Removed meanwhile, or something that is none of ours.
                    Err(TemplateError::Unknown(_) | TemplateError::NotReady(_) | TemplateError::Name(_)) => {}
                    Err(other) => return Err(other),
                }
            }
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// The template of this name, or of the id `tpl-` and the name.
    ///
    /// # Errors
    /// [`TemplateError::NotReady`] for one of the [`Builtin`]s that has not been built;
    /// [`TemplateError::Unknown`] for any other that is not there.
    pub fn get(&self, name: &str) -> Result<Template, TemplateError> {
        let name = name.strip_prefix(ID_PREFIX).unwrap_or(name);
        if check_name(name).is_err() {
            return Err(TemplateError::Unknown(name.to_owned()));
        }
        let dir = self.dir.join(name);
        // Locked before it is looked at, so that it cannot be replaced and deleted in between.
        let lock = match lock(&dir, FlockOperation::NonBlockingLockShared) {
            Err(Errno::NOENT | Errno::NOTDIR) if Builtin::named(name).is_some() => {
                return Err(TemplateError::NotReady(name.to_owned()));
            }
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(TemplateError::Unknown(name.to_owned())),
            other => other.doing("lock", &dir)?,
        };
        let path = dir.join(MANIFEST);
        let manifest = fs::read(&path).doing("read", &path)?;
        let manifest = serde_json::from_slice(&manifest).map_err(io::Error::other).doing("read", &path)?;
        Ok(Template { manifest, rootfs: dir.join(ROOTFS), _in_use: Arc::new(lock) })
    }

    /// Makes one of the templates that this program knows how to make; replaces it when it exists.
    pub fn build(&self, builtin: Builtin, progress: Progress<'_>) -> Result<Manifest, TemplateError> {
        let kind = if builtin == Builtin::Host { TemplateKind::Host } else { TemplateKind::Rootfs };
        let source = match builtin {
            Builtin::Host => "this machine".to_owned(),
            Builtin::Base | Builtin::Python | Builtin::Node | Builtin::McpServer => {
                format!("packages of {}", debian::distribution())
            }
        };
        self.make(builtin.name(), kind, source, |dir| match builtin {
            Builtin::Host => host::build(&dir.join(ROOTFS)),
            Builtin::Base | Builtin::Python | Builtin::Node | Builtin::McpServer => {
                debian::build(builtin, dir, &dir.join(ROOTFS), progress)
            }
        })
    }

    /// Makes the `host` template if it does not exist or the machine's `/etc` is newer.
    pub fn ensure_host(&self) -> Result<(), TemplateError> {
        match self.get(Builtin::Host.name()) {
            Ok(template) if !host::is_outdated(template.manifest.created_at) => Ok(()),
            Ok(_) | Err(TemplateError::NotReady(_)) => self.build(Builtin::Host, &mut |_| ()).map(drop),
            Err(other) => Err(other),
        }
    }

    /// Makes a template from an archive of a root file system (tar, also compressed with gzip) or from a
    /// directory in the OCI image layout; replaces one of the same name.
    ///
    /// # Errors
    /// [`TemplateError::Archive`] when it is neither, or damaged, or tries to write outside of itself.
    pub fn import(&self, name: &str, path: &Path, progress: Progress<'_>) -> Result<Manifest, TemplateError> {
        check_name(name)?;
        if Builtin::named(name).is_some() {
            return Err(TemplateError::Name(name.to_owned()));
        }
        let source = path.display().to_string();
        self.make(name, TemplateKind::Rootfs, source, |dir| {
            let rootfs = dir.join(ROOTFS);
            if path.is_dir() {
                oci::unpack(path, &rootfs, progress)?;
            } else {
                archive::unpack_file(path, &rootfs, progress)?;
            }
            root::Root::open(&rootfs)?.complete()
        })
    }

    /// Removes a template; it stays on the disk while sandboxes use it. `false` when there was none.
    pub fn remove(&self, name: &str) -> Result<bool, TemplateError> {
        let name = name.strip_prefix(ID_PREFIX).unwrap_or(name);
        check_name(name)?;
        let retired = self.retire(name)?;
        self.sweep()?;
        Ok(retired)
    }

    /// Deletes what interrupted builds have left, and replaced templates that nobody uses any more. Gives their
    /// directories.
    pub fn sweep(&self) -> Result<Vec<PathBuf>, TemplateError> {
        let mut swept = Vec::new();
        for entry in fs::read_dir(&self.dir).doing("list", &self.dir)? {
            let path = entry.doing("list", &self.dir)?.path();
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if !hidden {
                continue;
            }
            match lock(&path, FlockOperation::NonBlockingLockExclusive) {
                Ok(_lock) => {
                    remove_tree(&path).map_err(TemplateError::Remove)?;
                    swept.push(path);
                }
                // In use, or swept by somebody else.
                Err(Errno::WOULDBLOCK | Errno::NOENT) => {}
                Err(error) => return Err(error).doing("lock", &path),
            }
        }
        Ok(swept)
    }

    /// Lets `fill` make a template in a hidden directory and gives it its name.
    fn make(
        &self,
        name: &str,
        kind: TemplateKind,
        source: String,
        fill: impl FnOnce(&Path) -> Result<(), TemplateError>,
    ) -> Result<Manifest, TemplateError> {
        let created_at = Timestamp::now();
        let dir = self.dir.join(format!(".building-{name}-{}", unique()));
        fs::create_dir(&dir).doing("make", &dir)?;
        let building = lock(&dir, FlockOperation::NonBlockingLockExclusive).doing("lock", &dir)?;
        let manifest = Manifest { version: 1, name: name.to_owned(), kind, source, created_at };
        let result = fs::create_dir(dir.join(ROOTFS))
            .doing("make", &dir)
            .and_then(|()| {
                fs::set_permissions(dir.join(ROOTFS), fs::Permissions::from_mode(0o755)).doing("open", &dir)
            })
            .and_then(|()| fill(&dir))
            .and_then(|()| write_manifest(&dir, &manifest))
            .and_then(|()| self.publish(&dir, name));
        drop(building);
        if result.is_err() {
            // What cannot be deleted now, the next sweep finds.
            let _ = remove_tree(&dir);
        }
        result?;
        self.sweep()?;
        Ok(manifest)
    }

    fn publish(&self, dir: &Path, name: &str) -> Result<(), TemplateError> {
        let target = self.dir.join(name);
        loop {
            match fs::rename(dir, &target) {
                // The target is a directory with something in it: the template that this one replaces.
                Err(error)
                    if matches!(Errno::from_io_error(&error), Some(Errno::NOTEMPTY | Errno::EXIST)) =>
                {
                    self.retire(name)?;
                }
                other => return other.doing("name", &target),
            }
        }
    }

    /// Hides a template. `false` when there is none.
    fn retire(&self, name: &str) -> Result<bool, TemplateError> {
        let path = self.dir.join(name);
        match fs::rename(&path, self.dir.join(format!(".old-{name}-{}", unique()))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            other => other.map(|()| true).doing("retire", &path),
        }
    }
}

const ID_PREFIX: &str = "tpl-";
const MANIFEST: &str = "manifest.json";
const ROOTFS: &str = "rootfs";

/// Letters, digits, `.`, `_`, `-`; the first a lower-case letter or digit; at most 64.
fn check_name(name: &str) -> Result<(), TemplateError> {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if first && name.len() <= 64 && name.bytes().all(rest) && !name.starts_with(ID_PREFIX) {
        Ok(())
    } else {
        Err(TemplateError::Name(name.to_owned()))
    }
}

fn lock(dir: &Path, operation: FlockOperation) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = openat(CWD, dir, flags, Mode::empty())?;
    flock(&fd, operation)?;
    Ok(fd)
}

fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), TemplateError> {
    let path = dir.join(MANIFEST);
    let text = serde_json::to_vec_pretty(manifest).map_err(io::Error::other).doing("write", &path)?;
    fs::write(&path, text).doing("write", &path)
}

fn unique() -> String {
    format!("{}-{}", std::process::id(), Timestamp::now().as_microsecond())
}
