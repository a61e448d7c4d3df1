//! Commands: starting them, and the requests about those that run in the background.

mod start;
mod table;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;

use init_protocol::{Bulk, Exec, Exit, Failure, FailureKind, InitFrame, KEPT_OUTPUT, Stream};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

pub(crate) use start::{check_environment, set_size, start, start_session};
pub(crate) use table::{Command, Commands};

use crate::children::lock;
use crate::connection::Connection;
use crate::failure::{Result, failure};
use crate::kept::Kept;
use crate::server::{STACK, Server};
use crate::session;
use crate::supervise::{Audience, supervise};

/// Starts a command that outlives the connection.
pub(crate) fn background(server: &Arc<Server>, connection: &mut Connection, exec: Exec) -> Result<()> {
    let (command, running) = start(server, exec)?;
    let pid = command.pid;
    let supervising = Arc::clone(server);
    let run = move || {
        let mut keeper = Keeper { server: &supervising, command: &command };
        let exit = supervise(running, &mut keeper, &supervising.children, &supervising.leftovers);
        supervising.commands.end(&command, exit.unwrap_or_default(), &supervising.budget);
    };
    if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(run) {
        session::kill(&server.children, pid);
        server.commands.forget(pid);
        return Err(failure("start a thread for the command", error));
    }
    connection.send(&InitFrame::Started { pid })
}

/// Waits for a background command and tells what it has put out and how it ended.
pub(crate) fn wait(server: &Server, connection: &mut Connection, pid: u32) -> Result<()> {
    let command = server.commands.background(pid).ok_or_else(|| unknown(pid))?;
    wait_for(connection, PollFlags::IN, command.done())?;
    if let Some(log) = &command.log {
        let [(stdout, stdout_truncated), (stderr, stderr_truncated)] = lock(log).ends(KEPT_OUTPUT);
        for (stream, data) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            for part in data.chunks(connection.chunk()) {
                connection.send_bytes(Bulk::Output(stream), part)?;
            }
        }
        let exit = Exit { stdout_truncated, stderr_truncated, ..command.exit() };
        return connection.send(&InitFrame::Exit(exit));
    }
    for stream in [Stream::Stdout, Stream::Stderr] {
        // At once: what is kept may be given up for others between two parts.
        let kept = lock(&command.kept).bytes(stream);
        for part in kept.chunks(connection.chunk()) {
            connection.send_bytes(Bulk::Output(stream), part)?;
        }
    }
    connection.send(&InitFrame::Exit(command.exit()))
}

/// Lists the commands that are running.
pub(crate) fn list(server: &Server, connection: &mut Connection) -> Result<()> {
    for command in server.commands.running() {
        connection.send(&InitFrame::Command(command.info()))?;
    }
    connection.send(&InitFrame::Done)
}

/// Kills a command with its session.
pub(crate) fn kill(server: &Server, connection: &mut Connection, pid: u32) -> Result<()> {
    let running = server.commands.find(pid).is_some_and(|command| {
        // A second time it is killed all the same: it may have forked faster than it was killed.
        session::kill(&server.children, pid) && command.first_killed()
    });
    connection.send(&InitFrame::Bool(running))
}

/// Writes to a command's standard input; waits while the pipe is full.
pub(crate) fn stdin(server: &Server, connection: &mut Connection, pid: u32, mut data: &[u8]) -> Result<()> {
    let command = server.commands.find(pid).ok_or_else(|| unknown(pid))?;
    // One at a time, or the parts of two writers would mix.
    let _turn = lock(&command.writing);
    let pipe = command.stdin().ok_or_else(|| stdin_closed(pid))?;
    while !data.is_empty() {
        match rustix::io::write(&pipe, data) {
            Ok(count) => data = data.get(count..).unwrap_or_default(),
            Err(Errno::AGAIN) => wait_for(connection, PollFlags::OUT, pipe.as_fd())?,
            Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Err(stdin_closed(pid)),
            Err(error) => return Err(failure(format!("write to the standard input of {pid}"), error)),
        }
    }
    connection.send(&InitFrame::Done)
}

/// End of file on a command's standard input.
pub(crate) fn close_stdin(server: &Server, connection: &mut Connection, pid: u32) -> Result<()> {
    let ended = || server.commands.background(pid).filter(|command| command.log.is_some());
    let command = server.commands.find(pid).or_else(ended);
    command.ok_or_else(|| unknown(pid))?.close_stdin();
    connection.send(&InitFrame::Done)
}

fn unknown(pid: u32) -> Failure {
    Failure::new(FailureKind::NoSuchCommand, format!("no command with pid {pid}"))
}

fn stdin_closed(pid: u32) -> Failure {
    Failure::new(FailureKind::StdinClosed, format!("standard input of {pid} is closed"))
}

/// Waits for an event, or for the daemon to give up.
fn wait_for(connection: &mut Connection, event: PollFlags, of: BorrowedFd<'_>) -> Result<()> {
    connection.flush()?;
    loop {
        let mut fds = [PollFd::from_borrowed_fd(of, event), PollFd::new(&*connection, PollFlags::RDHUP)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failure("wait for a command", error)),
        }
        let [event, gone] = fds;
        if !gone.revents().is_empty() {
            return Err(Failure::new(FailureKind::Io, "the request was given up"));
        }
        if !event.revents().is_empty() {
            return Ok(());
        }
    }
}

/// Keeps a background command's output.
struct Keeper<'a> {
    server: &'a Server,
    command: &'a Command,
}

impl Audience for Keeper<'_> {
    fn has_room(&self) -> bool {
        true
    }

    fn output(&mut self, stream: Stream, data: &[u8]) {
        self.server.commands.make_room(&self.server.budget);
        lock(&self.command.kept).push(stream, data);
    }

    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }

    fn attend(&mut self, _events: &[PollFlags]) -> bool {
        true
    }
}

/// An exit with what is known of the kept output.
fn with_truncation(exit: Exit, kept: &Kept) -> Exit {
    Exit {
        stdout_truncated: kept.truncated(Stream::Stdout),
        stderr_truncated: kept.truncated(Stream::Stderr),
        ..exit
    }
}
