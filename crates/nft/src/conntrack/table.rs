//! Listing connections and ending them.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};
use rustix::io::Errno;

use super::{Entry, Tuple};
use crate::error::Error;
use crate::message::{Head, Message, Messages, Writer, acknowledgement};
use crate::socket::{Incoming, Socket};
use crate::uapi::{ct, nfproto, subsystem};

/// The connections of one network namespace.
pub struct Table {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// Room for listings.
const RECEIVE_BUFFER: usize = 1 << 20;
/// The kernel answers at once; this bounds the wait should it ever not.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// How many connections are ended with one request; the answers to all of them fit into the receive buffer.
const AT_ONCE: usize = 64;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

impl Table {
    /// Opens the table of the calling thread's network namespace. It can be used from any thread afterwards.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(RECEIVE_BUFFER).map_err(Error::Open)?;
        Ok(Self { socket, buffer: vec![0; 1 << 16], sequence: 0 })
    }

    /// Ends these connections, given as their first packets had them: the next packet of each begins a new one.
    /// Those that are not there are passed over. Returns how many there were.
    ///
    /// # Errors
    /// When the kernel refuses one for another reason than its absence. The others are ended all the same.
    pub fn end(&mut self, connections: &[Tuple]) -> Result<usize, Error> {
        let write = |tuple: &Tuple, writer: &mut Writer| name(tuple, writer);
        self.each(connections, ct::MSG_DELETE, NLM_F_ACK, write, |_| {})
    }

    /// As [`end`](Self::end), but, as far as its [id](Entry::id) tells, none that has begun with the same tuple since.
    ///
    /// # Errors
    /// As those of [`end`](Self::end).
    pub fn end_exactly(&mut self, connections: &[(Tuple, u32)]) -> Result<usize, Error> {
        let write = |(tuple, id): &(Tuple, u32), writer: &mut Writer| {
            name(tuple, writer);
            writer.u32(ct::ID, *id);
        };
        self.each(connections, ct::MSG_DELETE, NLM_F_ACK, write, |_| {})
    }

    /// Has the kernel look at these connections, given as their first packets had them, and gives those that there
    /// are to `take`. It forgets those whose time is over; by itself it looks about once a minute, or when their place
    /// is needed.
    ///
    /// # Errors
    /// When the kernel refuses to look.
    pub fn look_at(&mut self, connections: &[Tuple], take: impl FnMut(Entry)) -> Result<(), Error> {
        let write = |tuple: &Tuple, writer: &mut Writer| name(tuple, writer);
        self.each(connections, ct::MSG_GET, 0, write, take).map(drop)
    }

