//! A network namespace of its own for each test, with nothing but a loopback to which every address leads.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nft::{Batch, Chain, ChainType, Connection, Hook, Policy, Table, priority};
use sys::netns::NetNs;

/// Runs `test` in a new namespace whose loopback is up and whose routes lead every address back to itself: each
/// connect either finds a listener here, or is refused here. Nothing can leave.
pub fn in_namespace(test: impl FnOnce() + Send) {
    let result = NetNs::create_and(|| {
        program("ip", &["link", "set", "lo", "up"]);
        program("ip", &["route", "add", "local", "0.0.0.0/0", "dev", "lo"]);
        program("ip", &["-6", "route", "add", "local", "::/0", "dev", "lo"]);
        test();
    });
    skip_unless_permitted(result.map(|_| ()));
}

/// As [`in_namespace`], with no routes: the loopback is up and has its own addresses only.
pub fn in_bare_namespace(test: impl FnOnce() + Send) {
    let result = NetNs::create_and(|| {
        program("ip", &["link", "set", "lo", "up"]);
        test();
    });
    skip_unless_permitted(result.map(|_| ()));
}

fn skip_unless_permitted(result: io::Result<()>) {
    match result {
        Ok(()) => {}
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied && std::env::var_os("STRICT").is_none() =>
        {
            println!("SKIP no network namespace may be created here: {error}");
        }
        Err(error) => panic!("no network namespace: {error}"),
    }
}

/// Runs a program in this namespace and returns what it wrote.
#[expect(clippy::disallowed_types, reason = "tests compare with the reference program")]
pub fn program(name: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(name).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{name} {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a program in this namespace and tells whether it succeeded; `false` when there is no such program.
#[expect(
    clippy::disallowed_types,
    reason = "what answers an echo request is the kernel, what sends one is not"
)]
pub fn succeeds(name: &str, arguments: &[&str]) -> bool {
    std::process::Command::new(name).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// The table of most tests.
pub fn table() -> Table {
    Table::inet("fence")
}

/// A chain that sees what this namespace sends, and passes what no rule decides on.
pub fn output_chain() -> Chain {
    Chain::base("output", ChainType::Filter, Hook::Output, priority::FILTER, Policy::Accept)
}

/// Commits a batch that `fill` has filled.
pub fn commit(connection: &mut Connection, fill: impl FnOnce(&mut Batch) -> &mut Batch) {
    let mut batch = Batch::new();
    fill(&mut batch);
    connection.commit(batch).unwrap();
}

/// Whether a datagram to this address passes the rules; a rule that drops it makes the sender see `EPERM`.
pub fn passes(address: impl Into<SocketAddr>) -> bool {
    let address = address.into();
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    match socket.send_to(b"?", address) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
        Err(error) => panic!("sending to {address}: {error}"),
    }
}

/// Waits until `holds`, and fails after ten seconds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < limit, "not within ten seconds: {what}");
        std::thread::yield_now();
    }
}
