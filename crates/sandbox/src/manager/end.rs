//! The end of a sandbox: asked for, timed, or its own.

use std::{sync::Arc, time::Duration};

use gate::Broken;
use jiff::Timestamp;
use serde_json::json;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};

use super::{
    Manager, blocking,
    clock::until,
    create::chain,
    joined,
    living::{Living, Parts, State},
};
use crate::{error::SandboxError, fault::Fault, ids::SandboxId, remove::remove_tree};

/// How long processes may take to die of SIGKILL: they may be in the middle of writing to a slow disk.
const DYING: Duration = Duration::from_secs(60);

/// How long control groups may stay busy after the last process has ended.
const EMPTYING: Duration = Duration::from_secs(10);

/// Why a sandbox ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// Somebody asked for it.
    Requested,
    /// Its time was up.
    Timeout,
    /// Its init died.
    Died,
    /// It could not be taken over from an earlier daemon.
    Lost,
    /// Its network was cut off.
    Broken(Broken),
}

impl Reason {
    /// All of them.
    pub(super) const ALL: [Self; 6] = [
        Self::Requested,
        Self::Timeout,
        Self::Died,
        Self::Lost,
        Self::Broken(Broken::Rules),
        Self::Broken(Broken::Service),
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Timeout => "timeout",
            Self::Died => "init_died",
            Self::Lost => "lost",
            Self::Broken(Broken::Rules) => "rules_do_not_hold",
            Self::Broken(Broken::Service) => "network_failed",
        }
    }
}

/// What became of the mark that a sandbox has ended.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Whether this was the first of them.
    first: bool,
    /// Whether the store has it.
    stored: bool,
}

impl Manager {
    /// Ends a sandbox and waits until nothing is left of it. `false` when it had ended before.
    ///
    /// # Errors
    /// When something could not be removed; its processes have ended and [`Self::gc`] tries the rest again.
    pub async fn kill(&self, account: &str, id: &SandboxId) -> Result<bool, SandboxError> {
        let Some(living) = self.find(account, id) else {
            return self.get(account, id).await.map(|_| false);
        };
        let manager = self.clone();
        joined(tokio::spawn(async move { manager.end(&living, Reason::Requested).await })).await?
    }

    /// Marks a sandbox as killed and ends it in the background. It ends whether or not the caller waits for this, and
    /// whether or not the mark can be stored; if it cannot, this returns when nothing is left of it.
    pub async fn kill_queued(&self, account: &str, id: &SandboxId) -> Result<(), SandboxError> {
        let Some(living) = self.find(account, id) else {
            return self.get(account, id).await.map(drop);
        };
        let (manager, (tell, told)) = (self.clone(), oneshot::channel());
        // One task for all of it: once it has begun it ends the sandbox, whether or not somebody still waits here.
        tokio::spawn(async move {
            let mark = manager.mark_killed(&living).await;
            let mut tell = Some(tell);
            let mut answer = || tell.take().map(|tell| tell.send(()));
            // What is not stored is answered when it is true without the store.
            if mark.stored {
                answer();
            }
            if let Err(error) = manager.end_marked(&living, mark, Reason::Requested).await {
                tracing::warn!(sandbox = %living.id, error = %chain(&error), "remains of a sandbox");
            }
            answer();
        });
        told.await.map_err(|_| {
            Fault::new("end", "the sandbox, for a fault of the daemon which its log tells").into()
        })
    }

    /// Starts the task that ends the sandbox when its time is up or its init has died.
    pub(super) fn watch_over(&self, living: &Arc<Living>) {
        let manager = self.clone();
        let living = Arc::clone(living);
        tokio::spawn(async move {
            let (process, broken) = {
                let parts = living.parts.lock().await;
                (parts.process.clone(), parts.attachment.as_ref().map(|attachment| attachment.broken()))
            };
            let (Some(process), Some(mut broken)) = (process, broken) else { return };
            let mut end_at = living.end_at.subscribe();
            loop {
                let end = *end_at.borrow_and_update();
                tokio::select! {
                    biased;
                    () = manager.inner.stop.cancelled() => return,
                    () = living.ending.cancelled() => return,
                    () = process.ended() => {
                        manager.end_and_log(&living, Reason::Died).await;
                        return;
                    }
                    why = &mut broken => {
                        manager.end_and_log(&living, Reason::Broken(why)).await;
                        return;
                    }
                    _ = end_at.changed() => {}
                    () = until(end) => {
                        if manager.time_is_up(&living).await {
                            return;
                        }
                    }
                }
            }
        });
    }

