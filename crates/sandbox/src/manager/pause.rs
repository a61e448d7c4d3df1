//! Pausing: a sandbox stands still, keeps what it has, and goes on later as if nothing had been.
//!
//! What the store says comes before what the kernel does, in both directions. A daemon that dies in between leaves a
//! sandbox that the next one brings into the recorded state.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use init_protocol::Request;
use tokio::time::timeout;

use super::{
    Manager, OnTimeout, blocking,
    clock::{Deadline, Uptime},
    create::chain,
    joined,
    living::{Living, Parts, State},
};
use crate::{error::SandboxError, ids::SandboxId};

/// How long init may take to be told that it is about to be frozen, or was.
const ANSWER: Duration = Duration::from_secs(2);

impl Manager {
    /// Stops the processes of a sandbox where they are: when this returns, none of them runs. Its memory stays in use; its
    /// time, and that of its commands, does not run.
    ///
    /// # Errors
    /// [`SandboxError::Paused`] when it stands still already.
    pub async fn pause(&self, account: &str, id: &SandboxId) -> Result<(), SandboxError> {
        let living = self.present(account, id).await?;
        let manager = self.clone();
        joined(tokio::spawn(async move { manager.freeze(&living, Why::Requested).await })).await?
    }

    /// Lets the processes of a paused sandbox go on, with its whole time to live. One that is running stays as it is.
    pub async fn resume(&self, account: &str, id: &SandboxId) -> Result<(), SandboxError> {
        let living = self.present(account, id).await?;
        self.wake(living, "requested").await
    }

    /// Lets a sandbox live for `timeout` from now on, or from when it is resumed if it is paused; zero is without end.
    pub async fn set_timeout(
        &self,
        account: &str,
        id: &SandboxId,
        timeout: Duration,
    ) -> Result<(), SandboxError> {
        let living = self.present(account, id).await?;
        // So that nothing is paused or resumed meanwhile.
        let _parts = living.parts.lock().await;
        match living.state() {
            State::Running => living.set_end(Deadline::after(timeout)),
            State::Paused => {}
            state => return Err(refusal(state)),
        }
        living.update(|record| record.timeout_s = timeout.as_secs());
        Ok(living.store(&self.inner.config.store).await?)
    }

    /// A sandbox of this account that has not ended.
    pub(super) async fn present(&self, account: &str, id: &SandboxId) -> Result<Arc<Living>, SandboxError> {
        match self.find(account, id) {
            Some(living) => Ok(living),
            None => self.get(account, id).await.and(Err(SandboxError::Killed)),
        }
    }

    /// A sandbox of this account in which something can be done. One that was paused and is to be resumed by being used
    /// is.
    pub(super) async fn living(&self, account: &str, id: &SandboxId) -> Result<Arc<Living>, SandboxError> {
        let living = self.present(account, id).await?;
        match living.state() {
            State::Running => Ok(living),
            State::Paused if living.record().auto_resume => {
                self.wake(Arc::clone(&living), "access").await?;
                Ok(living)
            }
            state => Err(refusal(state)),
        }
    }

    /// Lets it go on, whether or not somebody waits for that.
    async fn wake(&self, living: Arc<Living>, why: &'static str) -> Result<(), SandboxError> {
        let manager = self.clone();
        joined(tokio::spawn(async move { manager.thaw(&living, why).await })).await?
    }

    /// Whether that was the end.
    pub(super) async fn time_is_up(&self, living: &Arc<Living>) -> bool {
        if living.record().on_timeout == OnTimeout::Pause.as_str() {
            match self.freeze(living, Why::Timeout).await {
                // Somebody else was faster.
                Ok(()) | Err(SandboxError::Paused) => return false,
                Err(error) => {
                    tracing::warn!(sandbox = %living.id, error = %chain(&error), "cannot pause, so it ends");
                }
            }
        }
        self.end_and_log(living, super::end::Reason::Timeout).await;
        true
    }

    async fn freeze(&self, living: &Arc<Living>, why: Why) -> Result<(), SandboxError> {
        let parts = living.parts.lock().await;
        if !living.advance(&[State::Running], State::Paused) {
            return Err(refusal(living.state()));
        }
        let end = living.end();
        living.set_end(None);
        if let Err(error) = self.stop_processes(living, &parts, why).await {
            if living.advance(&[State::Paused], State::Running) {
                living.set_running_since(Some(Uptime::now()));
            }
            living.set_end(end);
            // What is in the store is that it is paused; if it cannot be told otherwise, the next daemon pauses it.
            if let Err(error) = living.store(&self.inner.config.store).await {
                tracing::warn!(sandbox = %living.id, %error, "cannot record that it goes on");
            }
            return Err(error);
        }
        // Whoever ends it does not wait until it stands still.
        if living.state() == State::Killed {
            return Err(SandboxError::Killed);
        }
        self.recorder(&living.record()).lifecycle("sandbox_paused", json!({ "reason": why.as_str() }));
        Ok(())
    }

