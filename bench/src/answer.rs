//! The world: a server that is fast enough not to be what is measured, and a DNS authority.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use anyhow::{Context, Result};
use hickory_proto::{
    op::{Message, MessageType},
    rr::{RData, Record, RecordType, rdata::A},
};
use rustix::{
    buffer::spare_capacity,
    event::epoll::{self, CreateFlags, EventData, EventFlags},
    fd::OwnedFd,
    net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt},
};

use crate::{
    hello::{HELLO_LENGTH, WISH_AT, Wish},
    network::{AUTHORITY, SERVER, SERVER_PORT},
};

/// Serves until its standard input ends.
pub(crate) fn run() -> Result<()> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..cores {
        let mut server = Server::open().context("opening the server")?;
        thread::spawn(move || {
            if let Err(error) = server.serve() {
                anstream::eprintln!("the world's server: {error}");
            }
        });
    }
    let authority = UdpSocket::bind((AUTHORITY, 53)).context("opening the DNS authority")?;
    thread::spawn(move || authoritative(&authority));
    anstream::println!("ready");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// How many bytes are taken or sent at once.
const CHUNK: usize = 256 << 10;
/// How many chunks one connection may move before another gets its turn.
const TURN: usize = 4;
/// The token of the listener; connections have their place in the table.
const LISTENER: u64 = u64::MAX;

/// One thread's loop.
struct Server {
    epoll: OwnedFd,
    listener: TcpListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    buffer: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    /// How many bytes of the ClientHello are there.
    greeted: usize,
    wish: Wish,
}

impl Server {
    fn open() -> Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        sockopt::set_socket_reuseport(&socket, true)?;
        // Accepted sockets inherit it.
        sockopt::set_tcp_nodelay(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::UNSPECIFIED, SERVER_PORT)))?;
        rustix::net::listen(&socket, 4096)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &socket, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let buffer = vec![0; CHUNK];
        Ok(Self { epoll, listener: socket.into(), connections: Vec::new(), free: Vec::new(), buffer })
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(256);
        loop {
            epoll::wait(&self.epoll, spare_capacity(&mut events), None)?;
            for event in events.drain(..) {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    place => self.advance(usize::try_from(place).unwrap_or(usize::MAX)),
                }
            }
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = match rustix::net::accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::CONNABORTED) => continue,
                Err(error) => return Err(error.into()),
            };
            let place = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            epoll::add(&self.epoll, &socket, data(place), EventFlags::IN)?;
            let connection = Connection { stream: socket.into(), greeted: 0, wish: Wish::Answer };
            if let Some(slot) = self.connections.get_mut(place) {
                *slot = Some(connection);
            }
        }
    }

    fn advance(&mut self, place: usize) {
        let Some(Some(connection)) = self.connections.get_mut(place) else { return };
        let going_on = if connection.greeted < HELLO_LENGTH {
            let greeted = connection.greet(&mut self.buffer);
            if connection.greeted >= HELLO_LENGTH && connection.wish == Wish::Send {
                let both = EventFlags::IN | EventFlags::OUT;
                greeted.and_then(|()| Ok(epoll::modify(&self.epoll, &connection.stream, data(place), both)?))
            } else {
                greeted
            }
        } else {
            match connection.wish {
                Wish::Send => connection.send(&self.buffer),
                Wish::Answer | Wish::Take => connection.take(&mut self.buffer),
            }
        };
        let is_over = going_on.is_err_and(|error| error.kind() != ErrorKind::WouldBlock);
        if is_over && let Some(slot) = self.connections.get_mut(place) {
            *slot = None;
            self.free.push(place);
        }
    }
}

fn data(place: usize) -> EventData {
    EventData::new_u64(u64::try_from(place).unwrap_or(LISTENER))
}

impl Connection {
    /// Reads of the ClientHello what is there, and answers it.
    fn greet(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let missing = HELLO_LENGTH.saturating_sub(self.greeted).min(buffer.len());
        let room = buffer.get_mut(..missing).unwrap_or_default();
        let read = self.stream.read(room)?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(&byte) = WISH_AT.checked_sub(self.greeted).and_then(|at| room.get(..read)?.get(at)) {
            self.wish = Wish::of(byte);
        }
        self.greeted = self.greeted.saturating_add(read);
        if self.greeted >= HELLO_LENGTH && self.wish == Wish::Answer {
            self.stream.write_all(b"!")?;
        }
        Ok(())
    }

    /// Takes in what comes, without copying it.
    fn take(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..TURN {
            if rustix::net::recv(&self.stream, &mut *buffer, RecvFlags::TRUNC)?.1 == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    fn send(&mut self, buffer: &[u8]) -> io::Result<()> {
        for _ in 0..TURN {
            // What did not fit is sent the next time: all bytes are alike.
            let _sent = self.stream.write(buffer)?;
        }
        Ok(())
    }
}

/// Answers every question for an IPv4 address: names such as `n300.…` have addresses of their own.
fn authoritative(socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let reply = buffer.get(..length).and_then(answer);
        if let Some(reply) = reply {
            let _lost = socket.send_to(&reply, from);
        }
    }
}

fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let question = query.queries.first()?.clone();
    let mut reply = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_desired = query.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.add_query(question.clone());
    if question.query_type() == RecordType::A {
        let name = question.name().clone();
        let address = address_of(&name.to_ascii());
        reply.add_answer(Record::from_rdata(name, TTL, RData::A(A(address))));
    }
    reply.to_vec().ok()
}

/// Of the records, in seconds: they stay cached for as long as a run takes.
const TTL: u32 = 3600;

fn address_of(name: &str) -> Ipv4Addr {
    let number: Option<u16> = name
        .split('.')
        .next()
        .and_then(|label| label.strip_prefix('n'))
        .and_then(|number| number.parse().ok());
    number.map_or(SERVER, |number| {
        let [first, second, ..] = SERVER.octets();
        let [third, fourth] = number.to_be_bytes();
        Ipv4Addr::new(first, second, third, fourth)
    })
}
