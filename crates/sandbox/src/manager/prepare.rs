//! What a sandbox needs on the disk before its first process exists.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Seek as _},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use init_protocol::{Boot, ByteBuf, Configure};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::{
    client,
    error::SandboxError,
    ids::SandboxId,
    rootfs::{UPPER, USR_UPPER, USR_WORK, WORK},
};

/// The directory of one sandbox, and what is where in it.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

impl Directory {
    /// That of sandbox `id` below the directory of all sandboxes.
    pub(super) fn of(sandboxes: &Path, id: &str) -> Self {
        Self(sandboxes.join(id))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// What is written inside goes here.
    pub(super) fn writable(&self) -> PathBuf {
        self.0.join("fs")
    }

    /// Where the root is put together.
    pub(super) fn stage(&self) -> PathBuf {
        self.0.join("stage")
    }

    /// Where init listens.
    pub(super) fn socket(&self) -> PathBuf {
        self.0.join("init.sock")
    }

    /// Makes the directory with everything in it, and gives init's listening socket.
    pub(super) fn make(&self, id: &SandboxId, nameserver: &str) -> Result<OwnedFd, SandboxError> {
        let writable = self.writable();
        make(&self.0, 0o700)?;
        make(&self.stage(), 0o700)?;
        make(&writable, 0o700)?;
        // The upper directories are what `/` and `/usr` look like inside.
        for (name, mode) in [(UPPER, 0o755), (WORK, 0o700), (USR_UPPER, 0o755), (USR_WORK, 0o700)] {
            make(&writable.join(name), mode)?;
        }
        let etc = writable.join(UPPER).join("etc");
        make(&etc, 0o755)?;
        let hosts = format!("127.0.0.1 localhost {id}\n::1 localhost ip6-localhost ip6-loopback\n");
        let resolver = format!("nameserver {nameserver}\noptions edns0\n");
        for (name, text) in [("hostname", format!("{id}\n")), ("hosts", hosts), ("resolv.conf", resolver)] {
            let path = etc.join(name);
            let write = || {
                fs::write(&path, &text)?;
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644))
            };
            write().map_err(|source| failed("write", &path, source))?;
        }
        let socket = self.socket();
        let listener = client::listen(&socket).map_err(|source| failed("listen on", &socket, source))?;
        Ok(listener.into())
    }
}

/// What init reads when it starts, as a file in memory.
pub(super) fn boot_frame(configure: Configure, seccomp: &[ByteBuf]) -> Result<OwnedFd, SandboxError> {
    let boot = Boot { configure, seccomp: seccomp.to_vec() };
    let write = || {
        let mut file = File::from(memfd_create("boot", MemfdFlags::CLOEXEC)?);
        init_protocol::write_frame(&mut file, &boot).map_err(io::Error::other)?;
        file.rewind()?;
        Ok(file.into())
    };
    write().map_err(|source| failed("write", Path::new("the boot frame"), source))
}

/// Makes the directory that holds those of all sandboxes. Only root may enter it: what a sandbox writes can be
/// set-user-id, and is owned by the ids inside, as which root is root.
pub(super) fn make_private(path: &Path) -> Result<(), SandboxError> {
    fs::create_dir_all(path).map_err(|source| failed("make", path, source))?;
    let private = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    private.map_err(|source| failed("restrict access to", path, source))
}

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> SandboxError {
    SandboxError::Io { action, path: path.to_owned(), source }
}

fn make(path: &Path, mode: u32) -> Result<(), SandboxError> {
    // The mode again, because the umask is the daemon's caller's.
    let made = DirBuilder::new().mode(mode).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(|source| failed("make", path, source))
}
