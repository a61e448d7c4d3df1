//! Refused packets reach the reader with their destination, and none is lost without being counted.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, helpers included")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::{commit, in_namespace, output_chain, table};
use nft::{Connection, Daddr, Dport, Field, Log, LogConfig, LogSocket, Packet, Received, Set, rule};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const GROUP: u16 = 7;
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
const OUTPUT: u8 = 3;

fn log(prefix: &str) -> Log {
    Log { group: GROUP, prefix: prefix.to_owned(), snaplen: 0, qthreshold: 0 }
}

fn config() -> LogConfig {
    LogConfig { group: GROUP, timeout: Duration::from_millis(10), ..LogConfig::default() }
}

/// Everything that arrives until `count` packets have, or were lost.
fn read(socket: &mut LogSocket, count: u64) -> Received {
    let limit = Instant::now() + Duration::from_secs(10);
    let mut all = Received::default();
    while all.packets.len() as u64 + all.lost < count {
        assert!(Instant::now() < limit, "{} of {count} records within ten seconds", all.packets.len());
        wait(socket, Duration::from_secs(1));
        drain(socket, &mut all);
    }
    all
}

fn drain(socket: &mut LogSocket, all: &mut Received) {
    while let Some(mut received) = socket.recv().unwrap() {
        all.packets.append(&mut received.packets);
        all.lost += received.lost;
        all.overrun |= received.overrun;
        all.malformed += received.malformed;
    }
}

fn wait(socket: &LogSocket, time: Duration) {
    let timeout = Timespec::try_from(time).unwrap();
    poll(&mut [PollFd::new(&socket.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap();
}

#[test]
fn a_refused_connect_is_logged_with_its_destination() {
    in_namespace(|| {
        let mut socket = LogSocket::open(&config()).unwrap();
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_chain(&table(), &output_chain()).add_rule(
                &table(),
                "output",
                rule().tcp().dport(443).set_mark(0x42).log(&log("refused by test")).reset(),
            )
        });
        for destination in [IpAddr::from(ADDRESS), IpAddr::from(ADDRESS_V6)] {
            TcpStream::connect(SocketAddr::new(destination, 443)).unwrap_err();
            // Refused as well, by the kernel, and none of the rule's business.
            TcpStream::connect(SocketAddr::new(destination, 444)).unwrap_err();

            let received = read(&mut socket, 1);
            assert_eq!((received.packets.len(), received.lost, received.malformed), (1, 0, 0));
            let Packet { prefix, hook, mark, uid, input, output, flow, .. } = &received.packets[0];
            assert_eq!((prefix.as_str(), *hook, *mark), ("refused by test", OUTPUT, 0x42));
            assert_eq!(*uid, Some(rustix::process::geteuid().as_raw()));
            assert_eq!((*input, *output), (None, Some(1)));
            let flow = flow.unwrap();
            assert_eq!((flow.destination, flow.protocol), (destination, 6));
            assert_eq!(flow.ports.map(|(_, port)| port), Some(443));
            assert_eq!(flow.tcp_flags.map(|flags| flags & 0x17), Some(2));
        }
    });
}

#[test]
fn a_dropped_datagram_is_logged_with_its_ports() {
    in_namespace(|| {
        let mut socket = LogSocket::open(&LogConfig { snaplen: 28, ..config() }).unwrap();
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_chain(&table(), &output_chain()).add_rule(
                &table(),
                "output",
                rule().udp().dport(9).log(&log("")).drop(),
            )
        });
        let sender = UdpSocket::bind((ADDRESS, 0)).unwrap();
        sender.send_to(&[0; 1000], (ADDRESS, 9)).unwrap_err();
        let received = read(&mut socket, 1);
        let packet = &received.packets[0];
        assert_eq!(packet.prefix, "");
        let flow = packet.flow.unwrap();
        assert_eq!((flow.source, flow.destination), (ADDRESS.into(), ADDRESS.into()));
        assert_eq!(flow.ports, Some((sender.local_addr().unwrap().port(), 9)));
    });
}

#[test]
fn a_group_belongs_to_one_socket() {
    in_namespace(|| {
        let first = LogSocket::open(&config()).unwrap();
        let Err(error) = LogSocket::open(&config()) else { panic!("taken twice") };
        assert!(error.is_permission_denied());
        assert!(error.to_string().starts_with("cannot bind packet log group 7"), "{error}");
        LogSocket::open(&LogConfig { group: GROUP + 1, ..config() }).unwrap();
        drop(first);
        // Not at once: a program that another test is just starting holds a copy of the socket until it runs.
        common::until("the group is free", || LogSocket::open(&config()).is_ok());
    });
    // In another namespace the same group is another group.
    in_namespace(|| drop(LogSocket::open(&config()).unwrap()));
}

