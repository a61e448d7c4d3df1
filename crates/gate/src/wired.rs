//! The flows that go by wires, as far as they are remembered: to add to each event what its flow amounted to, and to
//! know how many there are. No I/O.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use netns::LinkBytes;
use nft::conntrack::Tuple;
use policy::FlowTotals;

use crate::{addresses::Slot, ledger::Ledger};

/// How many flows a sandbox may have that the kernel forwards: all sandboxes share one table of tracked connections,
/// and none must use it up for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// The most flows at the same time; further ones are refused. A TCP connection counts until it is seen to be over,
    /// which is some seconds after its end; other flows until nothing has come for half a minute, or for two if there
    /// was an exchange for a while. With many wired sandboxes it is less: their share of half of the table, but no less
    /// than 1024.
    pub max_flows: usize,
    /// The most new flows a second, over a longer time; further ones are refused.
    pub new_flows: u32,
    /// How many new flows may come at once, after a time with fewer.
    pub burst: u32,
}

impl Default for WireLimits {
    /// A thirty-second part of the table of most machines (262 144 connections), and so many a second that connections
    /// which are as short as can be do not fill that before they are seen to be over.
    fn default() -> Self {
        Self { max_flows: 8_192, new_flows: 2_000, burst: 4_000 }
    }
}

const TCP: u8 = 6;

/// What no wire's share is less than.
const MIN_SHARE: usize = 1024;
/// How many connections that are over may stay in the kernel's table, a wire, of its share: they keep addresses and
/// ports from being used again at once (RFC 9293 section 3.6.1).
const OVER_SHARE: usize = 4;
/// How many flows that ended before their beginning was known are remembered, a wire, and how many of which the end is
/// known later than the beginning of the next with their ports: the log and connection tracking tell of them apart.
const MAX_EARLY: usize = 1024;
/// And for how long: many times what the log is slower by, and too short for the same ports to be used again.
const EARLY: Duration = Duration::from_secs(1);

/// How many times in a row, a second apart, the bytes of a wire may not be known, or not be limited.
const TRIES: u32 = 5;

/// How long after its beginning a flow is looked at to see whether it is over, and how long after that again; in the
/// end at the last of these distances. So short flows are known to be over soon, and long ones cost next to nothing.
const LOOKS: [Duration; 6] = [
    Duration::from_secs(2),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];

/// The flows of all wires. `S` stands for the sandbox whose wire it is.
#[derive(Debug)]
pub(crate) struct Wired<S> {
    wires: HashMap<Slot, Wire<S>>,
    max_flows: usize,
    /// How many flows all wires together may have.
    capacity: usize,
    /// The flows that are to be looked at, each list in order of the time since when: [`LOOKS`] after that.
    looks: [VecDeque<Look>; LOOKS.len()],
}

#[derive(Debug)]
struct Wire<S> {
    sandbox: S,
    open: HashMap<Tuple, Open>,
    /// Those whose ports the next of `open` has already, in the order of their beginnings: that they have ended is
    /// still to be told.
    displaced: VecDeque<(Tuple, Open)>,
    over: Over,
    early: VecDeque<(Instant, Tuple, FlowTotals)>,
    is_full: bool,
    /// What the log is to tell of it, as it is counted and as it is read.
    ledger: Ledger,
    /// What the wire had moved when that was last read.
    moved: LinkBytes,
    spent: Spent,
    /// How many times in a row its bytes could not be read, or it could not be cut.
    failures: u32,
}

/// Whether the sandbox has moved as many bytes as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spent {
    No,
    /// Its flows are still to be cut.
    Uncut,
    Cut,
}

/// A flow that may go on.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Its event; 0 if it has none.
    event: u64,
    since: Instant,
}

