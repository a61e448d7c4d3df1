//! Connections from the daemon to programs that listen inside a sandbox.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    os::fd::OwnedFd,
    time::Duration,
};

use gate::{SANDBOX_V4, SANDBOX_V6};
use sys::netns::NetNs;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::error::SandboxError;

/// How long the kernel may take to make a connection that does not leave the sandbox: only a listener whose queue is full
/// lets it wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection to a port inside a sandbox. Its place among those that may exist at a time is free when it is dropped.
///
/// What comes out of it is the sandbox's, and is not to be trusted.
#[derive(Debug)]
pub struct PortConnection {
    /// The connection.
    pub stream: TcpStream,
    cut: Cut,
    _places: Vec<OwnedSemaphorePermit>,
}

impl PortConnection {
    /// A connection that holds these places.
    pub fn new(stream: TcpStream, cut: Cut, places: impl Into<Vec<OwnedSemaphorePermit>>) -> Self {
        Self { stream, cut, _places: places.into() }
    }

    /// When it is to be closed, whatever is under way.
    pub fn cut(&self) -> Cut {
        self.cut.clone()
    }
}

/// What ends a connection to a port before its time.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// The sandbox ends.
    pub ending: CancellationToken,
    /// Its policy does not permit connections to its ports any more.
    pub closing: CancellationToken,
    /// The daemon ends.
    pub stop: CancellationToken,
}

impl Cut {
    /// Waits for it, and says why.
    pub async fn happened(&self) -> SandboxError {
        tokio::select! {
            biased;
            () = self.ending.cancelled() => SandboxError::Killed,
            () = self.closing.cancelled() => SandboxError::PublicTrafficOff,
            () = self.stop.cancelled() => SandboxError::ShuttingDown,
        }
    }
}

/// Connects to what listens on `port` in a sandbox's network namespace: on loopback, or on the sandbox's own addresses.
///
/// The sockets are made in the namespace, so nothing of this connection can be outside of it; and the addresses lead
/// nowhere but to the sandbox itself.
pub(crate) async fn connect(namespace: OwnedFd, port: NonZeroU16) -> Result<TcpStream, SandboxError> {
    let sockets = tokio::task::spawn_blocking(move || NetNs::from(namespace).run(|| sockets(port)))
        .await
        .map_err(|_| SandboxError::ShuttingDown)?
        .flatten()
        .map_err(|source| unreachable(port, source))?;
    let mut failed = None;
    for (address, socket) in sockets {
        match timeout(PATIENCE, socket.connect(address)).await {
            Ok(Ok(stream)) if is_to_itself(&stream) => {}
            Ok(Ok(stream)) => {
                stream.set_nodelay(true).map_err(|source| unreachable(port, source))?;
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Ok(Err(error)) => failed = failed.or(Some(error)),
            Err(_) => return Err(SandboxError::PortSilent(port.get())),
        }
    }
    // A refusal says that the address is there, and nobody listens; any other failure that none of them could be tried.
    Err(failed.map_or(SandboxError::NothingListens(port.get()), |error| unreachable(port, error)))
}

fn unreachable(port: NonZeroU16, source: io::Error) -> SandboxError {
    if sys::spare::is_exhausted(&source) {
        return SandboxError::Limit("open files of the daemon".to_owned());
    }
    SandboxError::PortUnreachable { port: port.get(), source }
}

/// Where a program may listen, in the order in which it is tried, and a socket for each.
fn sockets(port: NonZeroU16) -> io::Result<Vec<(SocketAddr, TcpSocket)>> {
    let addresses: [IpAddr; 4] =
        [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), SANDBOX_V4.into(), SANDBOX_V6.into()];
    let with_socket = |address: IpAddr| {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
        Ok((SocketAddr::new(address, port.get()), socket?))
    };
    addresses.into_iter().map(with_socket).collect()
}

/// Where nobody listens, a connection from a port that the kernel has chosen may be to that very port, and so to itself.
fn is_to_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsFd as _};

    use super::*;

    fn port_of(listener: &TcpListener) -> NonZeroU16 {
        listener.local_addr().unwrap().port().try_into().unwrap()
    }

    /// A namespace with the addresses of a sandbox, and what `listen` makes in it.
    fn namespace<T: Send>(listen: impl FnOnce() -> T + Send) -> (OwnedFd, T) {
        let (namespace, made) = NetNs::create_and(|| {
            let mut connection = netns::Connection::open().unwrap();
            connection.bring_up(netns::LinkIndex::LOOPBACK).unwrap();
            for address in [IpAddr::from(SANDBOX_V4), SANDBOX_V6.into()] {
                connection.add_address(netns::LinkIndex::LOOPBACK, address.into()).unwrap();
            }
            listen()
        })
        .unwrap();
        (namespace.as_fd().try_clone_to_owned().unwrap(), made)
    }

    #[tokio::test]
    async fn what_listens_on_loopback_or_an_own_address_is_reached_and_only_inside() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0", "100.64.0.2:0"] {
            let (inside, listener) = namespace(|| TcpListener::bind(address).unwrap());
            let stream = connect(inside, port_of(&listener)).await.unwrap();
            let (_, peer) = listener.accept().unwrap();
            assert_eq!(stream.local_addr().unwrap().port(), peer.port(), "{address}");
        }
    }

    #[tokio::test]
    async fn a_port_of_the_machine_is_not_one_of_the_sandbox() {
        let (inside, ()) = namespace(|| ());
        let here = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port_of(&here);
        let refused = connect(inside, port).await.unwrap_err();
        assert!(matches!(refused, SandboxError::NothingListens(silent) if silent == port.get()), "{refused}");
    }

    #[tokio::test]
    async fn a_connection_to_itself_is_to_nobody() {
        let (inside, ()) = namespace(|| {
            // From now on every connection comes from the one port that nobody listens on.
            std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "50005 50005").unwrap();
        });
        let refused = connect(inside, NonZeroU16::new(50005).unwrap()).await.unwrap_err();
        assert!(matches!(refused, SandboxError::NothingListens(50005)), "{refused}");
    }

    #[tokio::test]
    async fn a_listener_that_accepts_nothing_is_silent_and_delays_only_whoever_asks() {
        let (inside, (listener, _queued)) = namespace(|| {
            let listener = socket_with_a_full_queue();
            let address = listener.local_addr().unwrap();
            let queued: Vec<_> = (0..3)
                .map_while(|_| {
                    std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok()
                })
                .collect();
            (listener, queued)
        });
        let refused = connect(inside, port_of(&listener)).await.unwrap_err();
        assert!(matches!(refused, SandboxError::PortSilent(_)), "{refused}");
    }

    fn socket_with_a_full_queue() -> TcpListener {
        use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        listen(&socket, 0).unwrap();
        socket.into()
    }
}
