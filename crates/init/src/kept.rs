//! Output of background commands, kept for those who ask later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use init_protocol::{KEPT_OUTPUT, Stream};

/// Bytes that all commands together may have kept. Beyond it a stream keeps no more than it has: it is the
/// sandbox's memory. Only what somebody follows has one piece more of each session, if need be
/// ([`Budget::take_anyway`]).
const BUDGET: usize = 64 << 20;

/// Bytes kept by all commands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

impl Budget {
    /// Whether little is left, so that old output should go.
    pub(crate) fn is_short(&self) -> bool {
        self.0.load(Ordering::Relaxed) > BUDGET / 2
    }

    pub(crate) fn take(&self, bytes: usize) -> bool {
        let taken = self.0.fetch_add(bytes, Ordering::Relaxed) + bytes <= BUDGET;
        if !taken {
            self.give_back(bytes);
        }
        taken
    }

    /// Whether so many more may be had.
    pub(crate) fn has(&self, bytes: usize) -> bool {
        self.0.load(Ordering::Relaxed).saturating_add(bytes) <= BUDGET
    }

    /// Takes what there is not: for a piece of output that somebody waits for.
    pub(crate) fn take_anyway(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The last bytes of both output streams of a command.
#[derive(Debug)]
pub(crate) struct Kept {
    stdout: Ring,
    stderr: Ring,
}

impl Kept {
    pub(crate) fn new(budget: &Budget) -> Self {
        let ring = || Ring { bytes: VecDeque::new(), truncated: false, budget: budget.clone() };
        Self { stdout: ring(), stderr: ring() }
    }

    /// Adds output; the oldest goes when there is too much.
    pub(crate) fn push(&mut self, stream: Stream, data: &[u8]) {
        match stream {
            Stream::Stdout => self.stdout.push(data),
            Stream::Stderr => self.stderr.push(data),
        }
    }

    /// The kept bytes of a stream.
    pub(crate) fn bytes(&self, stream: Stream) -> Vec<u8> {
        self.ring(stream).bytes.iter().copied().collect()
    }

    /// How many bytes are kept.
    pub(crate) fn cost(&self) -> usize {
        self.stdout.bytes.len() + self.stderr.bytes.len()
    }

    /// Gives up the older part, for others: one of so many.
    pub(crate) fn give_up(&mut self, parts: usize) {
        for ring in [&mut self.stdout, &mut self.stderr] {
            ring.drop_oldest(ring.bytes.len().div_ceil(parts.max(1)));
            ring.bytes.shrink_to_fit();
        }
    }

    /// Whether the beginning of a stream is gone.
    pub(crate) fn truncated(&self, stream: Stream) -> bool {
        self.ring(stream).truncated
    }

    fn ring(&self, stream: Stream) -> &Ring {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }
}

#[derive(Debug)]
struct Ring {
    bytes: VecDeque<u8>,
    truncated: bool,
    budget: Budget,
}

impl Ring {
    fn push(&mut self, data: &[u8]) {
        let (lost, data) = data.split_at(data.len().saturating_sub(KEPT_OUTPUT));
        self.truncated |= !lost.is_empty();
        let over = (self.bytes.len() + data.len()).saturating_sub(KEPT_OUTPUT);
        self.drop_oldest(over);
        if !self.budget.take(data.len()) {
            // As much as comes in goes out; if that is not enough, nothing can stay, for what is kept is the end.
            self.drop_oldest(data.len());
            if !self.budget.take(data.len()) {
                self.drop_oldest(usize::MAX);
                self.truncated = true;
                return;
            }
        }
        self.bytes.extend(data);
    }

    fn drop_oldest(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        self.bytes.drain(..count);
        self.truncated |= count > 0;
        self.budget.give_back(count);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(kept: &Kept, stream: Stream) -> Vec<u8> {
        kept.bytes(stream)
    }

    #[test]
    fn streams_are_kept_apart() {
        let mut kept = Kept::new(&Budget::default());
        kept.push(Stream::Stdout, b"hello ");
        kept.push(Stream::Stderr, b"oh");
        kept.push(Stream::Stdout, b"world");
        assert_eq!(all(&kept, Stream::Stdout), b"hello world");
        assert_eq!(all(&kept, Stream::Stderr), b"oh");
        assert!(!kept.truncated(Stream::Stdout));
    }

    #[test]
    fn the_newest_output_stays_and_the_loss_is_told() {
        let mut kept = Kept::new(&Budget::default());
        kept.push(Stream::Stdout, &vec![b'a'; KEPT_OUTPUT]);
        assert!(!kept.truncated(Stream::Stdout));
        kept.push(Stream::Stdout, b"bc");
        let bytes = all(&kept, Stream::Stdout);
        assert_eq!((bytes.len(), bytes.ends_with(b"abc")), (KEPT_OUTPUT, true));
        assert!(kept.truncated(Stream::Stdout) && !kept.truncated(Stream::Stderr));
    }

    #[test]
    fn all_commands_together_stay_within_the_budget_and_give_it_back() {
        let budget = Budget::default();
        let mut many: Vec<Kept> = (0..100).map(|_| Kept::new(&budget)).collect();
        for kept in &mut many {
            kept.push(Stream::Stdout, &vec![0; KEPT_OUTPUT]);
        }
        assert!(budget.0.load(Ordering::Relaxed) <= BUDGET && budget.is_short());
        assert!(many.iter().map(|kept| all(kept, Stream::Stdout).len()).sum::<usize>() <= BUDGET);
        assert!(many.last().is_some_and(|kept| kept.truncated(Stream::Stdout)));
        drop(many);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn what_is_kept_is_always_the_end_of_what_came(pushes in prop::collection::vec((0usize..700_000, any::<u8>()), 0..8)) {
            let budget = Budget::default();
            let mut kept = Kept::new(&budget);
            let mut came = Vec::new();
            for (length, byte) in pushes {
                let data = vec![byte; length];
                kept.push(Stream::Stderr, &data);
                came.extend(data);
            }
            let bytes = all(&kept, Stream::Stderr);
            prop_assert!(came.ends_with(&bytes));
            prop_assert_eq!(bytes.len(), came.len().min(KEPT_OUTPUT));
            prop_assert_eq!(kept.truncated(Stream::Stderr), came.len() > KEPT_OUTPUT);
            prop_assert_eq!(budget.0.load(Ordering::Relaxed), bytes.len());
        }
    }
}
