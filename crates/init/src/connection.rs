//! One connection: greeting, one request, its answer.

use std::io::{self, IoSlice, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use init_protocol::{
    Bulk, ClientFrame, CodecError, Failure, FailureKind, Frame as _, FrameBuffer, Hello, InitFrame, MAX_BULK,
    MAX_CHUNK, Request, SEND_BUFFER, encode,
};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::pipe::{SpliceFlags, splice};

use crate::failure::Result;
use crate::server::Server;
use crate::{clock, command, files, follow, foreground};

/// How long the daemon may take for greeting and request.
const GREETING: Duration = Duration::from_secs(10);

/// Serves a connection to its end.
pub(crate) fn serve(server: &Arc<Server>, socket: UnixStream) {
    let mut connection = Connection::new(socket);
    let outcome = connection.request().and_then(|request| dispatch(server, &mut connection, request));
    if let Err(failure) = outcome {
        // A daemon that has gone needs no answer, and there is nobody else to tell.
        let _ = connection.send(&InitFrame::Failed(failure));
    }
    let _ = connection.flush();
}

/// Tells a connection that cannot be served why, without ever waiting for it.
pub(crate) fn refuse(socket: UnixStream, why: InitFrame) {
    let _ = socket.set_nonblocking(true);
    let mut connection = Connection::new(socket);
    let _ = connection.send(&InitFrame::Hello(Hello::CURRENT));
    let _ = connection.send(&why);
    let _ = connection.flush();
}

/// The daemon's end of an operation.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: UnixStream,
    incoming: FrameBuffer,
    outgoing: Vec<u8>,
    /// Whether the daemon reads bulk frames.
    bulk: bool,
}

/// What [`Connection::receive_part`] gives.
#[derive(Debug)]
pub(crate) enum Part {
    /// A whole frame.
    Frame(ClientFrame),
    /// The beginning of a bulk frame.
    Begun {
        kind: Bulk,
        data: Vec<u8>,
        /// How many bytes of it come next: the caller has to take them.
        missing: usize,
    },
}

/// Bytes collected before they are sent, so that many small frames cost few system calls.
const OUTGOING: usize = 32 << 10;

impl Connection {
    fn new(socket: UnixStream) -> Self {
        Self { socket, incoming: FrameBuffer::default(), outgoing: Vec::new(), bulk: false }
    }

    /// Greeting and request.
    fn request(&mut self) -> Result<Request> {
        self.socket.set_read_timeout(Some(GREETING)).map_err(lost)?;
        let first = self.receive();
        // Now, so that it goes out together with the answer if the request is there already.
        self.queue(&InitFrame::Hello(Hello::CURRENT))?;
        match first? {
            ClientFrame::Hello(hello) if hello.version == Hello::CURRENT.version => {
                self.bulk = hello.reads_bulk();
            }
            ClientFrame::Hello(hello) => {
                let versions =
                    format!("version {} spoken, {} understood", hello.version, Hello::CURRENT.version);
                return Err(Failure::new(FailureKind::Version, versions));
            }
            _ => return Err(bad_request("the first frame must be a hello")),
        }
        let ClientFrame::Request(request) = self.receive()? else {
            return Err(bad_request("the second frame must be a request"));
        };
        self.socket.set_read_timeout(None).map_err(lost)?;
        Ok(request)
    }

    /// The next frame; waits for it, but not before everything was sent.
    pub(crate) fn receive(&mut self) -> Result<ClientFrame> {
        loop {
            if let Some(frame) = self.received()? {
                return Ok(frame);
            }
            self.receive_more()?;
        }
    }

    /// As [`Self::receive`], but of a bulk frame of which a part is missing gives what is there.
    pub(crate) fn receive_part(&mut self) -> Result<Part> {
        loop {
            if let Some(frame) = self.received()? {
                return Ok(Part::Frame(frame));
            }
            if let Some((kind, data, missing)) = self.incoming.take_incomplete() {
                return Ok(Part::Begun { kind, data, missing });
            }
            self.receive_more()?;
        }
    }