    async fn stop_processes(&self, living: &Living, parts: &Parts, why: Why) -> Result<(), SandboxError> {
        match (self.store_end_of_run(living, false).await, why) {
            (Ok(()), _) => {}
            (Err(error), Why::Requested) => return Err(error.into()),
            // Nobody is there to ask again, and it must neither run on nor lose what it has. A daemon that is started
            // before it could be recorded finds one whose time is up, and pauses it then.
            (Err(error), Why::Timeout) => {
                tracing::warn!(sandbox = %living.id, %error, "cannot record that it is paused");
            }
        }
        stop_clock(living).await;
        let cgroups = parts.cgroups.clone();
        let frozen = blocking({
            let cgroups = cgroups.clone();
            move || cgroups.freeze()
        });
        if let Err(fault) = frozen.await? {
            let thawed = blocking(move || cgroups.thaw()).await;
            start_clock(living).await;
            thawed??;
            return Err(fault.into());
        }
        Ok(())
    }

    async fn thaw(&self, living: &Arc<Living>, why: &str) -> Result<(), SandboxError> {
        let parts = living.parts.lock().await;
        if !living.advance(&[State::Paused], State::Running) {
            // It may have been waited for somebody else who resumed it.
            return match living.state() {
                State::Running => Ok(()),
                state => Err(refusal(state)),
            };
        }
        living.set_end(Deadline::after(Duration::from_secs(living.record().timeout_s)));
        living.set_running_since(Some(Uptime::now()));
        if let Err(error) = self.start_processes(living, &parts).await {
            living.advance(&[State::Running], State::Paused);
            living.set_end(None);
            living.set_running_since(None);
            // What is in the store is that it runs; if it cannot be told otherwise, the next daemon lets it.
            if let Err(error) = living.store(&self.inner.config.store).await {
                tracing::warn!(sandbox = %living.id, %error, "cannot record that it is still paused");
            }
            return Err(error);
        }
        if living.state() == State::Killed {
            return Err(SandboxError::Killed);
        }
        self.recorder(&living.record()).lifecycle("sandbox_resumed", json!({ "reason": why }));
        Ok(())
    }

    async fn start_processes(&self, living: &Living, parts: &Parts) -> Result<(), SandboxError> {
        living.store(&self.inner.config.store).await?;
        let cgroups = parts.cgroups.clone();
        blocking(move || cgroups.thaw()).await??;
        start_clock(living).await;
        Ok(())
    }

    /// Brings the processes of a sandbox that was taken over into the state that is recorded.
    pub(super) async fn freeze_as_recorded(
        &self,
        living: &Living,
        parts: &Parts,
    ) -> Result<(), SandboxError> {
        let (cgroups, paused) = (parts.cgroups.clone(), living.state() == State::Paused);
        blocking(move || if paused { cgroups.freeze() } else { cgroups.thaw() }).await??;
        if paused {
            living.init.running_time().stop();
        } else {
            start_clock(living).await;
        }
        Ok(())
    }
}

/// Why a sandbox is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Somebody asked for it.
    Requested,
    /// Its time was up.
    Timeout,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "requested",
            Self::Timeout => "timeout",
        }
    }
}

/// Lets the time of what runs inside stand still: here first, so that nothing that init is waited for is late by the clock
/// here and not by the one inside.
async fn stop_clock(living: &Living) {
    living.init.running_time().stop();
    set_clock(living, Request::StopClock).await;
}

/// Lets it go on, here last.
async fn start_clock(living: &Living) {
    set_clock(living, Request::StartClock).await;
    living.init.running_time().start();
}

/// Tells init whether the time of commands runs. An init that is too old for that, or does not answer, does not keep a
/// sandbox from being paused or resumed: the time of its commands runs on then.
async fn set_clock(living: &Living, request: Request) {
    let why = match timeout(ANSWER, living.init.order(request)).await {
        Ok(Ok(()) | Err(SandboxError::InitTooOld)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {} s", ANSWER.as_secs()),
    };
    tracing::warn!(sandbox = %living.id, error = why, "the time of its commands is not as it should be");
}

/// Why nothing can be done in a sandbox that is in this state.
fn refusal(state: State) -> SandboxError {
    match state {
        State::Creating => SandboxError::Creating,
        State::Paused => SandboxError::Paused,
        // Running: it has been resumed since it was looked at, and killed since that.
        State::Killed | State::Running => SandboxError::Killed,
    }
}
