//! Connections that are refused, as many as are asked for.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::Outcome;

/// Where nothing is permitted: another port each time, so that the refusals cannot all be folded into one.
const NOBODY: Ipv4Addr = Ipv4Addr::new(93, 184, 77, 7);
/// How often the rate is looked at.
const TICK: Duration = Duration::from_millis(1);

/// Connects for `time`, `rate` times a second at most. The value is how many a second were refused; what was neither
/// refused nor made counts as failed.
pub(super) fn run(rate: u32, time: Duration) -> Result<Outcome> {
    let begun = Instant::now();
    let (mut refused, mut failed) = (0_u32, 0);
    while begun.elapsed() < time {
        let due = f64::from(rate) * begun.elapsed().as_secs_f64();
        while f64::from(refused) < due && begun.elapsed() < time {
            let port = u16::try_from(refused % 60_000)? + 1;
            match TcpStream::connect(SocketAddr::from((NOBODY, port))) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused += 1,
                _ => failed += 1,
            }
        }
        thread::sleep(TICK);
    }
    Ok(Outcome {
        value: f64::from(refused) / begun.elapsed().as_secs_f64(),
        p99: Some(f64::from(refused)),
        failed,
    })
}
