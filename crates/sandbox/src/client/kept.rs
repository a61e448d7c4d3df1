//! Memory for the output of commands that are run to their end: of all sandboxes together no more than there is set apart.

use std::sync::Arc;

use parking_lot::Mutex;

/// Most bytes of output of commands that the daemon holds at the same time, from when a command writes them until they have
/// been answered. No sandbox gets more of them than are free.
pub const OUTPUT_BUDGET: usize = 512 << 20;

/// What is set apart in this process.
static BUDGET: Budget = Budget::new(OUTPUT_BUDGET);

#[derive(Debug)]
struct Budget {
    free: Mutex<usize>,
}

impl Budget {
    const fn new(bytes: usize) -> Self {
        Self { free: Mutex::new(bytes) }
    }
}

/// What the commands of one sandbox hold of it.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    budget: &'static Budget,
    held: Arc<Mutex<usize>>,
}

impl Default for Share {
    fn default() -> Self {
        Self { budget: &BUDGET, held: Arc::default() }
    }
}

impl Share {
    /// Room for the output of one command; none yet.
    pub(crate) fn room(&self) -> Kept {
        Kept { of: Some(self.clone()), bytes: 0 }
    }
}

/// Room for the output of one command. Given back when it is dropped.
#[derive(Debug, Default)]
pub struct Kept {
    of: Option<Share>,
    bytes: usize,
}

impl Kept {
    /// Takes room for so many more bytes. `false`, and nothing is taken, when there is too little.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let Some(share) = &self.of else { return false };
        let mut free = share.budget.free.lock();
        let mut held = share.held.lock();
        let more = held.saturating_add(bytes);
        if more > *free {
            return false;
        }
        *held = more;
        *free -= bytes;
        self.bytes += bytes;
        true
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let Some(share) = &self.of else { return };
        *share.budget.free.lock() += self.bytes;
        *share.held.lock() -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static SMALL: Budget = Budget::new(1000);

    #[test]
    fn all_commands_together_hold_no_more_than_is_set_apart_and_no_sandbox_all_of_it() {
        let sandbox = || Share { budget: &SMALL, held: Arc::default() };
        let (greedy, modest) = (sandbox(), sandbox());
        let (mut first, mut second) = (greedy.room(), greedy.room());
        assert!(first.grow(300) && second.grow(200));
        assert!(!second.grow(1), "as much as is free");
        let mut other = modest.room();
        assert!(other.grow(250) && !other.grow(1));
        assert!(!first.grow(1));
        assert_eq!(*SMALL.free.lock(), 250);
        drop((first, second));
        assert!(other.grow(200) && !other.grow(200));
        drop(other);
        assert_eq!(*SMALL.free.lock(), 1000);
        assert!(!Kept::default().grow(1));
    }
}
