//! Shells kept ready: first processes of sandboxes in their namespaces and control groups, waiting for a plan.

use std::{
    collections::{BTreeSet, VecDeque},
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Manager, blocking, create::chain, end::remove_groups, prepare};
use crate::{
    cgroup::{Cgroups, Limits},
    error::SandboxError,
    fault::Context as _,
    ids::SandboxId,
    process::Process,
    spawner::Control,
};

/// What a sandbox is known by before it exists: a name and a range of ids that no other has.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub id: SandboxId,
    pub first_id: u32,
}

/// A shell with the place that is reserved for it.
#[derive(Debug)]
pub(super) struct ReadyShell {
    pub slot: Slot,
    pub limits: Limits,
    pub cgroups: Cgroups,
    pub process: Arc<Process>,
    pub control: Control,
}

/// The shells of a manager, and the names it has given out that no sandbox has yet.
#[derive(Debug, Default)]
pub(super) struct Shells {
    ready: Mutex<VecDeque<ReadyShell>>,
    reserved: Mutex<BTreeSet<SandboxId>>,
    taken: Notify,
}

impl Shells {
    /// Whether the name is that of a sandbox that is about to exist.
    pub(super) fn has_reserved(&self, id: &str) -> bool {
        self.reserved.lock().iter().any(|reserved| reserved.as_str() == id)
    }

    /// The name is that of a sandbox now, or of nothing any more.
    pub(super) fn unreserve(&self, id: &SandboxId) {
        self.reserved.lock().remove(id);
    }
}

impl Manager {
    /// Keeps `count` shells ready from now on, until the manager is shut down. Each takes some hundred KiB.
    pub fn keep_ready(&self, count: usize) {
        let manager = self.clone();
        tokio::spawn(async move {
            let inner = &manager.inner;
            loop {
                let taken = inner.shells.taken.notified();
                if inner.shells.ready.lock().len() < count {
                    let made = tokio::select! {
                        () = inner.stop.cancelled() => break,
                        made = manager.make_ready() => made,
                    };
                    match made {
                        Ok(shell) => {
                            inner.shells.ready.lock().push_back(shell);
                            continue;
                        }
                        // The next request tries again, and tells whoever asked.
                        Err(error) => tracing::warn!(error = %chain(&error), "cannot keep a shell ready"),
                    }
                }
                tokio::select! {
                    () = inner.stop.cancelled() => break,
                    () = taken => {}
                }
            }
            manager.discard_ready().await;
        });
    }

    /// A name and a range of ids.
    pub(super) fn reserve(&self) -> Result<Slot, SandboxError> {
        let id = SandboxId::random().map_err(std::io::Error::other);
        let id = id.map_err(|source| prepare::failed("read", Path::new("random bytes"), source))?;
        let first_id = self.inner.ids.take();
        let first_id = first_id.ok_or_else(|| SandboxError::Limit("ranges of user ids".to_owned()))?;
        self.inner.shells.reserved.lock().insert(id.clone());
        Ok(Slot { id, first_id })
    }

    /// A shell that is ready, if there is one.
    pub(super) fn take_ready(&self) -> Option<ReadyShell> {
        let shell = self.inner.shells.ready.lock().pop_front();
        self.inner.shells.taken.notify_one();
        shell
    }

    /// Starts a shell.
    ///
    /// # Errors
    /// Nothing is left of it then but its slot.
    pub(super) async fn start_shell(&self, slot: Slot, limits: Limits) -> Result<ReadyShell, SandboxError> {
        let (manager, id) = (self.clone(), slot.id.clone());
        let cgroups = blocking(move || manager.inner.hierarchies.create(id.as_str(), &limits)).await??;
        let started = self.inner.spawner.shell(slot.first_id, &cgroups).await.and_then(|shell| {
            let process = Process::new(shell.pid, shell.pidfd).during("watch", "the first process")?;
            Ok((Arc::new(process), shell.control))
        });
        match started {
            Ok((process, control)) => Ok(ReadyShell { slot, limits, cgroups, process, control }),
            Err(fault) => {
                let _ = remove_groups(&cgroups).await;
                Err(fault.into())
            }
        }
    }

    async fn make_ready(&self) -> Result<ReadyShell, SandboxError> {
        let slot = self.reserve()?;
        let result = self.start_shell(slot.clone(), self.inner.config.limits).await;
        if result.is_err() {
            self.inner.ids.release(slot.first_id);
            self.inner.shells.unreserve(&slot.id);
        }
        result
    }

    async fn discard_ready(&self) {
        loop {
            let shell = self.inner.shells.ready.lock().pop_front();
            let Some(ReadyShell { slot, cgroups, process, control, .. }) = shell else { return };
            drop(control);
            process.ended().await;
            // What cannot be removed now, the next start finds.
            let _ = remove_groups(&cgroups).await;
            self.inner.ids.release(slot.first_id);
            self.inner.shells.unreserve(&slot.id);
        }
    }
}
