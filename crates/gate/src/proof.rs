//! The proof that a sandbox's rules hold: from inside its namespace, what is forbidden is tried and has to be refused,
//! and what is permitted has to pass.
//!
//! The kernel has confirmed the rules before. This finds what it cannot: that somebody else changed them since, or
//! that they do not do what they say.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use policy::{Flow, InForce, Protocol};

use crate::{GateError, addresses::resolver_sockets, sandbox::Sandbox};

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
/// the sandbox's own later.
const EXPECTED_FOR: Duration = Duration::from_secs(5);

/// Refusals that are to be logged and are no events, because the daemon asked for them: one each.
#[derive(Debug, Default)]
pub(crate) struct Expected(Mutex<Vec<(SocketAddr, Instant)>>);

impl Expected {
    fn add(&self, targets: &[SocketAddr]) {
        let (mut expected, now) = (self.0.lock(), Instant::now());
        expected.extend(targets.iter().map(|target| (*target, now)));
        // What has not come by now was lost on its way.
        let lost = expected.len().saturating_sub(MAX_EXPECTED);
        expected.drain(..lost);
    }

    /// Whether the refusal of a packet to there is one of them, which it is once.
    pub(crate) fn take(&self, target: SocketAddr) -> bool {
        let mut expected = self.0.lock();
        if expected.is_empty() {
            return false;
        }
        expected.retain(|(_, since)| since.elapsed() < EXPECTED_FOR);
        let found = expected.iter().position(|(expected, _)| *expected == target);
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
    sandbox.expected.add(&refused);
    let attempt = || {
        refused.iter().try_for_each(|&target| expect_refusal(target))?;
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

fn expect_refusal(target: SocketAddr) -> Result<(), GateError> {
    let unproven = |text| Err(GateError::Unproven(text));
    match TcpStream::connect_timeout(&target, TO_REFUSE) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if is_own_want(&error) => Err(GateError::Untried(error)),
        Err(error) => unproven(format!("a connection to {target} was not refused: {error}")),
        Ok(_) => unproven(format!("a connection to {target} was made")),
    }
}

fn expect_connection(target: SocketAddr) -> Result<(), GateError> {
    match TcpStream::connect_timeout(&target, TO_ACCEPT) {
        Ok(_) => Ok(()),
        Err(error) if is_own_want(&error) => Err(GateError::Untried(error)),
        Err(error) => {
            Err(GateError::Unproven(format!("the resolver at {target} cannot be reached: {error}")))
        }
    }
}
