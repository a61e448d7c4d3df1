//! What is recorded and not yet written: bounded, folding, fair.
//!
//! No I/O, no clock of its own, no async: the caller says what time it is.

use std::{
    borrow::Cow,
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
/// The reason of an `audit_gap`: the store refused the events.
pub(crate) const STORE_FAILED: &str = "store_failed";
/// The reason of an `audit_gap`: so many flows have an event, but not their bytes and duration.
pub(crate) const TOTALS_LOST: &str = "totals_lost";

/// The reason of an `audit_gap`: a sandbox had more refused attempts within [`ATTEMPTS_WINDOW`] than are recorded one by
/// one.
pub(crate) const ATTEMPT_LIMIT: &str = "attempt_limit";

/// How many refused attempts of one sandbox within ten seconds are recorded one by one.
pub const ATTEMPTS: u32 = 10;
const ATTEMPTS_WINDOW: Duration = Duration::from_secs(10);

const GAP: &str = "audit_gap";

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) queue: usize,
    pub(crate) folds: usize,
    pub(crate) fold_window: Duration,
    /// How long the growth of a stored event's count may wait, so that not every repeat is a write.
    pub(crate) repeat_every: Duration,
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
    /// The ends of flows whose events were taken away already.
    finished: HashMap<u64, (Owner, FlowTotals)>,
    /// Repeats of events that were taken away already.
    repeats: HashMap<u64, Repeat>,
    /// When each of the repeats is to be written, in that order. One that was given up is still in here.
    repeat_ends: VecDeque<(Instant, u64)>,
    /// What was not recorded: how much, of whom and why.
    gaps: BTreeMap<(Owner, &'static str), u64>,
    folds: HashMap<FoldKey, Fold>,
    /// The folds in the order in which they end. One that was replaced or given up is still in here.
    fold_ends: VecDeque<(Instant, u64, FoldKey)>,
    /// Refused attempts of each sandbox, since when the first of them was. Windows that are over are taken out when a new
    /// one begins.
    attempts: HashMap<Arc<str>, (Instant, u32)>,
    counters: Counters,
}

/// What happened so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) recorded: u64,
    pub(crate) folded: u64,
    pub(crate) dropped: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default)]
struct Lane {
    refusals: VecDeque<(EventRecord, FoldKey)>,
    others: VecDeque<EventRecord>,
}

#[derive(Clone, Debug)]
struct Repeat {
    owner: Owner,
    /// How often by now.
    total: u64,
    /// How many of them are not written.
    added: u64,
    last: Timestamp,
    /// The queue's sequence when there was nothing to write yet.
    after: u64,
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
    changes: Vec<Change>,
    sequence: u64,
}

/// What was taken away, as it is to be written.
#[derive(Debug)]
pub(crate) struct Drained {
    /// In the order of their ids.
    pub(crate) events: Vec<EventRecord>,
    pub(crate) changes: Vec<Change>,
    /// Everything up to here is in it, or was before.
    pub(crate) sequence: u64,
}

