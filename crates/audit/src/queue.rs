//! What is recorded and not yet written: bounded, folding, fair.
//!
//! No I/O, no clock of its own, no async: the caller says what time it is.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    mem,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use policy::{EventKind, FlowEvent, FlowTotals, HostName, List, Protocol, Reason, Rule};
use store::{Category, EventRecord, EventUpdate};

use crate::{render, writer::BATCH};

/// The reason of an `audit_gap`: the queue was full.
pub(crate) const QUEUE_FULL: &str = "queue_full";

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) queue: usize,
    pub(crate) folds: usize,
    pub(crate) fold_window: Duration,
}

/// Now, by both clocks: the steady one measures windows, the other dates events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    pub(crate) time: Timestamp,
}

/// A sandbox's id, or none for the service itself.
pub(crate) type Owner = Option<Arc<str>>;

#[derive(Debug)]
pub(crate) struct Queue {
    limits: Limits,
    last_id: u64,
    /// Counts the changes to this queue, for [`Queue::request_flush`].
    sequence: u64,
    flush: bool,
    stop: bool,
    /// Events that may be dropped, by sandbox. The id grows within each list.
    lanes: HashMap<Arc<str>, Lane>,
    /// How many there are in all lanes.
    in_lanes: usize,
    /// Events that are always kept.
    kept: VecDeque<EventRecord>,
    /// Changes to events that were taken away already.
    changes: HashMap<u64, Change>,
    /// What was not recorded: how much, of whom and why.
    gaps: BTreeMap<(Owner, &'static str), u64>,
    folds: HashMap<FoldKey, Fold>,
    /// The folds in the order in which they end. One that was replaced or given up is still in here.
    fold_ends: VecDeque<(Instant, u64, FoldKey)>,
}

#[derive(Debug, Default)]
struct Lane {
    refusals: VecDeque<(EventRecord, FoldKey)>,
    others: VecDeque<EventRecord>,
}

#[derive(Clone, Debug, Default)]
struct Change {
    owner: Owner,
    repeated: Option<(u64, Timestamp)>,
    finished: Option<FlowTotals>,
}

/// What two refusals must have in common to be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct FoldKey {
    sandbox: Arc<str>,
    kind: EventKind,
    reason: Reason,
    rule: RuleKey,
    name: Option<HostName>,
    address: Option<IpAddr>,
    port: Option<u16>,
    protocol: Protocol,
    generation: u64,
}

/// A rule within its generation, where the text of an entry adds nothing to its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum RuleKey {
    Default,
    Entry(List, usize),
    Floor(&'static str),
}

#[derive(Debug)]
struct Fold {
    id: u64,
    count: u64,
}

/// What the writer takes away.
#[derive(Debug)]
pub(crate) struct Taken {
    kept: VecDeque<EventRecord>,
    lanes: HashMap<Arc<str>, Lane>,
    gaps: Vec<EventRecord>,
    changes: HashMap<u64, Change>,
    sequence: u64,
}

/// What was taken away, as it is to be written.
#[derive(Debug)]
pub(crate) struct Drained {
    /// In the order of their ids.
    pub(crate) events: Vec<EventRecord>,
    pub(crate) changes: Vec<(Owner, EventUpdate)>,
    /// Everything up to here is in it, or was before.
    pub(crate) sequence: u64,
}

impl Queue {
    pub(crate) fn new(limits: Limits, last_id: u64) -> Self {
        Self {
            limits,
            last_id,
            sequence: 0,
            flush: false,
            stop: false,
            lanes: HashMap::new(),
            in_lanes: 0,
            kept: VecDeque::new(),
            changes: HashMap::new(),
            gaps: BTreeMap::new(),
            folds: HashMap::new(),
            fold_ends: VecDeque::new(),
        }
    }

    /// Records a decision, or folds it into an earlier one. Returns the event's id.
    pub(crate) fn flow(&mut self, sandbox: &Arc<str>, event: FlowEvent, now: Moment) -> u64 {
        self.sequence += 1;
        let key = FoldKey::of(sandbox, &event);
        if let Some(key) = &key {
            self.end_folds(now.instant);
            if let Some(id) = self.fold(key, event.count.max(1), now) {
                return id;
            }
        }
        self.make_room();
        let id = self.next_id(now);
        let count = event.count.max(1);
        let record = render::record(id, sandbox, event, now);
        let lane = self.lanes.entry(Arc::clone(sandbox)).or_default();
        match key {
            Some(key) => {
                lane.refusals.push_back((record, key.clone()));
                self.begin_fold(key, Fold { id, count }, now.instant);
            }
            None => lane.others.push_back(record),
        }
        self.in_lanes += 1;
        id
    }