/// Flows that are over and that the kernel has not forgotten, in the order in which that was seen.
#[derive(Debug, Default)]
struct Over {
    /// Since when; `None` if the kernel has been told to forget it.
    seen: HashMap<Tuple, Option<Instant>>,
    /// Some of these may be forgotten by now.
    order: VecDeque<(Tuple, u32, Instant)>,
    /// How many of those that were seen the kernel has not been told to forget.
    kept: usize,
}

#[derive(Clone, Copy, Debug)]
struct Look {
    last: Instant,
    begun: Instant,
    slot: Slot,
    tuple: Tuple,
}

/// What came of a flow's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It will be known when it ends.
    Remembered,
    /// So will this one, but no more so many events of earlier ones.
    InPlaceOf(u64),
    /// It has ended already.
    Over(FlowTotals),
    /// There are too many, or it is one that is known already: its event will have no totals.
    Forgotten,
}

/// A flow that has an event and is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended<S> {
    pub(crate) sandbox: S,
    pub(crate) event: u64,
    pub(crate) totals: FlowTotals,
}

/// A wire that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removed<S> {
    pub(crate) sandbox: S,
    /// How many events wait for totals that will not come any more.
    pub(crate) waiting: u64,
    /// How much of what was counted was not read from the log.
    pub(crate) missing: u64,
    /// Whether it was at its limit.
    pub(crate) was_full: bool,
}

/// What came of comparing with the kernel.
#[derive(Debug)]
pub(crate) struct Reconciled<S> {
    /// How many events wait for totals that will not come any more, and whose.
    pub(crate) lost: Vec<(S, u64)>,
    /// The wires whose room has changed.
    pub(crate) rooms: Vec<(Slot, Room)>,
}

/// Where a wire stands after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// As before.
    Unchanged,
    /// It has just reached its limit.
    Full,
    /// It has room again.
    Free,
}

impl<S: Clone> Wired<S> {
    /// `max_flows` of one wire, `capacity` for all together.
    pub(crate) fn new(max_flows: usize, capacity: usize) -> Self {
        Self { wires: HashMap::new(), max_flows, capacity, looks: Default::default() }
    }

    /// A wire that is to come.
    pub(crate) fn add(&mut self, slot: Slot, sandbox: S) {
        let wire = Wire {
            sandbox,
            open: HashMap::new(),
            displaced: VecDeque::new(),
            over: Over::default(),
            early: VecDeque::new(),
            is_full: false,
            ledger: Ledger::default(),
            moved: LinkBytes::default(),
            spent: Spent::No,
            failures: 0,
        };
        self.wires.insert(slot, wire);
    }

