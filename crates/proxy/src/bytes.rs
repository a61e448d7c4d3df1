//! How many bytes a sandbox has moved, and may move.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How many bytes one sandbox may move in its life. What would be one too many is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteLimits {
    /// From the sandbox.
    pub up: u64,
    /// To the sandbox.
    pub down: u64,
    /// Both ways together.
    pub total: u64,
}

impl ByteLimits {
    /// More than anybody can move (4 EiB), so that there is no limit.
    pub const UNREACHABLE: u64 = 1 << 62;

    /// Whether any of them can be reached.
    pub fn can_be_reached(&self) -> bool {
        [self.up, self.down, self.total].iter().any(|limit| *limit < Self::UNREACHABLE)
    }
}

impl Default for ByteLimits {
    fn default() -> Self {
        Self { up: Self::UNREACHABLE, down: Self::UNREACHABLE, total: Self::UNREACHABLE }
    }
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the sandbox.
    Up,
    /// To the sandbox.
    Down,
}

/// The bytes that one sandbox has moved, if there is a limit.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    up: AtomicU64,
    down: AtomicU64,
    are_spent: AtomicBool,
}

/// The sandbox may not move so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent;

impl Bytes {
    /// Takes note of bytes that are about to be passed on.
    ///
    /// # Errors
    /// When they are too many: from then on no more may be.
    pub(crate) fn spend(&self, limits: &ByteLimits, up: u64, down: u64) -> Result<(), Spent> {
        if !limits.can_be_reached() {
            return Ok(());
        }
        // Whoever comes last sees the sum of all.
        let add = |counter: &AtomicU64, more| counter.fetch_add(more, Ordering::SeqCst).saturating_add(more);
        let (up, down) = match (up, down) {
            (0, more) => (self.up.load(Ordering::SeqCst), add(&self.down, more)),
            (more, 0) => (add(&self.up, more), self.down.load(Ordering::SeqCst)),
            _ => (add(&self.up, up), add(&self.down, down)),
        };
        if up > limits.up || down > limits.down || up.saturating_add(down) > limits.total {
            self.are_spent.store(true, Ordering::SeqCst);
        }
        if self.are_spent() { Err(Spent) } else { Ok(()) }
    }

    /// Whether no more bytes may be moved.
    pub(crate) fn are_spent(&self) -> bool {
        self.are_spent.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: u64 = ByteLimits::UNREACHABLE;

    #[test]
    fn bytes_pass_up_to_the_limit_of_their_way_and_of_both_and_then_none_does() {
        for (limits, passing, refused) in [
            (ByteLimits { up: 10, down: NONE, total: NONE }, [(10, 0), (0, 1000)], (1, 0)),
            (ByteLimits { up: NONE, down: 10, total: NONE }, [(0, 10), (1000, 0)], (0, 1)),
            (ByteLimits { up: NONE, down: NONE, total: 10 }, [(4, 0), (3, 3)], (0, 1)),
        ] {
            let bytes = Bytes::default();
            for (up, down) in passing {
                assert_eq!(bytes.spend(&limits, up, down), Ok(()), "{limits:?}");
            }
            assert!(!bytes.are_spent());
            assert_eq!(bytes.spend(&limits, refused.0, refused.1), Err(Spent), "{limits:?}");
            assert!(bytes.are_spent());
            assert_eq!(bytes.spend(&limits, 0, 0), Err(Spent), "{limits:?}");
        }
    }

    #[test]
    fn without_limits_any_number_passes() {
        let (bytes, limits) = (Bytes::default(), ByteLimits::default());
        assert!(!limits.can_be_reached());
        assert!(ByteLimits { down: 1 << 50, ..limits }.can_be_reached());
        assert_eq!(bytes.spend(&limits, 1 << 60, 1 << 60), Ok(()));
    }

    proptest! {
        /// However many threads there are: what passes is within the limits.
        #[test]
        fn what_passes_is_within_the_limits(
            up in 0u64..500, down in 0u64..500, total in 0u64..800,
            chunks in proptest::collection::vec((proptest::bool::ANY, 0u64..100), 2..40),
        ) {
            let (bytes, limits) = (Bytes::default(), ByteLimits { up, down, total });
            let passed = |chunks: &[(bool, u64)]| {
                let spend = |&(is_up, more): &(bool, u64)| {
                    let (up, down) = if is_up { (more, 0) } else { (0, more) };
                    bytes.spend(&limits, up, down).map_or((0, 0), |()| (up, down))
                };
                chunks.iter().map(spend).fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1))
            };
            let (first, second) = chunks.split_at(chunks.len() / 2);
            let (first, second) = std::thread::scope(|scope| {
                let other = scope.spawn(|| passed(second));
                (passed(first), other.join().unwrap())
            });
            let (moved_up, moved_down) = (first.0 + second.0, first.1 + second.1);
            prop_assert!(moved_up <= up && moved_down <= down && moved_up + moved_down <= total);
        }
    }
}
