//! The descriptor in reserve. The only test of its file, because it changes a limit of its process.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

use std::{
    fs::File,
    io::{ErrorKind, Read},
    net::{TcpListener, TcpStream},
    os::fd::AsRawFd,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sys::spare::{is_exhausted, reserve, turn_away};

#[test]
fn a_connection_is_reset_although_there_is_no_descriptor_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    reserve().unwrap();
    let address = listener.local_addr().unwrap();
    let mut client = TcpStream::connect(address).unwrap();

    let limit = getrlimit(Resource::Nofile);
    // The lowest number that is free.
    let next = File::open("/dev/null").unwrap().as_raw_fd();
    let full = Rlimit { current: Some(u64::try_from(next).unwrap()), ..limit };
    setrlimit(Resource::Nofile, full).unwrap();
    let refused = listener.accept().unwrap_err();
    let turned_away = [turn_away(&listener), turn_away(&listener)];
    setrlimit(Resource::Nofile, limit).unwrap();

    assert!(is_exhausted(&refused), "{refused}");
    let [first, second] = turned_away;
    assert_eq!(first.unwrap(), address);
    assert_eq!(second.unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    // And once there are descriptors again, connections are accepted.
    let _client = TcpStream::connect(address).unwrap();
    listener.accept().unwrap();
}
