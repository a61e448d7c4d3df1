//! Stopping all processes of a sandbox, and letting them go on.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Cgroups, field, write};
use crate::fault::{Context as _, Fault};

/// How long processes may take to stand still: one that waits for a slow disk does so only after that.
const STOPPING: Duration = Duration::from_secs(10);

impl Cgroups {
    /// Stops every process. When this returns, none runs.
    ///
    /// # Errors
    /// When the machine has no version 2 tree, or a process does not stop in time: the others stand still then.
    pub(crate) fn freeze(&self) -> Result<(), Fault> {
        let Some(group) = self.version_2() else {
            return Err(Fault::new("pause", "it: this machine has no version 2 control groups"));
        };
        write(&group.path, "cgroup.freeze", "1")?;
        let events = group.path.join("cgroup.events");
        if wait_until_frozen(&events, STOPPING).during("watch", &events)? {
            return Ok(());
        }
        Err(Fault::new("pause", format!("it: a process has not stopped in {} s", STOPPING.as_secs())))
    }

    /// Lets every process go on, if they stand still.
    pub(crate) fn thaw(&self) -> Result<(), Fault> {
        // Without that tree they cannot have been stopped.
        self.version_2().map_or(Ok(()), |group| write(&group.path, "cgroup.freeze", "0"))
    }
}

/// Whether all stand still before the time is over. The kernel tells every change of the file.
fn wait_until_frozen(events: &Path, longest: Duration) -> io::Result<bool> {
    let end = Instant::now() + longest;
    let mut file = File::open(events)?;
    loop {
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text)?;
        if field(&text, "frozen") == 1 {
            return Ok(true);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
