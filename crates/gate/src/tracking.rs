//! Connection tracking in the uplink namespace: what passes by wires is remembered by it, counted and ended.
//!
//! Every connection that the uplink lets pass has the mark of its wire. The log tells when one begins, which makes its
//! event; the kernel tells when it forgets one, with bytes and times, which end the event.

mod timeouts;

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use netns::{LinkBytes, sysctl};
use nft::{
    Packet, Received,
    conntrack::{Endings, Entry, Table, Tuple},
};
use parking_lot::Mutex;
use policy::{Flow, InForce, Topology};
use tokio::{io::unix::AsyncFd, runtime::Handle, sync::watch};
use tokio_util::sync::CancellationToken;

use self::timeouts::{PARAMETERS, totals};
use crate::{
    ByteLimits, GateError,
    addresses::Slot,
    events,
    member::chain,
    revoke,
    sandbox::{DAEMON_FAULT, Sandbox},
    uplink::Counts,
    uplink_rules::{self, LIMITED, PERMITTED},
    watched::Descriptor,
    wired::{Begun, Ended, Reconciled, Room, Wired},
};

/// The uplink's connection tracking.
pub(crate) struct Tracking {
    state: Mutex<State>,
    endings: Mutex<Endings>,
    /// The tables of the uplink namespace and of the machine's, where the same connections are tracked once more.
    table: Mutex<Table>,
    machine: Mutex<Table>,
    descriptor: RawFd,
    runtime: Handle,
    /// Whether something that was to be told was lost since the last [`Self::compare`].
    lost: AtomicBool,
    /// Why the endings cannot be read any more, for [`follow`].
    unreadable: watch::Sender<Option<String>>,
}

/// What a wire has moved since that was last told.
pub(crate) struct Moved {
    slot: Slot,
    sandbox: Weak<Sandbox>,
    up: u64,
    down: u64,
}

/// What is kept the same in memory and in the kernel.
struct State {
    wired: Wired<Weak<Sandbox>>,
    filter: nft::Connection,
}

/// What is opened inside the uplink namespace.
pub(crate) struct Opened {
    endings: Endings,
    table: Table,
    filter: nft::Connection,
    capacity: usize,
}

/// How often the kernel is made to look at flows that may be over.
const LOOK: Duration = Duration::from_millis(500);
/// How often, at most, is found out what was lost: it takes the kernel some twenty milliseconds or more, and there is
/// most to lose when there is most to do.
const COMPARE: Duration = Duration::from_secs(10);
/// How many bytes the kernel may hold of what it has to tell of connections that end: about so many KiB of them.
const ENDINGS_BUFFER: usize = 16 << 20;
/// How many of them are dealt with in one go.
const AT_ONCE: usize = 256;

impl Opened {
    /// Opens what is needed, in the calling thread's namespace, which is the uplink's and has its rules: they make it
    /// track connections.
    pub(crate) fn open() -> Result<Self, GateError> {
        for (name, value) in PARAMETERS {
            let name = format!("netfilter/nf_conntrack_{name}");
            sysctl::set(&name, &value.to_string()).map_err(|error| GateError::SetUp("the uplink", error))?;
        }
        if let Err(error) = sysctl::set("netfilter/nf_conntrack_timestamp", "1") {
            // Then flows begin when the log tells of them.
            tracing::debug!(%error, "the kernel does not keep the times of connections");
        }
        let mut table = Table::open().map_err(GateError::Tracking)?;
        // The first request makes sure that the kernel has what the socket below asks for.
        table.end_marked(u32::MAX, u32::MAX).map_err(GateError::Tracking)?;
        let endings = Endings::open(ENDINGS_BUFFER).map_err(GateError::Tracking)?;
        let filter = nft::Connection::open().map_err(|error| GateError::Rules("the uplink", error))?;
        let most = sysctl::get("netfilter/nf_conntrack_max")
            .map_err(|error| GateError::SetUp("the uplink", error))?;
        // The machine's namespace tracks them too, beside its own connections, in a table of the same size.
        let capacity = most.parse().map_or(0, |most: usize| most / 2);
        Ok(Self { endings, table, filter, capacity })
    }
}

