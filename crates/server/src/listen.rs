//! Listening, accepting and stopping.

use std::{io, net::SocketAddr, path::PathBuf, pin::pin, sync::Arc, time::Duration};

use axum::{Router, middleware};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{self, GracefulShutdown},
    },
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    opening::Opening,
    peer::{self, Watched},
    room::{Counted, Place, Room},
    sse,
};

/// How a server listens.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// The addresses. Port 0 takes a free one; see [`Server::addresses`].
    pub listen: Vec<SocketAddr>,
    /// Certificate and key. Without them HTTP is spoken in clear.
    pub tls: Option<TlsFiles>,
    /// Connections at once. For one more the one is closed that has had no request in work for longest; while all have
    /// one, it waits.
    pub connections: usize,
    /// How long running requests may go on after a stop.
    pub drain: Duration,
    /// How long a client may give no sign of life when it owes one, before its connection is closed. Shorter than two minutes
    /// it also ends connections of clients that are there and do not read.
    pub silence: Duration,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 8080))],
            tls: None,
            connections: 4096,
            drain: Duration::from_secs(10),
            silence: Duration::from_secs(150),
        }
    }
}

/// A certificate chain and its private key, as PEM files.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration names no address.
    #[error("no address to listen on")]
    NoAddress,
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The failure.
        source: io::Error,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

/// How long a client may take for the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a client may take to begin, once a connection is there. Clients connect when they have something to ask.
const OPENING_DEADLINE: Duration = Duration::from_secs(30);
/// How long a client may take to send the head of a request, and how long a connection may be idle.
/// Longer than clients keep idle connections (90 s at most), so that they, not we, close them.
const HEAD_DEADLINE: Duration = Duration::from_secs(120);
/// What clients of this API expect to be able to run at once on one HTTP/2 connection.
const STREAMS: u32 = 4096;
/// How often an HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_DEADLINE: Duration = Duration::from_secs(20);
/// How long accepting pauses when the process has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    listeners: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
    tls: Option<tls::Acceptor>,
    room: Arc<Room>,
    drain: Duration,
    silence: Duration,
}

