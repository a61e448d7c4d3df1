//! The clock that sandboxes end by: the time since the machine started, with the time that it has slept.
//!
//! Unlike the calendar's, nobody sets this clock, and it goes on while the daemon is away. It begins anew with the
//! machine, which no sandbox outlives.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until};

/// How long is slept at a time: the runtime's clock stands still while the machine sleeps.
const PORTION: Duration = Duration::from_secs(60);

/// A moment, by how long the machine has been up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Uptime {
    milliseconds: u64,
}

impl Uptime {
    /// Now.
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let milliseconds = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or_default();
        Self { milliseconds: seconds.saturating_mul(1000).saturating_add(milliseconds) }
    }

    pub(super) fn from_millis(milliseconds: u64) -> Self {
        Self { milliseconds }
    }

    pub(super) fn as_millis(self) -> u64 {
        self.milliseconds
    }

    fn plus(self, duration: Duration) -> Self {
        let more = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self { milliseconds: self.milliseconds.saturating_add(more) }
    }

    /// How long it is from here to `later`; zero if that is earlier.
    pub(super) fn until(self, later: Self) -> Duration {
        Duration::from_millis(later.milliseconds.saturating_sub(self.milliseconds))
    }
}

/// When the time of a sandbox is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadline {
    /// What counts.
    pub(super) at: Uptime,
    /// What the calendar said of it when it was set, for showing.
    pub(super) calendar: Option<Timestamp>,
}

impl Deadline {
    /// After so long from now; zero is never.
    pub(super) fn after(timeout: Duration) -> Option<Self> {
        Self::from(Uptime::now(), Timestamp::now(), timeout)
    }

    fn from(now: Uptime, calendar: Timestamp, timeout: Duration) -> Option<Self> {
        let signed = SignedDuration::try_from(timeout).unwrap_or(SignedDuration::MAX);
        // Beyond the end of the calendar there is nothing to show.
        let calendar = calendar.checked_add(signed).ok();
        (!timeout.is_zero()).then(|| Self { at: now.plus(timeout), calendar })
    }
}

/// The end of a sandbox that an earlier version has recorded by the calendar alone: not after its whole time from now,
/// wherever the calendar's clock was set in between.
pub(super) fn of_calendar(end: Timestamp, timeout: Duration, calendar: Timestamp, now: Uptime) -> Uptime {
    let left = Duration::try_from(end.duration_since(calendar)).unwrap_or_default();
    now.plus(if timeout.is_zero() { left } else { left.min(timeout) })
}

/// Waits for a moment; without one, for ever.
pub(super) async fn until(end: Option<Uptime>) {
    until_by(end, Uptime::now).await;
}

async fn until_by(end: Option<Uptime>, now: impl Fn() -> Uptime) {
    let Some(end) = end else { return std::future::pending().await };
    loop {
        let left = now().until(end);
        if left.is_zero() {
            return;
        }
        sleep_until(Instant::now() + left.min(PORTION)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> Uptime {
        Uptime { milliseconds: seconds * 1000 }
    }

    #[test]
    fn an_end_is_as_far_away_as_its_timeout_whatever_the_calendar_says() {
        for calendar in ["1970-01-01T00:00:00Z", "2026-11-21T00:00:00Z", "9999-12-30T00:00:00Z"] {
            let calendar: Timestamp = calendar.parse().unwrap();
            let deadline = Deadline::from(at(50), calendar, HOUR).unwrap();
            assert_eq!(deadline.at, at(3650));
            assert_eq!(deadline.calendar, Some(calendar + HOUR));
        }
        assert_eq!(Deadline::from(at(50), Timestamp::UNIX_EPOCH, Duration::ZERO), None);
        let endless = Deadline::from(at(50), Timestamp::UNIX_EPOCH, Duration::MAX).unwrap();
        assert_eq!((endless.at.milliseconds, endless.calendar), (u64::MAX, None));
    }

    #[test]
    fn an_end_by_the_calendar_alone_is_never_further_away_than_the_whole_time() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let left = |calendar: Timestamp| at(50).until(of_calendar(now + HOUR, HOUR, calendar, at(50)));
        assert_eq!(left(now), HOUR);
        assert_eq!(left(now + HOUR / 2), HOUR / 2);
        // The clock went a year back, and a year ahead.
        assert_eq!(left(now - HOUR * 24 * 365), HOUR);
        assert_eq!(left(now + HOUR * 24 * 365), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_comes_when_the_machine_has_been_up_so_long_also_if_it_slept_meanwhile() {
        let begun = Instant::now();
        // The machine sleeps for half an hour after ten minutes; the runtime's clock does not notice.
        let asleep = Duration::from_secs(1800);
        let uptime = move || {
            let awake = begun.elapsed();
            at(100).plus(if awake < Duration::from_secs(600) { awake } else { awake + asleep })
        };
        until_by(Some(at(100).plus(HOUR)), uptime).await;
        assert_eq!(begun.elapsed(), HOUR - asleep);
        until_by(Some(at(100)), uptime).await;
        assert_eq!(begun.elapsed(), HOUR - asleep);
        tokio::select! {
            () = until_by(None, uptime) => panic!("never came"),
            () = tokio::time::sleep(HOUR) => {}
        }
    }

    #[test]
    fn the_machines_clock_goes_on() {
        let first = Uptime::now();
        assert!(first > at(0) && Uptime::now() >= first);
    }
}
