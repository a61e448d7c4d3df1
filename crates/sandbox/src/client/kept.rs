//! Memory for the output of commands that are run to their end: of all sandboxes together no more than there is set apart.

use std::sync::Arc;

use parking_lot::Mutex;

/// Most bytes of output of commands that the daemon holds at the same time, from when a command writes them until they have
/// been answered. No sandbox gets more of them than are free.
pub const OUTPUT_BUDGET: usize = 512 << 20;

/// Bytes of its output that every command has beside them: however much others print, what most commands say is whole.
const FOR_EACH: usize = 64 << 10;

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
        Kept { of: Some(self.clone()), outside: 0, bytes: 0 }
    }
}

/// Room for the output of one command. Given back when it is dropped.
#[derive(Debug, Default)]
pub struct Kept {
    of: Option<Share>,
    /// How much it has of what every command has.
    outside: usize,
    bytes: usize,
}

impl Kept {
    /// Takes room for so many more bytes, or for as many as there is room for. Gives how many that are.
    pub(super) fn grow(&mut self, bytes: usize) -> usize {
        let Some(share) = &self.of else { return 0 };
        let outside = bytes.min(FOR_EACH.saturating_sub(self.outside));
        self.outside += outside;
        let mut free = share.budget.free.lock();
        let mut held = share.held.lock();
        // What it holds with these is no more than what is free without them.
        let inside = (bytes - outside).min(free.saturating_sub(*held));
        *held += inside;
        *free -= inside;
        self.bytes += inside;
        outside + inside
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
        assert_eq!([&mut first, &mut second].map(|room| room.grow(FOR_EACH)), [FOR_EACH; 2]);
        assert_eq!((first.grow(500), second.grow(600)), (500, 0), "as much as is free");
        let mut other = modest.room();
        assert_eq!(other.grow(FOR_EACH + 300), FOR_EACH + 300);
        assert_eq!((other.grow(300), first.grow(1)), (0, 0));
        assert_eq!(modest.room().grow(100), 100, "every command has some");
        assert_eq!(*SMALL.free.lock(), 200);
        drop((first, second));
        assert_eq!(other.grow(500), 400, "what there is room for");
        drop(other);
        assert_eq!(*SMALL.free.lock(), 1000);
        assert_eq!(Kept::default().grow(1), 0);
    }
}