    /// A wire that is not to come again.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Removed<S>> {
        let mut wire = self.wires.remove(&slot)?;
        let waiting = count_events(wire.open.values().chain(wire.displaced.iter().map(|(_, open)| open)));
        let missing = wire.ledger.close();
        Some(Removed { sandbox: wire.sandbox, waiting, missing, was_full: wire.is_full })
    }

    /// Whose wire it is.
    pub(crate) fn sandbox(&self, slot: Slot) -> Option<S> {
        self.wires.get(&slot).map(|wire| wire.sandbox.clone())
    }

    /// How many flows may go on.
    pub(crate) fn open(&self) -> usize {
        self.wires.values().map(|wire| wire.open.len()).sum()
    }

    /// The flows that are to be looked at now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Tuple> {
        let mut due = Vec::new();
        let mut again = Vec::new();
        for (list, distance) in self.looks.iter_mut().zip(LOOKS) {
            list.extend(again.drain(..));
            while let Some(look) =
                list.pop_front_if(|look| now.saturating_duration_since(look.last) >= distance)
            {
                let wire = self.wires.get(&look.slot);
                let open = wire.and_then(|wire| wire.open.get(&look.tuple));
                // Another flow may have begun with the same ports.
                if open.is_some_and(|open| open.since == look.begun) {
                    due.push(look.tuple);
                    again.push(Look { last: now, ..look });
                }
            }
        }
        let [.., last] = &mut self.looks;
        last.extend(again);
        due
    }

    /// The open flows of a wire that are not `permitted`.
    pub(crate) fn refused(&self, slot: Slot, permitted: impl Fn(&Tuple) -> bool) -> Vec<Tuple> {
        let open = self.wires.get(&slot).into_iter().flat_map(|wire| wire.open.keys());
        open.filter(|tuple| !permitted(tuple)).copied().collect()
    }

    /// A flow has begun, and has this event (or none: 0).
    pub(crate) fn begin(&mut self, slot: Slot, tuple: Tuple, event: u64, now: Instant) -> (Begun, Room) {
        let share = self.share();
        let Some(wire) = self.wires.get_mut(&slot) else { return (Begun::Forgotten, Room::Unchanged) };
        while wire.early.pop_front_if(|(ended, ..)| now.saturating_duration_since(*ended) >= EARLY).is_some()
        {
        }
        if let Some(at) = wire.early.iter().position(|(_, early, _)| *early == tuple)
            && let Some((_, _, totals)) = wire.early.remove(at)
        {
            return (Begun::Over(totals), Room::Unchanged);
        }
        // The kernel refuses new ones only when it has been told to: some come in between.
        if wire.open.len() >= share.saturating_mul(2) {
            return (Begun::Forgotten, Room::Unchanged);
        }
        // Two of its first packets, on two processors: connection tracking has made one flow of them.
        let is_twin = |open: &Open| now.saturating_duration_since(open.since) < EARLY;
        if tuple.protocol != TCP && wire.open.get(&tuple).is_some_and(is_twin) {
            return (Begun::Forgotten, Room::Unchanged);
        }
        let mut lost = 0;
        if let Some(last) = wire.open.insert(tuple, Open { event, since: now }) {
            if wire.displaced.len() >= MAX_EARLY {
                lost = count_events(wire.displaced.pop_front().iter().map(|(_, open)| open));
            }
            wire.displaced.push_back((tuple, last));
        }
        let room = wire.room(share);
        let [first, ..] = &mut self.looks;
        first.push_back(Look { last: now, begun: now, slot, tuple });
        (if lost == 0 { Begun::Remembered } else { Begun::InPlaceOf(lost) }, room)
    }

    /// A flow (with the kernel's id of it) was seen to be over; the kernel will forget it later. `totals` may ask when
    /// it began. Gives those that the kernel should rather forget now, because there are too many.
    pub(crate) fn over(
        &mut self,
        slot: Slot,
        (tuple, id): (Tuple, u32),
        totals: impl FnOnce(Instant) -> FlowTotals,
        now: Instant,
    ) -> (Option<Ended<S>>, Room, Vec<(Tuple, u32)>) {
        let share = self.share();
        let wire = self.wires.get_mut(&slot);
        let Some((open, wire)) = wire.and_then(|wire| Some((wire.open.remove(&tuple)?, wire))) else {
            return (None, Room::Unchanged, Vec::new());
        };
        wire.over.insert(tuple, id, now);
        let excess = wire.over.excess(share / OVER_SHARE);
        (wire.ended(open, totals), wire.room(share), excess)
    }

    /// The kernel has forgotten a flow; `totals` may ask when it began.
    pub(crate) fn end(
        &mut self,
        slot: Slot,
        tuple: Tuple,
        totals: impl FnOnce(Instant) -> FlowTotals,
        now: Instant,
    ) -> (Option<Ended<S>>, Room) {
        let share = self.share();
        let Some(wire) = self.wires.get_mut(&slot) else { return (None, Room::Unchanged) };
        // The oldest first: a new one with the same ports makes the kernel forget the one that is over.
        if wire.over.remove(&tuple) {
            return (None, Room::Unchanged);
        }
        if let Some(at) = wire.displaced.iter().position(|(displaced, _)| *displaced == tuple)
            && let Some((_, open)) = wire.displaced.remove(at)
        {
            return (wire.ended(open, totals), Room::Unchanged);
        }
        if let Some(open) = wire.open.remove(&tuple) {
            return (wire.ended(open, totals), wire.room(share));
        }
        if wire.early.len() >= MAX_EARLY {
            wire.early.pop_front();
        }
        wire.early.push_back((now, tuple, totals(now)));
        (None, Room::Unchanged)
    }

    /// Whether the kernel has been told to forget this flow, which was over.
    pub(crate) fn is_told(&self, slot: Slot, tuple: &Tuple) -> bool {
        self.wires.get(&slot).is_some_and(|wire| wire.over.seen.get(tuple) == Some(&None))
    }

    /// What the log is to tell of a wire.
    pub(crate) fn ledger(&mut self, slot: Slot) -> Option<&mut Ledger> {
        self.wires.get_mut(&slot).map(|wire| &mut wire.ledger)
    }

    /// How much of what had been counted when this was last called is missing, and whose.
    pub(crate) fn find_missing(&mut self) -> Vec<(S, u64)> {
        let missing = self.wires.values_mut().map(|wire| (wire.sandbox.clone(), wire.ledger.find_missing()));
        missing.filter(|(_, count)| *count > 0).collect()
    }

    /// The wire was laid, perhaps not for the first time: its counters begin anew.
    pub(crate) fn laid(&mut self, slot: Slot) {
        if let Some(wire) = self.wires.get_mut(&slot) {
            wire.moved = LinkBytes::default();
        }
    }

    /// What the wire has moved since it was laid. Gives whose it is, and how many bytes more from the sandbox, and to it,
    /// there are than were told before: none by a reading that is older than what was.
    pub(crate) fn moved(&mut self, slot: Slot, moved: LinkBytes) -> Option<(S, u64, u64)> {
        let wire = self.wires.get_mut(&slot)?;
        let before = wire.moved;
        wire.moved.received = before.received.max(moved.received);
        wire.moved.sent = before.sent.max(moved.sent);
        let (up, down) = (wire.moved.received - before.received, wire.moved.sent - before.sent);
        Some((wire.sandbox.clone(), up, down))
    }

    /// The sandbox has moved as many bytes as it may: there is no room for a flow any more. Whether its flows are still to
    /// be cut: until [`Self::was_cut`] is called, each time.
    pub(crate) fn spend(&mut self, slot: Slot) -> (bool, Room) {
        let share = self.share();
        let Some(wire) = self.wires.get_mut(&slot) else { return (false, Room::Unchanged) };
        if wire.spent == Spent::No {
            wire.spent = Spent::Uncut;
        }
        (wire.spent == Spent::Uncut, wire.room(share))
    }

    /// The flows of a wire whose sandbox has spent its bytes have been cut.
    pub(crate) fn was_cut(&mut self, slot: Slot) {
        if let Some(wire) = self.wires.get_mut(&slot) {
            wire.spent = Spent::Cut;
        }
    }

    /// The kernel could not be told of a change of the room: it is to be told with the next.
    pub(crate) fn was_not_told(&mut self, slot: Slot, room: Room) {
        if let Some(wire) = self.wires.get_mut(&slot)
            && room != Room::Unchanged
        {
            wire.is_full = room == Room::Free;
        }
    }

    /// Whether the limit on bytes could be held to a wire this time. Gives whose it is when it could not be so often that
    /// it is not to be tried again.
    pub(crate) fn limited(&mut self, slot: Slot, could_be: bool) -> Option<S> {
        let wire = self.wires.get_mut(&slot)?;
        wire.failures = if could_be { 0 } else { wire.failures.saturating_add(1) };
        (wire.failures >= TRIES).then(|| wire.sandbox.clone())
    }

    /// Compares with what the kernel had at some time after `asked`: what had begun before and is not `there` has ended
    /// without a word, and what is there without having begun counts from now on.
    pub(crate) fn reconcile(&mut self, there: &HashSet<(Slot, Tuple)>, asked: Instant) -> Reconciled<S> {
        let share = self.share();
        for (slot, tuple) in there {
            if let Some(wire) = self.wires.get_mut(slot)
                && !wire.over.seen.contains_key(tuple)
            {
                wire.open.entry(*tuple).or_insert(Open { event: 0, since: asked });
            }
        }
        let (mut lost, mut rooms) = (Vec::new(), Vec::new());
        for (slot, wire) in &mut self.wires {
            let is_later = |since: Option<Instant>| since.is_some_and(|since| since >= asked);
            wire.over.retain(|tuple, since| is_later(since) || there.contains(&(*slot, *tuple)));
            let gone =
                |tuple: &Tuple, open: &mut Open| open.since < asked && !there.contains(&(*slot, *tuple));
            let mut gone: Vec<_> = wire.open.extract_if(gone).map(|(_, open)| open).collect();
            let (old, new) =
                wire.displaced.drain(..).partition::<VecDeque<_>, _>(|(_, open)| open.since < asked);
            wire.displaced = new;
            gone.extend(old.into_iter().map(|(_, open)| open));
            lost.push((wire.sandbox.clone(), count_events(gone.iter())));
            rooms.push((*slot, wire.room(share)));
        }
        lost.retain(|(_, count)| *count > 0);
        rooms.retain(|(_, room)| *room != Room::Unchanged);
        Reconciled { lost, rooms }
    }

    /// How many flows each wire may have now.
    fn share(&self) -> usize {
        let share = self.capacity / self.wires.len().max(1);
        self.max_flows.min(share.max(MIN_SHARE))
    }
}

