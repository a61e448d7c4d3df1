//! The gate of a daemon: what all its sandboxes share.

use std::{
    future::Future,
    net::IpAddr,
    num::NonZeroUsize,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use audit::Recorder;
use dns::Upstream;
use futures_util::FutureExt;
use netns::{Monitor, NetNs};
use parking_lot::Mutex;
use policy::{Floor, InForce, Policy};
use proxy::Workers;
use tokio::{io::unix::AsyncFd, runtime::Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    Attachment, GateError, Limits,
    addresses::Slot,
    events::{self, Reading},
    member::{Member, chain},
    meter,
    namespace::{self, Interior},
    node::Node,
    sandbox::{Sandbox, Shares},
    stats::{Counters, GateStats},
    tracking::{self, Tracking},
    uplink::{self, Carries, Uplink},
    watched::watched,
};

/// How often what is due now and then is done: ending bindings, reading counters.
const SWEEP: Duration = Duration::from_secs(15);
/// How long changes of the machine's network are gathered before they are looked at.
const SETTLE: Duration = Duration::from_millis(100);

/// What a gate needs to know.
#[derive(Clone)]
pub struct GateConfig {
    /// Where permitted names are looked up.
    pub upstream: Upstream,
    /// Tells this daemon from others on the machine; the same after a restart.
    pub daemon_id: String,
    /// Addresses for the floor besides the machine's own, such as that of the API if it is elsewhere.
    pub protected: Vec<IpAddr>,
    /// What each sandbox may use.
    pub limits: Limits,
}

impl GateConfig {
    /// The defaults, with this resolver.
    pub fn new(upstream: Upstream) -> Self {
        Self { upstream, daemon_id: String::new(), protected: Vec::new(), limits: Limits::default() }
    }
}

/// What a sandbox is attached with.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    /// Its id.
    pub sandbox: String,
    /// The policy that is in force before the call returns.
    pub policy: Arc<Policy>,
    /// The number of that policy among those the sandbox has had, from 1.
    pub generation: u64,
    /// Where decisions are recorded.
    pub audit: Recorder,
}

/// The gate of a daemon. Clones are the same gate; it stops with the last one, and with it everything that passes.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

