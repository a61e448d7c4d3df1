//! The lookups under way of all sandboxes, and each one's fair share of them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{Semaphore, SemaphorePermit};

/// Who has names looked up: each sandbox is one. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Asker(Arc<AtomicUsize>);

/// Places for lookups under way.
///
/// Nobody may have more of them than are free: so however many take as much as they can, those who have none find one,
/// although a server that does not answer holds a place for seconds. Where *n* take what they can, each gets one of
/// *n* + 1 parts.
#[derive(Debug)]
pub(crate) struct Places(Semaphore);

/// A place taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    asker: &'a Asker,
    _permit: SemaphorePermit<'a>,
}

impl Places {
    /// So many.
    pub(crate) fn new(count: usize) -> Self {
        Self(Semaphore::new(count.min(Semaphore::MAX_PERMITS)))
    }

    /// A place for one who has less than are free.
    pub(crate) fn take<'a>(&'a self, asker: &'a Asker) -> Option<Place<'a>> {
        // First, so that two of the same asker do not both have the last that it may.
        let before = asker.0.fetch_add(1, Ordering::SeqCst);
        let permit = (before < self.0.available_permits()).then(|| self.0.try_acquire().ok()).flatten();
        if permit.is_none() {
            asker.0.fetch_sub(1, Ordering::SeqCst);
        }
        permit.map(|permit| Place { asker, _permit: permit })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.asker.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many as there are for each in turn.
    fn take_all<'a>(places: &'a Places, askers: &'a [Asker]) -> Vec<Vec<Place<'a>>> {
        let mut taken: Vec<Vec<Place<'a>>> = askers.iter().map(|_| Vec::new()).collect();
        loop {
            let mut is_over = true;
            for (asker, taken) in askers.iter().zip(&mut taken) {
                if let Some(place) = places.take(asker) {
                    taken.push(place);
                    is_over = false;
                }
            }
            if is_over {
                return taken;
            }
        }
    }

    #[test]
    fn those_who_take_what_they_can_get_the_same_and_leave_as_much_for_another() {
        for (count, share) in [(1, 256), (7, 64), (31, 16), (500, 1)] {
            let places = Places::new(512);
            let askers: Vec<Asker> = (0..count).map(|_| Asker::default()).collect();
            let taken = take_all(&places, &askers);
            assert!(taken.iter().all(|taken| taken.len().abs_diff(share) <= 1), "{count}");
            let another = [Asker::default()];
            let newcomers = take_all(&places, &another);
            assert!(!newcomers[0].is_empty(), "{count}");
            drop((taken, newcomers));
            assert_eq!(places.0.available_permits(), 512);
            assert!(askers.iter().all(|asker| asker.0.load(Ordering::SeqCst) == 0));
        }
    }
}
