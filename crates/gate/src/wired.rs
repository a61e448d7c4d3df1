//! The flows that go by wires, as far as they are remembered: to add to each event what its flow amounted to, and to
//! know how many there are. No I/O.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use nft::conntrack::Tuple;
use policy::FlowTotals;

use crate::addresses::Slot;

/// How many flows a wire may carry: all wires share the uplink's connection tracking, and one sandbox must not use it
/// up for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLimits {
    /// The most flows at the same time; further ones are refused. A flow counts from its first packet until the kernel
    /// forgets it: a TCP connection for some seconds after its end, others until nothing has come for half a minute (two
    /// if packets went both ways).
    pub max_flows: usize,
    /// The most new flows a second, over a longer time; further ones are refused.
    pub new_flows: u32,
    /// How many new flows may come at once, after a time with fewer.
    pub burst: u32,
}

impl Default for WireLimits {
    /// A sixteenth of the tracking table of most machines (262 144 flows), and what keeps about as many in it when
    /// each is as short as can be.
    fn default() -> Self {
        Self { max_flows: 16_384, new_flows: 2_000, burst: 8_000 }
    }
}

/// How many flows that ended before their beginning was known are remembered, a wire: the log is a little slower than
/// connection tracking.
const MAX_EARLY: usize = 1024;
/// And for how long: many times what the log is slower by, and too short for the same ports to be used again.
const EARLY: Duration = Duration::from_secs(1);

/// How long after its beginning a flow is looked at to see whether it is over, and how long after that again. The kernel
/// notices that the time of one is over when somebody looks, or within a minute: so short flows are told of soon, and
/// long ones cost nothing.
const LOOKS: [Duration; 4] =
    [Duration::from_secs(4), Duration::from_secs(4), Duration::from_secs(8), Duration::from_secs(16)];

/// The flows of all wires. `S` stands for the sandbox whose wire it is.
#[derive(Debug)]
pub(crate) struct Wired<S> {
    wires: HashMap<Slot, Wire<S>>,
    max_flows: usize,
    /// The flows that are to be looked at, each list in order of the time since when: [`LOOKS`] after that.
    looks: [VecDeque<(Instant, Slot, Tuple)>; LOOKS.len()],
}

#[derive(Debug)]
struct Wire<S> {
    sandbox: S,
    open: HashMap<Tuple, Open>,
    early: VecDeque<(Instant, Tuple, FlowTotals)>,
    is_full: bool,
    /// Whether flows were refused for being too many.
    was_limited: bool,
    /// What the counter of refusals that were not logged showed when it was last read.
    unlogged: u64,
}

/// A flow that has not ended.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Its event; 0 if it has none.
    event: u64,
    since: Instant,
}

/// What came of a flow's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// It will be known when it ends.
    Remembered,
    /// It has ended already.
    Over(FlowTotals),
    /// There are too many: when it ends nobody will know whose it was.
    Forgotten,
}