    /// Records any other event; its id is given here.
    pub(crate) fn push(&mut self, sandbox: Option<&Arc<str>>, mut record: EventRecord, now: Moment) {
        self.sequence += 1;
        record.sandbox_id = sandbox.map(|sandbox| sandbox.to_string());
        match sandbox {
            Some(sandbox) if !record.category.is_always_recorded() => {
                self.make_room();
                record.id = self.next_id(now);
                self.lanes.entry(Arc::clone(sandbox)).or_default().others.push_back(record);
                self.in_lanes += 1;
            }
            _ => {
                // Only requests to the API make these, never a sandbox, so this bound is for a broken disk.
                if self.kept.len() >= self.limits.queue
                    && let Some(dropped) = self.kept.pop_front()
                {
                    self.gap(dropped.sandbox_id.map(Into::into), QUEUE_FULL, 1);
                }
                record.id = self.next_id(now);
                self.kept.push_back(record);
            }
        }
    }

    /// Adds the totals of a flow to its event, wherever that is by now.
    pub(crate) fn finish(&mut self, sandbox: &Arc<str>, id: u64, totals: FlowTotals) {
        self.sequence += 1;
        if let Some(lane) = self.lanes.get_mut(sandbox)
            && let Ok(at) = lane.others.binary_search_by_key(&id, |record| record.id)
            && let Some(record) = lane.others.get_mut(at)
        {
            render::finished(id, totals).apply(record);
            return;
        }
        if let Some(change) = self.change(sandbox, id) {
            change.finished = Some(totals);
        }
    }

    /// Counts what was not recorded.
    pub(crate) fn gap(&mut self, owner: Owner, what: &'static str, count: u64) {
        self.sequence += 1;
        let total = self.gaps.entry((owner, what)).or_default();
        *total = total.saturating_add(count);
    }

    /// How much there is to write.
    pub(crate) fn pending(&self) -> usize {
        self.in_lanes + self.kept.len() + self.changes.len() + self.gaps.len()
    }

    /// Whether the writer should not gather any longer.
    pub(crate) fn is_due(&self) -> bool {
        self.flush || self.stop || self.pending() >= BATCH
    }

    /// Has the writer take everything away soon. Returns the sequence up to which it must have been written.
    pub(crate) fn request_flush(&mut self) -> u64 {
        self.flush = true;
        self.sequence
    }

    /// Has the writer end after what there is.
    pub(crate) fn stop(&mut self) {
        self.stop = true;
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop
    }

    /// Takes everything away, with an event for each gap. What takes long about it is left to [`Taken::sort`],
    /// since recorders wait for this.
    pub(crate) fn take(&mut self, now: Moment) -> Taken {
        self.flush = false;
        self.in_lanes = 0;
        let gaps = mem::take(&mut self.gaps).into_iter().map(|((owner, what), count)| {
            let mut record = EventRecord::new(self.next_id(now), now.time, Category::Network, "audit_gap");
            record.sandbox_id = owner.map(|sandbox| sandbox.to_string());
            record.reason = Some(what.into());
            record.count = count;
            record
        });
        let gaps = gaps.collect();
        Taken {
            kept: mem::take(&mut self.kept),
            lanes: mem::take(&mut self.lanes),
            gaps,
            changes: mem::take(&mut self.changes),
            sequence: self.sequence,
        }
    }

    /// Ids follow the clock as long as it runs forward, and count on when it does not. So an id is never below the
    /// time of its event, and never given twice, over restarts too.
    fn next_id(&mut self, now: Moment) -> u64 {
        let clock = u64::try_from(now.time.as_microsecond()).unwrap_or(0);
        self.last_id = clock.max(self.last_id + 1);
        self.last_id
    }

