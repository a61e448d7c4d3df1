//! PID 1 of a sandbox: runs commands, works on files, reaps.
//!
//! Started inside the sandbox's namespaces with three descriptors (see `init_protocol`): a listening socket, a
//! frame with its configuration, and a pipe on which it says that it serves. One thread reaps children, one
//! accepts connections, and every connection has a thread for its one operation: threads cost little, and a
//! file system that hangs holds up nobody else.

mod accounts;
mod children;
mod clock;
mod command;
mod connection;
mod failure;
mod files;
mod follow;
mod foreground;
mod harden;
mod kept;
mod leftovers;
mod log;
mod server;
mod session;
mod supervise;
mod workspace;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::sync::Arc;

use init_protocol::{BOOT_FD, Boot, CodecError, READY, READY_FD, SOCKET_FD};
use sys::process::take_inherited;

/// Why init could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// A descriptor that init must be started with is missing.
    #[error("descriptor {number}: {source}")]
    Descriptor { number: i32, source: io::Error },
    /// The configuration could not be read.
    #[error("configuration: {0}")]
    Boot(#[from] CodecError),
    /// The configuration is missing.
    #[error("configuration: end of file")]
    NoBoot,
    /// A right could not be given up, or a limit not set.
    #[error("{what}: {source}")]
    Harden { what: &'static str, source: io::Error },
    /// There must be a system call filter.
    #[error("configuration has no system call filter")]
    NoFilter,
    /// The accepting thread could not be started, or readiness not told.
    #[error("serve: {0}")]
    Serve(io::Error),
}

fn main() -> ExitCode {
    match start() {
        Ok(server) => server.reap(),
        Err(error) => {
            // Standard error is the daemon's log, if it wants one; there is nobody else to tell.
            let _ = writeln!(io::stderr(), "bailiwick-init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<Arc<server::Server>, StartError> {
    sys::process::share_one_heap();
    // Before any thread starts: all of them have to leave the signal to the reaper.
    sys::process::block_sigchld().map_err(|source| StartError::Harden { what: "block SIGCHLD", source })?;
    let (listener, boot, mut ready) = inherited()?;
    let limits = harden::harden(&boot.seccomp)?;
    if let Err(error) = workspace::make() {
        // Commands run all the same; those that want it make it, or say that they cannot.
        let _ = writeln!(io::stderr(), "bailiwick-init: /workspace: {error}");
    }
    let server = server::Server::start(listener, boot.configure, limits).map_err(StartError::Serve)?;
    ready.write_all(&[READY]).map_err(StartError::Serve)?;
    Ok(server)
}

/// Takes over what init was started with, and closes everything else.
fn inherited() -> Result<(UnixListener, Boot, File), StartError> {
    let take = |number| take_inherited(number).map_err(|source| StartError::Descriptor { number, source });
    let after = READY_FD.unsigned_abs() + 1;
    sys::process::close_inherited_from(after)
        .map_err(|source| StartError::Harden { what: "close descriptors", source })?;
    let listener = UnixListener::from(take(SOCKET_FD)?);
    let ready = File::from(take(READY_FD)?);
    let mut boot = File::from(take(BOOT_FD)?);
    let boot = init_protocol::read_frame(&mut boot)?.ok_or(StartError::NoBoot)?;
    Ok((listener, boot, ready))
}