impl<S: Clone> Wire<S> {
    fn ended(&self, open: Open, totals: impl FnOnce(Instant) -> FlowTotals) -> Option<Ended<S>> {
        let sandbox = self.sandbox.clone();
        (open.event != 0).then(|| Ended { sandbox, event: open.event, totals: totals(open.since) })
    }

    /// A wire that was full has room again only when an eighth is free, so that not every flow changes it.
    fn room(&mut self, share: usize) -> Room {
        let open = self.open.len();
        if self.spent != Spent::No {
            return if std::mem::replace(&mut self.is_full, true) { Room::Unchanged } else { Room::Full };
        }
        if !self.is_full && open >= share {
            self.is_full = true;
            Room::Full
        } else if self.is_full && open <= share - share.div_ceil(8) {
            self.is_full = false;
            Room::Free
        } else {
            Room::Unchanged
        }
    }
}

impl Over {
    fn insert(&mut self, tuple: Tuple, id: u32, now: Instant) {
        self.remove(&tuple);
        self.seen.insert(tuple, Some(now));
        self.order.push_back((tuple, id, now));
        self.kept += 1;
    }

    /// Whether it was there.
    fn remove(&mut self, tuple: &Tuple) -> bool {
        let removed = self.seen.remove(tuple);
        self.kept -= usize::from(matches!(removed, Some(Some(_))));
        removed.is_some()
    }

    /// The oldest of those that are too many, for the kernel to forget.
    fn excess(&mut self, most: usize) -> Vec<(Tuple, u32)> {
        let mut excess = Vec::new();
        while let Some((tuple, id, since)) = self.order.front() {
            if let Some(kept) = self.seen.get_mut(tuple).filter(|seen| **seen == Some(*since)) {
                if self.kept <= most {
                    break;
                }
                *kept = None;
                self.kept -= 1;
                excess.push((*tuple, *id));
            }
            self.order.pop_front();
        }
        excess
    }

    /// Forgets those that are not `there` any more.
    fn retain(&mut self, there: impl Fn(&Tuple, Option<Instant>) -> bool) {
        self.seen.retain(|tuple, since| there(tuple, *since));
        self.kept = self.seen.values().filter(|since| since.is_some()).count();
    }
}

fn count_events<'a>(open: impl Iterator<Item = &'a Open>) -> u64 {
    u64::try_from(open.filter(|open| open.event != 0).count()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