/// A wire that is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Removed<S> {
    pub(crate) sandbox: S,
    /// How many events wait for totals that will not come any more.
    pub(crate) waiting: u64,
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
    pub(crate) fn new(max_flows: usize) -> Self {
        Self { wires: HashMap::new(), max_flows, looks: Default::default() }
    }

    /// A wire that is to come.
    pub(crate) fn add(&mut self, slot: Slot, sandbox: S) {
        let wire = Wire {
            sandbox,
            open: HashMap::new(),
            early: VecDeque::new(),
            is_full: false,
            was_limited: false,
            unlogged: 0,
        };
        self.wires.insert(slot, wire);
    }

    /// A wire that is not to come again.
    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Removed<S>> {
        let wire = self.wires.remove(&slot)?;
        let waiting = count_events(wire.open.values());
        Some(Removed { sandbox: wire.sandbox, waiting, was_full: wire.is_full })
    }

    /// Whose wire it is.
    pub(crate) fn sandbox(&self, slot: Slot) -> Option<S> {
        self.wires.get(&slot).map(|wire| wire.sandbox.clone())
    }

    /// Everybody who has a wire.
    pub(crate) fn sandboxes(&self) -> impl Iterator<Item = S> {
        self.wires.values().map(|wire| wire.sandbox.clone())
    }

    /// The open flows that are to be looked at now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Tuple> {
        let mut due = Vec::new();
        for (stage, delay) in LOOKS.into_iter().enumerate() {
            let Some(list) = self.looks.get_mut(stage) else { continue };
            let is_due =
                |(since, ..): &mut (Instant, Slot, Tuple)| now.saturating_duration_since(*since) >= delay;
            let mut open = Vec::new();
            while let Some((_, slot, tuple)) = list.pop_front_if(is_due) {
                if self.wires.get(&slot).is_some_and(|wire| wire.open.contains_key(&tuple)) {
                    open.push((now, slot, tuple));
                }
            }
            due.extend(open.iter().map(|(_, _, tuple)| *tuple));
            if let Some(next) = self.looks.get_mut(stage + 1) {
                next.extend(open);
            }
        }
        due
    }

    /// The open flows of a wire that are not `permitted`.
    pub(crate) fn refused(&self, slot: Slot, permitted: impl Fn(&Tuple) -> bool) -> Vec<Tuple> {
        let open = self.wires.get(&slot).into_iter().flat_map(|wire| wire.open.keys());
        open.filter(|tuple| !permitted(tuple)).copied().collect()
    }

    /// A flow has begun, and has this event (or none: 0).
    pub(crate) fn begin(&mut self, slot: Slot, tuple: Tuple, event: u64, now: Instant) -> (Begun, Room) {
        let Some(wire) = self.wires.get_mut(&slot) else { return (Begun::Forgotten, Room::Unchanged) };
        wire.early.retain(|(ended, ..)| now.saturating_duration_since(*ended) < EARLY);
        if let Some(at) = wire.early.iter().position(|(_, early, _)| *early == tuple)
            && let Some((_, _, totals)) = wire.early.remove(at)
        {
            return (Begun::Over(totals), Room::Unchanged);
        }
        // The kernel refuses new ones only when it has been told to: some come in between.
        if wire.open.len() >= self.max_flows.saturating_mul(2) {
            return (Begun::Forgotten, Room::Unchanged);
        }
        wire.open.insert(tuple, Open { event, since: now });
        let [first, ..] = &mut self.looks;
        first.push_back((now, slot, tuple));
        (Begun::Remembered, wire.room(self.max_flows))
    }

    /// A flow has ended; `totals` may ask when it began. Gives the sandbox and the event.
    pub(crate) fn end(
        &mut self,
        slot: Slot,
        tuple: Tuple,
        totals: impl FnOnce(Instant) -> FlowTotals,
        now: Instant,
    ) -> (Option<(S, u64, FlowTotals)>, Room) {
        let Some(wire) = self.wires.get_mut(&slot) else { return (None, Room::Unchanged) };
        let Some(open) = wire.open.remove(&tuple) else {
            if wire.early.len() >= MAX_EARLY {
                wire.early.pop_front();
            }
            wire.early.push_back((now, tuple, totals(now)));
            return (None, Room::Unchanged);
        };
        let ended = (open.event != 0).then(|| (wire.sandbox.clone(), open.event, totals(open.since)));
        (ended, wire.room(self.max_flows))
    }

    /// A flow was refused for being one too many.
    pub(crate) fn limited(&mut self, slot: Slot) {
        if let Some(wire) = self.wires.get_mut(&slot) {
            wire.was_limited = true;
        }
    }

    /// Whether any was.
    pub(crate) fn was_limited(&self, slot: Slot) -> bool {
        self.wires.get(&slot).is_some_and(|wire| wire.was_limited)
    }

    /// What the counter of refusals that were not logged shows. Gives how many there are since it was last read.
    pub(crate) fn unlogged(&mut self, slot: Slot, count: u64) -> u64 {
        let Some(wire) = self.wires.get_mut(&slot) else { return 0 };
        // A wire that was taken away and laid again begins anew.
        let before = if count < wire.unlogged { 0 } else { wire.unlogged };
        wire.unlogged = count;
        count - before
    }

    /// Compares with what the kernel had at some time after `asked`: what had begun before and is not `there` has ended
    /// without a word, and what is there without having begun counts from now on.
    pub(crate) fn reconcile(&mut self, there: &HashSet<(Slot, Tuple)>, asked: Instant) -> Reconciled<S> {
        for (slot, tuple) in there {
            if let Some(wire) = self.wires.get_mut(slot) {
                wire.open.entry(*tuple).or_insert(Open { event: 0, since: asked });
            }
        }
        let (mut lost, mut rooms) = (Vec::new(), Vec::new());
        for (slot, wire) in &mut self.wires {
            let gone =
                wire.open.extract_if(|tuple, open| open.since < asked && !there.contains(&(*slot, *tuple)));
            let gone: Vec<_> = gone.map(|(_, open)| open).collect();
            lost.push((wire.sandbox.clone(), count_events(gone.iter())));
            rooms.push((*slot, wire.room(self.max_flows)));
        }
        lost.retain(|(_, count)| *count > 0);
        rooms.retain(|(_, room)| *room != Room::Unchanged);
        Reconciled { lost, rooms }
    }
}

