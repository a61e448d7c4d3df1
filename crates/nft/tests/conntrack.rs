//! Each tracked connection that ends is told of with what it amounted to, and can be ended.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, helpers included")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use common::{commit, in_namespace, output_chain, table, until};
use nft::conntrack::{Ended, Endings, Entry, Table, Tuple};
use nft::{Connection, CtState, rule};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const MARK: u32 = 7;

/// Keeps accounts, and marks what goes to a port.
fn track(marked: u16) -> (Connection, Endings) {
    for name in ["acct", "timestamp"] {
        std::fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"), "1").unwrap();
    }
    let endings = Endings::open(1 << 20).unwrap();
    let mut connection = Connection::open().unwrap();
    commit(&mut connection, |batch| {
        batch
            .add_table(&table())
            .add_chain(&table(), &output_chain())
            .add_rule(
                &table(),
                "output",
                rule().udp().dport(marked).ct_state(CtState::NEW).set_ct_mark(MARK).end(),
            )
            .add_rule(
                &table(),
                "output",
                rule().tcp().dport(marked).ct_state(CtState::NEW).set_ct_mark(MARK).end(),
            )
    });
    (connection, endings)
}

/// Everything that has been told.
fn drain(endings: &mut Endings) -> Ended {
    let mut all = Ended::default();
    while let Some(mut ended) = endings.recv().unwrap() {
        all.connections.append(&mut ended.connections);
        all.overrun |= ended.overrun;
        all.malformed += ended.malformed;
    }
    all
}

fn listed(table: &mut Table) -> Vec<Entry> {
    let mut entries = Vec::new();
    table.list(|entry| entries.push(entry)).unwrap();
    entries
}

/// A socket with a flow of one datagram to a port.
fn flow(port: u16) -> (UdpSocket, Tuple) {
    let socket = UdpSocket::bind((ADDRESS, 0)).unwrap();
    socket.send_to(b"?", (ADDRESS, port)).unwrap();
    let own = socket.local_addr().unwrap().port();
    let tuple = Tuple {
        source: ADDRESS.into(),
        destination: ADDRESS.into(),
        protocol: 17,
        ports: Some((own, port)),
        icmp: None,
    };
    (socket, tuple)
}

#[test]
fn an_ended_connection_is_told_with_its_bytes_each_way_and_its_age() {
    in_namespace(|| {
        let (_rules, mut endings) = track(80);
        let mut table = Table::open().unwrap();
        let listener = TcpListener::bind((ADDRESS, 80)).unwrap();
        let mut client = TcpStream::connect((ADDRESS, 80)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&vec![2; 50_000]).unwrap();
        client.read_exact(&mut vec![0; 50_000]).unwrap();
        let tuple = Tuple {
            source: ADDRESS.into(),
            destination: ADDRESS.into(),
            protocol: 6,
            ports: Some((client.local_addr().unwrap().port(), 80)),
            icmp: None,
        };
        assert_eq!(drain(&mut endings), Ended::default());
        assert_eq!(table.end(&[tuple]).unwrap(), 1);

        let ended = drain(&mut endings);
        let [entry] = &ended.connections[..] else { panic!("{ended:?}") };
        assert_eq!((entry.original, entry.mark), (tuple, MARK));
        assert_eq!(entry.reply.inverted(&entry.original), tuple);
        assert!((1000..2000).contains(&entry.sent.bytes), "{entry:?}");
        assert!((50_000..60_000).contains(&entry.received.bytes), "{entry:?}");
        assert!(entry.age.is_some() && entry.is_assured && !entry.remaining.is_zero(), "{entry:?}");
        assert_eq!(entry.tcp.map(|state| state.is_over()), Some(false));
    });
}

#[test]
fn an_echo_request_is_told_with_its_identifier() {
    in_namespace(|| {
        let (_rules, mut endings) = track(80);
        let id = echo();
        let mut table = Table::open().unwrap();
        let entries = listed(&mut table);
        let [Entry { original, .. }] = entries[..] else { panic!("{entries:?}") };
        let icmp = original.icmp.unwrap();
        assert_eq!((original.protocol, icmp.id, icmp.kind, icmp.code), (1, id, 8, 0));
        assert_eq!(table.end(&[original]).unwrap(), 1);
        let ended = drain(&mut endings).connections;
        assert_eq!((ended[0].sent.packets, ended[0].received.packets), (1, 1));
    });
}

