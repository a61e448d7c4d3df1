//! What the daemon and the spawner say to each other: one packet each way per sandbox.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{fault::Fault, rootfs::RootPlan};

/// Everything a sandbox is made from. The descriptors that go with it are those of [`Fds`], in its order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The host name inside.
    pub hostname: String,
    /// What id 0 inside is on the machine.
    pub first_id: u32,
    /// The root file system.
    pub root: RootPlan,
    /// An upper bound of open files for the processes inside.
    pub max_open_files: u64,
}

/// The answer to a [`Request`]; with `Started` comes the descriptor of the process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// The process exists. Whether it gets as far as init, its status pipe says.
    Started {
        /// Its process id, as the spawner (and the daemon) sees it.
        pid: i32,
    },
    /// Nothing was started.
    Failed(Fault),
}

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

/// The longest packet either side accepts.
pub(crate) const MAX_PACKET: usize = 64 * 1024;

/// The descriptors that come with a [`Request`], in the order in which they are sent.
#[derive(Debug)]
pub(crate) struct Fds {
    /// The network namespace to join.
    pub netns: OwnedFd,
    /// Init's listening socket.
    pub socket: OwnedFd,
    /// What init reads its boot frame from.
    pub boot: OwnedFd,
    /// What a [`Fault`] or init's ready byte is written to.
    pub status: OwnedFd,
    /// The process waits for a byte on this before it becomes init; end of file ends it.
    pub go: OwnedFd,
    /// The program of init.
    pub program: OwnedFd,
    /// The control group of the version 2 tree to be born in.
    pub cgroup: Option<OwnedFd>,
}

/// Above the descriptors that init expects.
const FIRST_FREE_FD: i32 = 16;

impl Fds {
    /// How many there are at most.
    pub(crate) const MAX: usize = 7;

    pub(crate) fn borrow(&self) -> Vec<BorrowedFd<'_>> {
        let fixed = [&self.netns, &self.socket, &self.boot, &self.status, &self.go, &self.program];
        fixed.into_iter().chain(&self.cgroup).map(AsFd::as_fd).collect()
    }

    pub(crate) fn from_received(fds: impl IntoIterator<Item = OwnedFd>) -> Option<Self> {
        // Out of the numbers that init's own descriptors will get: these two are needed until the exec.
        let high = |fd: OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE_FD).ok();
        let mut fds = fds.into_iter();
        Some(Self {
            netns: fds.next()?,
            socket: fds.next()?,
            boot: fds.next()?,
            status: high(fds.next()?)?,
            go: fds.next()?,
            program: high(fds.next()?)?,
            cgroup: fds.next(),
        })
    }
}
