//! Watching a running command: its output, its time, its end.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use init_protocol::{Exit, MAX_CHUNK, Stream, TIMEOUT_EXIT_CODE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::children::{Children, ExitSlot};
use crate::clock::Moment;
use crate::leftovers::Leftovers;
use crate::session;

/// A command that was started.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) exit: Arc<ExitSlot>,
    /// When it is killed.
    pub(crate) deadline: Option<Moment>,
    /// Read ends, non-blocking; gone at their end of file.
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

/// Who the output is for.
pub(crate) trait Audience {
    /// Whether output can be taken now; if not, the command waits.
    fn has_room(&self) -> bool;

    /// Takes output.
    fn output(&mut self, stream: Stream, data: &[u8]);

    /// Descriptors whose events `attend` should be called for.
    fn interests(&self) -> Vec<(BorrowedFd<'_>, PollFlags)>;

    /// Does what can be done without waiting; `events` are those of the interests, in their order. `false` when
    /// the audience has left.
    fn attend(&mut self, events: &[PollFlags]) -> bool;
}

/// Passes the command's output on until it has ended, and gives its exit; or kills it and gives `None` when the
/// audience has left.
///
/// Processes that the command left behind do not hold it up: output they may still write is waited for during
/// [`GRACE`] only, and then goes to `leftovers`.
pub(crate) fn supervise(
    mut running: Running,
    audience: &mut impl Audience,
    children: &Children,
    leftovers: &Leftovers,
) -> Option<Exit> {
    let mut buffer = vec![0; MAX_CHUNK];
    let mut timed_out = false;
    let mut after: Option<After> = None;
    loop {
        let room = audience.has_room();
        let longest = match &after {
            // Without room nothing can be read, and the audience says when there is some.
            Some(after) => room.then(|| after.until.saturating_duration_since(Instant::now())),
            None => running.deadline.filter(|_| !timed_out).map(Moment::left),
        };
        let events = running.wait(audience, room, after.is_none(), longest);
        if !audience.attend(&events.audience) {
            session::kill(children, running.pid);
            return None;
        }
        let mut read = 0;
        for stream in events.readable {
            read += running.read(stream, &mut buffer, audience);
        }
        let now = Instant::now();
        if events.ended {
            after = Some(After { until: now + GRACE, bytes: 0 });
        } else if after.is_none() && !timed_out && running.deadline.is_some_and(|end| end.left().is_zero()) {
            timed_out = true;
            session::kill(children, running.pid);
        }
        if let Some(after) = &mut after {
            after.bytes += read;
            let quiet = room && read == 0 && after.until <= now;
            let at_end = running.stdout.is_none() && running.stderr.is_none();
            if at_end || quiet || after.bytes > AFTER_MOST {
                break;
            }
        }
    }
    for pipe in [running.stdout.take(), running.stderr.take()].into_iter().flatten() {
        leftovers.add(pipe);
    }
    children.reap_ended();
    let ended = running.exit.wait();
    let code = if timed_out { TIMEOUT_EXIT_CODE } else { ended.code };
    Some(Exit { code, signal: ended.signal, timed_out, ..Exit::default() })
}

/// How long output of processes left behind is waited for.
const GRACE: Duration = Duration::from_millis(50);

/// Most output taken after the end of the command: more than its pipes can hold, so all of its own.
const AFTER_MOST: usize = 4 << 20;

/// The command has ended, and its pipes are still open.
struct After {
    until: Instant,
    bytes: usize,
}

/// What has happened.
struct Events {
    ended: bool,
    readable: Vec<Stream>,
    audience: Vec<PollFlags>,
}

enum Source {
    End,
    Output(Stream),
    Audience,
}

impl Running {
    /// Waits until something happens, or so long.
    fn wait(&self, audience: &impl Audience, room: bool, alive: bool, longest: Option<Duration>) -> Events {
        let mut sources = Vec::with_capacity(5);
        let mut fds = Vec::with_capacity(5);
        if alive {
            sources.push(Source::End);
            fds.push(PollFd::new(&self.pidfd, PollFlags::IN));
        }
        for (stream, pipe) in [(Stream::Stdout, &self.stdout), (Stream::Stderr, &self.stderr)] {
            if let Some(pipe) = pipe.as_ref().filter(|_| room) {
                sources.push(Source::Output(stream));
                fds.push(PollFd::new(pipe, PollFlags::IN));
            }
        }
        for (fd, flags) in audience.interests() {
            sources.push(Source::Audience);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        let timeout = longest.map(|time| Timespec::try_from(time).unwrap_or(LONGEST));
        let mut events = Events { ended: false, readable: Vec::new(), audience: Vec::new() };
        // Fails only when interrupted or short of memory; then it is tried again.
        if poll(&mut fds, timeout.as_ref()).is_ok() {
            for (source, fd) in sources.into_iter().zip(&fds) {
                match source {
                    Source::Audience => events.audience.push(fd.revents()),
                    _ if fd.revents().is_empty() => {}
                    Source::End => events.ended = true,
                    Source::Output(stream) => events.readable.push(stream),
                }
            }
        }
        events
    }

    /// Reads once from a stream that is ready, and gives how much.
    fn read(&mut self, stream: Stream, buffer: &mut [u8], audience: &mut impl Audience) -> usize {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let result = pipe.as_ref().map(|pipe| rustix::io::read(pipe.as_fd(), &mut *buffer));
        match result {
            None | Some(Err(Errno::AGAIN | Errno::INTR)) => 0,
            Some(Ok(count @ 1..)) => {
                audience.output(stream, buffer.get(..count).unwrap_or_default());
                count
            }
            Some(Ok(0) | Err(_)) => {
                *pipe = None;
                0
            }
        }
    }
}

/// A timeout that the kernel takes for sure; a longer wait is begun again.
const LONGEST: Timespec = Timespec { tv_sec: 1 << 30, tv_nsec: 0 };
