//! Sessions: commands in the background whose output can be followed, with pipes or with a terminal.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use init_protocol::{Exec, Failure, FailureKind, FollowFrom, InitFrame, Session, Stream, TerminalSize};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::children::lock;
use crate::command::{self, Command};
use crate::connection::{Connection, bad_request};
use crate::failure::{Result, failure};
use crate::log::{self, Begin, Log};
use crate::server::{STACK, Server};
use crate::session;
use crate::supervise::{Audience, supervise};

/// Starts a session.
pub(crate) fn start(server: &Arc<Server>, connection: &mut Connection, session: Session) -> Result<()> {
    let Session { exec, terminal } = session;
    if let Some(size) = terminal {
        check(size)?;
    }
    let exec = Exec { stdin: true, background: true, ..exec };
    let (command, running) = command::start_session(server, exec, terminal)?;
    let pid = command.pid;
    let supervising = Arc::clone(server);
    let run = move || {
        let Some(mut keeper) = Keeper::new(&supervising, &command) else { return };
        let exit = supervise(running, &mut keeper, &supervising.children, &supervising.leftovers);
        supervising.commands.end(&command, exit.unwrap_or_default(), &supervising.budget);
        if let Some(log) = &command.log {
            lock(log).ring_all();
        }
    };
    if let Err(error) = thread::Builder::new().stack_size(STACK).spawn(run) {
        session::kill(&server.children, pid);
        server.commands.forget(pid);
        return Err(failure("start a thread for the session", error));
    }
    connection.send(&InitFrame::Started { pid })
}

/// Tells what a session has put out and puts out, until it has ended.
pub(crate) fn follow(server: &Server, connection: &mut Connection, pid: u32, from: FollowFrom) -> Result<()> {
    let command = server.commands.background(pid);
    let command = command.filter(|command| command.terminal == matches!(from, FollowFrom::Now));
    let command = command.ok_or_else(|| unknown(pid))?;
    let log = command.log.as_ref().ok_or_else(|| unknown(pid))?;
    let begin = match from {
        FollowFrom::Piece(piece) => Begin::After(piece),
        FollowFrom::Now => Begin::Now,
    };
    let (name, bell) = lock(log).join(begin).map_err(|error| failure("follow a session", error))?;
    let _leave = Leave { log, name };
    connection.send(&InitFrame::Started { pid })?;
    loop {
        // In this order: what is put out before the end is there when the end is.
        let ended = is_ready(command.done());
        let mut idle = true;
        while let Some(piece) = take(log, name) {
            let log::Piece { id, stream, data } = piece;
            connection.send(&InitFrame::Piece { id, stream, data: data.to_vec().into() })?;
            idle = false;
        }
        connection.flush()?;
        if ended {
            return connection.send(&InitFrame::Exit(command.exit()));
        }
        if idle {
            log::hear(&bell);
            // Something may have come before the bell was silenced.
            if lock(log).has_more(name) || is_ready(command.done()) {
                continue;
            }
            wait(connection, &bell, command.done())?;
        }
    }
}

/// Sets the size of a terminal.
pub(crate) fn resize(
    server: &Server,
    connection: &mut Connection,
    pid: u32,
    size: TerminalSize,
) -> Result<()> {
    check(size)?;
    let command = server.commands.find(pid).filter(|command| command.terminal).ok_or_else(|| unknown(pid))?;
    // Its input is the terminal's other end.
    let terminal = command.stdin().ok_or_else(|| unknown(pid))?;
    command::set_size(&terminal, size).map_err(|error| failure("set the size of a terminal", error))?;
    connection.send(&InitFrame::Done)
}

fn check(size: TerminalSize) -> Result<()> {
    if size.columns == 0 || size.rows == 0 {
        return Err(bad_request("a terminal has at least one column and one row"));
    }
    Ok(())
}

fn unknown(pid: u32) -> Failure {
    Failure::new(FailureKind::NoSuchCommand, format!("no such session: {pid}"))
}

fn take(log: &std::sync::Mutex<Log>, name: u64) -> Option<log::Piece> {
    lock(log).take(name)
}

fn is_ready(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok_and(|count| count > 0)
}

/// Waits for output, for the end, or for the daemon to give up.
fn wait(connection: &Connection, bell: &OwnedFd, done: BorrowedFd<'_>) -> Result<()> {
    let mut fds = [
        PollFd::new(connection, PollFlags::RDHUP),
        PollFd::new(bell, PollFlags::IN),
        PollFd::from_borrowed_fd(done, PollFlags::IN),
    ];
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(failure("wait for a session", error)),
    }
    let [gone, _, _] = fds;
    if gone.revents().is_empty() {
        Ok(())
    } else {
        Err(Failure::new(FailureKind::Io, "the request was given up"))
    }
}

/// Leaves a log, however following it ends.
struct Leave<'a> {
    log: &'a std::sync::Mutex<Log>,
    name: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        lock(self.log).leave(self.name);
    }
}

/// Keeps a session's output.
struct Keeper<'a> {
    server: &'a Server,
    log: &'a std::sync::Mutex<Log>,
    room: Arc<OwnedFd>,
}

impl<'a> Keeper<'a> {
    fn new(server: &'a Server, command: &'a Command) -> Option<Self> {
        let log = command.log.as_ref()?;
        Some(Self { server, log, room: lock(log).room() })
    }
}

impl Audience for Keeper<'_> {
    fn has_room(&self) -> bool {
        self.server.commands.make_room(&self.server.budget);
        lock(self.log).has_room()
    }

    fn output(&mut self, stream: Stream, data: &[u8]) {
        lock(self.log).push(stream, data);
    }

    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        vec![(self.room.as_fd(), PollFlags::IN)]
    }

    fn attend(&mut self, events: &[PollFlags]) -> bool {
        if events.iter().any(|event| !event.is_empty()) {
            log::hear(&self.room);
        }
        true
    }
}
