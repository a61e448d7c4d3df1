//! What the daemon says to the spawner and to the shells it starts.
//!
//! A *shell* is the first process of a sandbox before it knows which: in namespaces and control groups of its own,
//! waiting on its control socket for a [`Plan`]. It ends when that socket is closed.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{fault::Fault, rootfs::RootPlan};

/// To the spawner: start a shell. With it come the shell's control socket and, where there is one, the version 2
/// control group it is to be born in.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// What id 0 inside is on the machine.
    pub first_id: u32,
    /// The version 1 control groups that it moves into.
    pub groups: Vec<PathBuf>,
}

/// From the spawner; with `Started` comes a descriptor of the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Started {
    /// The shell exists.
    Started {
        /// Its process id, as the spawner (and the daemon) sees it.
        pid: i32,
    },
    /// Nothing was started.
    Failed(Fault),
}

/// To a shell: what to become. With it come the descriptors of [`PlanFds`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The host name inside.
    pub hostname: String,
    /// The root file system.
    pub root: RootPlan,
    /// An upper bound of open files for the processes inside.
    pub max_open_files: u64,
}

/// The descriptors that come with a [`Plan`], in the order in which they are sent.
#[derive(Debug)]
pub(crate) struct PlanFds {
    /// The network namespace to join.
    pub netns: OwnedFd,
    /// Init's listening socket.
    pub socket: OwnedFd,
    /// What init reads its boot frame from.
    pub boot: OwnedFd,
    /// What a [`Fault`] or init's ready byte is written to.
    pub status: OwnedFd,
    /// The program of init.
    pub program: OwnedFd,
}

impl PlanFds {
    pub(super) fn borrow(&self) -> [BorrowedFd<'_>; 5] {
        [&self.netns, &self.socket, &self.boot, &self.status, &self.program].map(AsFd::as_fd)
    }

    pub(super) fn from_received(fds: Vec<OwnedFd>) -> Option<Self> {
        // Out of the numbers that init's own descriptors will get: these two are needed until the exec.
        let high = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE_FD).ok();
        let [netns, socket, boot, status, program] = fds.try_into().ok()?;
        Some(Self { netns, socket, boot, status: high(status)?, program: high(program)? })
    }
}

/// Above the descriptors that init expects.
const FIRST_FREE_FD: i32 = 16;

/// A directory of the machine that appears inside a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// The directory or file on the machine.
    pub source: PathBuf,
    /// Where it appears inside; absolute.
    pub target: PathBuf,
    /// Whether it cannot be written through.
    pub read_only: bool,
}
