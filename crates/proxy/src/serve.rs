//! The accept loop.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use policy::{NameSource, Rate};
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    ByteLimits, Egress, Flows, connection::Connection, decision::Refusal, flows::Recorder, socket::Socket,
    turns::Turns,
};

/// How long to wait after a failed `accept`, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The bounds of one sandbox's proxy.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most connections at the same time; further ones are reset.
    pub max_flows: usize,
    /// How fast connections may begin; further ones are reset.
    pub new_flows: Rate,
    /// The most connections whose first bytes have not been read completely, at the same time; further ones are
    /// reset. Connections that an address entry permits are not read and do not count.
    pub max_half_open: usize,
    /// The most bytes in the sandbox's life.
    pub bytes: ByteLimits,
    /// How long a client may take from connecting to a complete ClientHello or request head, and for each further
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
/// # Errors
/// When the listener cannot be prepared. A connection that cannot be accepted is tried again.
pub async fn serve<E: Egress>(
    listener: TcpListener,
    egress: Arc<E>,
    flows: Arc<Flows>,
    limits: Limits,
    stop: CancellationToken,
) -> io::Result<()> {
    // Accepted sockets inherit it.
    sockopt::set_tcp_nodelay(&listener, true)?;
    let recorder: Arc<dyn Recorder> = egress.clone();
    let server = Server { id: flows.unique(), egress, recorder, flows, limits, turns: Turns::new() };
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if !server.admit(stream) {
                        // The thread serves other sandboxes too, and refusing takes next to no turn of its own.
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = accepting => {}
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
    /// Whether the connection was admitted; if not, it is reset.
    fn admit(&self, stream: TcpStream) -> bool {
        let Ok(destination) = stream.local_addr() else { return false };
        let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
        let client = Socket::new(stream);
        let from = (&self.recorder, &self.turns);
        let registration = match self.flows.admit(self.id, &self.limits, from, Instant::now()) {
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
        let connection = Connection { egress, registration, destination, _hold: hold, limits };
        let task = tokio::spawn(connection.run(client));
        entry.set_abort(task.abort_handle());
        true
    }
}