    /// Drops the oldest refusal of the sandbox that has the most of them, so that one sandbox cannot push out what
    /// another did; without refusals, the same with other events.
    fn make_room(&mut self) {
        while self.in_lanes >= self.limits.queue.max(1) {
            let Some((sandbox, lane)) =
                self.lanes.iter_mut().max_by_key(|(_, lane)| (lane.refusals.len(), lane.others.len()))
            else {
                return;
            };
            let owner = Some(Arc::clone(sandbox));
            let dropped = if let Some((record, key)) = lane.refusals.pop_front() {
                // A repeat must not count on for an event that nobody will find.
                if self.folds.get(&key).is_some_and(|fold| fold.id == record.id) {
                    self.folds.remove(&key);
                }
                record.count
            } else if lane.others.pop_front().is_some() {
                1
            } else {
                return;
            };
            self.in_lanes -= 1;
            self.gap(owner, QUEUE_FULL, dropped);
        }
    }

    fn fold(&mut self, key: &FoldKey, count: u64, now: Moment) -> Option<u64> {
        let fold = self.folds.get_mut(key)?;
        fold.count = fold.count.saturating_add(count);
        let (id, total) = (fold.id, fold.count);
        if let Some(lane) = self.lanes.get_mut(&key.sandbox)
            && let Ok(at) = lane.refusals.binary_search_by_key(&id, |(record, _)| record.id)
            && let Some((record, _)) = lane.refusals.get_mut(at)
        {
            record.count = total;
            record.last_time = Some(now.time);
        } else if let Some(change) = self.change(&key.sandbox, id) {
            change.repeated = Some((total, now.time));
        }
        Some(id)
    }

    fn begin_fold(&mut self, key: FoldKey, fold: Fold, now: Instant) {
        if self.fold_ends.len() >= self.limits.folds.max(1) {
            self.end_oldest_fold();
        }
        self.fold_ends.push_back((now + self.limits.fold_window, fold.id, key.clone()));
        self.folds.insert(key, fold);
    }

    fn end_folds(&mut self, now: Instant) {
        while self.fold_ends.front().is_some_and(|(end, ..)| *end <= now) {
            self.end_oldest_fold();
        }
    }

    fn end_oldest_fold(&mut self) {
        if let Some((_, id, key)) = self.fold_ends.pop_front()
            && self.folds.get(&key).is_some_and(|fold| fold.id == id)
        {
            self.folds.remove(&key);
        }
    }

    /// The pending change of an event that was taken away already; `None` if there are too many.
    fn change(&mut self, sandbox: &Arc<str>, id: u64) -> Option<&mut Change> {
        if self.changes.len() >= self.limits.queue && !self.changes.contains_key(&id) {
            self.gap(Some(Arc::clone(sandbox)), "change_lost", 1);
            return None;
        }
        let change = self.changes.entry(id).or_default();
        change.owner = Some(Arc::clone(sandbox));
        Some(change)
    }
}

impl Taken {
    pub(crate) fn sort(self) -> Drained {
        let mut events: Vec<_> = self.kept.into();
        for lane in self.lanes.into_values() {
            events.extend(lane.others);
            events.extend(lane.refusals.into_iter().map(|(record, _)| record));
        }
        events.extend(self.gaps);
        events.sort_unstable_by_key(|record| record.id);
        let changes = self.changes.into_iter().flat_map(|(id, change)| change.into_updates(id)).collect();
        Drained { events, changes, sequence: self.sequence }
    }
}

impl Change {
    fn into_updates(self, id: u64) -> impl Iterator<Item = (Owner, EventUpdate)> {
        let repeated = self.repeated.map(|(count, last_time)| EventUpdate::Repeated { id, count, last_time });
        let finished = self.finished.map(|totals| render::finished(id, totals));
        repeated.into_iter().chain(finished).map(move |update| (self.owner.clone(), update))
    }
}

impl FoldKey {
    /// The key of a refusal; `None` for what is not folded. A revocation ends a flow of its own, like an allowed
    /// one begins one, and their number is bounded by that of the flows.
    fn of(sandbox: &Arc<str>, event: &FlowEvent) -> Option<Self> {
        if !matches!(event.kind, EventKind::EgressBlocked | EventKind::DnsBlocked) {
            return None;
        }
        Some(Self {
            sandbox: Arc::clone(sandbox),
            kind: event.kind,
            reason: event.verdict.reason,
            rule: match &event.verdict.rule {
                Rule::Default => RuleKey::Default,
                Rule::Entry { list, index, .. } => RuleKey::Entry(*list, *index),
                Rule::Floor(part) => RuleKey::Floor(part),
            },
            name: event.name.clone(),
            address: event.address,
            port: event.port,
            protocol: event.protocol,
            generation: event.generation,
        })
    }
}

#[cfg(test)]
mod tests;
