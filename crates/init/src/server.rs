//! Accepting connections.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::thread;
use std::time::Duration;

use init_protocol::{Configure, Failure, FailureKind, InitFrame};

use crate::children::Children;
use crate::command::Commands;
use crate::connection;
use crate::harden::Limits;
use crate::kept::Budget;
use crate::leftovers::Leftovers;

/// Stack of every thread. Only what is touched costs memory.
pub(crate) const STACK: usize = 256 << 10;

/// Most connections at a time.
const CONNECTIONS: usize = 256;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) configure: RwLock<Configure>,
    /// Resource limits of commands.
    pub(crate) limits: Limits,
    /// `/dev/null`, opened before anybody inside could put something else there.
    pub(crate) null: File,
    pub(crate) children: Children,
    pub(crate) commands: Commands,
    pub(crate) budget: Budget,
    pub(crate) leftovers: Leftovers,
    connections: AtomicUsize,
}

impl Server {
    /// Starts the thread that accepts.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(crate) fn start(
        listener: UnixListener,
        configure: Configure,
        limits: Limits,
    ) -> io::Result<Arc<Self>> {
        let server = Arc::new(Self {
            configure: RwLock::new(configure),
            limits,
            null: File::open("/dev/null")?,
            children: Children::default(),
            commands: Commands::default(),
            budget: Budget::default(),
            leftovers: Leftovers::default(),
            connections: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&server);
        thread::Builder::new().stack_size(STACK).spawn(move || accepting.accept(&listener))?;
        Ok(server)
    }

    /// Reaps children for ever.
    pub(crate) fn reap(&self) -> ! {
        self.children.reap()
    }

    fn accept(self: Arc<Self>, listener: &UnixListener) {
        let mut spare = self.spare();
        loop {
            match listener.accept() {
                Ok((socket, _)) => self.serve(socket),
                Err(error) if sys::spare::is_exhausted(&error) && spare.is_some() => {
                    // In the place of the one in reserve, and if there are others by the time that somebody connects, served.
                    drop(spare.take());
                    let accepted = listener.accept();
                    spare = self.spare();
                    match accepted {
                        Ok((socket, _)) if spare.is_some() => self.serve(socket),
                        Ok((socket, _)) => connection::refuse(socket, busy("no descriptor is left")),
                        Err(_) => thread::sleep(PAUSE),
                    }
                }
                // Out of memory, or nothing in reserve: the daemon finds its connection waiting, not refused.
                Err(_) => {
                    thread::sleep(PAUSE);
                    spare = spare.or_else(|| self.spare());
                }
            }
        }
    }

    /// A descriptor in reserve, if there is one left.
    fn spare(&self) -> Option<File> {
        self.null.try_clone().ok()
    }

    fn serve(self: &Arc<Self>, socket: UnixStream) {
        let seat = Seat::take(Arc::clone(self));
        let refusal = socket.try_clone();
        let full = || {
            format!("{CONNECTIONS} requests of the sandbox are under way, readers of its streams included")
        };
        let served = seat.ok_or_else(full).and_then(|seat| {
            let run = move || connection::serve(&seat.0, socket);
            let started = thread::Builder::new().stack_size(STACK).spawn(run);
            started.map_err(|_| "the sandbox can have no more threads".to_owned())
        });
        if let (Err(why), Ok(socket)) = (served, refusal) {
            connection::refuse(socket, busy(&why));
        }
    }
}

fn busy(why: &str) -> InitFrame {
    InitFrame::Failed(Failure::new(FailureKind::Busy, why))
}

/// How long accepting pauses after an error.
const PAUSE: Duration = Duration::from_millis(20);

/// One of the connections that may be open at a time.
struct Seat(Arc<Server>);

impl Seat {
    fn take(server: Arc<Server>) -> Option<Self> {
        let before = server.connections.fetch_add(1, Ordering::Relaxed);
        let seat = Self(server);
        (before < CONNECTIONS).then_some(seat)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
