//! Connections per second: one loop, so that the generator costs as little as it can.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::{
    buffer::spare_capacity,
    event::{
        Timespec,
        epoll::{self, CreateFlags, EventData, EventFlags},
    },
    fd::OwnedFd,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
};

use super::{NAME, Outcome};
use crate::hello::{Wish, client_hello};

/// Keeps `parallel` connections going for `time`.
pub(super) fn run(to: SocketAddr, parallel: usize, time: Duration) -> Result<Outcome> {
    let mut clients = Clients {
        epoll: epoll::create(CreateFlags::CLOEXEC)?,
        to,
        hello: client_hello(NAME, Wish::Answer),
        slots: Vec::new(),
        done: 0,
        failed: 0,
    };
    for place in 0..parallel {
        let stream = clients.open(place)?;
        clients.slots.push(Slot { stream, greeted: false });
    }
    let warm_up = time / 5;
    clients.go_on(Instant::now() + warm_up)?;
    let (begun, done_before) = (Instant::now(), clients.done);
    clients.go_on(begun + time)?;
    let elapsed = begun.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "there are far fewer than 2^52 connections")]
    let done = (clients.done - done_before) as f64;
    Ok(Outcome { value: done / elapsed, p99: None, failed: clients.failed })
}

struct Clients {
    epoll: OwnedFd,
    to: SocketAddr,
    hello: Vec<u8>,
    slots: Vec<Slot>,
    done: u64,
    failed: u64,
}

struct Slot {
    stream: TcpStream,
    greeted: bool,
}

impl Clients {
    fn go_on(&mut self, until: Instant) -> io::Result<()> {
        let mut events = Vec::with_capacity(256);
        // Looked at once a round: rounds are short.
        while Instant::now() < until {
            let tick = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
            epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&tick))?;
            for event in events.drain(..) {
                let place = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                let Some(slot) = self.slots.get_mut(place) else { continue };
                match slot.advance(&self.hello) {
                    Ok(()) => self.done += 1,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                    Err(_) => self.failed += 1,
                }
                let next = self.open(place)?;
                if let Some(slot) = self.slots.get_mut(place) {
                    *slot = Slot { stream: next, greeted: false };
                }
            }
        }
        Ok(())
    }

    fn open(&self, place: usize) -> io::Result<TcpStream> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match rustix::net::connect(&socket, &self.to) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let wanted = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
        let data = EventData::new_u64(u64::try_from(place).unwrap_or(u64::MAX));
        epoll::add(&self.epoll, &socket, data, wanted)?;
        Ok(socket.into())
    }
}

impl Slot {
    /// Ends well when the byte has come.
    fn advance(&mut self, hello: &[u8]) -> io::Result<()> {
        if !self.greeted {
            // It fails with the connection's error if there is none; 517 bytes always have room.
            self.stream.write_all(hello)?;
            self.greeted = true;
        }
        let mut byte = [0];
        match self.stream.read(&mut byte)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}