impl Tracking {
    /// Takes what is open inside; `machine` is the table of the machine's namespace.
    pub(crate) fn new(opened: Opened, machine: Table, max_flows: usize, runtime: Handle) -> Self {
        let Opened { endings, table, filter, capacity } = opened;
        Self {
            descriptor: endings.as_raw_fd(),
            state: Mutex::new(State { wired: Wired::new(max_flows, capacity), filter }),
            endings: Mutex::new(endings),
            table: Mutex::new(table),
            machine: Mutex::new(machine),
            runtime,
            lost: AtomicBool::new(false),
            unreadable: watch::Sender::default(),
        }
    }

    /// From now on what passes by this wire is this sandbox's.
    pub(crate) fn add(&self, slot: Slot, sandbox: &Arc<Sandbox>) {
        let mut state = self.state.lock();
        state.wired.add(slot, Arc::downgrade(sandbox));
        if sandbox.flows.are_bytes_spent() {
            let (_, room) = state.wired.spend(slot);
            state.make(slot, room);
        }
    }

    /// The wire was laid. As [`Self::moved`], while the uplink is held.
    pub(crate) fn laid(&self, slot: Slot) {
        self.state.lock().wired.laid(slot);
    }

    /// Takes note of what a wire has moved since it was laid. To be called while the uplink is held under which that was
    /// read, so that no wire is laid or cut between the two.
    pub(crate) fn moved(&self, slot: Slot, moved: LinkBytes) -> Option<Moved> {
        let (sandbox, up, down) = self.state.lock().wired.moved(slot, moved)?;
        Some(Moved { slot, sandbox, up, down })
    }

    /// Adds what a wire has moved to what its sandbox has. If that is more than it may, the wire's flows are ended, and
    /// it gets no others; what of that fails is done again with the next call.
    pub(crate) fn spend(self: &Arc<Self>, moved: &Moved, limits: &ByteLimits) -> Result<(), GateError> {
        let Moved { slot, up, down, .. } = *moved;
        let Some(sandbox) = moved.sandbox.upgrade() else { return Ok(()) };
        if sandbox.flows.spend(limits, up, down, sandbox.force().now.generation) {
            return Ok(());
        }
        let mut state = self.state.lock();
        if !state.wired.sandbox(slot).is_some_and(|now| now.ptr_eq(&moved.sandbox)) {
            // The wire is another's by now.
            return Ok(());
        }
        let (is_uncut, room) = state.wired.spend(slot);
        let told = state.tell(slot, room).map_err(|error| GateError::Rules("the uplink", error));
        drop(state);
        if !is_uncut {
            return told;
        }
        let destroyed = revoke::cut_spent(&sandbox);
        let ended = self.end(slot).map_err(GateError::Tracking);
        told.and(destroyed).and(ended)?;
        self.state.lock().wired.was_cut(slot);
        Ok(())
    }

    /// Whether the limit on bytes could be held to a wire this time. Gives whose it is when that has failed too often.
    pub(crate) fn limited(&self, slot: Slot, could_be: bool) -> Option<Arc<Sandbox>> {
        self.state.lock().wired.limited(slot, could_be)?.upgrade()
    }

    /// The wire passes nothing any more: ends its connections, and records what they amounted to.
    pub(crate) fn cut(self: &Arc<Self>, slot: Slot) {
        if let Err(error) = self.end(slot) {
            tracing::warn!(%error, wire = slot.interface(), "the connections of a wire were not ended");
        }
    }

    fn end(self: &Arc<Self>, slot: Slot) -> Result<(), nft::Error> {
        let ended = self.table.lock().end_marked(slot.mark(), Slot::MARK_MASK);
        self.take_endings(usize::MAX);
        ended.map(drop)
    }

