//! The programs we are measured against.

mod haproxy;
mod runc;
mod unbound;

use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::load;

pub(crate) use haproxy::Haproxy;
pub(crate) use runc::Runc;
pub(crate) use unbound::Unbound;

/// How long a peer may take to start.
const START: Duration = Duration::from_secs(10);

/// Waits until something listens at `address`, as seen from the calling thread's namespace.
fn wait_for_tcp(address: SocketAddr) -> Result<()> {
    wait_for(|| TcpStream::connect(address).is_ok())
}

/// Waits until a resolver answers at `address`, as seen from the calling thread's namespace.
fn wait_for_resolver(address: SocketAddr) -> Result<()> {
    wait_for(|| load::look_up(address, load::NAME).is_ok())
}

fn wait_for(mut is_there: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + START;
    while !is_there() {
        if Instant::now() > deadline {
            bail!("it did not start within {START:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