impl Gate {
    /// Starts a gate for the calling thread's network namespace, which is the machine's: the runtime's threads have
    /// to be in the same one, because what is permitted is dialled by them.
    ///
    /// # Errors
    /// When the machine's addresses cannot be read or watched.
    pub async fn start(config: GateConfig) -> Result<Self, GateError> {
        let machine = |error| GateError::SetUp("the machine", error);
        // Watching begins before the first reading, so that no change is missed between the two.
        let monitor = watched(Monitor::open().map_err(machine)?)?;
        let node = Arc::new(ArcSwap::from_pointee(Node::read(&config.protected)?));
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            config,
            node,
            uplink: Mutex::new(None),
            tracking: OnceLock::new(),
            uplink_log: OnceLock::new(),
            is_blind: AtomicBool::new(false),
            is_behind: AtomicBool::new(false),
            members: Mutex::default(),
            runtime: Handle::current(),
            workers: Workers::start(cores).map_err(GateError::Workers)?,
            stop: stop.clone(),
            counters: Arc::default(),
        });
        let changes = changes(Arc::downgrade(&shared), monitor);
        tokio::spawn(watch(Arc::downgrade(&shared), changes, SWEEP, stop.clone()));
        tokio::spawn(sweep(Arc::downgrade(&shared), stop.clone()));
        if shared.config.limits.flows.bytes.can_be_reached() {
            tokio::spawn(meter::run(Arc::downgrade(&shared), stop.clone()));
        }
        Ok(Self { shared, _stop: Arc::new(stop.drop_guard()) })
    }

    /// What policies are compiled over: what no entry can permit, the machine's own addresses included.
    pub fn floor(&self) -> Arc<Floor> {
        Arc::clone(&self.shared.node().floor)
    }

    /// What it has done since it was started, and how much there is now.
    pub fn stats(&self) -> GateStats {
        let members = self.shared.members();
        let flows: usize = members.iter().map(|member| member.sandbox.flows.len()).sum();
        let wired = self.shared.tracking.get().map_or(0, |tracking| tracking.open());
        GateStats {
            sandboxes: members.len().try_into().unwrap_or(u64::MAX),
            proxied_flows: flows.try_into().unwrap_or(u64::MAX),
            wired_flows: wired.try_into().unwrap_or(u64::MAX),
            ..self.shared.counters.read()
        }
    }

    /// Reads what the kernel has counted of all sandboxes, before the daemon ends: so that the next one, which finds what has
    /// been counted since, knows what nobody recorded.
    pub fn settle(&self) {
        for member in self.shared.members() {
            member.sandbox.record_alone(true);
            member.sandbox.tidy();
        }
    }

    /// Makes a network namespace for a sandbox. When this returns, its rules are in force and everything that serves
    /// it is up; no process has run in it.
    ///
    /// # Errors
    /// When anything of that cannot be done. Nothing is left behind then.
    pub async fn attach(&self, request: AttachRequest) -> Result<Attachment, GateError> {
        self.bring_up(request, namespace::create).await
    }

    /// As [`Self::attach`], for the namespace of a sandbox that is running: that of an earlier daemon, whose sockets
    /// are gone. Until this returns nothing passes.
    ///
    /// # Errors
    /// When anything of that cannot be done. The sandbox stays cut off then.
    pub async fn adopt(&self, namespace: OwnedFd, request: AttachRequest) -> Result<Attachment, GateError> {
        self.bring_up(request, move || {
            let namespace = NetNs::from(namespace);
            let interior = namespace::adopt(&namespace)?;
            Ok((namespace, interior))
        })
        .await
    }

    async fn bring_up(
        &self,
        request: AttachRequest,
        open: impl FnOnce() -> Result<(NetNs, Interior), GateError> + Send + 'static,
    ) -> Result<Attachment, GateError> {
        let shared = Arc::clone(&self.shared);
        let (attachment, listeners) = blocking(move || {
            let (namespace, interior) = open()?;
            let (sandbox, listeners) = shared.sandbox(namespace, interior, request);
            sandbox.record_absence();
            let member = Arc::new(Member::new(Arc::new(sandbox)));
            if let Err(error) = shared.enter(&member) {
                member.release(&shared);
                return Err(error);
            }
            // From here on dropping the attachment takes everything down again, also when nobody waits for it any more.
            Ok((Attachment::new(shared, member), listeners))
        })
        .await?;
        attachment.serve(listeners, &self.shared.config)?;
        Ok(attachment)
    }
}

/// Runs what blocks (for a millisecond or some) away from the runtime's own threads. A panic there is
/// [`GateError::Fault`]: whoever waits, for good and all perhaps, goes on.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GateError> + Send + 'static,
) -> Result<T, GateError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(GateError::Fault),
        Err(_) => Err(GateError::ShuttingDown),
    }
}

/// What all sandboxes of the daemon share.
pub(crate) struct Shared {
    config: GateConfig,
    node: Arc<ArcSwap<Node>>,
    uplink: Mutex<Option<Uplink>>,
    /// What passes by the wires; there as soon as the uplink is.
    tracking: OnceLock<Arc<Tracking>>,
    /// How far its log is read; there as soon as the uplink is.
    uplink_log: OnceLock<Reading>,
    /// Whether nobody can tell any more what passes by the wires: there are no new ones then.
    is_blind: AtomicBool,
    /// Whether a change of the machine's network is not in force everywhere.
    is_behind: AtomicBool,
    members: Mutex<Vec<Weak<Member>>>,
    pub(crate) runtime: Handle,
    /// The threads of all proxies.
    pub(crate) workers: Workers,
    counters: Arc<Counters>,
    stop: CancellationToken,
}