    /// Ends all connections whose mark has in `mask` the bits of `mark`. Takes some tenths of a millisecond, unless there are none at
    /// all: the kernel goes through the tables of all namespaces, which are one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn end_marked(&mut self, mark: u32, mask: u32) -> Result<(), Error> {
        let first = self.sequence.wrapping_add(1);
        let head = self.head(ct::MSG_DELETE, NLM_F_ACK, nfproto::UNSPEC);
        let mut request = Writer::with_capacity(64);
        request.message(head, |writer| write_mark(writer, mark, mask));
        self.send(request.bytes())?;
        match self.answers(first, 1, |_| {})?.first() {
            Some(0) => Ok(()),
            Some(code) => {
                Err(Error::Conntrack { action: "end marked connections", source: kernel_error(*code) })
            }
            None => Err(Error::Unconfirmed),
        }
    }

    /// The connections that there are, each given to `take`. Takes some twenty milliseconds, because the kernel goes
    /// through the tables of all namespaces with more care than for [`end_marked`](Self::end_marked).
    ///
    /// # Errors
    /// When the kernel refuses, or its answer ends early.
    pub fn list(&mut self, mut take: impl FnMut(Entry)) -> Result<(), Error> {
        const WHAT: &str = "tracked connections";
        let head = self.head(ct::MSG_GET, NLM_F_DUMP, nfproto::UNSPEC);
        let mut request = Writer::with_capacity(64);
        request.message(head, |_| {});
        self.send(request.bytes())?;
        loop {
            let over = self.receive(|message| {
                if message.sequence != head.sequence {
                    return None; // of a listing that was given up
                }
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => Some(code(message)),
                    _ => {
                        if let Some(entry) = Entry::read(message) {
                            take(entry);
                        }
                        None
                    }
                }
            })?;
            match over {
                Some(code) if code < 0 => {
                    return Err(Error::List { what: WHAT.to_owned(), source: kernel_error(code) });
                }
                Some(_) => return Ok(()),
                None => {}
            }
        }
    }

    /// Makes a request about each of these connections. Returns how many of them there were.
    fn each<T: Family>(
        &mut self,
        connections: &[T],
        operation: u16,
        flags: u16,
        write: impl Fn(&T, &mut Writer),
        mut take: impl FnMut(Entry),
    ) -> Result<usize, Error> {
        let mut there = 0;
        let mut refused = None;
        for chunk in connections.chunks(AT_ONCE) {
            let mut request = Writer::with_capacity(128 * chunk.len());
            let first = self.sequence.wrapping_add(1);
            for connection in chunk {
                let head = self.head(operation, flags, connection.family());
                request.message(head, |writer| write(connection, writer));
            }
            self.send(request.bytes())?;
            for code in self.answers(first, chunk.len(), &mut take)? {
                match code {
                    0 => there += 1,
                    code if is_absent(code) => {}
                    code => refused = Some(code),
                }
            }
        }
        let action = if operation == ct::MSG_GET { "look at a connection" } else { "end a connection" };
        refused.map_or(Ok(there), |code| Err(Error::Conntrack { action, source: kernel_error(code) }))
    }

    fn head(&mut self, operation: u16, flags: u16, family: u8) -> Head {
        self.sequence = self.sequence.wrapping_add(1);
        let kind = subsystem::CTNETLINK << 8 | operation;
        Head { kind, flags: flags | NLM_F_REQUEST, sequence: self.sequence, family, resource: 0 }
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.socket.send(bytes).map_err(|source| Error::Send { bytes: bytes.len(), source })
    }

    /// The answers to `count` requests, of which the first is `first`; connections among them are given to `take`.
    fn answers(&mut self, first: u32, count: usize, mut take: impl FnMut(Entry)) -> Result<Vec<i32>, Error> {
        let mut codes = Vec::with_capacity(count);
        while codes.len() < count {
            self.receive(|message| {
                let index = usize::try_from(message.sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
                if index < count {
                    codes.push(code(message));
                    if message.kind != NLMSG_ERROR
                        && let Some(entry) = Entry::read(message)
                    {
                        take(entry);
                    }
                }
                None
            })?;
        }
        Ok(codes)
    }

    /// Reads one datagram, and gives what `read` makes of the first of its messages that it makes something of.
    fn receive(&mut self, mut read: impl FnMut(&Message<'_>) -> Option<i32>) -> Result<Option<i32>, Error> {
        let limit = Instant::now() + ANSWER_LIMIT;
        loop {
            match self.socket.receive(&mut self.buffer).map_err(Error::Receive)? {
                Incoming::Datagram(datagram) => {
                    for message in Messages::new(datagram) {
                        let message = message.map_err(|_| Error::Malformed { what: "connection" })?;
                        if let Some(code) = read(&message) {
                            return Ok(Some(code));
                        }
                    }
                    return Ok(None);
                }
                Incoming::Overrun => return Err(Error::Receive(Errno::NOBUFS.into())),
                Incoming::Empty => {
                    if !self.socket.wait(limit).map_err(Error::Receive)? {
                        return Err(Error::Unconfirmed);
                    }
                }
            }
        }
    }
}

/// What has addresses of one family.
trait Family {
    /// `NFPROTO_*`.
    fn family(&self) -> u8;
}

impl Family for Tuple {
    fn family(&self) -> u8 {
        self.nfproto()
    }
}

impl Family for (Tuple, u32) {
    fn family(&self) -> u8 {
        self.0.nfproto()
    }
}

fn name(tuple: &Tuple, writer: &mut Writer) {
    writer.nest(ct::TUPLE_ORIG, |writer| tuple.write(writer));
}

/// Names the connections with this mark.
fn write_mark(writer: &mut Writer, mark: u32, mask: u32) {
    writer.u32(ct::MARK, mark);
    writer.u32(ct::MARK_MASK, mask);
}

/// What an answer says: 0, or an error as a negative number.
fn code(message: &Message<'_>) -> i32 {
    match message.kind {
        NLMSG_ERROR => acknowledgement(message).map_or(0, |(code, _)| code),
        NLMSG_DONE => message.body.first_chunk().copied().map_or(0, i32::from_ne_bytes),
        _ => 0,
    }
}

fn is_absent(code: i32) -> bool {
    Errno::from_io_error(&kernel_error(code)) == Some(Errno::NOENT)
}

fn kernel_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}
