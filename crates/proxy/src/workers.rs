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
/// all the rest of setting it up, and no sandbox takes more than a core for its flows.
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

    /// As [`serve`], on the thread that serves the fewest listeners. The listener must be non-blocking.
    ///
    /// # Errors
    /// When the listener cannot be prepared or registered, or the threads have ended.
    pub async fn serve<E: Egress>(
        &self,
        listener: TcpListener,
        egress: Arc<E>,
        flows: Arc<Flows>,
        limits: Limits,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let idlest = self.workers.iter().min_by_key(|worker| worker.listeners.load(Ordering::Relaxed));
        let worker = idlest.ok_or(io::ErrorKind::NotFound)?;
        // If the caller stops waiting, so does the server.
        let stop = stop.child_token();
        let _guard = (Serving::begin(&worker.listeners), stop.clone().drop_guard());
        let serving = async move {
            serve(tokio::net::TcpListener::from_std(listener)?, egress, flows, limits, stop).await
        };
        worker.runtime.spawn(serving).await.map_err(io::Error::other)?
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
