//! The clock by which commands run out of time: it stands still while the sandbox is paused.
//!
//! Processes that are frozen do not notice it, this one neither, so the daemon says when it begins and when it is over.
//! It says so before it freezes and after it has let them go on: no time can run out in between.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often is looked whether the clock goes again, by those who wait for a moment while it stands still.
const LOOK: Duration = Duration::from_millis(50);

/// A moment by this clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Instant);

#[derive(Debug, Clone, Copy)]
struct Clock {
    /// Since when it stands still.
    stopped: Option<Instant>,
    /// How long it has stood still before.
    lost: Duration,
}

static CLOCK: Mutex<Clock> = Mutex::new(Clock { stopped: None, lost: Duration::ZERO });

impl Clock {
    fn at(&self, now: Instant) -> Moment {
        let counted = self.stopped.unwrap_or(now);
        // It has not stood still for longer than the machine has been up.
        Moment(counted.checked_sub(self.lost).unwrap_or(counted))
    }

    fn stop(&mut self, now: Instant) {
        self.stopped.get_or_insert(now);
    }

    fn start(&mut self, now: Instant) {
        if let Some(stopped) = self.stopped.take() {
            self.lost = self.lost.saturating_add(now.saturating_duration_since(stopped));
        }
    }

    fn left(&self, moment: Moment, now: Instant) -> Duration {
        let left = moment.0.saturating_duration_since(self.at(now).0);
        if self.stopped.is_some() { left.max(LOOK) } else { left }
    }
}

fn clock() -> MutexGuard<'static, Clock> {
    CLOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Moment {
    /// So long from now; `None` is beyond all time.
    pub(crate) fn after(time: Duration) -> Option<Self> {
        clock().at(Instant::now()).0.checked_add(time).map(Self)
    }

    /// How long it takes at least until then. Zero when the moment has come.
    pub(crate) fn left(self) -> Duration {
        clock().left(self, Instant::now())
    }
}

/// Lets it stand still, if it does not.
pub(crate) fn stop() {
    clock().stop(Instant::now());
}

/// Lets it go on, if it stands still.
pub(crate) fn start() {
    clock().start(Instant::now());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_which_it_stands_still_does_not_count() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut clock = Clock { stopped: None, lost: Duration::ZERO };
        let moment = Moment(at(10));
        let left = |clock: &Clock, seconds| clock.left(moment, at(seconds));
        assert_eq!(left(&clock, 4), Duration::from_secs(6));
        clock.start(at(4));
        clock.stop(at(4));
        assert_eq!(left(&clock, 1000), Duration::from_secs(6));
        clock.stop(at(500));
        clock.start(at(1000));
        assert_eq!(left(&clock, 1000), Duration::from_secs(6));
        assert_eq!(left(&clock, 1005), Duration::from_secs(1));
        clock.stop(at(1006));
        assert!(!left(&clock, 2000).is_zero(), "it does not come while the clock stands still");
        clock.start(at(3000));
        assert!(left(&clock, 3000).is_zero());
    }
}
