//! Queries in datagrams.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

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
    socket: UdpSocket,
    zone: Arc<Z>,
    upstream: Upstream,
    stop: CancellationToken,
) -> io::Result<()> {
    let server = Server { socket: Arc::new(watched(socket)?), zone, upstream };
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
    socket: Arc<AsyncFd<UdpSocket>>,
    zone: Arc<Z>,
    upstream: Upstream,
}

impl<Z: Zone> Server<Z> {
    async fn run(&self, lookups: &mut JoinSet<()>) -> io::Result<()> {
        let mut buffer = [0; MAX_QUERY];
        loop {
            let mut ready = self.socket.readable().await?;
            for _ in 0..BURST {
                match sys::udp::recv_orig_dst(self.socket.get_ref(), &mut buffer) {
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
            Step::Done(reply) => return send(self.socket.get_ref(), reply, to, from),
            Step::Lookup(pending) => pending,
        };
        let (socket, zone, upstream) = (self.socket.clone(), self.zone.clone(), self.upstream.clone());
        lookups.spawn(async move {
            let reply = pending.finish(&*zone, &upstream).await;
            send(socket.get_ref(), reply, to, from);
        });
    }
}

/// Sends a reply; one that does not fit the socket's buffer is lost, as datagrams are.
fn send(socket: &UdpSocket, reply: Option<Vec<u8>>, own: SocketAddr, client: SocketAddr) {
    let Some(reply) = reply else { return };
    if let Err(error) = sys::udp::send_from(socket, &reply, own, client) {
        tracing::debug!(%client, %error, "a DNS reply was not sent");
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
