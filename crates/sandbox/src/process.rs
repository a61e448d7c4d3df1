//! The init process of a sandbox, seen from outside: exactly that process, even across a restart of the daemon.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

/// What tells a process from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessIdentity {
    /// Its number.
    pub pid: i32,
    /// When it started, in the kernel's ticks since the machine did.
    pub start_time: u64,
    /// Which start of the machine that was.
    pub boot_id: String,
}

/// A process that can be waited for and killed without mistaking another one for it.
#[derive(Debug)]
pub(crate) struct Process {
    identity: ProcessIdentity,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Takes over a process just started.
    pub(crate) fn new(pid: Pid, pidfd: OwnedFd) -> io::Result<Self> {
        let pid = pid.as_raw_nonzero().get();
        let identity = ProcessIdentity { pid, start_time: start_time(pid)?, boot_id: boot_id()? };
        Ok(Self { identity, pidfd: watched(pidfd)? })
    }

    /// The process of an earlier daemon, if it still runs.
    pub(crate) fn find(identity: &ProcessIdentity) -> io::Result<Option<Self>> {
        let Some(pid) =
            Pid::from_raw(identity.pid).filter(|_| boot_id().ok().as_ref() == Some(&identity.boot_id))
        else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            other => other?,
        };
        // Opened first and compared then: the number cannot pass to another process in between.
        match start_time(identity.pid) {
            Ok(start_time) if start_time == identity.start_time && !has_ended(&pidfd) => {
                Ok(Some(Self { identity: identity.clone(), pidfd: watched(pidfd)? }))
            }
            _ => Ok(None),
        }
    }

    pub(crate) fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Kills it. That it has ended already is no failure.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it has ended. As the first process of its pid namespace it ends as the last of them.
    pub(crate) async fn ended(&self) {
        let ended = |pidfd: &OwnedFd| {
            if has_ended(pidfd) { Ok(()) } else { Err(io::Error::from(io::ErrorKind::WouldBlock)) }
        };
        // The only error is that of a runtime shutting down, and then nobody waits any more.
        let _ = self.pidfd.async_io(Interest::READABLE, ended).await;
    }

    /// A descriptor of the network namespace it is in.
    pub(crate) fn network_namespace(&self) -> io::Result<OwnedFd> {
        let namespace = fs::File::open(format!("/proc/{}/ns/net", self.identity.pid))?.into();
        // Whoever has the number now, if it has ended meanwhile, is not meant.
        if has_ended(self.pidfd.get_ref()) { Err(io::ErrorKind::NotFound.into()) } else { Ok(namespace) }
    }
}

#[expect(
    deprecated,
    reason = "its replacement is unsafe to call; an owned descriptor is what makes it sound"
)]
fn watched(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

fn has_ended(pidfd: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)). The second one is in parentheses and may contain anything.
fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let field = || stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok();
    field().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the start time of a process"))
}

/// Which start of the machine this is.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_types, reason = "a process to look at")]
    fn sleeper() -> std::process::Child {
        std::process::Command::new("sleep").arg("1000").spawn().expect("sleep")
    }

    #[tokio::test]
    async fn a_process_is_found_again_and_its_end_is_noticed() {
        let mut child = sleeper();
        let pid = Pid::from_child(&child);
        let process =
            Process::new(pid, pidfd_open(pid, PidfdFlags::empty()).expect("pidfd")).expect("process");
        let identity = process.identity().clone();
        assert!(Process::find(&identity).expect("look").is_some());
        let earlier = ProcessIdentity { start_time: identity.start_time - 1, ..identity.clone() };
        assert!(Process::find(&earlier).expect("look").is_none(), "another process had the number");
        let other_boot = ProcessIdentity { boot_id: "x".to_owned(), ..identity.clone() };
        assert!(Process::find(&other_boot).expect("look").is_none());
        process.kill().expect("kill");
        process.ended().await;
        assert!(Process::find(&identity).expect("look").is_none(), "a zombie has ended");
        child.wait().expect("wait");
        process.kill().expect("killing what has ended");
        assert!(Process::find(&identity).expect("look").is_none());
    }
}
