//! Queries in datagrams.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use sys::raw_udp::RawUdp;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Transport, Upstream, Zone,
    answer::{self, Step},
};

/// The largest query that is read in bytes; a longer one is cut and found malformed.
const MAX_QUERY: usize = 4096;
/// After so many datagrams in a row, other tasks get their turn.
const BURST: usize = 64;

/// Where queries come in, and where replies go out.
#[derive(Debug)]
pub struct Datagrams {
    queries: UdpSocket,
    /// Where the socket's port is not the one that queries are sent to.
    replies: Option<RawUdp>,
}

impl Datagrams {
    /// Queries that were sent to another port than the one of `queries` come there; the replies have their port by
    /// `replies`. Both are of the same address family.
    pub fn with_replies(queries: UdpSocket, replies: RawUdp) -> Self {
        Self { queries, replies: Some(replies) }
    }
}

impl From<UdpSocket> for Datagrams {
    fn from(both: UdpSocket) -> Self {
        Self { queries: both, replies: None }
    }
}

/// Answers the queries that arrive at `socket` until `stop`.
///
/// The socket is a transparent one that reports each datagram's original destination; it must be non-blocking.
/// Replies come from the address that the query was sent to, whichever that was.
///
/// It belongs on a runtime of one thread: in one of several, a thread that waits would be woken for every datagram that
/// arrives while another one is answering.
///
/// # Errors
/// When the socket cannot be registered with the runtime, or stops working.
pub async fn serve_udp<Z: Zone>(
    socket: impl Into<Datagrams>,
    zone: Arc<Z>,
    upstream: Upstream,
    stop: CancellationToken,
) -> io::Result<()> {
    let Datagrams { queries, replies } = socket.into();
    let server = Server { ends: Arc::new(Ends { queries: watched(queries)?, replies }), zone, upstream };
    // Dropping the set on the way out ends the lookups that are still under way.
    let mut lookups = JoinSet::new();
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        result = server.run(&mut lookups) => result,
    }
}

/// Not for writing, as the runtime's own sockets are: every reply that is under way would be an event.
#[expect(
    deprecated,
    reason = "its replacement is unsafe to call; a socket that is owned is what makes it sound"
)]
fn watched(socket: UdpSocket) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

struct Server<Z> {
    ends: Arc<Ends>,
    zone: Arc<Z>,
    upstream: Upstream,
}

struct Ends {
    queries: AsyncFd<UdpSocket>,
    replies: Option<RawUdp>,
}

impl<Z: Zone> Server<Z> {
    async fn run(&self, lookups: &mut JoinSet<()>) -> io::Result<()> {
        let mut buffer = [0; MAX_QUERY];
        loop {
            let mut ready = self.ends.queries.readable().await?;
            for _ in 0..BURST {
                match sys::udp::recv_orig_dst(self.ends.queries.get_ref(), &mut buffer) {
                    Ok((length, from, to)) => {
                        if let Some(query) = buffer.get(..length) {
                            self.handle(query, from, to, lookups);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        ready.clear_ready();
                        break;
                    }
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            while lookups.try_join_next().is_some() {}
            tokio::task::yield_now().await;
        }
    }

    fn handle(&self, query: &[u8], from: SocketAddr, to: SocketAddr, lookups: &mut JoinSet<()>) {
        let pending = match answer::begin(query, &*self.zone, &self.upstream, Transport::Udp) {
            Step::Done(reply) => return self.ends.send(reply, to, from),
            Step::Lookup(pending) => pending,
        };
        let (ends, zone, upstream) = (self.ends.clone(), self.zone.clone(), self.upstream.clone());
        lookups.spawn(async move {
            let reply = pending.finish(&*zone, &upstream).await;
            ends.send(reply, to, from);
        });
    }
}

impl Ends {
    /// Sends a reply; one that does not fit the socket's buffer is lost, as datagrams are.
    fn send(&self, reply: Option<Vec<u8>>, own: SocketAddr, client: SocketAddr) {
        let Some(reply) = reply else { return };
        let sent = match &self.replies {
            None => sys::udp::send_from(self.queries.get_ref(), &reply, own, client).map(drop),
            Some(raw) => raw.send(&reply, own, client),
        };
        if let Err(error) = sent {
            tracing::debug!(%client, %error, "a DNS reply was not sent");
        }
    }
}

/// Errors of one datagram, not of the socket: an ICMP error for an earlier reply, a signal, no memory.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, ConnectionReset, HostUnreachable, Interrupted, InvalidData, NetworkUnreachable,
        OutOfMemory, PermissionDenied,
    };
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | InvalidData
            | NetworkUnreachable
            | OutOfMemory
            | PermissionDenied
    )
}
