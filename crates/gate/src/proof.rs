//! The proof that a sandbox's rules hold: from inside its namespace, what is forbidden is tried and has to be refused,
//! and what is permitted has to pass.
//!
//! The kernel has confirmed the rules before. This finds what it cannot: that somebody else changed them since, or
//! that they do not do what they say.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use policy::{Flow, InForce, Protocol};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::{
    GateError,
    addresses::{PROOF_PORT, resolver_sockets},
    sandbox::Sandbox,
};

/// How long the kernel may take to refuse: it does before `connect` returns.
const TO_REFUSE: Duration = Duration::from_secs(1);
/// How long it may take to accept: as fast, unless the sandbox keeps the resolver's queue full. The first attempt is
/// repeated by the kernel after one and three seconds.
const TO_ACCEPT: Duration = Duration::from_secs(5);
/// Where the refused attempts go besides the floor: addresses for documentation (RFC 5737, RFC 3849), where nobody is.
const NOBODY: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 254)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0xfffe)),
];
/// On the floor under every policy: the metadata services.
const METADATA: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];
const PORT: u16 = 80;
/// How many refusals are expected at most: those of the changes of a policy within the time that the log takes.
const MAX_EXPECTED: usize = 256;
/// For how long: the log takes some milliseconds, and a refusal that was not logged (the log is full) must not hide one of
/// the sandbox's own later, even if that comes from the same port.
const EXPECTED_FOR: Duration = Duration::from_secs(5);

/// An attempt: the port it comes from, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) from: u16,
    pub(crate) to: SocketAddr,
}

/// Refusals that are to be logged and are no events, because the daemon asked for them: one each.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    attempts: Mutex<Vec<(Attempt, Instant)>>,
    /// Held by who tries: all attempts come from the same port.
    trying: Mutex<()>,
}

impl Expected {
    fn add(&self, attempt: Attempt) {
        let mut expected = self.attempts.lock();
        expected.push((attempt, Instant::now()));
        // What has not come by now was lost on its way.
        let lost = expected.len().saturating_sub(MAX_EXPECTED);
        expected.drain(..lost);
    }

    /// Whether the refusal of this attempt is one of them, which it is once.
    pub(crate) fn take(&self, attempt: Attempt) -> bool {
        let mut expected = self.attempts.lock();
        if expected.is_empty() {
            return false;
        }
        expected.retain(|(_, since)| since.elapsed() < EXPECTED_FOR);
        let found = expected.iter().position(|(expected, _)| *expected == attempt);
        found.map(|index| expected.remove(index)).is_some()
    }
}

/// Tries what has to be refused and what has to pass under the policy that is in force.
///
/// # Errors
/// [`GateError::Unproven`] says what did not happen as it should, [`GateError::Untried`] why it cannot be tried.
pub(crate) fn prove(sandbox: &Sandbox, in_force: &InForce) -> Result<(), GateError> {
    let refused =
        METADATA.into_iter().chain(NOBODY.into_iter().filter(|&address| is_refused(in_force, address)));
    let refused: Vec<_> = refused.map(|address| SocketAddr::new(address, PORT)).collect();
    let _alone = sandbox.expected.trying.lock();
    let attempt = || {
        refused.iter().try_for_each(|&target| expect_refusal(target, &sandbox.expected))?;
        resolver_sockets().into_iter().try_for_each(expect_connection)
    };
    sandbox.namespace.run(attempt).map_err(GateError::Untried)?
}

/// Whether the daemon could not try, which says nothing of the rules.
fn is_own_want(error: &io::Error) -> bool {
    sys::spare::is_exhausted(error) || error.kind() == io::ErrorKind::OutOfMemory
}

fn is_refused(in_force: &InForce, address: IpAddr) -> bool {
    let flow = Flow { protocol: Protocol::Tcp, name: None, address: Some(address), port: Some(PORT) };
    !in_force.policy.judge(&flow).is_allowed()
}

fn expect_refusal(target: SocketAddr, expected: &Expected) -> Result<(), GateError> {
    let unproven = |text| Err(GateError::Unproven(text));
    match attempt(target, expected) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if is_own_want(&error) => Err(GateError::Untried(error)),
        Err(error) => unproven(format!("a connection to {target} was not refused: {error}")),
        Ok(()) => unproven(format!("a connection to {target} was made")),
    }
}

/// Tries to connect, from a port that is known before: the refusal may be logged before this returns.
fn attempt(to: SocketAddr, expected: &Expected) -> io::Result<()> {
    let socket = socket_for(to, TO_REFUSE)?;
    expected.add(Attempt { from: PROOF_PORT, to });
    Ok(net::connect(&socket, &to)?)
}

fn expect_connection(target: SocketAddr) -> Result<(), GateError> {
    let connect = || {
        let socket = socket_for(target, TO_ACCEPT)?;
        // Its end leaves nothing behind that the next attempt from the same port would meet.
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
        Ok(net::connect(&socket, &target)?)
    };
    match connect() {
        Ok(()) => Ok(()),
        Err(error) if is_own_want(&error) => Err(GateError::Untried(error)),
        Err(error) => {
            Err(GateError::Unproven(format!("the resolver at {target} cannot be reached: {error}")))
        }
    }
}

/// A socket to connect to there within some time. It is at a port of its own: the sandbox may have taken all that the kernel
/// gives out.
fn socket_for(to: SocketAddr, limit: Duration) -> io::Result<OwnedFd> {
    let (family, anywhere): (_, IpAddr) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (AddressFamily::INET6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    // It is how long `connect` may take.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(limit))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    net::bind(&socket, &SocketAddr::new(anywhere, PROOF_PORT))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_the_daemon_provoked_hides_none_of_the_sandbox_to_the_same_place() {
        let expected = Expected::default();
        let to = SocketAddr::new(METADATA[0], PORT);
        let own = Attempt { from: 40_000, to };
        expected.add(own);
        // The daemon's own was lost on its way, and the sandbox tries the same.
        assert!(!expected.take(Attempt { from: 40_001, to }));
        assert!(!expected.take(Attempt { to: SocketAddr::new(METADATA[1], PORT), ..own }));
        assert!(expected.take(own));
        assert!(!expected.take(own), "it comes once");
    }
}