impl Server {
    /// Reads the certificate and listens on every address.
    ///
    /// # Errors
    /// [`ServeError`], naming the address or the file.
    pub async fn bind(config: &ServeConfig) -> Result<Self, ServeError> {
        if config.listen.is_empty() {
            return Err(ServeError::NoAddress);
        }
        let tls = match &config.tls {
            Some(files) => Some(tls::Acceptor::from_pem_files(&files.certificate, &files.key)?),
            None => None,
        };
        let (mut listeners, mut addresses) = (Vec::new(), Vec::new());
        for &address in &config.listen {
            let failed = |source| ServeError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        let room = Room::new(config.connections);
        let ServeConfig { drain, silence, .. } = *config;
        Ok(Self { listeners, addresses, tls, room, drain, silence })
    }

    /// The addresses listened on, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Answers requests until `stop`, then accepts nothing more, ends answers that would go on for ever, lets running
    /// requests finish within the drain time, and drops what is left.
    pub async fn run(self, router: Router, stop: CancellationToken) {
        let ending = stop.clone();
        let router = router.layer(middleware::map_response(move |response| {
            std::future::ready(sse::end_at(&ending, response))
        }));
        let graceful = Arc::new(GracefulShutdown::new());
        let mut accepting = JoinSet::new();
        for listener in self.listeners {
            accepting.spawn(accept(Acceptor {
                listener,
                tls: self.tls.clone(),
                room: Arc::clone(&self.room),
                router: router.clone(),
                graceful: Arc::clone(&graceful),
                stop: stop.clone(),
                silence: self.silence,
            }));
        }
        // Each acceptor ends with the tasks of its connections. They end with this function at the latest.
        let _open = accepting.join_all().await;
        let graceful =
            Arc::into_inner(graceful).expect("the acceptors, which had the other handles, have ended");
        if timeout(self.drain, graceful.shutdown()).await.is_err() {
            tracing::warn!(limit = ?self.drain, "requests still running at the end of the drain time were dropped");
        }
    }
}

struct Acceptor {
    listener: TcpListener,
    tls: Option<tls::Acceptor>,
    room: Arc<Room>,
    router: Router,
    graceful: Arc<GracefulShutdown>,
    stop: CancellationToken,
    silence: Duration,
}

/// Accepts until the stop; gives back the connections that are open then.
async fn accept(acceptor: Acceptor) -> JoinSet<()> {
    let mut open = JoinSet::new();
    let mut stop = pin!(acceptor.stop.cancelled());
    loop {
        let mut next = pin!(next(&acceptor));
        let accepted = loop {
            tokio::select! {
                biased;
                () = &mut stop => return open,
                Some(_ended) = open.join_next() => {}
                accepted = &mut next => break accepted,
            }
        };
        match accepted {
            Ok((stream, place)) => {
                let (tls, router) = (acceptor.tls.clone(), acceptor.router.clone());
                let (watcher, silence) = (acceptor.graceful.watcher(), acceptor.silence);
                open.spawn(async move {
                    let stream = Arc::new(stream);
                    tokio::select! {
                        () = connection(Watched(Arc::clone(&stream)), tls, router, watcher, place) => {}
                        () = peer::gone(&stream, silence) => peer::give_up(&stream),
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The next connection, once there is room for it.
async fn next(acceptor: &Acceptor) -> io::Result<(TcpStream, Place)> {
    let (stream, _peer) = acceptor.listener.accept().await?;
    peer::prepare(&stream, acceptor.silence)?;
    // Not before it is there: for nobody, nobody has to go.
    let place = acceptor.room.place().await?;
    Ok((stream, place))
}

async fn connection(
    stream: Watched,
    tls: Option<tls::Acceptor>,
    router: Router,
    watcher: graceful::Watcher,
    place: Place,
) {
    let place = Arc::new(place);
    let speak = async {
        match tls {
            None => answer(stream, router, watcher, &place).await,
            Some(acceptor) => match timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => answer(stream, router, watcher, &place).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            },
        }
    };
    tokio::select! {
        () = speak => {}
        () = place.given_up() => tracing::debug!("an idle connection has made room for another"),
    }
}

/// Speaks HTTP/1.1 or HTTP/2, whichever the client begins with.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    watcher: graceful::Watcher,
    place: &Arc<Place>,
) {
    let stream = Opening::new(stream, OPENING_DEADLINE);
    let service = Counted { service: TowerToHyperService::new(router), place: Arc::clone(place) };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .adaptive_window(true)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_DEADLINE);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };

    use super::*;

    /// For how long a connection is open on which a client sends this and then nothing.
    async fn open_for(sent: &[u8]) -> Duration {
        let (mut client, server) = duplex(64 << 10);
        let (graceful, place) = (GracefulShutdown::new(), Room::new(1).place().await.unwrap());
        let (begun, place) = (Instant::now(), Arc::new(place));
        client.write_all(sent).await.unwrap();
        let reading = async { while matches!(client.read(&mut [0; 4096]).await, Ok(1..)) {} };
        let both = async { tokio::join!(answer(server, Router::new(), graceful.watcher(), &place), reading) };
        timeout(HEAD_DEADLINE * 10, both).await.expect("it is closed");
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn no_client_that_asks_for_nothing_is_waited_for_without_end() {
        for silent in [b"".as_slice(), b"P", b"PRI * HTTP/2.0\r\n\r\n"] {
            assert_eq!(open_for(silent).await.as_secs(), OPENING_DEADLINE.as_secs());
        }
        // Whoever has begun has the time for a head, and one that has asked may ask again in that time.
        for begun in [b"GET / HT".as_slice(), b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            assert_eq!(open_for(begun).await.as_secs(), HEAD_DEADLINE.as_secs());
        }
        // A peer that speaks HTTP/2 and answers no ping is gone.
        let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        assert!(open_for(http2).await <= PING_EVERY + PING_DEADLINE);
    }
}
