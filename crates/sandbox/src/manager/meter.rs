//! How long the sandboxes of each account run.
//!
//! Time is measured by the machine's clock since its start, which nobody sets, and given to days by the calendar. What runs
//! is counted from time to time, and when a run ends together with the record of that. A daemon that is started later goes on
//! where the last one was: the store has up to when all runs are counted, and each record since when its sandbox runs.
//!
//! Nobody waits here for a store that is slow: what could not be written is written with what comes next.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use store::{Day, Metered, MoreUsage, Store, StoreError};

use super::{Manager, clock::Uptime, joined, living::Living};
use crate::{error::SandboxError, process};

/// How often what runs is counted. So much is lost at most when the machine loses its power.
const EVERY: Duration = Duration::from_secs(30);

/// What is counted, and up to when.
pub(super) struct Meter {
    /// Which start of the machine it is.
    boot: String,
    counted: Mutex<Counted>,
}

struct Counted {
    /// Up to when all runs are counted: those that began earlier too.
    until: Uptime,
    /// What is counted and not in the store yet, because that could not be written to.
    waiting: BTreeMap<(String, Day), More>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct More {
    running: Duration,
    ended: u64,
}

impl Meter {
    /// Goes on where an earlier daemon has stopped.
    pub(super) async fn open(store: &Store) -> Result<Self, SandboxError> {
        let boot = process::boot_id().map_err(|error| {
            crate::Fault::new("read", format!("which start of the machine it is: {error}"))
        })?;
        let until = match store.usage().metered().await? {
            Some(metered) if metered.boot == boot => Uptime::from_millis(metered.uptime_ms),
            // What ran before that is not known to have run until now.
            Some(_) => Uptime::now(),
            None => Uptime::default(),
        };
        Ok(Self { boot, counted: Mutex::new(Counted { until, waiting: BTreeMap::new() }) })
    }
}

impl Counted {
    fn add(&mut self, account: &str, day: Day, more: More) {
        let waiting = self.waiting.entry((account.to_owned(), day)).or_default();
        waiting.running = waiting.running.saturating_add(more.running);
        waiting.ended += more.ended;
    }

    /// Adds what ran from `since` to `now`, as far as it is not counted.
    fn add_run(&mut self, account: &str, since: Uptime, now: Uptime, calendar: Timestamp) {
        for (day, running) in days(since.max(self.until).until(now), calendar) {
            self.add(account, day, More { running, ended: 0 });
        }
    }

    /// Takes what is to be written.
    fn take(&mut self) -> Vec<MoreUsage> {
        let more = |((account, day), more): ((String, Day), More)| MoreUsage {
            account,
            day,
            running_ms: u64::try_from(more.running.as_millis()).unwrap_or(u64::MAX),
            ended: more.ended,
        };
        std::mem::take(&mut self.waiting).into_iter().map(more).collect()
    }

    /// Takes back what could not be written.
    fn give_back(&mut self, more: Vec<MoreUsage>) {
        for MoreUsage { account, day, running_ms, ended } in more {
            self.add(&account, day, More { running: Duration::from_millis(running_ms), ended });
        }
    }
}

/// A span that ends at `end`, by days.
fn days(span: Duration, end: Timestamp) -> Vec<(Day, Duration)> {
    let (mut days, mut left, mut end) = (Vec::new(), span, end);
    while !left.is_zero() {
        // The day that the last moment of the span is in.
        let day = Day::of(end - SignedDuration::from_nanos(1));
        let of_day = Duration::try_from(end.duration_since(day.begins())).unwrap_or_default();
        if of_day.is_zero() {
            break;
        }
        days.push((day, left.min(of_day)));
        left = left.saturating_sub(of_day);
        end = day.begins();
    }
    days
}

impl Manager {
    /// Brings what the store says of usage up to now, to the end even if nobody waits for it any more.
    ///
    /// # Errors
    /// When the store cannot be written to. Nothing is forgotten; the next call writes it.
    pub async fn settle_usage(&self) -> Result<(), SandboxError> {
        let manager = self.clone();
        Ok(joined(tokio::spawn(async move { manager.settle().await })).await??)
    }

