//! How often something may happen. No clock: whoever asks says what time it is.

use std::time::{Duration, Instant};

/// So many of something in a time, over a longer while, and so many at once after a while with fewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many in each [`Self::period`].
    pub count: u32,
    /// The time for which [`Self::count`] is meant.
    pub period: Duration,
    /// How many at once. None passes if it is 0.
    pub burst: u32,
}

impl Rate {
    /// So many a second.
    pub const fn per_second(count: u32, burst: u32) -> Self {
        Self { count, period: Duration::from_secs(1), burst }
    }

    /// So many a minute.
    pub const fn per_minute(count: u32, burst: u32) -> Self {
        Self { count, period: Duration::from_secs(60), burst }
    }

    /// How long `amount` of them take. Without end, if there may be none.
    fn time_of(&self, amount: u32) -> Duration {
        let nanos = self.period.as_nanos().saturating_mul(amount.into()).checked_div(self.count.into());
        nanos.and_then(|nanos| u64::try_from(nanos).ok()).map_or(Duration::MAX, Duration::from_nanos)
    }
}

/// What is left of a [`Rate`]: a token bucket, as one moment (the generic cell rate algorithm, ITU-T I.371). New, it is
/// full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it is, or was, full again.
    full_at: Option<Instant>,
}

impl Bucket {
    /// Takes `amount` out, if so much is in it at `now`; otherwise it stays as it is.
    pub fn take(&mut self, rate: &Rate, amount: u32, now: Instant) -> bool {
        match self.after(rate, amount, now) {
            Some(full_at) => {
                self.full_at = Some(full_at);
                true
            }
            None => false,
        }
    }

    /// As [`Self::take`]; when so much is not in it, how long it takes until it may be. Without end, if it never can.
    pub fn take_or_wait(&mut self, rate: &Rate, amount: u32, now: Instant) -> Option<Duration> {
        if self.take(rate, amount, now) {
            return None;
        }
        if amount > rate.burst || rate.count == 0 {
            return Some(Duration::MAX);
        }
        let until_full = self.full_at.unwrap_or(now).saturating_duration_since(now);
        Some(until_full.saturating_add(rate.time_of(amount)).saturating_sub(rate.time_of(rate.burst)))
    }

    /// Whether `amount` could be taken out at `now`.
    pub fn has(&self, rate: &Rate, amount: u32, now: Instant) -> bool {
        self.after(rate, amount, now).is_some()
    }

    /// Whether it is as good as new.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|full_at| full_at <= now)
    }

    /// When it would be full again with `amount` less in it; `None` if that much is not in it.
    fn after(&self, rate: &Rate, amount: u32, now: Instant) -> Option<Instant> {
        if amount > rate.burst {
            return None;
        }
        let from = self.full_at.map_or(now, |full_at| full_at.max(now));
        let full_at = from.checked_add(rate.time_of(amount))?;
        (full_at.saturating_duration_since(now) <= rate.time_of(rate.burst)).then_some(full_at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate::per_second(10, 3);

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        let mut at = |millis| bucket.take(&RATE, 1, start + Duration::from_millis(millis));
        assert_eq!([at(0), at(0), at(0), at(0)], [true, true, true, false]);
        assert_eq!([at(99), at(100), at(100)], [false, true, false]);
        assert_eq!([at(10_000), at(10_000), at(10_000), at(10_000)], [true, true, true, false]);
    }

    #[test]
    fn what_is_refused_takes_nothing() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert!(bucket.take(&RATE, 2, start));
        assert!(!bucket.take(&RATE, 2, start) && !bucket.has(&RATE, 4, start));
        assert!(bucket.has(&RATE, 1, start) && bucket.take(&RATE, 1, start));
        assert!(!bucket.is_full(start));
        assert!(bucket.is_full(start + Duration::from_millis(300)));
    }

    #[test]
    fn a_rate_of_nothing_lets_its_burst_pass_once_and_a_burst_of_nothing_never() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1 << 30);
        let mut bucket = Bucket::default();
        assert!(!bucket.take(&Rate::per_second(10, 0), 1, start));
        let never = Rate::per_second(0, 1);
        assert!(!bucket.take(&never, 1, later), "the end of time is not a moment");
    }

    #[test]
    fn whoever_has_to_wait_is_told_for_how_long() {
        let (mut bucket, start) = (Bucket::default(), Instant::now());
        assert_eq!(bucket.take_or_wait(&RATE, 3, start), None);
        assert_eq!(bucket.take_or_wait(&RATE, 1, start), Some(Duration::from_millis(100)));
        assert_eq!(bucket.take_or_wait(&RATE, 4, start), Some(Duration::MAX));
        assert_eq!(bucket.take_or_wait(&Rate::per_second(0, 3), 1, start), Some(Duration::MAX));
    }

    proptest! {
        /// After the time that it is told to wait, and not before, it passes.
        #[test]
        fn the_wait_is_as_long_as_it_must_be(count in 1u32..2_000_000, burst in 1u32..100, amount in 1u32..100) {
            let rate = Rate::per_second(count, burst);
            let (mut bucket, start) = (Bucket::default(), Instant::now());
            prop_assert!(bucket.take(&rate, burst, start));
            let wait = bucket.take_or_wait(&rate, amount, start);
            prop_assert_eq!(wait == Some(Duration::MAX), amount > burst);
            if let Some(wait) = wait.filter(|wait| *wait < Duration::MAX) {
                prop_assert!(!bucket.has(&rate, amount, start + wait - Duration::from_nanos(1)));
                prop_assert_eq!(bucket.take_or_wait(&rate, amount, start + wait), None);
            }
        }

        /// In no span of time passes more than a burst and what the rate gives for that span.
        #[test]
        fn never_more_than_the_burst_and_the_rate(
            count in 1u32..1000,
            burst in 1u32..100,
            steps in proptest::collection::vec((0u64..500, 1u32..20), 1..200),
        ) {
            let rate = Rate::per_minute(count, burst);
            let (mut bucket, start) = (Bucket::default(), Instant::now());
            let mut now = start;
            let mut taken: Vec<(Instant, u64)> = Vec::new();
            for (millis, amount) in steps {
                now += Duration::from_millis(millis);
                let has = bucket.has(&rate, amount, now);
                prop_assert_eq!(bucket.take(&rate, amount, now), has);
                if has {
                    taken.push((now, amount.into()));
                }
            }
            for (first, (begin, _)) in taken.iter().enumerate() {
                let mut sum = 0;
                for (end, amount) in &taken[first..] {
                    sum += amount;
                    let span = end.duration_since(*begin).as_nanos();
                    // One more for what rounding gives.
                    let most = u128::from(burst) + 1 + span * u128::from(count) / rate.period.as_nanos();
                    prop_assert!(u128::from(sum) <= most, "{} of {}", sum, most);
                }
            }
        }

        /// Whoever stays below the rate is never refused.
        #[test]
        fn below_the_rate_all_pass(count in 1u32..1000, burst in 1u32..50, steps in proptest::collection::vec(0u64..100, 1..200)) {
            let rate = Rate::per_second(count, burst);
            let (mut bucket, mut now) = (Bucket::default(), Instant::now());
            for more in steps {
                now += rate.time_of(1) + Duration::from_nanos(1 + more);
                prop_assert!(bucket.take(&rate, 1, now));
            }
        }
    }
}
