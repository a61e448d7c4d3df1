//! Commands in the foreground: they live as long as their connection.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use init_protocol::{Bulk, ClientFrame, Exec, Failure, FailureKind, InitFrame, Stream};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::process::Signal;

use crate::children::Children;
use crate::command::{Command, start};
use crate::connection::{Connection, bad_request};
use crate::failure::Result;
use crate::server::Server;
use crate::supervise::{Audience, Running, supervise};

/// Runs a command for a connection that stays.
pub(crate) fn run(server: &Server, connection: &mut Connection, exec: Exec) -> Result<()> {
    let (command, running) = start(server, exec)?;
    let pid = command.pid;
    let outcome = attended(server, connection, command, running);
    server.commands.forget(pid);
    outcome
}

fn attended(
    server: &Server,
    connection: &mut Connection,
    command: Arc<Command>,
    running: Running,
) -> Result<()> {
    connection.queue(&InitFrame::Started { pid: command.pid })?;
    connection.set_blocking(false)?;
    let mut client = Client {
        connection,
        children: &server.children,
        command,
        for_stdin: VecDeque::new(),
        blocked_on: None,
        stdin_ends: false,
        refused: None,
    };
    let exit = supervise(running, &mut client, &server.children, &server.leftovers);
    let refused = client.refused.take();
    connection.set_blocking(true)?;
    match (exit, refused) {
        (_, Some(failure)) => Err(failure),
        (Some(exit), None) => connection.send(&InitFrame::Exit(exit)),
        (None, None) => Ok(()),
    }
}

/// Output waiting to be sent above which no more is read from the command.
const BACKLOG: usize = 256 << 10;

/// The daemon as the audience of a command.
struct Client<'a> {
    connection: &'a mut Connection,
    children: &'a Children,
    command: Arc<Command>,
    /// Input the command's pipe has not taken yet.
    for_stdin: VecDeque<u8>,
    /// The pipe, when it is full. Until it takes more, nothing is read from the daemon.
    blocked_on: Option<Arc<OwnedFd>>,
    /// Whether the input ends with `for_stdin`.
    stdin_ends: bool,
    /// Why the daemon is not listened to any longer.
    refused: Option<Failure>,
}

impl Audience for Client<'_> {
    fn has_room(&self) -> bool {
        self.connection.queued() < BACKLOG
    }

    fn output(&mut self, stream: Stream, data: &[u8]) {
        // Cannot fail: a chunk fits into a frame.
        let _ = self.connection.queue_bytes(Bulk::Output(stream), data);
    }

    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let mut socket = PollFlags::RDHUP;
        if self.connection.queued() > 0 {
            socket |= PollFlags::OUT;
        }
        match &self.blocked_on {
            None => vec![(self.connection.as_fd(), socket | PollFlags::IN)],
            Some(pipe) => vec![(self.connection.as_fd(), socket), (pipe.as_fd(), PollFlags::OUT)],
        }
    }

    fn attend(&mut self, events: &[PollFlags]) -> bool {
        let socket = events.first().copied().unwrap_or(PollFlags::empty());
        if socket.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return false;
        }
        if self.connection.flush_some().is_err() {
            return false;
        }
        self.feed();
        if self.blocked_on.is_none() && socket.contains(PollFlags::IN) {
            let gone = match self.connection.fill() {
                Ok(count) => count == 0,
                Err(failure) => failure.kind != FailureKind::Busy,
            };
            if gone {
                return false;
            }
        }
        while self.blocked_on.is_none() {
            match self.connection.received() {
                Ok(None) => break,
                Ok(Some(frame)) => {
                    if let Err(failure) = self.take(frame) {
                        self.refused = Some(failure);
                        return false;
                    }
                }
                Err(failure) => {
                    self.refused = Some(failure);
                    return false;
                }
            }
        }
        true
    }
}

impl Client<'_> {
    fn take(&mut self, frame: ClientFrame) -> Result<()> {
        match frame {
            ClientFrame::Stdin(data) if !self.stdin_ends => self.for_stdin.extend(data.as_slice()),
            ClientFrame::CloseStdin => self.stdin_ends = true,
            ClientFrame::Signal(number) => {
                let signal = Signal::from_named_raw(number);
                let signal =
                    signal.ok_or_else(|| bad_request(format!("no signal has the number {number}")))?;
                self.children.signal_group(self.command.pid, signal);
            }
            _ => return Err(bad_request("this frame has no place while a command runs")),
        }
        self.feed();
        Ok(())
    }

    /// Writes as much input as the command's pipe takes now.
    fn feed(&mut self) {
        self.blocked_on = None;
        while !self.for_stdin.is_empty() {
            let Some(pipe) = self.command.stdin() else {
                self.for_stdin.clear();
                break;
            };
            match rustix::io::write(&pipe, self.for_stdin.as_slices().0) {
                Ok(count) => drop(self.for_stdin.drain(..count)),
                Err(Errno::AGAIN) => {
                    self.blocked_on = Some(pipe);
                    return;
                }
                Err(Errno::INTR) => {}
                // Nobody reads it any more.
                Err(_) => self.command.close_stdin(),
            }
        }
        if self.stdin_ends {
            self.command.close_stdin();
        }
    }
}
