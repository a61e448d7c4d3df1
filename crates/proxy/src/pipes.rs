//! The pipes through which relays splice.
//!
//! A pipe belongs to a relay only while bytes flow; an idle connection has none. The pool is one for the process,
//! because the kernel's limit on pipe memory is one per user.

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

/// An empty pipe, or `None` when there are too many or the kernel grants none.
pub(crate) fn take() -> Option<Lease> {
    let mut pool = POOL.lock();
    if let Some(pipe) = pool.idle.pop() {
        return Some(Lease(Some(pipe)));
    }
    if pool.made >= MAX_PIPES {
        return None;
    }
    let pipe = Pipe::new().ok()?;
    pool.made += 1;
    Some(Lease(Some(pipe)))
}

/// A pipe on loan. It goes back when dropped if it is empty; one that still holds bytes of a broken connection is
/// closed with them.
pub(crate) struct Lease(Option<Pipe>);

impl Lease {
    pub(crate) fn pipe(&mut self) -> &mut Pipe {
        self.0.as_mut().expect("a lease has its pipe until it is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(pipe) = self.0.take() else { return };
        let mut pool = POOL.lock();
        if pipe.is_empty() {
            pool.idle.push(pipe);
        } else {
            pool.made = pool.made.saturating_sub(1);
        }
    }
}