    /// Nothing more of this wire will be logged.
    pub(crate) fn remove(self: &Arc<Self>, slot: Slot) {
        self.take_endings(usize::MAX);
        let mut state = self.state.lock();
        let Some(removed) = state.wired.remove(slot) else { return };
        if removed.was_full {
            // Whoever gets the wire next begins with room.
            state.make(slot, Room::Free);
        }
        drop(state);
        record_lost(&removed.sandbox, removed.waiting);
        record_unread(&removed.sandbox, removed.missing);
    }

    /// Ends the connections of a wire that the policy does not permit, and records what they amounted to.
    pub(crate) fn revoke(self: &Arc<Self>, slot: Slot, now: &InForce) {
        let refused = self.state.lock().wired.refused(slot, |tuple| is_permitted(tuple, now));
        if refused.is_empty() {
            return;
        }
        if let Err(error) = self.table.lock().end(&refused) {
            tracing::warn!(%error, wire = slot.interface(), "revoked connections were not ended");
        }
        self.take_endings(usize::MAX);
    }

    /// Records what the uplink's packet filter has logged.
    pub(crate) fn record(self: &Arc<Self>, received: Received) {
        if received.lost > 0 {
            // Whose they were is lost with them, but the counters of the wires will tell.
            self.lost.store(true, Ordering::Release);
        }
        for packet in received.packets {
            let Some(slot) = packet.flow.and_then(|headers| Slot::of(headers.source)) else { continue };
            let sandbox = self.state.lock().wired.sandbox(slot);
            let Some(sandbox) = sandbox.as_ref().and_then(Weak::upgrade) else { continue };
            let record = || match packet.prefix.as_str() {
                PERMITTED => {
                    self.record_beginning(&sandbox, slot, &packet);
                    true
                }
                LIMITED => {
                    sandbox.record_limit(&packet);
                    true
                }
                _ => sandbox.record_refusal(&packet),
            };
            let is_told = catch_unwind(AssertUnwindSafe(record)).unwrap_or_else(|_panic| {
                sandbox.recorder.gap(DAEMON_FAULT, 1);
                true
            });
            if is_told && let Some(ledger) = self.state.lock().wired.ledger(slot) {
                ledger.accounted(1);
            }
        }
    }

    /// How many flows go by wires.
    pub(crate) fn open(&self) -> usize {
        self.state.lock().wired.open()
    }

    /// Takes what the packet filter has counted of a wire since it was last read.
    pub(crate) fn count(&self, slot: Slot, counts: Counts) {
        let mut state = self.state.lock();
        if let Some(ledger) = state.wired.ledger(slot) {
            ledger.counted(counts.logged);
        }
        let sandbox = state.wired.sandbox(slot);
        drop(state);
        if let Some(sandbox) = sandbox.as_ref().and_then(Weak::upgrade) {
            sandbox.recorder.gap("uplink_log_limit", counts.unlogged);
        }
    }

    /// Records what had been counted when this was last called, and has not been read from the log since.
    pub(crate) fn record_missing(&self) {
        let missing = self.state.lock().wired.find_missing();
        for (sandbox, count) in missing {
            record_unread(&sandbox, count);
        }
    }

    fn record_beginning(self: &Arc<Self>, sandbox: &Sandbox, slot: Slot, packet: &Packet) {
        let Some((event, headers)) = sandbox.record_permission(packet) else { return };
        let mut state = self.state.lock();
        let (begun, room) = state.wired.begin(slot, Tuple::of(&headers), event, Instant::now());
        state.make(slot, room);
        drop(state);
        match begun {
            Begun::Remembered => {}
            Begun::InPlaceOf(lost) => sandbox.recorder.gap(LOST, lost),
            Begun::Over(totals) => sandbox.recorder.finish(event, totals),
            Begun::Forgotten => sandbox.recorder.gap(LOST, u64::from(event != 0)),
        }
    }

    /// Records connections that have ended, so many at most. Returns whether these were all.
    fn take_endings(&self, most: usize) -> bool {
        let mut endings = self.endings.lock();
        self.take(most, || endings.recv())
    }

