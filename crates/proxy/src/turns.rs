//! Whose turn it is: a thread relays for many sandboxes, and one with many busy flows must not take it from one with few.
//!
//! The runtime gives every task its turn, so that a sandbox would have as many turns as it has flows. Here, of the flows
//! of one sandbox on one thread that have more to move than one turn takes, only one at a time has a turn: in turn. Flows
//! that wait for their sockets now and then, as most do, notice nothing, unless they are so many that together they move as
//! much as a turn takes: then they wait for theirs as well.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// How many bytes a turn takes at most, but for what is read at once: some hundred microseconds.
const BYTES: u64 = 512 << 10;
/// And how many steps: many small ones take as long.
const STEPS: u32 = 64;
/// What a step counts for besides its bytes where many flows share a turn: 128 that move nothing are one.
const STEP: u64 = BYTES / 128;

/// The turns of the flows of one sandbox on one thread.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Thread>);

#[derive(Debug)]
struct Thread {
    turn: Arc<Semaphore>,
    /// What those that wait for no turn have moved since one last began, in bytes and steps.
    light: AtomicU64,
}

/// One direction of a flow, as far as its turns are concerned.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    bytes: u64,
    steps: u32,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// It had less to move than a turn takes, and need not wait for one.
    #[default]
    Light,
    /// It has more to move, and waits until it is the next.
    Waiting(PollSemaphore),
    /// It is the next, or has its turn.
    Next(PollSemaphore, #[expect(dead_code, reason = "it matters when it is dropped")] OwnedSemaphorePermit),
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Thread { turn: Arc::new(Semaphore::new(1)), light: AtomicU64::new(0) }))
    }

    /// Takes note of a step of a flow that has waited for no turn.
    fn step(&self, bytes: u64) {
        // All of them run on one thread.
        let light = self.0.light.load(Ordering::Relaxed).saturating_add(bytes).saturating_add(STEP);
        self.0.light.store(light, Ordering::Relaxed);
    }

    /// Whether flows that have waited for no turn have moved as much as one takes.
    fn are_shared_out(&self) -> bool {
        self.0.light.load(Ordering::Relaxed) >= BYTES
    }

    /// A turn begins: when that flow has given way to others, so have those that wait for none.
    fn begin(&self) {
        self.0.light.store(0, Ordering::Relaxed);
    }
}

impl Turn {
    /// Waits for a turn, if it needs one.
    pub(crate) fn poll_begin(&mut self, turns: &Turns, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Light if turns.are_shared_out() => {
                self.queue(turns, cx);
                Poll::Pending
            }
            State::Light | State::Next(..) => Poll::Ready(()),
            State::Waiting(semaphore) => {
                // It is never closed.
                if let Some(permit) = ready!(semaphore.poll_acquire(cx)) {
                    self.state = State::Next(semaphore.clone(), permit);
                    turns.begin();
                    return let_others_begin(cx);
                }
                Poll::Ready(())
            }
        }
    }

    /// Takes note of a step, and of the bytes that it moved.
    pub(crate) fn step(&mut self, turns: &Turns, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.steps = self.steps.saturating_add(1);
        if matches!(self.state, State::Light) {
            turns.step(bytes);
        }
    }

    /// Whether the turn is over. If so it will be woken again, when others have had theirs.
    pub(crate) fn is_over(&mut self, turns: &Turns, cx: &mut Context<'_>) -> bool {
        let is_over = self.bytes >= BYTES || self.steps >= STEPS;
        if is_over {
            self.queue(turns, cx);
        }
        is_over
    }

    /// Stands behind all others that wait. It will be woken when it is the next.
    fn queue(&mut self, turns: &Turns, cx: &mut Context<'_>) {
        let mut semaphore = match std::mem::take(self).state {
            State::Light => PollSemaphore::new(Arc::clone(&turns.0.turn)),
            State::Waiting(semaphore) | State::Next(semaphore, _) => semaphore,
        };
        // Asked for now, and not when it is woken: or it would stand behind those that come until then.
        self.state = match semaphore.poll_acquire(cx) {
            Poll::Ready(Some(permit)) => {
                turns.begin();
                let _pending = let_others_begin(cx);
                State::Next(semaphore, permit)
            }
            Poll::Ready(None) | Poll::Pending => State::Waiting(semaphore),
        };
    }

    /// It has nothing to move for now: it needs no turn, and waits for none.
    pub(crate) fn rest(&mut self) {
        *self = Self::default();
    }
}

/// For what is no [`crate::relay::Direction`]: waits for a turn, if one is needed, for as much work as moving so many bytes
/// is.
pub(crate) async fn take(turns: &Turns, bytes: u64) {
    let mut turn = Turn::default();
    poll_fn(|cx| turn.poll_begin(turns, cx)).await;
    turn.step(turns, bytes);
}

