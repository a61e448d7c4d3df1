//! The accept loop.

use std::{
    io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use policy::{EventKind, FlowEvent, NameSource, Rate, Reason};
use rustix::net::sockopt;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    ByteLimits, Egress, Flows,
    connection::Connection,
    decision::Refusal,
    flows::{Recorder, Subject},
    socket::Socket,
    turns::Turns,
};

/// How long to wait after a failed `accept`, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Less than the deadlines of connections in their opening, so that a timer which is due then is due before theirs.
const EARLY: Duration = Duration::from_secs(1);

/// The bounds of one sandbox's proxy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections at the same time; further ones are reset.
    pub max_flows: usize,
    /// How fast connections may begin; further ones are reset.
    pub new_flows: Rate,
    /// How fast HTTP requests may follow others on their connections: each is an event. Further ones wait.
    pub new_requests: Rate,
    /// The most connections whose first bytes have not been read completely, at the same time; further ones are
    /// reset. Connections that an address entry permits are not read and do not count.
    pub max_half_open: usize,
    /// The most bytes in the sandbox's life.
    pub bytes: ByteLimits,
    /// How long a client may take from being accepted to a complete ClientHello or request head, and for each further
    /// request head from its first byte.
    pub peek_timeout: Duration,
    /// The most bytes of a ClientHello or a request head.
    pub peek_bytes: usize,
    /// How long to wait for the client's first byte before it is taken for one that lets the server speak first,
    /// where that is permitted.
    pub server_first: Duration,
    /// How long connecting may take, all addresses of a name together.
    pub dial_timeout: Duration,
}

impl Default for Limits {
    /// Four times what a busy program has open, a fifth of what one core can begin in a second, and a quarter of all
    /// connections in their opening.
    fn default() -> Self {
        Self {
            max_flows: 1024,
            new_flows: Rate::per_second(2000, 4000),
            new_requests: Rate::per_second(5000, 10_000),
            max_half_open: 256,
            bytes: ByteLimits::default(),
            peek_timeout: Duration::from_secs(5),
            peek_bytes: 64 << 10,
            server_first: Duration::from_millis(200),
            dial_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves the connections that `listener` accepts until `stop`, and cuts those that are still open then.
///
/// The local address of an accepted socket is taken for the destination that the client meant. What is dialled is
/// dialled in the network namespace of the runtime's threads.
///
/// A connection that makes the daemon panic is reset, and recorded with the reason `daemon_fault`; so is one that cannot
/// be accepted because the process has no descriptor left. All others go on.
///
/// # Errors
/// When the listener cannot be prepared. A connection that cannot be accepted is tried again.
pub async fn serve<E: Egress>(
    listener: TcpListener,
    egress: Arc<E>,
    flows: Arc<Flows>,
    limits: Limits,
    stop: CancellationToken,
) -> io::Result<()> {
    in_turn(listener, egress, flows, limits, Turns::new(), stop).await
}

/// As [`serve`], with turns that other listeners on the same thread may have in common.
pub(crate) async fn in_turn<E: Egress>(
    listener: TcpListener,
    egress: Arc<E>,
    flows: Arc<Flows>,
    limits: Limits,
    turns: Turns,
    stop: CancellationToken,
) -> io::Result<()> {
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(&listener, true)?;
    if let Err(error) = sys::spare::reserve() {
        tracing::warn!(%error, "there is no descriptor in reserve: connections over the limit have to wait");
    }
    let recorder: Arc<dyn Recorder> = egress.clone();
    let server = Server { id: flows.unique(), egress, recorder, flows, limits, turns };
    tokio::select! {
        () = stop.cancelled() => {}
        () = server.accept(&listener) => {}
    }
    server.flows.abort_all(server.id);
    Ok(())
}

/// One listener's part of a sandbox's proxy.
struct Server<E> {
    id: u64,
    egress: Arc<E>,
    recorder: Arc<dyn Recorder>,
    flows: Arc<Flows>,
    limits: Limits,
    turns: Turns,
}

impl<E: Egress> Server<E> {
    async fn accept(&self, listener: &TcpListener) {
        let mut is_exhausted = false;
        // The runtime makes a system call for every timer that is due before all others. While connections come, this
        // one is.
        let mut early = pin!(sleep(EARLY));
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = &mut early, if !early.is_elapsed() => continue,
            };
            if early.is_elapsed() {
                early.as_mut().reset(Instant::now() + EARLY);
            }
            is_exhausted = match &accepted {
                Err(error) if sys::spare::is_exhausted(error) => {
                    if !is_exhausted {
                        tracing::error!(%error, "connections are reset for want of descriptors");
                    }
                    true
                }
                _ => false,
            };
            match accepted {
                Ok((stream, _)) => {
                    if self.admit(stream) {
                        continue;
                    }
                    // The thread serves other sandboxes too, and refusing takes next to no turn of its own.
                    tokio::task::yield_now().await;
                }
                Err(_) if is_exhausted => match sys::spare::turn_away(listener) {
                    Ok(destination) => {
                        fault(&*self.egress, None, destination);
                        tokio::task::yield_now().await;
                    }
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                },
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Whether the connection was admitted; if not, it is reset.
    fn admit(&self, stream: TcpStream) -> bool {
        let Ok(destination) = stream.local_addr() else { return false };
        let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        let client = Socket::new(stream);
        // Of whatever fails here, only this connection is to notice.
        let begun = catch_unwind(AssertUnwindSafe(|| self.begin(client, destination)));
        begun.unwrap_or_else(|_panic| {
            fault(&*self.egress, None, destination);
            false
        })
    }

    fn begin(&self, client: Socket, destination: SocketAddr) -> bool {
        let from = (&self.recorder, &self.turns);
        let registration = match self.flows.admit(self.id, &self.limits, from, Instant::now().into_std()) {
            Ok(registration) => registration,
            Err(reason) => {
                let generation = self.egress.in_force().generation;
                let refusal = Refusal::of_bytes(reason, None, NameSource::None, destination, generation);
                self.egress.record(refusal.event());
                return false;
            }
        };
        let entry = Arc::clone(registration.entry());
        let hold = self.egress.hold(destination.ip());
        let (egress, limits) = (Arc::clone(&self.egress), self.limits);
        let watched = (Arc::clone(&egress), Arc::clone(&entry));
        let connection = Connection { egress, registration, destination, _hold: hold, limits };
        // Boxed, because the runtime moves a task's future several times.
        let running = AssertUnwindSafe(Box::pin(connection.run(client))).catch_unwind();
        let task = tokio::spawn(running.map(move |ended| {
            // What it had, its sockets among them, went as it unwound.
            if ended.is_err() {
                let (egress, entry) = watched;
                fault(&*egress, entry.take_subject(), destination);
            }
        }));
        entry.set_abort(task.abort_handle());
        true
    }
}

/// Records that a connection ended for a fault of the daemon: refused, unless it had been permitted (as `subject`).
fn fault<E: Egress>(egress: &E, subject: Option<Subject>, destination: SocketAddr) {
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let record = || {
        let generation = egress.in_force().generation;
        let (name, source) = subject
            .as_ref()
            .map_or((None, NameSource::None), |subject| (subject.name.clone(), subject.source));
        let refusal = Refusal::of_bytes(Reason::DaemonFault, name, source, destination, generation);
        let kind = if subject.is_some() { EventKind::EgressRevoked } else { EventKind::EgressBlocked };
        egress.record(FlowEvent { kind, ..refusal.event() });
    };
    if catch_unwind(AssertUnwindSafe(record)).is_err() {
        tracing::error!(%destination, "a connection ended for a fault, which could not be recorded");
    }
}
