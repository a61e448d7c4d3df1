//! Threads that carry what sandboxes send: relays, and whatever else is better off on one thread.

use std::{
    io,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{Egress, Flows, Limits, serve, turns::Turns};

/// Threads for [`serve`], each with a runtime of its own. A clone is the same threads; they end with the last one.
///
/// All flows of one listener stay on one thread: no connection is handed from core to core, which costs more than
/// all the rest of setting it up, and no sandbox takes more cores for its flows than it has listeners at a port.
#[derive(Clone, Debug)]
pub struct Workers {
    workers: Arc<[Worker]>,
    _running: Arc<DropGuard>,
}

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    /// How many listeners it serves.
    listeners: AtomicUsize,
}

impl Workers {
    /// Starts `count` threads, at least one, in the network namespace of the calling thread. One for each core is
    /// right.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let workers = (0..count.max(1)).map(|i| Worker::start(i, stop.clone()));
        Ok(Self { workers: workers.collect::<io::Result<_>>()?, _running: Arc::new(stop.drop_guard()) })
    }

    /// As [`serve`], for the listeners of one sandbox. Those of each group are on threads of their own as far as there are
    /// so many, beginning with those that serve the fewest; the flows of those on the same thread have their turns in
    /// common. The listeners must be non-blocking.
    ///
    /// # Errors
    /// When a listener cannot be prepared or registered, or the threads have ended. The others end with it.
    pub async fn serve<E: Egress>(
        &self,
        groups: Vec<Vec<TcpListener>>,
        egress: Arc<E>,
        flows: Arc<Flows>,
        limits: Limits,
        stop: CancellationToken,
    ) -> io::Result<()> {
        // If the caller stops waiting, or one server fails, so do all.
        let stop = stop.child_token();
        let _guard = stop.clone().drop_guard();
        let (mut servers, mut counted) = (Vec::new(), Vec::new());
        let threads: Vec<_> = self.idlest().map(|worker| (worker, Turns::new())).collect();
        let placed =
            groups.into_iter().flat_map(|listeners| listeners.into_iter().zip(threads.iter().cycle()));
        for (listener, (worker, turns)) in placed {
            counted.push(Serving::begin(&worker.listeners));
            let (egress, flows, stop) = (egress.clone(), flows.clone(), stop.clone());
            let turns = turns.clone();
            servers.push(worker.runtime.spawn(async move {
                // However this one ends, the others end too.
                let _guard = stop.clone().drop_guard();
                let listener = tokio::net::TcpListener::from_std(listener)?;
                serve::in_turn(listener, egress, flows, limits, turns, stop).await
            }));
        }
        for server in servers {
            server.await.map_err(io::Error::other)??;
        }
        Ok(())
    }

    /// Runs a server to its end on the thread that serves the fewest. It gets a token that is cancelled with `stop`, or when
    /// the caller stops waiting.
    ///
    /// # Errors
    /// What the server says, or that it panicked, or that the threads have ended.
    pub async fn run<S>(
        &self,
        stop: CancellationToken,
        server: impl FnOnce(CancellationToken) -> S,
    ) -> io::Result<()>
    where
        S: Future<Output = io::Result<()>> + Send + 'static,
    {
        let stop = stop.child_token();
        let _guard = stop.clone().drop_guard();
        let Some(worker) = self.idlest().next() else { return Err(io::ErrorKind::NotFound.into()) };
        let _counted = Serving::begin(&worker.listeners);
        worker.runtime.spawn(server(stop)).await.map_err(io::Error::other)?
    }

    /// The threads, beginning with those that serve the fewest.
    fn idlest(&self) -> impl Iterator<Item = &Worker> + Clone {
        let mut workers: Vec<_> = self.workers.iter().collect();
        workers.sort_by_key(|worker| worker.listeners.load(Ordering::Relaxed));
        workers.into_iter()
    }
}

impl Worker {
    fn start(index: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new()
            .name(format!("relay-{index}"))
            .spawn(move || runtime.block_on(stop.cancelled()))?;
        Ok(Self { runtime: handle, listeners: AtomicUsize::new(0) })
    }
}

/// Counts a listener as long as it is served.
struct Serving<'w>(&'w AtomicUsize);

impl<'w> Serving<'w> {
    fn begin(listeners: &'w AtomicUsize) -> Self {
        listeners.fetch_add(1, Ordering::Relaxed);
        Self(listeners)
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_server_ends_when_it_is_told_to_and_its_failure_is_told() {
        let workers = Workers::start(1).unwrap();
        let stop = CancellationToken::new();
        let obedient = workers.run(stop.clone(), async |stop| {
            stop.cancelled().await;
            Ok(())
        });
        let ended = async {
            stop.cancel();
            obedient.await
        };
        assert!(ended.await.is_ok());
        let failing = workers.run(CancellationToken::new(), async |_| Err(io::ErrorKind::BrokenPipe.into()));
        assert_eq!(failing.await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let panicking = workers.run(CancellationToken::new(), async |_| panic!("on purpose"));
        assert!(panicking.await.is_err());
        // The thread has outlived it.
        assert!(workers.run(CancellationToken::new(), async |_| Ok(())).await.is_ok());
    }

    #[tokio::test]
    async fn a_server_ends_when_nobody_waits_for_it_any_more() {
        let workers = Workers::start(1).unwrap();
        let (begun, begins) = oneshot::channel();
        let (ended, ends) = oneshot::channel();
        let server = workers.run(CancellationToken::new(), |stop| async move {
            begun.send(()).unwrap();
            stop.cancelled().await;
            ended.send(()).unwrap();
            Ok(())
        });
        let mut server = Box::pin(server);
        tokio::select! {
            _ = &mut server => panic!("it ended by itself"),
            begun = begins => begun.unwrap(),
        }
        drop(server);
        tokio::time::timeout(Duration::from_secs(10), ends).await.unwrap().unwrap();
    }
}