/// Wakes the task again when the runtime has looked for new events and has given a turn to those that they woke: whoever
/// had nothing to do until now must not wait for several turns.
fn let_others_begin(cx: &mut Context<'_>) -> Poll<()> {
    // Once is enough: the waker is with the runtime then.
    pin!(tokio::task::yield_now()).poll(cx)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::task::JoinSet;

    use super::*;

    /// A flow that always has something to move; writes down each of its turns until there are `most`.
    async fn busy(turns: Turns, name: &'static str, log: Arc<Mutex<Vec<&'static str>>>, most: usize) {
        let mut turn = Turn::default();
        poll_fn(|cx| {
            ready!(turn.poll_begin(&turns, cx));
            log.lock().push(name);
            loop {
                if log.lock().len() >= most {
                    turn.rest();
                    return Poll::Ready(());
                }
                if turn.is_over(&turns, cx) {
                    return Poll::Pending;
                }
                turn.step(&turns, BYTES / 4);
            }
        })
        .await;
    }

    /// A flow that always has something to move soon, and a quarter of a turn at once.
    async fn bursting(turns: Turns, name: &'static str, log: Arc<Mutex<Vec<&'static str>>>, most: usize) {
        let mut turn = Turn::default();
        poll_fn(|cx| {
            if turn.poll_begin(&turns, cx).is_pending() {
                return Poll::Pending;
            }
            log.lock().push(name);
            turn.step(&turns, BYTES / 4);
            turn.rest();
            if log.lock().len() >= most {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// The turns of these flows, each of the sandbox that its name is.
    fn run(flows: &[&'static str], most: usize) -> Vec<&'static str> {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (one, other) = (Turns::new(), Turns::new());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for name in flows {
                let turns = if name.starts_with("one") { &one } else { &other };
                tasks.spawn(busy(turns.clone(), name, Arc::clone(&log), most));
            }
            tasks.join_all().await;
        });
        let mut turns = log.lock().clone();
        // Then each of them had one in which it ended.
        turns.truncate(most);
        turns
    }

    #[test]
    fn a_sandbox_with_many_busy_flows_has_no_more_turns_than_one_with_a_single_one() {
        let mut flows = vec!["one"; 100];
        flows.push("other");
        let turns = run(&flows, 1_000);
        // The first turn of each flow is one that it need not wait for.
        let first = turns.iter().position(|name| *name == "other").unwrap();
        let settled = &turns[first..];
        assert!(settled.len() > 500);
        let others = settled.iter().filter(|name| **name == "other").count();
        assert!(others >= settled.len() / 3, "{others} of {}", settled.len());
        let longest = settled.split(|name| *name == "other").map(<[_]>::len).max();
        assert!(longest <= Some(3), "{longest:?} turns of one sandbox in a row");
    }

    #[test]
    fn a_sandbox_whose_many_flows_never_have_enough_for_a_turn_takes_no_more_than_a_few_do() {
        let run = |flows: usize| {
            let log = Arc::new(Mutex::new(Vec::new()));
            let (one, other) = (Turns::new(), Turns::new());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut tasks = JoinSet::new();
                for _ in 0..flows {
                    tasks.spawn(bursting(one.clone(), "burst", Arc::clone(&log), 10_000));
                }
                tasks.spawn(busy(other, "turn", Arc::clone(&log), 10_000));
                tasks.join_all().await;
            });
            let turns = log.lock().clone();
            let first = turns.iter().position(|name| *name == "turn").unwrap();
            let settled = &turns[first..turns.len() - flows];
            let [bursts, whole] =
                ["burst", "turn"].map(|which| settled.iter().filter(|name| **name == which).count());
            assert!(bursts > 1_000, "{bursts}");
            // In turns, of which a burst is a quarter.
            bursts / 4 / whole.max(1)
        };
        assert!(run(4) <= 3 && run(1_000) <= 3, "{} and {} times as much", run(4), run(1_000));
    }

    #[test]
    fn the_busy_flows_of_a_sandbox_have_their_turns_one_after_the_other() {
        let turns = run(&["one a", "one b", "one c"], 100);
        // Two need not wait for their first turn, and have moved enough then that the third has to.
        let settled = turns.iter().position(|name| *name == "one c").unwrap();
        assert!(settled <= 4, "{turns:?}");
        for three in turns[settled..].chunks_exact(3) {
            assert!(["one a", "one b", "one c"].iter().all(|name| three.contains(name)), "{three:?}");
        }
    }

    #[test]
    fn whoever_has_something_to_do_only_now_does_not_wait_for_many_turns() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        runtime.block_on(async {
            let turns = Turns::new();
            let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
            there.set_nonblocking(true).unwrap();
            let mut there = tokio::net::UnixStream::from_std(there).unwrap();
            let mut tasks = JoinSet::new();
            tasks.spawn(busy(turns.clone(), "busy", Arc::clone(&log), 200));
            tasks.spawn(busy(turns, "busy", Arc::clone(&log), 200));
            let read = Arc::clone(&log);
            tasks.spawn(async move {
                tokio::io::AsyncReadExt::read_u8(&mut there).await.unwrap();
                read.lock().push("read");
            });
            std::io::Write::write_all(&mut here, b"x").unwrap();
            tasks.join_all().await;
        });
        let at = log.lock().iter().position(|turn| *turn == "read").unwrap();
        assert!(at < 10, "after {at} turns");
    }

    #[test]
    fn what_rests_leaves_its_turn_to_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let turns = Turns::new();
            let [mut first, mut second] = [Turn::default(), Turn::default()];
            let waits = |turn: &mut Turn, cx: &mut Context<'_>| {
                turn.step(&turns, BYTES);
                assert!(turn.is_over(&turns, cx));
                turn.poll_begin(&turns, cx).is_pending()
            };
            poll_fn(|cx| {
                assert!(!waits(&mut first, cx) && waits(&mut second, cx));
                first.rest();
                // It is the next, and whoever has new events is before it.
                assert!(
                    second.poll_begin(&turns, cx).is_pending() && second.poll_begin(&turns, cx).is_ready()
                );
                // Nor does what waits no more stand in the way.
                assert!(waits(&mut first, cx));
                first.rest();
                drop(std::mem::take(&mut second));
                assert!(!waits(&mut first, cx));
                Poll::Ready(())
            })
            .await;
        });
    }
}