#[test]
fn nothing_to_read_is_no_error() {
    in_namespace(|| {
        let mut socket = LogSocket::open(&config()).unwrap();
        assert_eq!(socket.recv().unwrap(), None);
    });
}

#[test]
fn records_wait_for_the_threshold_or_the_timeout() {
    in_namespace(|| {
        let timeout = Duration::from_secs(1);
        let mut socket = LogSocket::open(&LogConfig { qthreshold: 3, timeout, ..config() }).unwrap();
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_chain(&table(), &output_chain()).add_rule(
                &table(),
                "output",
                rule().udp().log(&log("")).accept(),
            )
        });
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let send = |count: u16| {
            for port in 1..=count {
                sender.send_to(b"?", (ADDRESS, port)).unwrap();
            }
        };

        send(3);
        assert_eq!(socket.recv().unwrap().map(|received| received.packets.len()), Some(3));
        let started = Instant::now();
        send(2);
        assert_eq!(socket.recv().unwrap(), None);
        assert_eq!(read(&mut socket, 2).packets.len(), 2);
        assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    });
}

#[test]
fn ten_thousand_records_arrive_complete_and_in_order() {
    in_namespace(|| {
        let mut socket = LogSocket::open(&config()).unwrap();
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_chain(&table(), &output_chain()).add_rule(
                &table(),
                "output",
                rule().udp().log(&log("")).accept(),
            )
        });
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut all = Received::default();
        for port in 1..=10_000_u16 {
            sender.send_to(b"?", (ADDRESS, port)).unwrap();
            drain(&mut socket, &mut all);
        }
        let rest = read(&mut socket, 10_000 - all.packets.len() as u64);
        all.packets.extend(rest.packets);
        assert_eq!((all.lost + rest.lost, all.overrun | rest.overrun), (0, false));
        let ports: Vec<_> = all.packets.iter().map(|packet| packet.flow.unwrap().ports.unwrap().1).collect();
        assert!(ports.iter().copied().eq(1..=10_000));
    });
}

#[test]
fn what_a_slow_reader_loses_is_counted_exactly() {
    in_namespace(|| {
        const SENT: u64 = 20_000;
        let mut socket =
            LogSocket::open(&LogConfig { buffer: 64 << 10, qthreshold: 16, ..config() }).unwrap();
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_counter(&table(), "logged")
                .add_rule(&table(), "output", rule().udp().count("logged").log(&log("")).accept())
        });
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        for _ in 0..SENT {
            sender.send_to(b"?", (ADDRESS, 9)).unwrap();
        }
        let mut all = Received::default();
        common::until("the kernel says that it lost records", || {
            drain(&mut socket, &mut all);
            all.overrun
        });
        // The number of those lost last is known with the next record.
        sender.send_to(b"!", (ADDRESS, 9)).unwrap();
        let rest = read(&mut socket, SENT + 1 - all.packets.len() as u64 - all.lost);
        let (arrived, lost) = (all.packets.len() + rest.packets.len(), all.lost + rest.lost);
        assert!(lost > 0);
        assert_eq!(arrived as u64 + lost, connection.counters(&table()).unwrap()[0].packets);
        assert_eq!(arrived as u64 + lost, SENT + 1);
    });
}

#[test]
fn only_the_first_packet_to_each_destination_is_logged_when_a_set_says_so() {
    in_namespace(|| {
        let mut socket = LogSocket::open(&config()).unwrap();
        let mut connection = Connection::open().unwrap();
        let key = (Daddr, Dport);
        let once = Some(Duration::from_secs(10));
        let first = rule()
            .ipv4()
            .udp()
            .lookup_not("seen", key)
            .add_to_set("seen", key, once)
            .log(&log("first"))
            .end();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_set(
                    &table(),
                    &Set::new("seen", [Field::Ipv4, Field::Port]).dynamic().timeouts().size(1000),
                )
                .add_rule(&table(), "output", first)
                .add_rule(&table(), "output", rule().udp().drop())
        });
        let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in [9, 9, 10, 9, 10, 11] {
            sender.send_to(b"?", (ADDRESS, port)).unwrap_err();
        }
        let mut next = |count: usize| {
            let mut ports = Vec::new();
            while ports.len() < count {
                let received = read(&mut socket, 1);
                ports.extend(received.packets.iter().map(|packet| packet.flow.unwrap().ports.unwrap().1));
            }
            ports
        };
        assert_eq!(next(3), [9, 10, 11]);
        // Nothing more of those comes before the next.
        sender.send_to(b"?", (ADDRESS, 12)).unwrap_err();
        assert_eq!(next(1), [12]);
    });
}