    /// As [`Self::take_endings`], from what `receive` gives. After an error [`follow`] ends.
    pub(crate) fn take(
        &self,
        most: usize,
        mut receive: impl FnMut() -> Result<Option<nft::conntrack::Ended>, nft::Error>,
    ) -> bool {
        let (mut cut, mut over) = (Vec::new(), Vec::new());
        let is_done = loop {
            match receive() {
                Ok(Some(ended)) => {
                    if ended.overrun {
                        self.lost.store(true, Ordering::Release);
                    }
                    for entry in ended.connections {
                        let outside = entry.reply.inverted(&entry.original);
                        let was_told = self.record_end(&entry);
                        match (entry.is_over(), entry.remaining.is_zero()) {
                            (true, is_old) if is_old || was_told => over.push(outside),
                            // The next with its ports has made the kernel forget it, there as well as here.
                            (true, _) => {}
                            (false, false) => cut.push(outside),
                            (false, true) => {}
                        }
                    }
                }
                Ok(None) => break true,
                Err(error) => {
                    self.unreadable.send_replace(Some(chain(&error)));
                    break true;
                }
            }
            if cut.len() + over.len() >= most {
                break false;
            }
        };
        if let Err(error) = self.end_outside(&cut, &over) {
            tracing::debug!(%error, "the machine still tracks connections that have ended");
        }
        is_done
    }

    /// Ends connections in the machine's namespace, which would remember those that were cut for days, and all of those
    /// that are over for two minutes. But where one is over, the next with its ports may have begun, and is spared.
    fn end_outside(&self, cut: &[Tuple], over: &[Tuple]) -> Result<(), nft::Error> {
        let mut machine = self.machine.lock();
        machine.end(cut)?;
        let mut ids = Vec::new();
        machine.look_at(over, |entry| {
            if entry.is_over() {
                ids.push((entry.original, entry.id));
            }
        })?;
        machine.end_exactly(&ids).map(drop)
    }

    /// Returns whether the kernel was told to forget it, because it was over.
    fn record_end(&self, entry: &Entry) -> bool {
        let Some(slot) = Slot::marked(entry.mark) else { return false };
        let mut state = self.state.lock();
        let now = Instant::now();
        let was_told = state.wired.is_told(slot, &entry.original);
        let (ended, room) = state.wired.end(slot, entry.original, |since| totals(entry, since), now);
        state.make(slot, room);
        drop(state);
        finish(ended);
        was_told
    }

    /// After a loss: finds out what there is, and what is missing.
    fn compare(self: &Arc<Self>) {
        let asked = Instant::now();
        let mut there = HashSet::new();
        let listed = self.table.lock().list(|entry| {
            there.extend(Slot::marked(entry.mark).map(|slot| (slot, entry.original)));
        });
        if let Err(error) = listed {
            tracing::error!(%error, "the connections by wires cannot be listed");
            return;
        }
        // What has ended meanwhile is not lost.
        self.take_endings(usize::MAX);
        let mut state = self.state.lock();
        let Reconciled { lost, rooms } = state.wired.reconcile(&there, asked);
        for (slot, room) in rooms {
            state.make(slot, room);
        }
        drop(state);
        for (sandbox, count) in lost {
            record_lost(&sandbox, count);
        }
    }

    /// Has the kernel look at flows that may be over.
    fn look(self: &Arc<Self>) {
        let due = self.state.lock().wired.due(Instant::now());
        if due.is_empty() {
            return;
        }
        self.in_background(move |this| {
            let mut over = Vec::new();
            let looked = this.table.lock().look_at(&due, |entry| {
                if entry.is_over() {
                    over.push(entry);
                }
            });
            if let Err(error) = looked {
                tracing::warn!(%error, "whether flows by wires are over is not known");
            }
            this.record_over(&over);
        });
    }

