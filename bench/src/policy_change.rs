//! How long after a change of its policy was asked for nothing passes any more that the new one does not permit.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use gate::GATE_V4;
use netns::NetNs;

use crate::load::{self, PATIENCE};

/// The host that is permitted before, and not after.
pub(crate) const BEFORE: &str = "api.github.com";
/// The host that is permitted after.
pub(crate) const AFTER: &str = "api.openai.com";
/// How many connections are open.
pub(crate) const CONNECTIONS: usize = 200;
/// Where the lab's servers echo what they are sent.
const ECHO: u16 = 7777;
const HTTP: u16 = 80;

/// Connections of a sandbox that wait for their end.
pub(crate) struct Open {
    cut: JoinHandle<Result<Instant>>,
    refused: JoinHandle<Result<Instant>>,
}

impl Open {
    /// Opens them in a sandbox's namespace: half of them echoed, half of them HTTP connections kept alive.
    pub(crate) fn new(namespace: &NetNs) -> Result<Self> {
        let (address, streams) = namespace.run(|| -> Result<_> {
            let address = load::look_up(SocketAddr::from((GATE_V4, 53)), BEFORE)?;
            let streams = (0..CONNECTIONS).map(|number| open(address, number % 2 == 0));
            Ok((address, streams.collect::<Result<Vec<_>>>()?))
        })??;
        let inside = namespace.try_clone()?;
        Ok(Self {
            cut: thread::spawn(move || await_ends(streams)),
            refused: thread::spawn(move || inside.run(|| await_refusal(address))?),
        })
    }

    /// When the last of them had ended, and new ones were refused.
    pub(crate) fn ended(self) -> Result<Instant> {
        let ended =
            |thread: JoinHandle<Result<Instant>>| thread.join().ok().context("a thread of the load")?;
        Ok(ended(self.cut)?.max(ended(self.refused)?))
    }
}

/// The namespace with this name, as `/proc/self/ns/net` has it inside.
pub(crate) fn namespace(name: &str) -> Result<NetNs> {
    let inode = name.trim().strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
    let inode: u64 = inode.context("the name of a namespace")?.parse()?;
    for process in fs::read_dir("/proc")? {
        let path = process?.path().join("ns/net");
        if fs::metadata(&path).is_ok_and(|found| found.ino() == inode) {
            return NetNs::open(Path::new(&path)).map_err(Into::into);
        }
    }
    anyhow::bail!("no process is in {name}")
}

fn open(address: Ipv4Addr, is_echoed: bool) -> Result<TcpStream> {
    let port = if is_echoed { ECHO } else { HTTP };
    let mut stream = TcpStream::connect((IpAddr::from(address), port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    if is_echoed {
        // Neither TLS nor HTTP, from the first byte on.
        stream.write_all(&[1; 5])?;
        stream.read_exact(&mut [0; 5])?;
    } else {
        write!(stream, "GET / HTTP/1.1\r\nHost: {BEFORE}\r\n\r\n")?;
        let mut buffer = [0; 4096];
        anyhow::ensure!(stream.read(&mut buffer)? > 0, "no answer to an HTTP request");
    }
    Ok(stream)
}

/// Waits for the end of each.
fn await_ends(streams: Vec<TcpStream>) -> Result<Instant> {
    for mut stream in streams {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    anyhow::bail!("a connection was not cut");
                }
                Err(_) => break,
            }
        }
    }
    Ok(Instant::now())
}

/// Connects until it is refused.
fn await_refusal(address: Ipv4Addr) -> Result<Instant> {
    let until = Instant::now() + 2 * PATIENCE;
    while Instant::now() < until {
        if TcpStream::connect((IpAddr::from(address), HTTP)).is_err() {
            return Ok(Instant::now());
        }
        thread::sleep(Duration::from_micros(500));
    }
    anyhow::bail!("new connections are not refused")
}