impl Shared {
    /// Whether the whole gate is being shut down.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    pub(crate) fn node(&self) -> arc_swap::Guard<Arc<Node>> {
        self.node.load()
    }

    /// A slot for a sandbox, whose events the uplink's log reports under it.
    pub(crate) fn reserve_slot(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Result<Slot, GateError> {
        let slot = self.with_uplink(Uplink::reserve)?;
        if let Some(tracking) = self.tracking.get() {
            tracking.add(slot, sandbox);
        }
        Ok(slot)
    }

    /// Lays a sandbox's wire.
    pub(crate) fn connect(
        self: &Arc<Self>,
        slot: Slot,
        sandbox: &Sandbox,
        carries: Carries<'_>,
    ) -> Result<(), GateError> {
        self.with_uplink(|uplink| {
            uplink.connect(slot, &sandbox.namespace, carries)?;
            if let Some(tracking) = self.tracking.get() {
                tracking.laid(slot);
            }
            Ok(())
        })
    }

    /// Has the uplink cut a wire, and ends the flows that went by it, with their totals.
    pub(crate) fn cut(
        &self,
        slot: Slot,
        cut: impl FnOnce(&mut Uplink) -> Result<(), GateError>,
    ) -> Result<(), GateError> {
        let Some(tracking) = self.tracking.get() else { return Ok(()) };
        // The counters go with the wire.
        let counted = self.count(tracking, slot).and(self.count_bytes_of(slot));
        let cut = self.with_existing_uplink(cut);
        tracking.cut(slot);
        cut.and(counted)
    }

    /// Ends the flows of a wire that a policy does not permit, with their totals.
    pub(crate) fn revoke_flows(&self, slot: Slot, now: &InForce) {
        if let Some(tracking) = self.tracking.get() {
            tracking.revoke(slot, now);
        }
    }

    /// Takes back a slot whose wire is gone.
    pub(crate) fn free_slot(&self, slot: Slot) {
        if let Some(tracking) = self.tracking.get() {
            tracking.remove(slot);
        }
        if let Some(uplink) = &mut *self.uplink.lock() {
            uplink.give_back(slot);
        }
    }

    /// Works with the uplink, which is created by the first who does.
    pub(crate) fn with_uplink<T>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Uplink) -> Result<T, GateError>,
    ) -> Result<T, GateError> {
        if self.is_blind.load(Ordering::SeqCst) {
            return Err(GateError::Fault);
        }
        let mut slot = self.uplink.lock();
        let uplink = match &mut *slot {
            Some(uplink) => uplink,
            None => slot.insert(self.create_uplink()?),
        };
        work(uplink)
    }

    /// Works with the uplink, if there is one.
    pub(crate) fn with_existing_uplink(
        &self,
        work: impl FnOnce(&mut Uplink) -> Result<(), GateError>,
    ) -> Result<(), GateError> {
        self.uplink.lock().as_mut().map_or(Ok(()), work)
    }

    /// Waits until everything is recorded that the uplink's log has now.
    pub(crate) async fn uplink_log_read(&self) {
        if let Some(reading) = self.uplink_log.get() {
            reading.caught_up().await;
        }
    }

    fn create_uplink(self: &Arc<Self>) -> Result<Uplink, GateError> {
        let node = self.node();
        let number = uplink::daemon_number(&self.config.daemon_id);
        let (uplink, log, tracking) =
            Uplink::create(number, &node.floor.networks(), node.ipv6, self.config.limits.wires)?;
        let machine = nft::conntrack::Table::open().map_err(GateError::Tracking)?;
        let max_flows = self.config.limits.wires.max_flows;
        let tracking = Arc::new(Tracking::new(tracking, machine, max_flows, self.runtime.clone()));
        let _inside = self.runtime.enter();
        let log = watched(log)?;
        let endings = watched(tracking::Watched(Arc::clone(&tracking)))?;
        let recorder = Arc::clone(&tracking);
        let (reader, reading) = events::reading();
        self.follow(
            "the uplink's log",
            events::follow(log, reader, self.stop.clone(), move |received| recorder.record(received)),
        );
        self.follow("the uplink's connection tracking", tracking::follow(endings, self.stop.clone()));
        // Nobody else is here: the uplink is created under its lock.
        let _first = self.tracking.set(tracking);
        let _first = self.uplink_log.set(reading);
        Ok(uplink)
    }

    /// Without this task nobody would know what passes by the wires: if it ends, so do they.
    fn follow(
        self: &Arc<Self>,
        what: &'static str,
        task: impl Future<Output = std::io::Result<()>> + Send + 'static,
    ) {
        let shared = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            let Some(shared) = shared.upgrade() else { return };
            if shared.is_stopping() {
                return;
            }
            let error = match ended {
                Ok(Ok(())) => "it has ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_panic) => "it panicked".to_owned(),
            };
            tracing::error!(error, "{what} cannot be read any more: every sandbox with a wire is cut off");
            shared.is_blind.store(true, Ordering::SeqCst);
            let cut = blocking(move || {
                let wired = shared.members().into_iter().filter(|member| member.is_wired());
                wired.for_each(|member| member.fail(&shared));
                Ok(())
            });
            let _shutting_down = cut.await;
        });
    }

    /// Compares what the kernel has counted of all wires with what was recorded.
    fn count_wires(&self) -> Result<(), GateError> {
        let Some(tracking) = self.tracking.get() else { return Ok(()) };
        tracking.record_missing();
        let slots = self.uplink.lock().as_ref().map(Uplink::slots).unwrap_or_default();
        // One after the other, so that nobody has to wait for all.
        slots.into_iter().try_for_each(|slot| self.count(tracking, slot))
    }

    /// Reads what the kernel has counted of a wire.
    fn count(&self, tracking: &Tracking, slot: Slot) -> Result<(), GateError> {
        self.with_existing_uplink(|uplink| {
            if let Some(counts) = uplink.take_counts(slot)? {
                tracking.count(slot, counts);
            }
            Ok(())
        })
    }

    /// Adds what went by wires to what each sandbox has moved. A sandbox to which its limit could not be held several
    /// times is cut off.
    pub(crate) fn count_bytes(&self) {
        let Some(tracking) = self.tracking.get() else { return };
        let slots = self.uplink.lock().as_ref().map(Uplink::slots).unwrap_or_default();
        for slot in slots {
            let counted = catch_unwind(AssertUnwindSafe(|| self.count_bytes_of(slot)));
            let counted = counted.unwrap_or(Err(GateError::Fault));
            if let Err(error) = &counted {
                tracing::error!(error = %chain(error), wire = slot.interface(), "the limit on bytes is not held");
            }
            let Some(sandbox) = tracking.limited(slot, counted.is_ok()) else { continue };
            let member = self.members().into_iter().find(|member| Arc::ptr_eq(&member.sandbox, &sandbox));
            if let Some(member) = member {
                member.fail(self);
            }
        }
    }

    /// As [`Self::count_bytes`], of one wire, if that matters.
    fn count_bytes_of(&self, slot: Slot) -> Result<(), GateError> {
        let limits = &self.config.limits.flows.bytes;
        let Some(tracking) = self.tracking.get().filter(|_| limits.can_be_reached()) else { return Ok(()) };
        let mut moved = None;
        self.with_existing_uplink(|uplink| {
            // One whose namespace has just gone has none.
            moved = uplink.bytes(slot)?.and_then(|bytes| tracking.moved(slot, bytes));
            Ok(())
        })?;
        moved.map_or(Ok(()), |moved| tracking.spend(&moved, limits))
    }

    fn sandbox(
        &self,
        namespace: NetNs,
        interior: Interior,
        request: AttachRequest,
    ) -> (Sandbox, crate::attachment::Listeners) {
        let first = InForce { policy: request.policy, generation: request.generation };
        let sandbox = Sandbox::new(
            namespace,
            interior.filter,
            (interior.dns_port, interior.proxy_ports),
            first,
            request.audit,
            Shares {
                upstream: self.config.upstream.clone(),
                node: Arc::clone(&self.node),
                limits: self.config.limits,
                counters: Arc::clone(&self.counters),
            },
        );
        let listeners = crate::attachment::Listeners {
            log: interior.log,
            dns_udp: interior.dns_udp,
            dns_tcp: interior.dns_tcp,
            proxy: interior.proxy,
        };
        (sandbox, listeners)
    }

    /// Puts a sandbox's first policy in force, and has it follow the machine's network from then on.
    fn enter(self: &Arc<Self>, member: &Arc<Member>) -> Result<(), GateError> {
        member.start(self)?;
        self.join(member)
    }

    /// From now on it gets what changes of the machine's network, and now what has changed before it was among the others.
    fn join(self: &Arc<Self>, member: &Arc<Member>) -> Result<(), GateError> {
        self.members.lock().push(Arc::downgrade(member));
        member.refresh(self)
    }

    fn members(&self) -> Vec<Arc<Member>> {
        let mut members = self.members.lock();
        members.retain(|member| member.strong_count() > 0);
        members.iter().filter_map(Weak::upgrade).collect()
    }

    /// Reads the machine's network anew; if it is another, every sandbox gets its policy over the new floor.
    fn refresh(self: &Arc<Self>) -> Result<(), GateError> {
        let node = Node::read(&self.config.protected)?;
        if node.same(&self.node()) && !self.is_behind.load(Ordering::SeqCst) {
            return Ok(());
        }
        // Until all of it is done: what fails on the way is to be tried again, although the machine's network is then the
        // same as before.
        self.is_behind.store(true, Ordering::SeqCst);
        let node = Arc::new(node);
        self.node.store(Arc::clone(&node));
        let mut result = self.with_existing_uplink(|uplink| {
            uplink::enable_forwarding(node.ipv6).map_err(GateError::Uplink)?;
            uplink.set_floor(&node.floor.networks())
        });
        for member in self.members() {
            if let Err(error) = member.refresh(self) {
                let sandbox = member.sandbox.recorder.sandbox();
                tracing::error!(sandbox, error = %chain(&error), "the new floor is not in force");
                result = Err(error);
            }
        }
        self.is_behind.store(result.is_err(), Ordering::SeqCst);
        result
    }
}