    /// Records flows that were seen to be over.
    fn record_over(&self, over: &[Entry]) {
        let mut excess = Vec::new();
        for entry in over {
            let Some(slot) = Slot::marked(entry.mark) else { continue };
            let mut state = self.state.lock();
            let now = Instant::now();
            let (ended, room, more) =
                state.wired.over(slot, (entry.original, entry.id), |since| totals(entry, since), now);
            state.make(slot, room);
            drop(state);
            finish(ended);
            excess.extend(more);
        }
        if let Err(error) = self.table.lock().end_exactly(&excess) {
            tracing::warn!(%error, "connections that are over are not forgotten");
        }
    }

    fn in_background(self: &Arc<Self>, work: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let this = Arc::clone(self);
        drop(self.runtime.spawn_blocking(move || work(&this)));
    }
}

/// Follows what the kernel tells of connections that end, until `stop`.
///
/// # Errors
/// When that cannot be read any more, by whoever has tried to.
pub(crate) async fn follow(tracking: AsyncFd<Watched>, stop: CancellationToken) -> io::Result<()> {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut comparisons = tokio::time::interval(COMPARE);
    comparisons.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let Watched(this) = tracking.get_ref();
    let mut unreadable = this.unreadable.subscribe();
    loop {
        if let Some(error) = &*unreadable.borrow_and_update() {
            return Err(io::Error::other(error.clone()));
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            // There is a sender: `this`.
            _ = unreadable.changed() => {}
            _ = looks.tick() => this.look(),
            _ = comparisons.tick() => {
                if this.lost.swap(false, Ordering::AcqRel) {
                    this.in_background(Tracking::compare);
                }
            }
            ready = tracking.readable() => {
                ready?.clear_ready();
                while !this.take_endings(AT_ONCE) {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// [`Tracking`] as a descriptor that becomes readable when a connection has ended.
pub(crate) struct Watched(pub(crate) Arc<Tracking>);

impl AsRawFd for Watched {
    fn as_raw_fd(&self) -> RawFd {
        self.0.descriptor
    }
}

impl Descriptor for Watched {}

impl State {
    /// Tells the kernel whether a wire may have new flows; if that fails, with the next change again.
    fn tell(&mut self, slot: Slot, room: Room) -> Result<(), nft::Error> {
        let Some(batch) = uplink_rules::room(slot, room) else { return Ok(()) };
        self.filter.commit(batch).map(drop).inspect_err(|_| self.wired.was_not_told(slot, room))
    }

    /// As [`Self::tell`], where nothing else can be done about an error.
    fn make(&mut self, slot: Slot, room: Room) {
        if let Err(error) = self.tell(slot, room) {
            tracing::error!(%error, wire = slot.interface(), ?room, "a limit on flows is not in force");
        }
    }
}

/// What a gap says: the bytes and the duration of so many flows are not known.
const LOST: &str = "wired_totals";

fn finish(ended: Option<Ended<Weak<Sandbox>>>) {
    if let Some(Ended { sandbox, event, totals }) = ended
        && let Some(sandbox) = sandbox.upgrade()
    {
        sandbox.recorder.finish(event, totals);
    }
}

/// The reason of an `audit_gap`: the kernel has counted more than was read from the log of the uplink.
const UNREAD: &str = "uplink_log";

fn record_unread(sandbox: &Weak<Sandbox>, count: u64) {
    if let Some(sandbox) = sandbox.upgrade() {
        sandbox.recorder.gap(UNREAD, count);
    }
}

fn record_lost(sandbox: &Weak<Sandbox>, count: u64) {
    if let Some(sandbox) = sandbox.upgrade() {
        sandbox.recorder.gap(LOST, count);
    }
}

/// Whether packets may go this way by the wire.
fn is_permitted(tuple: &Tuple, in_force: &InForce) -> bool {
    let flow = Flow {
        protocol: events::protocol(tuple.protocol),
        name: None,
        address: Some(tuple.destination),
        port: tuple.ports.map(|(_, destination)| destination),
    };
    in_force.policy.topology() == Topology::Wire && in_force.policy.judge(&flow).is_allowed()
}
