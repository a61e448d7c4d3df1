//! Moving bytes between two connections.
//!
//! The first 128 KiB of a direction are copied through user space: most flows are over by then, and setting up a
//! pipe would cost more than it saves. The rest is spliced. Both keep the half-close: the end of one stream is
//! passed on while the other direction goes on.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};

use crate::{
    buffer,
    bytes::{Spent, Way},
    flows::Entry,
    pipes::{self, Lease},
    turns::Turn,
};

/// How many bytes of a direction are copied before it splices.
const COPY_FIRST: u64 = 128 << 10;
/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Both sides closed their streams.
    Cleanly,
    /// A connection failed: the other one has to be reset.
    Broken,
}

/// Moves bytes both ways until both streams have ended or one connection failed.
pub(crate) async fn relay(client: &mut TcpStream, server: &mut TcpStream, entry: &Entry) -> Ended {
    let (mut client_read, mut client_write) = client.split();
    let (mut server_read, mut server_write) = server.split();
    let up = Direction::new(&mut client_read, &mut server_write, entry, Way::Up);
    let mut down = Direction::new(&mut server_read, &mut client_write, entry, Way::Down);
    both(up, &mut down).await
}

/// Runs two directions of one connection to their end. After that the sockets have to be closed.
pub(crate) async fn both(mut up: Direction<'_, '_, '_>, down: &mut Direction<'_, '_, '_>) -> Ended {
    let mut broken = false;
    poll_fn(|cx| {
        // Both sockets are closed when both streams have ended: the second end needs no call of its own.
        up.passes_end = !down.is_done();
        match up.poll_run(cx) {
            Poll::Ready(Err(Failed::Read)) => return Poll::Ready(Ended::Broken),
            // The server takes nothing any more, but what it had sent before is still worth reading.
            Poll::Ready(Err(Failed::Write)) => broken = true,
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        down.passes_end = !up.is_done();
        match down.poll_run(cx) {
            Poll::Ready(Err(_)) => return Poll::Ready(Ended::Broken),
            Poll::Ready(Ok(())) if broken => return Poll::Ready(Ended::Broken),
            Poll::Ready(Ok(())) if up.is_done() => return Poll::Ready(Ended::Cleanly),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        Poll::Pending
    })
    .await
}

/// Which side of a direction failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// The one that is read.
    Read,
    /// The one that is written.
    Write,
}

/// One direction of a relayed connection.
pub(crate) struct Direction<'h, 'r, 'w> {
    from: &'h mut ReadHalf<'r>,
    to: &'h mut WriteHalf<'w>,
    /// Whose bytes these are.
    entry: &'h Entry,
    way: Way,
    read: u64,
    /// How many bytes it moves before it is done; `u64::MAX` means until the stream ends.
    limit: u64,
    /// Whether the end of the stream is passed on.
    passes_end: bool,
    /// Bytes read that could not be written at once.
    leftover: Vec<u8>,
    leftover_from: usize,
    pipe: Option<Lease>,
    turn: Turn,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The stream has ended; its end has to be passed on.
    Ended,
    Done(Result<(), Failed>),
}

impl<'h, 'r, 'w> Direction<'h, 'r, 'w> {
    pub(crate) fn new(
        from: &'h mut ReadHalf<'r>,
        to: &'h mut WriteHalf<'w>,
        entry: &'h Entry,
        way: Way,
    ) -> Self {
        Self {
            from,
            to,
            entry,
            way,
            read: 0,
            limit: u64::MAX,
            passes_end: true,
            leftover: Vec::new(),
            leftover_from: 0,
            pipe: None,
            turn: Turn::default(),
            state: State::Open,
        }
    }

    /// Moves exactly `limit` bytes; a stream that ends before is a failure.
    pub(crate) fn limited(mut self, limit: u64) -> Self {
        self.limit = limit;
        self
    }

    /// Leaves the written side open when the stream that is read has ended.
    pub(crate) fn without_end(mut self) -> Self {
        self.passes_end = false;
        self
    }

