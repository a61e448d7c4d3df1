//! Throughput: a blocking thread for each stream.

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::net::RecvFlags;

use super::{Direction, NAME, Outcome};
use crate::hello::{Wish, client_hello};

/// How many bytes are taken or sent at once.
const CHUNK: usize = 256 << 10;

/// Moves bytes for `time`, after a while in which the windows grow.
pub(super) fn run(to: SocketAddr, parallel: usize, direction: Direction, time: Duration) -> Result<Outcome> {
    let moved = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicU64::new(0));
    let hello = client_hello(
        NAME,
        match direction {
            Direction::Up => Wish::Take,
            Direction::Down => Wish::Send,
        },
    );
    for _ in 0..parallel {
        let mut stream = TcpStream::connect(to).context("connecting")?;
        stream.write_all(&hello)?;
        let (moved, failed) = (Arc::clone(&moved), Arc::clone(&failed));
        // They end with the process.
        thread::spawn(move || {
            let _ended = pump(&mut stream, direction, &moved);
            failed.fetch_add(1, Ordering::Relaxed);
        });
    }
    thread::sleep(time / 4);
    let (begun, before) = (Instant::now(), moved.load(Ordering::Relaxed));
    thread::sleep(time);
    let bytes = moved.load(Ordering::Relaxed) - before;
    let elapsed = begun.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a figure, not a count")]
    let value = bytes as f64 * 8.0 / 1e9 / elapsed;
    Ok(Outcome { value, p99: None, failed: failed.load(Ordering::Relaxed) })
}

fn pump(stream: &mut TcpStream, direction: Direction, moved: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0x5a; CHUNK];
    loop {
        let bytes = match direction {
            Direction::Up => stream.write(&buffer)?,
            // Taken in without copying.
            Direction::Down => rustix::net::recv(&*stream, &mut buffer[..], RecvFlags::TRUNC)?.1,
        };
        if bytes == 0 {
            return Ok(());
        }
        moved.fetch_add(u64::try_from(bytes).unwrap_or_default(), Ordering::Relaxed);
    }
}
