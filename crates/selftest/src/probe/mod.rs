//! The program inside the sandbox: does what it is told, and says what came of it.
//!
//! It is this program, shown read-only inside, so that nothing depends on what a template contains. Orders and
//! reports are lines of JSON.

mod machine;
mod network;

use std::{
    collections::HashMap,
    io::{BufRead, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub(crate) use machine::Change;

/// How many actions of one order are under way at a time.
const AT_A_TIME: usize = 64;

/// Bytes, as base64.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        serializer.serialize_str(&base64::engine::general_purpose::STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        let text = String::deserialize(deserializer)?;
        base64::engine::general_purpose::STANDARD.decode(text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// What the probe is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Connect, from this address if one is given, send the pieces one after the other, and read what comes.
    Tcp { to: SocketAddr, pieces: Vec<Bytes>, from: Option<IpAddr>, wait: Duration },
    /// Send a datagram, and read one.
    Udp { to: SocketAddr, data: Bytes, from: Option<IpAddr>, wait: Duration },
    /// Send an echo request with this payload, and read the reply.
    Ping { to: IpAddr, data: Bytes, wait: Duration },
    /// As `Tcp`, but the connection is kept under this number.
    Hold { to: SocketAddr, data: Bytes, key: u32, wait: Duration },
    /// Send on a connection that is kept, and read until it ends.
    Held { key: u32, data: Bytes, wait: Duration },
    /// Listen on an address of one's own, connect to it and exchange a word.
    Own { at: SocketAddr },
    /// Listen, and nothing else.
    Listen { at: SocketAddr },
    /// Listen from now on.
    Await { at: SocketAddr },
    /// Whether anybody has connected where one listens.
    Awaited { at: SocketAddr },
    /// The own address of what is sent there.
    Source { to: SocketAddr },
    /// Open a socket of a family, a kind and a protocol.
    Socket { family: u16, kind: u32, protocol: u32 },
    /// Make a system call, by its name in [`sys::forbidden`].
    Call { name: String },
    /// Change something of the network, by the name of the change.
    Network { change: machine::Change },
    /// Open a file.
    Open { path: PathBuf, write: bool },
}

/// What came of an action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// There was an error at once, such as a connection that is refused.
    Refused(String),
    /// The connection was cut.
    Reset,
    /// The connection was ended without a word.
    Closed,
    /// Nothing happened within the time.
    Silence,
    /// A TLS alert.
    Alert(u8),
    /// A TLS handshake record.
    ServerHello,
    /// Statuses of HTTP responses.
    Http(Vec<u16>),
    /// Something else was answered.
    Data(Bytes),
    /// It was done.
    Done,
    /// The probe does not know how to do it: a fault of the test.
    Fault(String),
}

/// A line to the probe.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) actions: Vec<Action>,
}

/// A line from the probe: what came of each action, in their order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) outcomes: Vec<Outcome>,
}

/// What is kept between orders.
#[derive(Default)]
struct Kept {
    connections: Mutex<HashMap<u32, TcpStream>>,
    listeners: Mutex<HashMap<SocketAddr, TcpListener>>,
}

/// Does what the lines of standard input say until it ends.
///
/// # Errors
/// When a line is no order, or standard output is closed.
pub fn serve() -> Result<()> {
    let kept = Kept::default();
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?).context("an order of the selftest")?;
        let answer = Answer { outcomes: all(&order.actions, &kept) };
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
        out.flush()?;
    }
    Ok(())
}

/// Does all actions, many at a time.
fn all(actions: &[Action], kept: &Kept) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Outcome>> =
        actions.iter().map(|_| Mutex::new(Outcome::Fault("it was not done".to_owned()))).collect();
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(actions.len()) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(action), Some(outcome)) = (actions.get(index), outcomes.get(index)) else {
                        return;
                    };
                    *outcome.lock() = one(action, kept);
                }
            });
        }
    });
    outcomes.into_iter().map(Mutex::into_inner).collect()
}

fn one(action: &Action, kept: &Kept) -> Outcome {
    match action {
        Action::Tcp { to, pieces, from, wait } => network::tcp(*to, pieces, *from, *wait),
        Action::Udp { to, data, from, wait } => network::udp(*to, &data.0, *from, *wait),
        Action::Ping { to, data, wait } => network::ping(*to, &data.0, *wait),
        Action::Hold { to, data, key, wait } => network::hold(*to, &data.0, *wait, |stream| {
            kept.connections.lock().insert(*key, stream);
        }),
        Action::Held { key, data, wait } => match kept.connections.lock().remove(key) {
            Some(stream) => network::held(stream, &data.0, *wait),
            None => Outcome::Fault(format!("there is no connection {key}")),
        },
        Action::Own { at } => network::own(*at),
        Action::Listen { at } => machine::listen(*at),
        Action::Await { at } => machine::listener(*at, |listener| {
            kept.listeners.lock().insert(*at, listener);
        }),
        Action::Awaited { at } => match kept.listeners.lock().get(at) {
            Some(listener) => machine::awaited(listener),
            None => Outcome::Fault(format!("nobody listens at {at}")),
        },
        Action::Source { to } => network::source(*to),
        Action::Socket { family, kind, protocol } => machine::socket(*family, *kind, *protocol),
        Action::Call { name } => machine::call(name),
        Action::Network { change } => machine::change(*change),
        Action::Open { path, write } => machine::open(path, *write),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const WAIT: Duration = Duration::from_millis(200);

    fn one_to(to: SocketAddr, said: &[u8]) -> Outcome {
        let pieces = said.chunks(3).map(|piece| Bytes(piece.to_vec())).collect();
        one(&Action::Tcp { to, pieces, from: None, wait: WAIT }, &Kept::default())
    }

    /// A server that answers the first bytes of its one connection, and then ends it.
    fn server(answer: &'static [u8]) -> SocketAddr {
        use std::io::Read;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut read = [0; 6];
            stream.read_exact(&mut read).unwrap();
            stream.write_all(answer).unwrap();
        });
        address
    }

    #[test]
    fn what_is_answered_is_told_in_the_words_of_its_protocol() {
        let http = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n";
        assert_eq!(one_to(server(http), b"GET / "), Outcome::Http(vec![200, 403]));
        assert_eq!(one_to(server(&[21, 3, 3, 0, 2, 2, 49]), b"hello!"), Outcome::Alert(49));
        assert_eq!(one_to(server(&[22, 3, 3, 0, 2, 2, 49]), b"hello!"), Outcome::ServerHello);
        assert_eq!(one_to(server(b"else"), b"hello!"), Outcome::Data(Bytes(b"else".to_vec())));
        assert_eq!(one_to(server(b""), b"hello!"), Outcome::Closed);
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        assert!(matches!(one_to(nobody, b"hello!"), Outcome::Refused(_)));
    }

    #[test]
    fn orders_and_answers_are_the_same_on_both_sides() {
        let order = Order {
            actions: vec![
                Action::Ping { to: Ipv4Addr::LOCALHOST.into(), data: Bytes(vec![0, 255]), wait: WAIT },
                Action::Call { name: "bpf".to_owned() },
            ],
        };
        let text = serde_json::to_string(&order).unwrap();
        assert_eq!(serde_json::from_str::<Order>(&text).unwrap().actions, order.actions);
    }
}
