//! Connecting to where a permitted flow goes.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::{Instant, timeout_at};

use crate::{Egress, Hold, decision::Permit, socket::Socket};

/// A connection to the destination, and what keeps its binding alive.
pub(crate) struct Dialled {
    pub(crate) socket: Socket,
    pub(crate) address: IpAddr,
    pub(crate) hold: Hold,
}

/// Connects to the first address of `permit` that answers, within `limit` for all of them. Each is tried only if
/// `may_try` still permits it.
pub(crate) async fn dial<E: Egress>(
    egress: &E,
    permit: &Permit,
    limit: Duration,
    mut may_try: impl FnMut(IpAddr) -> bool,
) -> io::Result<Dialled> {
    let deadline = Instant::now() + limit;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for &address in &permit.addresses {
        if !may_try(address) {
            continue;
        }
        let hold = egress.hold(address);
        match timeout_at(deadline, Socket::connect(SocketAddr::new(address, permit.port))).await {
            Ok(Ok(socket)) => return Ok(Dialled { socket, address, hold }),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Err(last)
}
