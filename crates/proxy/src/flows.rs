//! The live flows of one sandbox: what a new policy has to judge again, and cut, and what its limits are about.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use policy::{
    Bucket, EventKind, Flow, FlowEvent, FlowTotals, HostName, InForce, NameSource, Protocol, Rate, Reason,
    Verdict,
};
use tokio::{task::AbortHandle, time::sleep};

use crate::{
    ByteLimits, Egress, EventId, Limits,
    bytes::{Bytes, Spent, Way},
    decision::{deny, ech_verdict, refused_ech},
    pipes,
    turns::Turns,
};

/// The live flows of one sandbox.
#[derive(Default)]
pub struct Flows {
    table: Mutex<Table>,
    next: AtomicU64,
    /// How many of them have not shown yet what they are.
    half_open: AtomicUsize,
    bytes: Bytes,
    pipes: Arc<pipes::Share>,
    /// Held by the one request that waits until it may follow; the others stand in line behind it.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<u64, Arc<Entry>>,
    /// How many more may begin now.
    beginnings: Bucket,
    /// How many more requests may follow others now.
    requests: Bucket,
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
        let entries: Vec<_> = self.table.lock().entries.values().cloned().collect();
        for entry in entries {
            entry.rejudge(now);
        }
    }

    /// How many flows there are, those included that are not judged yet.
    pub fn len(&self) -> usize {
        self.table.lock().entries.len()
    }

    /// Whether there is no flow.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes note of bytes that the sandbox has moved in another way than through the proxy. Whether it may go on: if not,
    /// every flow is cut and recorded as revoked, and no other may begin.
    pub fn spend(&self, limits: &ByteLimits, up: u64, down: u64, generation: u64) -> bool {
        let spent = self.bytes.spend(limits, up, down);
        if spent.is_err() {
            self.cut_spent(generation);
        }
        spent.is_ok()
    }

    /// Whether the sandbox has moved as many bytes as it may.
    pub fn are_bytes_spent(&self) -> bool {
        self.bytes.are_spent()
    }

    /// Cuts every flow that was permitted. Those that are being judged are cut as soon as they would move a byte.
    fn cut_spent(&self, generation: u64) {
        let entries: Vec<_> = self.table.lock().entries.values().cloned().collect();
        for entry in entries {
            let subject = entry.subject.lock().take();
            if let Some(subject) = subject {
                entry.revoke(subject, deny(Reason::ByteBudget), generation);
            }
        }
    }

    /// A number that no other caller gets.
    pub(crate) fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// How many flows have not shown yet what they are: their first bytes are waited for.
    pub fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }

    /// Registers a connection that was accepted at `now`, unless a limit refuses it: the reason is the error.
    pub(crate) fn admit(
        self: &Arc<Self>,
        server: u64,
        limits: &Limits,
        (recorder, turns): (&Arc<dyn Recorder>, &Turns),
        now: Instant,
    ) -> Result<Registration, Reason> {
        if self.bytes.are_spent() {
            return Err(Reason::ByteBudget);
        }
        let id = self.unique();
        let entry = Arc::new(Entry {
            flows: Arc::clone(self),
            limits: limits.bytes,
            turns: turns.clone(),
            server,
            recorder: Arc::clone(recorder),
            abort: OnceLock::new(),
            ending: AtomicBool::new(false),
            is_half_open: AtomicBool::new(false),
            subject: Mutex::new(None),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
        });
        let mut table = self.table.lock();
        if table.entries.len() >= limits.max_flows {
            return Err(Reason::FlowLimit);
        }
        if !table.beginnings.take(&limits.new_flows, 1, now) {
            return Err(Reason::FlowRate);
        }
        table.entries.insert(id, Arc::clone(&entry));
        Ok(Registration { id, entry })
    }

    /// Cuts every flow that was admitted for this server.
    pub(crate) fn abort_all(&self, server: u64) {
        for entry in self.table.lock().entries.values().filter(|entry| entry.server == server) {
            entry.abort();
        }
    }
}

/// The part of [`Egress`] that a revocation needs, without its generic method.
pub(crate) trait Recorder: Send + Sync {
    fn record_event(&self, event: FlowEvent);

    /// Of the policy in force.
    fn generation(&self) -> u64;
}

impl<E: Egress> Recorder for E {
    fn record_event(&self, event: FlowEvent) {
        self.record(event);
    }

    fn generation(&self) -> u64 {
        self.in_force().generation
    }
}

/// One registered flow.
pub(crate) struct Entry {
    flows: Arc<Flows>,
    limits: ByteLimits,
    pub(crate) turns: Turns,
    server: u64,
    recorder: Arc<dyn Recorder>,
    /// Ends the flow's task; its sockets are reset as it is dropped.
    abort: OnceLock<AbortHandle>,
    /// Set when the flow has to end; the handle may come later than that.
    ending: AtomicBool,
    /// Whether it counts among those that have not shown yet what they are.
    is_half_open: AtomicBool,
    subject: Mutex<Option<Subject>>,
    /// Bytes from the sandbox to the destination. Only the flow's own task writes it.
    up: AtomicU64,
    /// Bytes from the destination to the sandbox. Only the flow's own task writes it.
    down: AtomicU64,
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