    pub(super) async fn end_and_log(&self, living: &Arc<Living>, reason: Reason) {
        if let Err(error) = self.end(living, reason).await {
            tracing::warn!(sandbox = %living.id, error = %chain(&error), "remains of a sandbox");
        }
    }

    pub(super) async fn end(&self, living: &Arc<Living>, reason: Reason) -> Result<bool, SandboxError> {
        let mark = self.mark_killed(living).await;
        self.end_marked(living, mark, reason).await.map(|()| mark.first)
    }

    /// Writes that it has ended before anything is taken down. A store that cannot be written to is no reason to let it
    /// run on.
    async fn mark_killed(&self, living: &Arc<Living>) -> Mark {
        let first = living.advance(&[State::Creating, State::Running, State::Paused], State::Killed);
        living.ending.cancel();
        if !first {
            return Mark { first, stored: true };
        }
        living.update(|record| record.end_at = Some(Timestamp::now()));
        let written = self.store_end_of_run(living, true).await;
        if let Err(error) = &written {
            tracing::warn!(sandbox = %living.id, error = %chain(error), "it ends, and that is to be recorded later");
        }
        Mark { first, stored: written.is_ok() }
    }

    async fn end_marked(&self, living: &Arc<Living>, mark: Mark, reason: Reason) -> Result<(), SandboxError> {
        // Whoever builds it sees that it is to end, takes it down and lets go.
        let mut parts = living.parts.lock().await;
        let result = if parts.gone { Ok(()) } else { self.take_down(living, &mut parts).await };
        if !mark.stored {
            self.inner.unrecorded.notify_one();
        }
        if mark.first {
            self.inner.counters.ended(reason);
            let kind = if reason == Reason::Timeout { "sandbox_timeout" } else { "sandbox_killed" };
            self.recorder(&living.record()).lifecycle(kind, json!({ "reason": reason.as_str() }));
        }
        result
    }

    /// Takes down everything a sandbox is made of: processes, network, control groups, files, ids, in this order.
    /// Goes on when a part fails and gives the first failure.
    pub(super) async fn take_down(
        &self,
        living: &Arc<Living>,
        parts: &mut Parts,
    ) -> Result<(), SandboxError> {
        let parts = std::mem::replace(parts, Parts { gone: true, ..Parts::default() });
        let mut result = kill_processes(&parts).await;
        let detach = async {
            if let Some(attachment) = &parts.attachment {
                attachment.detach().await;
            }
        };
        if result.is_err() {
            detach.await;
        } else {
            // With its processes its mount namespace has ended, so what is on the disk is no longer mounted.
            let path = self.directory(&living.id).path().to_owned();
            let files = blocking(move || remove_tree(&path));
            let ((), emptied, removed) = tokio::join!(detach, remove_groups(&parts.cgroups), files);
            result = emptied.map_err(SandboxError::from).and(removed.and_then(|done| Ok(done?)));
            // Not earlier: until here a process could still have run with these ids.
            if let Some(first_id) = parts.first_id {
                self.inner.ids.release(first_id);
            }
        }
        self.inner.living.lock().remove(&living.id);
        result
    }
}

async fn kill_processes(parts: &Parts) -> Result<(), SandboxError> {
    let cgroups = parts.cgroups.clone();
    let Some(process) = &parts.process else {
        blocking(move || cgroups.kill()).await?;
        return Ok(());
    };
    process.kill().map_err(|error| Fault {
        step: "kill".to_owned(),
        object: format!("process {}", process.identity().pid),
        errno: error.raw_os_error().unwrap_or(0),
    })?;
    blocking(move || cgroups.kill()).await?;
    timeout(DYING, process.ended()).await.map_err(|_| {
        SandboxError::Setup(Fault::new("wait for the end of", format!("process {}", process.identity().pid)))
    })
}

/// The last process leaves its groups a moment after it has ended.
pub(super) async fn remove_groups(cgroups: &crate::cgroup::Cgroups) -> Result<(), Fault> {
    let deadline = Instant::now() + EMPTYING;
    let mut pause = Duration::from_micros(500);
    loop {
        match cgroups.remove() {
            Err(fault)
                if fault.errno == rustix::io::Errno::BUSY.raw_os_error() && Instant::now() < deadline =>
            {
                sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(100));
            }
            other => return other,
        }
    }
}
