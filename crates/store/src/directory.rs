//! The data directory: private to its owner, and one process at a time.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{DATABASE, LOCK, StoreError};

const PRIVATE_DIR: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
const OTHERS: u32 = 0o077;

/// The lock on a data directory. It belongs to the open file, so the kernel releases it when the process ends,
/// however it ends.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: File,
}

impl DirectoryLock {
    pub(crate) fn take(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(LOCK);
        let mut file = private_options().open(&path).map_err(failed("open", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::Locked { dir: dir.to_owned(), pid: holder(&mut file) });
            }
            Err(TryLockError::Error(source)) => return Err(failed("lock", &path)(source)),
        }
        write_pid(&mut file).map_err(failed("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// Makes `dir` with mode 0700, or checks that it has it.
///
/// An existing directory is tightened only if it is empty or already a data directory: a mistyped `/tmp` must not
/// be closed to the rest of the machine.
pub(crate) fn make_private(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(PRIVATE_DIR).create(dir).map_err(failed("create", dir))?;
    let mode = fs::metadata(dir).map_err(failed("inspect", dir))?.mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    if !dir.join(DATABASE).exists() && fs::read_dir(dir).map_err(failed("read", dir))?.next().is_some() {
        return Err(StoreError::NotPrivate { dir: dir.to_owned(), mode });
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(PRIVATE_DIR)).map_err(failed("set the mode of", dir))
}

/// Makes sure that `path` exists with mode 0600. SQLite gives its log files the mode of the database.
pub(crate) fn create_private_file(path: &Path) -> Result<(), StoreError> {
    let file = private_options().open(path).map_err(failed("open", path))?;
    file.set_permissions(fs::Permissions::from_mode(PRIVATE_FILE)).map_err(failed("set the mode of", path))
}

/// Opens `path` to append to it; made with mode 0600 if it is not there.
pub(crate) fn open_log(path: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(PRIVATE_FILE);
    options.open(path).map_err(failed("open", path))
}

fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(PRIVATE_FILE);
    options
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// The process that holds the lock, if it has written its number yet.
fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path: PathBuf = path.to_owned();
    move |source| StoreError::File { action, path, source }
}
