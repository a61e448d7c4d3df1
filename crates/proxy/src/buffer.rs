//! The read buffer of a thread.

use std::cell::RefCell;

/// Its size in bytes.
const SIZE: usize = 64 << 10;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SIZE].into_boxed_slice());
}

/// Lends the buffer of this thread. It is used inside one poll and never across two, so that connections which wait
/// have none; what has to be kept is copied out.
pub(crate) fn with<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| work(buffer))
}