/// A change to an event that was taken away before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) owner: Owner,
    pub(crate) update: EventUpdate,
    /// How many occurrences it is about that no event counts yet.
    pub(crate) added: u64,
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
            finished: HashMap::new(),
            repeats: HashMap::new(),
            repeat_ends: VecDeque::new(),
            gaps: BTreeMap::new(),
            folds: HashMap::new(),
            fold_ends: VecDeque::new(),
            attempts: HashMap::new(),
            counters: Counters::default(),
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
        self.counters.recorded += 1;
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
        self.counters.recorded += 1;
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

    /// Records that something was refused, if there were not too many such attempts just now.
    pub(crate) fn attempt(&mut self, sandbox: &Arc<str>, record: EventRecord, now: Moment) {
        let is_over = |since: Instant| now.instant.duration_since(since) >= ATTEMPTS_WINDOW;
        if self.attempts.get(sandbox).is_none_or(|(since, _)| is_over(*since)) {
            self.attempts.retain(|_, (since, _)| !is_over(*since));
            if self.attempts.len() >= self.limits.folds.max(1) {
                return self.gap(Some(Arc::clone(sandbox)), ATTEMPT_LIMIT, 1);
            }
        }
        let (_, count) = self.attempts.entry(Arc::clone(sandbox)).or_insert((now.instant, 0));
        if *count >= ATTEMPTS {
            return self.gap(Some(Arc::clone(sandbox)), ATTEMPT_LIMIT, 1);
        }
        *count += 1;
        self.push(Some(sandbox), record, now);
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
        if self.has_room_for_change() || self.finished.contains_key(&id) {
            self.finished.insert(id, (Some(Arc::clone(sandbox)), totals));
        } else {
            self.gap(Some(Arc::clone(sandbox)), TOTALS_LOST, 1);
        }
    }

    /// Counts what was not recorded.
    pub(crate) fn gap(&mut self, owner: Owner, what: &'static str, count: u64) {
        let total = self.counters.dropped.entry(what).or_default();
        *total = total.saturating_add(count);
        self.gap_again(owner, what, count);
    }

    /// Counts what was counted before, and could not be written.
    fn gap_again(&mut self, owner: Owner, what: &'static str, count: u64) {
        self.sequence += 1;
        let total = self.gaps.entry((owner, what)).or_default();
        *total = total.saturating_add(count);
    }

    /// Counts what was taken away and could not be written: nothing of it goes on as if it had been, and what was
    /// not recorded for another reason keeps that reason.
    pub(crate) fn give_up(&mut self, events: Vec<EventRecord>, changes: Vec<Change>) {
        let mut lost: HashMap<u64, Option<u64>> = HashMap::new();
        for event in events {
            let owner = event.sandbox_id.map(Into::into);
            match event.reason {
                Some(Cow::Borrowed(reason)) if event.kind == GAP => {
                    self.gap_again(owner, reason, event.count)
                }
                _ => self.gap(owner, STORE_FAILED, event.count),
            }
            lost.insert(event.id, None);
        }
        for change in changes {
            match change.update {
                EventUpdate::Repeated { id, .. } => {
                    self.gap(change.owner, STORE_FAILED, change.added);
                    lost.insert(id, Some(change.added));
                }
                EventUpdate::Finished { .. } => self.gap(change.owner, TOTALS_LOST, 1),
            }
        }
        // A repeat must count on from what is stored.
        self.folds.retain(|_, fold| match lost.get(&fold.id) {
            Some(Some(added)) => {
                fold.count = fold.count.saturating_sub(*added);
                true
            }
            Some(None) => false,
            None => true,
        });
        for (id, added) in lost {
            match added {
                Some(added) => {
                    if let Some(repeat) = self.repeats.get_mut(&id) {
                        repeat.total = repeat.total.saturating_sub(added);
                    }
                }
                None => {
                    self.finished.remove(&id);
                    if let Some(repeat) = self.repeats.remove(&id) {
                        self.gap(repeat.owner, STORE_FAILED, repeat.added);
                    }
                }
            }
        }
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How much there is to write.
    pub(crate) fn pending(&self) -> usize {
        self.in_lanes + self.kept.len() + self.finished.len() + self.gaps.len()
    }

    /// How much there is to write, what may wait included.
    pub(crate) fn waiting(&self) -> usize {
        self.pending() + self.repeats.len()
    }

    /// When there is something to write, if nothing happens before.
    pub(crate) fn next_repeat(&self) -> Option<Instant> {
        self.repeat_ends.front().map(|(end, _)| *end)
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
        let changes = self.take_changes(now.instant);
        self.flush = false;
        self.in_lanes = 0;
        let gaps = mem::take(&mut self.gaps).into_iter().map(|((owner, what), count)| {
            let mut record = EventRecord::new(self.next_id(now), now.time, Category::Network, GAP);
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
            changes,
            sequence: self.sequence_of_taken(),
        }
    }

    /// The ends of flows, and the repeats that have waited long enough.
    fn take_changes(&mut self, now: Instant) -> Vec<Change> {
        let finished = mem::take(&mut self.finished).into_iter().map(|(id, (owner, totals))| Change {
            owner,
            update: render::finished(id, totals),
            added: 0,
        });
        let mut changes: Vec<_> = finished.collect();
        let all = self.flush || self.stop;
        while let Some((_, id)) = self.repeat_ends.pop_front_if(|(end, _)| all || *end <= now) {
            changes.extend(self.repeats.remove(&id).map(|repeat| Change {
                owner: repeat.owner,
                update: EventUpdate::Repeated { id, count: repeat.total, last_time: repeat.last },
                added: repeat.added,
            }));
        }
        changes
    }

    /// The sequence up to which nothing is left here.
    fn sequence_of_taken(&mut self) -> u64 {
        while let Some((_, id)) = self.repeat_ends.front() {
            match self.repeats.get(id) {
                Some(repeat) => return repeat.after,
                None => self.repeat_ends.pop_front(),
            };
        }
        self.sequence
    }

    /// Ids follow the clock as long as it runs forward, and count on when it does not. So an id is never below the
    /// time of its event, and never given twice, over restarts too.
    fn next_id(&mut self, now: Moment) -> u64 {
        let clock = u64::try_from(now.time.as_microsecond()).unwrap_or(0);
        self.last_id = clock.max(self.last_id + 1);
        self.last_id
    }

    /// Drops the oldest refusal of the sandbox that has the most events, so that one sandbox cannot push out what another
    /// did; if it has no refusals, the oldest of its other events.
    fn make_room(&mut self) {
        while self.in_lanes >= self.limits.queue.max(1) {
            let Some((sandbox, lane)) =
                self.lanes.iter_mut().max_by_key(|(_, lane)| lane.refusals.len() + lane.others.len())
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
        let has_room = self.has_room_for_change();
        let fold = self.folds.get_mut(key)?;
        let id = fold.id;
        let total = fold.count.saturating_add(count);
        let waiting = self.lanes.get_mut(&key.sandbox).and_then(|lane| lane.refusal(id));
        if let Some(record) = waiting {
            record.count = total;
            record.last_time = Some(now.time);
        } else if let Some(repeat) = self.repeats.get_mut(&id) {
            repeat.total = total;
            repeat.added = repeat.added.saturating_add(count);
            repeat.last = now.time;
        } else if has_room {
            let (owner, after) = (Some(Arc::clone(&key.sandbox)), self.sequence - 1);
            self.repeats.insert(id, Repeat { owner, total, added: count, last: now.time, after });
            self.repeat_ends.push_back((now.instant + self.limits.repeat_every, id));
        } else {
            self.gap(Some(Arc::clone(&key.sandbox)), QUEUE_FULL, count);
            return Some(id);
        }
        fold.count = total;
        self.counters.folded = self.counters.folded.saturating_add(count);
        Some(id)
    }

    fn has_room_for_change(&self) -> bool {
        self.finished.len() + self.repeats.len() < self.limits.queue
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
}

impl Lane {
    fn refusal(&mut self, id: u64) -> Option<&mut EventRecord> {
        let at = self.refusals.binary_search_by_key(&id, |(record, _)| record.id).ok()?;
        self.refusals.get_mut(at).map(|(record, _)| record)
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
        Drained { events, changes: self.changes, sequence: self.sequence }
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