    /// Whether it came to its end, well or not.
    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done(_))
    }

    /// [`Self::poll_run`] as a future.
    pub(crate) async fn run(&mut self) -> Result<(), Failed> {
        poll_fn(|cx| self.poll_run(cx)).await
    }

    /// Moves bytes until the stream has ended and its end was passed on. May be called again after that.
    pub(crate) fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        ready!(self.turn.poll_begin(&self.entry.turns, cx));
        loop {
            let before = self.read;
            let step = match self.state {
                State::Done(result) => {
                    self.turn.rest();
                    return Poll::Ready(result);
                }
                State::Ended => self.poll_end(cx),
                State::Open => self.poll_step(cx),
            };
            match step {
                Poll::Pending => {
                    self.turn.rest();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failed)) => {
                    self.pipe = None;
                    self.state = State::Done(Err(failed));
                }
            }
            self.turn.step(&self.entry.turns, self.read.saturating_sub(before));
            if !self.is_done() && self.turn.is_over(&self.entry.turns, cx) {
                return Poll::Pending;
            }
        }
    }

    /// It is not run for a while: others need not wait for it.
    pub(crate) fn rest(&mut self) {
        self.turn.rest();
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        if self.leftover_from < self.leftover.len() {
            return self.poll_leftover(cx);
        }
        if self.pipe.as_mut().is_some_and(|lease| !lease.pipe().is_empty()) {
            return self.poll_drain(cx);
        }
        if self.read >= self.limit {
            self.state = State::Done(Ok(()));
            return Poll::Ready(Ok(()));
        }
        if self.read < COPY_FIRST {
            return self.poll_copy(cx);
        }
        self.poll_fill(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let result = if self.limit != u64::MAX {
            Err(Failed::Read)
        } else if self.passes_end {
            ready!(Pin::new(&mut *self.to).poll_shutdown(cx)).map_err(|_| Failed::Write)
        } else {
            Ok(())
        };
        self.state = State::Done(result);
        Poll::Ready(result)
    }

    /// Reads once into the thread's buffer and writes what it can; the rest becomes the leftover.
    fn poll_copy(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        buffer::with(|buffer| {
            let room = self.room(buffer.len());
            let mut buffer = ReadBuf::new(buffer.get_mut(..room).unwrap_or_default());
            ready!(Pin::new(&mut *self.from).poll_read(cx, &mut buffer)).map_err(|_| Failed::Read)?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                self.state = State::Ended;
                return Poll::Ready(Ok(()));
            }
            self.take(bytes.len())?;
            let written = match Pin::new(&mut *self.to).poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Write)),
                Poll::Pending => 0,
            };
            self.add(written);
            if let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
                self.leftover = rest.to_vec();
                self.leftover_from = 0;
            }
            Poll::Ready(Ok(()))
        })
    }

    fn poll_leftover(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let rest = self.leftover.get(self.leftover_from..).unwrap_or_default();
        let written = match ready!(Pin::new(&mut *self.to).poll_write(cx, rest)) {
            Ok(0) | Err(_) => return Poll::Ready(Err(Failed::Write)),
            Ok(written) => written,
        };
        self.leftover_from = self.leftover_from.saturating_add(written);
        self.add(written);
        if self.leftover_from >= self.leftover.len() {
            // Its memory goes too: the next bytes may never come.
            self.leftover = Vec::new();
            self.leftover_from = 0;
        }
        Poll::Ready(Ok(()))
    }

    /// Moves what there is from the socket into the pipe. While there is nothing, the pipe goes back to the pool.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let stream: &TcpStream = (*self.from).as_ref();
        match stream.poll_read_ready(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Read)),
            Poll::Pending => {
                self.pipe = None;
                return Poll::Pending;
            }
        }
        if self.pipe.is_none() {
            self.pipe = pipes::take(self.entry.pipes());
        }
        let room = self.room(usize::MAX);
        let Some(lease) = &mut self.pipe else { return self.poll_copy(cx) };
        match stream.try_io(Interest::READABLE, || lease.pipe().fill(stream, room)) {
            Ok(0) => self.state = State::Ended,
            Ok(read) => self.take(read)?,
            Err(error) if is_retry(&error) => {}
            Err(_) => return Poll::Ready(Err(Failed::Read)),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        let stream: &TcpStream = (*self.to).as_ref();
        if ready!(stream.poll_write_ready(cx)).is_err() {
            return Poll::Ready(Err(Failed::Write));
        }
        let Some(lease) = &mut self.pipe else { return Poll::Ready(Ok(())) };
        match stream.try_io(Interest::WRITABLE, || lease.pipe().drain(stream)) {
            Ok(written) => self.add(written),
            Err(error) if is_retry(&error) => {}
            Err(_) => return Poll::Ready(Err(Failed::Write)),
        }
        Poll::Ready(Ok(()))
    }

    /// How many bytes may be read at once: `most`, or what is left of the limit.
    fn room(&self, most: usize) -> usize {
        usize::try_from(self.limit.saturating_sub(self.read)).unwrap_or(usize::MAX).min(most)
    }

    /// Takes note of what was read. What the sandbox may not move any more fails, and is not written.
    fn take(&mut self, read: usize) -> Result<(), Failed> {
        self.read = self.read.saturating_add(count(read));
        self.entry.spend(self.way, count(read)).map_err(|Spent| Failed::Read)
    }

    fn add(&self, written: usize) {
        self.entry.count(self.way, count(written));
    }
}

/// The readiness was stale (the runtime has cleared it now), or a signal came.
fn is_retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

pub(crate) fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}
