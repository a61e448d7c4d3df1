//! Reaping children, and telling those who wait how their child ended.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process_group, wait};
use sys::process::{Child, Spawn, SpawnError};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Its exit status; 128 + n after death by signal n.
    pub(crate) code: i32,
    /// The signal that killed it.
    pub(crate) signal: Option<i32>,
}

/// A place where the end of one process will be known.
#[derive(Debug, Default)]
pub(crate) struct ExitSlot {
    ended: Mutex<Option<Ended>>,
    told: Condvar,
}

impl ExitSlot {
    /// Waits for the end.
    pub(crate) fn wait(&self) -> Ended {
        let mut ended = lock(&self.ended);
        loop {
            match *ended {
                Some(ended) => return ended,
                None => ended = self.told.wait(ended).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn tell(&self, ended: Ended) {
        *lock(&self.ended) = Some(ended);
        self.told.notify_all();
    }
}

/// The children of init: those it started, and the orphans of the sandbox.
#[derive(Debug, Default)]
pub(crate) struct Children {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Started by us and not reaped yet.
    watched: HashMap<u32, Arc<ExitSlot>>,
    /// Spawns under way: their children may end before they are in `watched`.
    spawning: usize,
    /// Ends of unknown children while a spawn is under way.
    unclaimed: HashMap<u32, Ended>,
}

impl Children {
    /// Starts a program.
    ///
    /// # Errors
    /// [`SpawnError`].
    pub(crate) fn spawn(&self, spawn: &Spawn<'_>) -> Result<(Child, Arc<ExitSlot>), SpawnError> {
        // Not under the lock: the sandbox can hold a spawn up (it may stop the child), but must not hold up
        // the others with it.
        lock(&self.table).spawning += 1;
        let child = spawn.spawn();
        let mut table = lock(&self.table);
        table.spawning -= 1;
        let claimed = child.as_ref().ok().and_then(|child| table.unclaimed.remove(&child.pid));
        if table.spawning == 0 {
            table.unclaimed.clear();
        }
        let child = child?;
        let slot = Arc::new(ExitSlot::default());
        match claimed {
            Some(ended) => slot.tell(ended),
            None => drop(table.watched.insert(child.pid, Arc::clone(&slot))),
        }
        Ok((child, slot))
    }

    /// Runs `f` if the process was started by us and is not reaped, so that its pid means it and its group
    /// during the call.
    pub(crate) fn if_unreaped(&self, pid: u32, f: impl FnOnce(Pid)) -> bool {
        let table = lock(&self.table);
        let pid = table.watched.get(&pid).and_then(|_| Pid::from_raw(pid.cast_signed()));
        pid.map(f).is_some()
    }

    /// Sends a signal to the process group of a child. Gives whether there was one.
    pub(crate) fn signal_group(&self, pid: u32, signal: Signal) -> bool {
        self.if_unreaped(pid, |pid| {
            let _ = kill_process_group(pid, signal);
        })
    }

    /// Reaps for ever. `SIGCHLD` must be blocked in every thread.
    pub(crate) fn reap(&self) -> ! {
        loop {
            // Fails only when interrupted, and then looking for children does no harm.
            let _ = sys::process::wait_sigchld();
            self.reap_ended();
        }
    }

    /// Reaps the children that have ended. For those who know that theirs has: then its end is told when this
    /// returns, without waiting for the reaper's turn.
    pub(crate) fn reap_ended(&self) {
        while self.reap_one() {}
    }

    fn reap_one(&self) -> bool {
        // Under the lock, for `if_unreaped`.
        let mut table = lock(&self.table);
        let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) else { return false };
        let pid = pid.as_raw_pid().unsigned_abs();
        let ended = ended(status);
        match table.watched.remove(&pid) {
            Some(slot) => slot.tell(ended),
            None if table.spawning > 0 => drop(table.unclaimed.insert(pid, ended)),
            None => {}
        }
        true
    }
}

fn ended(status: WaitStatus) -> Ended {
    let signal = status.terminating_signal();
    Ended { code: status.exit_status().or(signal.map(|signal| 128 + signal)).unwrap_or(0), signal }
}

/// Locks; a panic elsewhere leaves data that is still whole (every change here is one step).
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
