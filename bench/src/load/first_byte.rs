//! How long it takes from connecting to the first byte of the answer.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{NAME, Outcome, PATIENCE};
use crate::{
    hello::{Wish, client_hello},
    statistics::{median, percentile},
};

/// One connection after the other for `time`.
pub(super) fn run(to: SocketAddr, time: Duration) -> Result<Outcome> {
    let hello = client_hello(NAME, Wish::Answer);
    let until = Instant::now() + time;
    let (mut times, mut failed) = (Vec::new(), 0);
    while Instant::now() < until {
        let begun = Instant::now();
        match once(to, &hello) {
            Ok(()) => times.push(begun.elapsed().as_secs_f64() * 1e6),
            Err(_) => failed += 1,
        }
    }
    Ok(Outcome { value: median(&times), p99: Some(percentile(&times, 0.99)), failed })
}

/// One connection after the other for `time`, a thousand a second at most; only connecting is measured.
pub(super) fn connect(to: SocketAddr, time: Duration) -> Result<Outcome> {
    let hello = client_hello(NAME, Wish::Answer);
    let until = Instant::now() + time;
    let (mut times, mut failed) = (Vec::new(), 0);
    while Instant::now() < until {
        let begun = Instant::now();
        let connected = TcpStream::connect(to);
        let elapsed = begun.elapsed();
        match connected.and_then(|stream| greet(stream, &hello)) {
            Ok(()) => times.push(elapsed.as_secs_f64() * 1e6),
            Err(_) => failed += 1,
        }
        thread::sleep(Duration::from_millis(1).saturating_sub(begun.elapsed()));
    }
    Ok(Outcome { value: median(&times), p99: Some(percentile(&times, 0.99)), failed })
}

fn once(to: SocketAddr, hello: &[u8]) -> std::io::Result<()> {
    greet(TcpStream::connect(to)?, hello)
}

fn greet(mut stream: TcpStream, hello: &[u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(hello)?;
    stream.read_exact(&mut [0])
}