    /// From now on the flow counts among those that have not shown yet what they are; `false` when there are `most`
    /// already. Only the flow's own task calls this and [`Self::opened`].
    pub(crate) fn open_half(&self, most: usize) -> bool {
        let one_more = |count: usize| (count < most).then(|| count.saturating_add(1));
        let half_open = &self.flows.half_open;
        let is_counted = half_open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        self.is_half_open.store(is_counted, Ordering::Relaxed);
        is_counted
    }

    /// The flow has shown what it is.
    pub(crate) fn opened(&self) {
        if self.is_half_open.swap(false, Ordering::Relaxed) {
            self.flows.half_open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The sandbox's share of the pipes.
    pub(crate) fn pipes(&self) -> &Arc<pipes::Share> {
        &self.flows.pipes
    }

    /// Waits until another request may follow.
    pub(crate) async fn wait_to_ask(&self, rate: &Rate) {
        let _first = self.flows.asking.lock().await;
        loop {
            let wait = self.flows.table.lock().requests.take_or_wait(rate, 1, Instant::now());
            let Some(wait) = wait else { return };
            sleep(wait).await;
        }
    }

    /// From now on the flow is judged again with every new policy.
    pub(crate) fn set_subject(&self, subject: Option<Subject>) {
        *self.subject.lock() = subject;
    }

    /// What the flow was permitted as, which is not judged any more.
    pub(crate) fn take_subject(&self) -> Option<Subject> {
        self.subject.lock().take()
    }

    fn rejudge(&self, now: &InForce) {
        let mut slot = self.subject.lock();
        let Some(verdict) = slot.as_ref().and_then(|subject| subject.refused_by(now)) else { return };
        // Taken, so that it is not recorded again while the task is ending.
        let Some(subject) = slot.take() else { return };
        drop(slot);
        self.revoke(subject, verdict, now.generation);
    }

    fn revoke(&self, subject: Subject, verdict: Verdict, generation: u64) {
        self.recorder.record_event(FlowEvent {
            kind: EventKind::EgressRevoked,
            verdict,
            name: subject.name,
            name_source: subject.source,
            address: Some(subject.address),
            port: Some(subject.port),
            protocol: Protocol::Tcp,
            generation,
            count: 1,
        });
        self.abort();
    }

    /// Takes note of bytes that are about to be passed on.
    ///
    /// # Errors
    /// When they are more than the sandbox may move. This flow is cut then, with all others.
    pub(crate) fn spend(&self, way: Way, bytes: u64) -> Result<(), Spent> {
        let (up, down) = match way {
            Way::Up => (bytes, 0),
            Way::Down => (0, bytes),
        };
        self.flows.bytes.spend(&self.limits, up, down).inspect_err(|Spent| {
            self.flows.cut_spent(self.recorder.generation());
        })
    }

    /// Counts bytes that were passed on. Only the flow's own task may call this.
    pub(crate) fn count(&self, way: Way, bytes: u64) {
        let moved = match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        };
        // A plain store: there is no other writer.
        moved.store(moved.load(Ordering::Relaxed).wrapping_add(bytes), Ordering::Relaxed);
    }

    /// How many bytes were passed on to the sandbox.
    pub(crate) fn passed_down(&self) -> u64 {
        self.down.load(Ordering::Relaxed)
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
        self.entry.opened();
        self.entry.flows.table.lock().entries.remove(&self.id);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Nobody;

    impl Recorder for Nobody {
        fn record_event(&self, _: FlowEvent) {}

        fn generation(&self) -> u64 {
            1
        }
    }

    fn admit(flows: &Arc<Flows>, limits: &Limits, now: Instant) -> Result<Registration, Reason> {
        let recorder: Arc<dyn Recorder> = Arc::new(Nobody);
        flows.admit(0, limits, (&recorder, &Turns::new()), now)
    }

    #[test]
    fn as_many_flows_are_admitted_as_may_be_at_a_time_and_again_when_one_has_ended() {
        let (flows, now) = (Arc::new(Flows::new()), Instant::now());
        let limits = Limits { max_flows: 2, ..Limits::default() };
        let first = admit(&flows, &limits, now).ok().unwrap();
        let _second = admit(&flows, &limits, now).ok().unwrap();
        assert_eq!(admit(&flows, &limits, now).err(), Some(Reason::FlowLimit));
        drop(first);
        assert!(admit(&flows, &limits, now).is_ok());
    }

    #[test]
    fn as_many_flows_are_admitted_as_may_begin_and_more_as_time_passes() {
        let (flows, start) = (Arc::new(Flows::new()), Instant::now());
        let limits = Limits { new_flows: Rate::per_second(10, 3), ..Limits::default() };
        let at = |millis| admit(&flows, &limits, start + Duration::from_millis(millis)).err();
        assert_eq!([at(0), at(0), at(0), at(99)], [None, None, None, Some(Reason::FlowRate)]);
        assert_eq!([at(100), at(100)], [None, Some(Reason::FlowRate)]);
        assert!(flows.is_empty());
    }

    #[test]
    fn a_flow_is_half_open_until_it_has_shown_what_it_is_or_ends() {
        let (flows, now) = (Arc::new(Flows::new()), Instant::now());
        let [first, second, third] = [(); 3].map(|()| admit(&flows, &Limits::default(), now).ok().unwrap());
        assert!(first.entry().open_half(2) && second.entry().open_half(2) && !third.entry().open_half(2));
        first.entry().opened();
        first.entry().opened();
        assert_eq!(flows.half_open(), 1);
        assert!(third.entry().open_half(2));
        drop((second, third, first));
        assert_eq!(flows.half_open(), 0);
    }
}