    async fn settle(&self) -> Result<(), StoreError> {
        let meter = &self.inner.meter;
        let (now, more) = self.count_running();
        let metered = Metered { boot: meter.boot.clone(), uptime_ms: now.as_millis() };
        let written = self.inner.config.store.usage().add(&more, Some(&metered), None).await;
        if written.is_err() {
            meter.counted.lock().give_back(more);
        }
        written
    }

    /// Counts what runs up to now, and gives all that is to be written.
    fn count_running(&self) -> (Uptime, Vec<MoreUsage>) {
        let mut counted = self.inner.meter.counted.lock();
        let (now, calendar) = (Uptime::now(), Timestamp::now());
        let living: Vec<Arc<Living>> = self.inner.living.lock().values().cloned().collect();
        for living in living {
            if let Some(since) = living.running_since() {
                counted.add_run(&living.account(), since, now, calendar);
            }
        }
        counted.until = now;
        (now, counted.take())
    }

    /// Writes that a sandbox does not run any more, or has ended, together with the time for which it ran.
    pub(super) async fn store_end_of_run(&self, living: &Living, ended: bool) -> Result<(), StoreError> {
        let more = self.count_end_of_run(living, ended);
        let written = living.store_with(&self.inner.config.store, &more).await;
        if written.is_err() {
            self.inner.meter.counted.lock().give_back(more);
        }
        written
    }

    fn count_end_of_run(&self, living: &Living, ended: bool) -> Vec<MoreUsage> {
        let mut counted = self.inner.meter.counted.lock();
        let record = living.record();
        if let Some(since) = living.running_since() {
            counted.add_run(&record.account, since, Uptime::now(), Timestamp::now());
        }
        living.set_running_since(None);
        // One that never ran is none.
        if ended && record.started_at.is_some() {
            counted.add(&record.account, Day::of(record.created_at), More { ended: 1, ..More::default() });
        }
        counted.take()
    }

    /// Counts what runs, from time to time.
    pub(super) fn keep_metering(&self) {
        let manager = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = manager.inner.stop.cancelled() => return,
                    () = tokio::time::sleep(EVERY) => {}
                }
                if let Err(error) = manager.settle_usage().await {
                    tracing::warn!(%error, "usage is counted and cannot be written");
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_given_to_the_days_it_lies_in() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let noon: Timestamp = "1970-01-03T12:00:00Z".parse().unwrap();
        assert_eq!(days(Duration::ZERO, noon), []);
        assert_eq!(days(hours(12), noon), [(Day(2), hours(12))]);
        assert_eq!(days(hours(13), noon), [(Day(2), hours(12)), (Day(1), hours(1))]);
        let all = [(Day(2), hours(12)), (Day(1), hours(24)), (Day(0), hours(2))];
        assert_eq!(days(hours(38), noon), all);
        let midnight: Timestamp = "1970-01-03T00:00:00Z".parse().unwrap();
        assert_eq!(days(hours(1), midnight), [(Day(1), hours(1))]);
        // A clock that stands at the beginning of all time ends it.
        let total: Duration = days(hours(1 << 30), noon).into_iter().map(|(_, time)| time).sum();
        assert!(total <= hours(1 << 30));
    }

    #[test]
    fn each_moment_is_counted_once() {
        let at = |seconds: u64| Uptime::from_millis(seconds * 1000);
        let noon: Timestamp = "1970-01-03T12:00:00Z".parse().unwrap();
        let mut counted = Counted { until: at(10), waiting: BTreeMap::new() };
        counted.add_run("acme", at(5), at(15), noon);
        counted.add_run("acme", at(12), at(15), noon);
        counted.until = at(15);
        counted.add_run("acme", at(5), at(16), noon);
        // From another start of the machine: not known for how long.
        counted.add_run("acme", at(9000), at(16), noon);
        counted.add_run("other", at(16), at(16), noon);
        let running = |more: &MoreUsage| (more.account.clone(), more.day, more.running_ms);
        let more = counted.take();
        let expected = [("acme".to_owned(), Day(2), 9000)];
        assert_eq!(more.iter().map(running).collect::<Vec<_>>(), expected);
        assert_eq!(counted.take(), []);
        // What could not be written is written with what comes next.
        counted.give_back(more);
        counted.add("acme", Day(2), More { ended: 1, ..More::default() });
        let more = counted.take();
        assert_eq!((more.iter().map(running).collect::<Vec<_>>(), more[0].ended), (expected.to_vec(), 1));
    }
}
