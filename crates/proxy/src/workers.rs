//! Threads that only relay.

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

use crate::{Egress, Flows, Limits, serve};

/// Threads for [`serve`], each with a runtime of its own. A clone is the same threads; they end with the last one.
///
/// All flows of one listener stay on one thread: no connection is handed from core to core, which costs more than
/// all the rest of setting it up, and no sandbox takes more cores for its flows than it has listeners.
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

    /// As [`serve`], each listener on a thread of its own as far as there are so many, beginning with those that serve
    /// the fewest. The listeners must be non-blocking.
    ///
    /// # Errors
    /// When a listener cannot be prepared or registered, or the threads have ended. The others end with it.
    pub async fn serve<E: Egress>(
        &self,
        listeners: Vec<TcpListener>,
        egress: Arc<E>,
        flows: Arc<Flows>,
        limits: Limits,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let mut idlest: Vec<&Worker> = self.workers.iter().collect();
        idlest.sort_by_key(|worker| worker.listeners.load(Ordering::Relaxed));
        // If the caller stops waiting, or one server fails, so do all.
        let stop = stop.child_token();
        let _guard = stop.clone().drop_guard();
        let (mut servers, mut counted) = (Vec::new(), Vec::new());
        for (listener, worker) in listeners.into_iter().zip(idlest.into_iter().cycle()) {
            counted.push(Serving::begin(&worker.listeners));
            let (egress, flows, stop) = (egress.clone(), flows.clone(), stop.clone());
            servers.push(worker.runtime.spawn(async move {
                // However this one ends, the others end too.
                let _guard = stop.clone().drop_guard();
                serve(tokio::net::TcpListener::from_std(listener)?, egress, flows, limits, stop).await
            }));
        }
        for server in servers {
            server.await.map_err(io::Error::other)??;
        }
        Ok(())
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