    /// Moves bytes that follow [`Part::Begun`] into a pipe, at least one and at most so many, and gives how many.
    pub(crate) fn receive_into(&mut self, pipe: &OwnedFd, most: usize) -> Result<usize> {
        loop {
            match splice(&self.socket, None, pipe, None, most, SpliceFlags::empty()) {
                Ok(0) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(lost(error.into())),
            }
        }
    }

    fn receive_more(&mut self) -> Result<()> {
        self.flush()?;
        if self.fill()? == 0 { Err(lost(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }

    /// The next frame of what has been read already.
    pub(crate) fn received(&mut self) -> Result<Option<ClientFrame>> {
        self.incoming.next().map_err(|error: CodecError| bad_request(error.to_string()))
    }

    /// Reads once, and gives how much: 0 at the end of the stream. Fails with `WouldBlock` turned into
    /// [`FailureKind::Busy`] only on a non-blocking connection.
    pub(crate) fn fill(&mut self) -> Result<usize> {
        loop {
            match rustix::io::read(&self.socket, spare_capacity(self.incoming.room())) {
                Err(Errno::INTR) => {}
                result => return result.map_err(|error| lost(error.into())),
            }
        }
    }

    /// Sends a frame, soon.
    pub(crate) fn send(&mut self, frame: &InitFrame) -> Result<()> {
        self.queue(frame)?;
        if self.outgoing.len() < OUTGOING { Ok(()) } else { self.flush() }
    }

    /// Most bytes that the daemon takes at once.
    pub(crate) fn chunk(&self) -> usize {
        if self.bulk { MAX_BULK } else { MAX_CHUNK }
    }

    /// Whether the daemon reads bulk frames.
    pub(crate) fn takes_bulk(&self) -> bool {
        self.bulk
    }

    /// Lets more bytes wait in the kernel for the daemon, so that the two take turns less often.
    pub(crate) fn widen(&self) {
        // Where so much is not granted there are more turns, and nothing else is different.
        let _ = set_socket_send_buffer_size(&self.socket, SEND_BUFFER);
    }

    /// Sends so many bytes, at most [`Self::chunk`] of them, that are in a pipe, after what is waiting.
    pub(crate) fn send_from(&mut self, kind: Bulk, pipe: impl AsFd, length: usize) -> Result<()> {
        self.outgoing.extend(kind.header(length).map_err(unsendable)?);
        self.flush()?;
        let mut left = length;
        while left > 0 {
            match splice(pipe.as_fd(), None, &self.socket, None, left, SpliceFlags::empty()) {
                Ok(0) => return Err(self.cut_short(io::ErrorKind::WriteZero.into())),
                Ok(count) => left = left.saturating_sub(count),
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.cut_short(error.into())),
            }
        }
        Ok(())
    }

    /// A frame was begun and cannot be completed: nothing may follow, or it would be taken for the frame's bytes.
    fn cut_short(&self, error: io::Error) -> Failure {
        // One that is closed already needs no closing.
        let _ = self.socket.shutdown(Shutdown::Both);
        lost(error)
    }

    /// Puts bytes, at most [`Self::chunk`] of them, where [`Self::flush`] and [`Self::flush_some`] find them.
    pub(crate) fn queue_bytes(&mut self, kind: Bulk, data: &[u8]) -> Result<()> {
        if self.bulk {
            self.outgoing.extend(kind.header(data.len()).map_err(unsendable)?);
            self.outgoing.extend_from_slice(data);
            return Ok(());
        }
        match InitFrame::from_bulk(kind, data.to_vec()) {
            Some(frame) => self.queue(&frame),
            None => Err(Failure::new(FailureKind::Io, format!("{kind:?} is not for the daemon"))),
        }
    }

    /// Sends bytes, at most [`Self::chunk`] of them, after what is waiting, without putting them anywhere first.
    pub(crate) fn send_bytes(&mut self, kind: Bulk, data: &[u8]) -> Result<()> {
        if !self.bulk {
            self.queue_bytes(kind, data)?;
            return self.flush();
        }
        self.outgoing.extend(kind.header(data.len()).map_err(unsendable)?);
        let mut head = std::mem::take(&mut self.outgoing);
        let sent = write_both(&self.socket, &head, data).map_err(lost);
        head.clear();
        self.outgoing = head;
        sent
    }

    /// Sends what is waiting to be sent.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let outgoing = std::mem::take(&mut self.outgoing);
        self.socket.write_all(&outgoing).map_err(lost)
    }

    /// Puts a frame where [`Self::flush`] and [`Self::flush_some`] find it.
    pub(crate) fn queue(&mut self, frame: &InitFrame) -> Result<()> {
        let bytes = encode(frame).map_err(unsendable)?;
        self.outgoing.extend(bytes);
        Ok(())
    }

    /// Bytes waiting to be sent.
    pub(crate) fn queued(&self) -> usize {
        self.outgoing.len()
    }

    /// Sends what can be sent without waiting; for a non-blocking connection.
    pub(crate) fn flush_some(&mut self) -> Result<()> {
        while !self.outgoing.is_empty() {
            match self.socket.write(&self.outgoing) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    /// Whether reading and writing may wait.
    pub(crate) fn set_blocking(&self, blocking: bool) -> Result<()> {
        self.socket.set_nonblocking(!blocking).map_err(lost)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Writes both, as if they were one; waits until all is written.
fn write_both(mut socket: &UnixStream, mut first: &[u8], mut second: &[u8]) -> io::Result<()> {
    while !first.is_empty() || !second.is_empty() {
        match socket.write_vectored(&[IoSlice::new(first), IoSlice::new(second)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                let of_first = count.min(first.len());
                first = first.get(of_first..).unwrap_or_default();
                second = second.get(count - of_first..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A frame that is too long.
fn unsendable(error: CodecError) -> Failure {
    Failure::new(FailureKind::Io, error.to_string())
}

/// A request that breaks the protocol.
pub(crate) fn bad_request(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::BadRequest, message)
}

/// The connection is gone. Nobody reads the message.
fn lost(error: io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::WouldBlock => FailureKind::Busy,
        _ => FailureKind::Io,
    };
    Failure::new(kind, format!("connection: {error}"))
}

fn dispatch(server: &Arc<Server>, connection: &mut Connection, request: Request) -> Result<()> {
    match request {
        Request::Ping => connection.send(&InitFrame::Done),
        Request::StopClock => {
            clock::stop();
            connection.send(&InitFrame::Done)
        }
        Request::StartClock => {
            clock::start();
            connection.send(&InitFrame::Done)
        }
        Request::Configure(configure) => {
            command::check_environment(&configure.envs)?;
            *server.configure.write().unwrap_or_else(PoisonError::into_inner) = configure;
            connection.send(&InitFrame::Done)
        }
        Request::Exec(exec) if exec.background => command::background(server, connection, exec),
        Request::Exec(exec) => foreground::run(server, connection, exec),
        Request::Wait { pid } => command::wait(server, connection, pid),
        Request::Session(session) => follow::start(server, connection, session),
        Request::Follow { pid, from } => follow::follow(server, connection, pid, from),
        Request::Resize { pid, size } => follow::resize(server, connection, pid, size),
        Request::Commands => command::list(server, connection),
        Request::Kill { pid } => command::kill(server, connection, pid),
        Request::Stdin { pid, data } => command::stdin(server, connection, pid, &data),
        Request::CloseStdin { pid } => command::close_stdin(server, connection, pid),
        Request::Read(target) => files::read(connection, &target),
        Request::Write { target, limit } => files::write(connection, &target, limit),
        Request::Watch { target, recursive } => files::watch(connection, &target, recursive),
        Request::Stat(target) => files::stat(connection, &target),
        Request::Exists(target) => files::exists(connection, &target),
        Request::List { target, depth } => files::list(connection, &target, depth),
        Request::Mkdir(target) => files::mkdir(connection, &target),
        Request::Remove(target) => files::remove(connection, &target),
        Request::Rename { from, to } => files::rename(connection, &from, &to),
    }
}