/// Follows the machine's network as the kernel tells of its changes.
async fn changes(shared: Weak<Shared>, monitor: AsyncFd<Monitor>) -> std::io::Result<()> {
    loop {
        let mut ready = monitor.readable().await?;
        tokio::time::sleep(SETTLE).await;
        let changed = monitor.get_ref().drain()?;
        ready.clear_ready();
        if changed {
            follow_change(&shared).await;
        }
    }
}

/// Follows the machine's network until `stop`: by `changes`, and should those end, by looking at it each `period`.
async fn watch(
    shared: Weak<Shared>,
    changes: impl Future<Output = std::io::Result<()>>,
    period: Duration,
    stop: CancellationToken,
) {
    let following = async {
        let ended = AssertUnwindSafe(changes).catch_unwind().await;
        tracing::error!(
            ?ended,
            ?period,
            "changes of the machine's network are not told any more: it is looked at now and then"
        );
        loop {
            follow_change(&shared).await;
            tokio::time::sleep(period).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = following => {}
    }
}

/// Puts the floor of a changed network in force, however often that has to be tried: until then it is the old one.
async fn follow_change(shared: &Weak<Shared>) {
    let mut pause = SETTLE;
    while let Some(shared) = shared.upgrade() {
        let Err(error) = blocking(move || shared.refresh()).await else { return };
        tracing::error!(error = %chain(&error), "a change of the machine's network was not followed; it is tried again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SWEEP);
    }
}

/// Does what is due now and then.
async fn sweep(shared: Weak<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(SWEEP);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        for member in shared.members() {
            if catch_unwind(AssertUnwindSafe(|| member.sandbox.tidy())).is_err() {
                member.sandbox.suspect.notify_one();
            }
            tokio::task::yield_now().await;
        }
        let removed = blocking(move || {
            shared.count_wires()?;
            let Some(before) = Instant::now().checked_sub(SWEEP) else { return Ok(()) };
            shared.with_existing_uplink(|uplink| uplink.remove_lingering(before))
        });
        if let Err(error) = removed.await {
            tracing::warn!(error = %chain(&error), "the wires were not looked after");
        }
    }
}

#[cfg(test)]
mod tests;
