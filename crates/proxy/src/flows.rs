//! The live flows of one sandbox: what a new policy has to judge again, and cut.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use policy::{EventKind, Flow, FlowEvent, FlowTotals, HostName, InForce, NameSource, Protocol, Verdict};
use tokio::task::AbortHandle;

use crate::{
    Egress, EventId,
    decision::{ech_verdict, refused_ech},
};

/// The live flows of one sandbox.
#[derive(Default)]
pub struct Flows {
    table: Mutex<HashMap<u64, Arc<Entry>>>,
    next: AtomicU64,
}

impl Flows {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges every flow by the policy that is in force now. What it does not permit is cut at once (both sides get
    /// a reset) and recorded as revoked.
    ///
    /// The policy must be in force before this is called: a flow that is being judged meanwhile reads it again.
    pub fn rejudge(&self, now: &InForce) {
        let entries: Vec<_> = self.table.lock().values().cloned().collect();
        for entry in entries {
            entry.rejudge(now);
        }
    }

    /// How many flows there are, those included that are not judged yet.
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A number that no other caller gets.
    pub(crate) fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Registers an accepted connection; `None` when there are `limit` already.
    pub(crate) fn admit(
        self: &Arc<Self>,
        server: u64,
        limit: usize,
        recorder: Arc<dyn Recorder>,
    ) -> Option<Registration> {
        let id = self.unique();
        let entry = Arc::new(Entry {
            server,
            recorder,
            abort: OnceLock::new(),
            ending: AtomicBool::new(false),
            subject: Mutex::new(None),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let mut table = self.table.lock();
        if table.len() >= limit {
            return None;
        }
        table.insert(id, entry.clone());
        Some(Registration { flows: self.clone(), id, entry })
    }

    /// Cuts every flow that was admitted for this server.
    pub(crate) fn abort_all(&self, server: u64) {
        for entry in self.table.lock().values().filter(|entry| entry.server == server) {
            entry.abort();
        }
    }
}

/// The part of [`Egress`] that a revocation needs, without its generic method.
pub(crate) trait Recorder: Send + Sync {
    fn record_event(&self, event: FlowEvent);
}

impl<E: Egress> Recorder for E {
    fn record_event(&self, event: FlowEvent) {
        self.record(event);
    }
}

/// One registered flow.
pub(crate) struct Entry {
    server: u64,
    recorder: Arc<dyn Recorder>,
    /// Ends the flow's task; its sockets are reset as it is dropped.
    abort: OnceLock<AbortHandle>,
    /// Set when the flow has to end; the handle may come later than that.
    ending: AtomicBool,
    subject: Mutex<Option<Subject>>,
    /// Bytes from the sandbox to the destination. Only the flow's own task writes it.
    pub(crate) up: AtomicU64,
    /// Bytes from the destination to the sandbox. Only the flow's own task writes it.
    pub(crate) down: AtomicU64,
}

/// What a flow was permitted as.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) name: Option<HostName>,
    pub(crate) source: NameSource,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) ech: bool,
}

impl Entry {
    /// Lets the registry know how to end the flow's task.
    pub(crate) fn set_abort(&self, handle: AbortHandle) {
        // It is set once, by the one who spawned the task.
        let _ = self.abort.set(handle);
        if self.ending.load(Ordering::SeqCst) {
            self.abort();
        }
    }

    /// From now on the flow is judged again with every new policy.
    pub(crate) fn set_subject(&self, subject: Option<Subject>) {
        *self.subject.lock() = subject;
    }

    fn rejudge(&self, now: &InForce) {
        let mut slot = self.subject.lock();
        let Some(verdict) = slot.as_ref().and_then(|subject| subject.refused_by(now)) else { return };
        // Taken, so that it is not recorded again while the task is ending.
        let Some(subject) = slot.take() else { return };
        drop(slot);
        self.recorder.record_event(FlowEvent {
            kind: EventKind::EgressRevoked,
            verdict,
            name: subject.name,
            name_source: subject.source,
            address: Some(subject.address),
            port: Some(subject.port),
            protocol: Protocol::Tcp,
            generation: now.generation,
            count: 1,
        });
        self.abort();
    }

    fn abort(&self) {
        self.ending.store(true, Ordering::SeqCst);
        if let Some(handle) = self.abort.get() {
            handle.abort();
        }
    }
}

impl Subject {
    /// The verdict of a policy that does not permit the flow.
    pub(crate) fn refused_by(&self, now: &InForce) -> Option<Verdict> {
        let verdict = now.policy.judge(&Flow {
            protocol: Protocol::Tcp,
            name: self.name.as_ref(),
            address: Some(self.address),
            port: Some(self.port),
        });
        if !verdict.is_allowed() {
            return Some(verdict);
        }
        (self.ech && refused_ech(now)).then(ech_verdict)
    }
}

/// A flow's place in the registry; it leaves when this is dropped.
pub(crate) struct Registration {
    flows: Arc<Flows>,
    id: u64,
    entry: Arc<Entry>,
}

impl Registration {
    pub(crate) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.flows.table.lock().remove(&self.id);
    }
}

/// An allowed event whose flow (or request) is still going on; its totals are reported when this is dropped.
pub(crate) struct Ongoing<E: Egress> {
    egress: Arc<E>,
    id: EventId,
    entry: Arc<Entry>,
    started: Instant,
    up_before: u64,
    down_before: u64,
}

impl<E: Egress> Ongoing<E> {
    /// Records the event and starts counting.
    pub(crate) fn start(egress: &Arc<E>, entry: &Arc<Entry>, event: FlowEvent) -> Self {
        Self {
            id: egress.record(event),
            egress: egress.clone(),
            entry: entry.clone(),
            started: Instant::now(),
            up_before: entry.up.load(Ordering::Relaxed),
            down_before: entry.down.load(Ordering::Relaxed),
        }
    }
}

impl<E: Egress> Drop for Ongoing<E> {
    fn drop(&mut self) {
        self.egress.finish(
            self.id,
            FlowTotals {
                bytes_up: self.entry.up.load(Ordering::Relaxed).saturating_sub(self.up_before),
                bytes_down: self.entry.down.load(Ordering::Relaxed).saturating_sub(self.down_before),
                duration: self.started.elapsed(),
            },
        );
    }
}