/// Sends an echo request, waits for the answer, and returns the identifier.
fn echo() -> u16 {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    let socket =
        UdpSocket::from(socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)).unwrap());
    socket.connect((ADDRESS, 0)).unwrap();
    socket.send(&[8, 0, 0, 0, 0, 0, 0, 1]).unwrap();
    socket.recv(&mut [0; 8]).unwrap();
    socket.local_addr().unwrap().port()
}

#[test]
fn ending_connections_ends_those_that_are_named_and_no_others() {
    in_namespace(|| {
        let (_rules, mut endings) = track(9);
        let mut table = Table::open().unwrap();
        let flows: Vec<_> = (0..200).map(|_| flow(10)).collect();
        let tuples: Vec<_> = flows.iter().map(|(_, tuple)| *tuple).collect();
        let (_socket, other) = flow(10);
        let absent = Tuple { ports: Some((1, 1)), ..other };
        assert_eq!(table.end(&[&[absent], &tuples[..]].concat()).unwrap(), 200);
        assert!(drain(&mut endings).connections.iter().map(|entry| entry.original).eq(tuples));
        assert_eq!(listed(&mut table).iter().map(|entry| entry.original).collect::<Vec<_>>(), [other]);
        assert_eq!(table.end(&[]).unwrap(), 0);
    });
}

#[test]
fn a_later_connection_with_the_same_ports_is_not_ended_for_an_earlier_one() {
    in_namespace(|| {
        let (_rules, mut endings) = track(9);
        let mut table = Table::open().unwrap();
        let (_socket, tuple) = flow(9);
        let id = listed(&mut table)[0].id;
        assert_eq!(table.end_exactly(&[(tuple, id.wrapping_add(1))]).unwrap(), 0);
        assert_eq!(drain(&mut endings), Ended::default());
        assert_eq!(table.end_exactly(&[(tuple, id)]).unwrap(), 1);
        assert_eq!(drain(&mut endings).connections[0].id, id);
    });
}

#[test]
fn ending_marked_connections_spares_those_with_other_marks() {
    in_namespace(|| {
        let (_rules, mut endings) = track(9);
        let mut table = Table::open().unwrap();
        let (marked, other) = (flow(9), flow(10));
        table.end_marked(MARK + 1, u32::MAX).unwrap();
        assert_eq!(drain(&mut endings), Ended::default());
        table.end_marked(MARK, u32::MAX).unwrap();
        let ended = drain(&mut endings);
        assert_eq!(ended.connections.iter().map(|entry| entry.original).collect::<Vec<_>>(), [marked.1]);
        assert_eq!(listed(&mut table).iter().map(|entry| entry.original).collect::<Vec<_>>(), [other.1]);
        assert!(listed(&mut table).iter().all(|entry| entry.mark == 0));
    });
}

#[test]
fn a_connection_whose_time_is_over_is_told_when_the_kernel_is_made_to_look() {
    in_namespace(|| {
        let (_rules, mut endings) = track(9);
        std::fs::write("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", "1").unwrap();
        let mut table = Table::open().unwrap();
        let (_socket, tuple) = flow(9);
        let mut found = Vec::new();
        let absent = Tuple { ports: Some((1, 1)), ..tuple };
        table.look_at(&[absent, tuple], |entry| found.push((entry.original, entry.mark))).unwrap();
        assert_eq!(found, [(tuple, MARK)]);
        until("its second is over", || {
            table.look_at(&[tuple], |_| {}).unwrap();
            drain(&mut endings).connections.iter().any(|entry| {
                assert_eq!(entry.remaining, std::time::Duration::ZERO);
                assert!(entry.age.unwrap() >= std::time::Duration::from_millis(900), "{entry:?}");
                entry.original == tuple
            })
        });
    });
}

#[test]
fn a_reader_without_room_is_told_that_it_lost_some() {
    in_namespace(|| {
        let (_rules, _roomy) = track(9);
        let mut endings = Endings::open(4096).unwrap();
        let mut table = Table::open().unwrap();
        let _flows: Vec<_> = (0..300).map(|_| flow(9)).collect();
        table.end_marked(MARK, u32::MAX).unwrap();
        let ended = drain(&mut endings);
        assert!(ended.overrun && ended.connections.len() < 300, "{}", ended.connections.len());
    });
}

#[test]
fn a_packet_matches_by_the_mark_of_its_connection() {
    in_namespace(|| {
        let (mut rules, _endings) = track(9);
        commit(&mut rules, |batch| batch.add_rule(&table(), "output", rule().ct_mark(MARK).drop()));
        assert!(!common::passes(SocketAddr::from((ADDRESS, 9))));
        assert!(common::passes(SocketAddr::from((ADDRESS, 10))));
    });
}