impl<S> Wire<S> {
    /// A wire that was full has room again only when an eighth is free, so that not every flow changes it.
    fn room(&mut self, max_flows: usize) -> Room {
        let open = self.open.len();
        if !self.is_full && open >= max_flows {
            self.is_full = true;
            Room::Full
        } else if self.is_full && open <= max_flows - max_flows.div_ceil(8) {
            self.is_full = false;
            Room::Free
        } else {
            Room::Unchanged
        }
    }
}

fn count_events<'a>(open: impl Iterator<Item = &'a Open>) -> u64 {
    u64::try_from(open.filter(|open| open.event != 0).count()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u32) -> Slot {
        Slot::new(number).unwrap()
    }

    fn flow(port: u16) -> Tuple {
        Tuple {
            source: slot(0).v4().into(),
            destination: "10.1.2.3".parse().unwrap(),
            protocol: 17,
            ports: Some((port, 53)),
            icmp: None,
        }
    }

    fn totals(bytes_up: u64) -> FlowTotals {
        FlowTotals { bytes_up, ..FlowTotals::default() }
    }

    fn wired(max_flows: usize) -> Wired<&'static str> {
        let mut wired = Wired::new(max_flows);
        wired.add(slot(0), "one");
        wired.add(slot(1), "other");
        wired
    }

    #[test]
    fn the_totals_of_a_flow_go_to_the_event_of_its_beginning() {
        let now = Instant::now();
        let mut wired = wired(10);
        assert_eq!(wired.begin(slot(0), flow(1), 11, now).0, Begun::Remembered);
        assert_eq!(wired.begin(slot(1), flow(1), 12, now).0, Begun::Remembered);
        let ended = |wired: &mut Wired<_>, number| wired.end(slot(number), flow(1), |_| totals(7), now).0;
        assert_eq!(ended(&mut wired, 1), Some(("other", 12, totals(7))));
        assert_eq!(ended(&mut wired, 1), None);
        assert_eq!(wired.remove(slot(0)), Some(Removed { sandbox: "one", waiting: 1, was_full: false }));
        assert_eq!(ended(&mut wired, 0), None);
    }

    #[test]
    fn a_flow_that_ended_before_it_was_known_to_have_begun_has_its_totals() {
        let now = Instant::now();
        let mut wired = wired(10);
        assert_eq!(wired.end(slot(0), flow(1), |_| totals(7), now), (None, Room::Unchanged));
        assert_eq!(wired.begin(slot(0), flow(1), 11, now).0, Begun::Over(totals(7)));
        // A later one with the same ports is another.
        assert_eq!(wired.begin(slot(0), flow(1), 12, now).0, Begun::Remembered);
        assert_eq!(wired.end(slot(0), flow(2), |_| totals(7), now).0, None);
        assert_eq!(wired.begin(slot(0), flow(2), 13, now + EARLY).0, Begun::Remembered);
    }

    #[test]
    fn a_wire_is_full_at_its_limit_until_an_eighth_is_free_and_others_are_not() {
        let now = Instant::now();
        let mut wired = wired(16);
        let begin = |wired: &mut Wired<_>, number, ports: std::ops::Range<u16>| {
            ports.map(|port| wired.begin(slot(number), flow(port), 1, now).1).collect::<Vec<_>>()
        };
        assert!(begin(&mut wired, 0, 0..15).iter().all(|room| *room == Room::Unchanged));
        assert_eq!(begin(&mut wired, 0, 15..17), [Room::Full, Room::Unchanged]);
        assert_eq!(begin(&mut wired, 1, 0..1), [Room::Unchanged]);
        let mut end = |port| wired.end(slot(0), flow(port), |_| totals(1), now).1;
        assert_eq!([end(0), end(1), end(2)], [Room::Unchanged, Room::Unchanged, Room::Free]);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let now = Instant::now();
        let mut wired = wired(4);
        let begun: Vec<_> = (0..9).map(|port| wired.begin(slot(0), flow(port), 1, now).0).collect();
        assert_eq!(begun.iter().filter(|begun| **begun == Begun::Remembered).count(), 8);
        assert_eq!(begun[8], Begun::Forgotten);
        for port in 0..2000 {
            let _ = wired.end(slot(1), flow(port), |_| totals(1), now);
        }
        assert_eq!(wired.wires[&slot(1)].early.len(), MAX_EARLY);
    }

    #[test]
    fn after_a_loss_what_is_not_there_any_more_is_counted_and_what_is_there_counts() {
        let start = Instant::now();
        let mut wired = wired(2);
        let asked = start + Duration::from_millis(1);
        for (port, event, begun) in [(1, 11, start), (2, 12, start), (3, 0, start), (4, 14, asked)] {
            let _ = wired.begin(slot(0), flow(port), event, begun);
        }
        let there = [(slot(0), flow(2)), (slot(1), flow(8)), (slot(1), flow(9))].into();
        let Reconciled { lost, rooms } = wired.reconcile(&there, asked);
        // The first ended unseen, the third had no event, and the fourth began later.
        assert_eq!(lost, [("one", 1)]);
        assert_eq!(rooms, [(slot(1), Room::Full)]);
        assert_eq!(wired.refused(slot(0), |_| false).len(), 2);
        assert_eq!(wired.end(slot(1), flow(8), |_| totals(1), asked).0, None);
        assert_eq!(wired.end(slot(0), flow(2), |_| totals(5), asked).0, Some(("one", 12, totals(5))));
    }

    #[test]
    fn a_flow_is_looked_at_less_and_less_often_while_it_is_open() {
        let start = Instant::now();
        let mut wired = wired(10);
        let _ = wired.begin(slot(0), flow(1), 1, start);
        let _ = wired.begin(slot(0), flow(2), 1, start);
        let _ = wired.end(slot(0), flow(2), |_| totals(1), start);
        let looked = (0..100).filter(|second| {
            let due = wired.due(start + Duration::from_secs(*second));
            assert!(due.iter().all(|tuple| *tuple == flow(1)));
            !due.is_empty()
        });
        assert_eq!(looked.collect::<Vec<_>>(), [4, 8, 16, 32]);
        assert!(wired.looks.iter().all(VecDeque::is_empty));
    }

    #[test]
    fn the_flows_to_be_cut_are_those_that_are_not_permitted() {
        let now = Instant::now();
        let mut wired = wired(10);
        for port in 0..4 {
            let _ = wired.begin(slot(0), flow(port), 1, now);
        }
        let refused = wired.refused(slot(0), |tuple| tuple.ports.unwrap().0 > 0);
        assert_eq!(refused, [flow(0)]);
        assert!(wired.refused(slot(1), |_| false).is_empty());
    }
}
