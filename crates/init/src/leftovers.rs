//! Output pipes that outlive their command.
//!
//! `server &` in a command leaves a process that holds the command's output open. Closing our end would kill it
//! at its next message (SIGPIPE), so somebody keeps reading and throws away what comes.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread;

use init_protocol::MAX_CHUNK;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::children::lock;
use crate::server::STACK;

/// Most pipes read at a time; of more, the oldest is closed.
const PIPES: usize = 256;

/// Reads pipes that nobody else reads any more. Costs a thread only while there are any.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Pipes the thread has not taken over yet.
    new: Vec<OwnedFd>,
    /// Wakes the thread, if there is one.
    wake: Option<OwnedFd>,
}

impl Leftovers {
    /// Takes the read end (non-blocking) of a pipe over.
    pub(crate) fn add(&self, pipe: OwnedFd) {
        let mut shared = lock(&self.shared);
        shared.new.push(pipe);
        match &shared.wake {
            Some(wake) => drop(rustix::io::write(wake, &1u64.to_ne_bytes())),
            None => self.start(&mut shared),
        }
    }

    /// Where no thread can be had, the pipes are closed.
    fn start(&self, shared: &mut Shared) {
        let started = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok().and_then(|wake| {
            let theirs = wake.try_clone().ok()?;
            let of_thread = Arc::clone(&self.shared);
            let run = move || read_all(&of_thread, &theirs);
            thread::Builder::new().stack_size(STACK).spawn(run).ok()?;
            Some(wake)
        });
        if started.is_none() {
            shared.new.clear();
        }
        shared.wake = started;
    }
}

fn read_all(shared: &Mutex<Shared>, wake: &OwnedFd) {
    let mut pipes: Vec<OwnedFd> = Vec::new();
    let mut buffer = vec![0; MAX_CHUNK];
    loop {
        {
            let mut shared = lock(shared);
            pipes.append(&mut shared.new);
            if pipes.is_empty() {
                shared.wake = None;
                return;
            }
        }
        pipes.drain(..pipes.len().saturating_sub(PIPES));
        let mut fds: Vec<PollFd<'_>> = pipes.iter().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
        fds.push(PollFd::new(wake, PollFlags::IN));
        if poll(&mut fds, None).is_err() {
            continue;
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        pipes.retain(|pipe| !ready.next().unwrap_or(false) || still_open(pipe, &mut buffer));
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
}

/// Reads once; whether more may come.
fn still_open(pipe: &OwnedFd, buffer: &mut [u8]) -> bool {
    match rustix::io::read(pipe, buffer) {
        Ok(count) => count > 0,
        Err(error) => matches!(error, rustix::io::Errno::AGAIN | rustix::io::Errno::INTR),
    }
}
