//! The pipes through which relays splice.
//!
//! A pipe belongs to a relay only while bytes flow; an idle connection has none. The pool is one for the process,
//! because the kernel's limit on pipe memory is one per user.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use sys::splice::Pipe;

/// The most pipes in existence: 64 of 1 MiB are what `fs.pipe-user-pages-soft` grants by default. Relays that find
/// none copy in user space.
const MAX_PIPES: usize = 64;

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), made: 0 });

struct Pool {
    idle: Vec<Pipe>,
    made: usize,
}

impl Pool {
    /// How many could be lent now.
    fn free(&self) -> usize {
        MAX_PIPES.saturating_sub(self.made).saturating_add(self.idle.len())
    }
}

/// How many pipes one sandbox has on loan. Only changed under the pool's lock.
#[derive(Debug, Default)]
pub(crate) struct Share(AtomicUsize);

/// An empty pipe; `None` when the sandbox has as many as are left for all others, or the kernel grants none. A relay whose
/// client does not read keeps its pipe, so that without this one sandbox could keep all.
pub(crate) fn take(share: &Arc<Share>) -> Option<Lease> {
    let mut pool = POOL.lock();
    let has = share.0.load(Ordering::Relaxed);
    if has >= pool.free() {
        return None;
    }
    let pipe = match pool.idle.pop() {
        Some(pipe) => pipe,
        None => {
            let pipe = Pipe::new().ok()?;
            pool.made += 1;
            pipe
        }
    };
    share.0.store(has + 1, Ordering::Relaxed);
    Some(Lease { pipe: Some(pipe), share: Arc::clone(share) })
}

/// A pipe on loan. It goes back when dropped if it is empty; one that still holds bytes of a broken connection is
/// closed with them.
pub(crate) struct Lease {
    pipe: Option<Pipe>,
    share: Arc<Share>,
}

impl Lease {
    pub(crate) fn pipe(&mut self) -> &mut Pipe {
        self.pipe.as_mut().expect("a lease has its pipe until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take() else { return };
        let mut pool = POOL.lock();
        self.share.0.fetch_sub(1, Ordering::Relaxed);
        if pipe.is_empty() {
            pool.idle.push(pipe);
        } else {
            pool.made = pool.made.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_that_takes_all_it_can_leaves_as_many_for_others() {
        let (greedy, other) = (Arc::default(), Arc::default());
        let all: Vec<_> = std::iter::from_fn(|| take(&greedy)).take(MAX_PIPES).collect();
        assert!(!all.is_empty() && all.len() <= MAX_PIPES / 2, "{}", all.len());
        assert!(take(&other).is_some());
        drop(all);
        assert!(take(&greedy).is_some());
    }
}
