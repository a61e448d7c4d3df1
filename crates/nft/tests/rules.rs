//! What rules do to packets.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, helpers included")]

mod common;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::{commit, in_bare_namespace, in_namespace, output_chain, passes, program, table};
use nft::{
    AddressRange, AddressType, Batch, Chain, ChainType, Connection, CtState, Daddr, Hook, Policy, Rule,
    Unreachable, priority, rule,
};

/// A connection to a table whose output chain has these rules.
fn with_rules(rules: impl IntoIterator<Item = Rule>) -> Connection {
    let mut connection = Connection::open().unwrap();
    commit(&mut connection, |batch| {
        batch.add_table(&table()).add_chain(&table(), &output_chain());
        rules.into_iter().fold(batch, |batch, rule| batch.add_rule(&table(), "output", rule))
    });
    connection
}

/// Starts listening at all addresses, and tells what a connect to this one comes to.
fn connect(address: impl Into<IpAddr>) -> Result<(), io::ErrorKind> {
    let listener = TcpListener::bind("[::]:0").unwrap();
    let target = SocketAddr::new(address.into(), listener.local_addr().unwrap().port());
    TcpStream::connect_timeout(&target, Duration::from_secs(5)).map(|_| ()).map_err(|error| error.kind())
}

const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);
const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);

#[test]
fn a_reset_refuses_a_connect_and_leaves_others_alone() {
    in_namespace(|| {
        assert_eq!(connect(ADDRESS), Ok(()));
        with_rules([rule().ipv4().tcp().daddr(ADDRESS).syn().reset()]);
        assert_eq!(connect(ADDRESS), Err(io::ErrorKind::ConnectionRefused));
        assert_eq!(connect(OTHER), Ok(()));
        assert_eq!(connect(ADDRESS_V6), Ok(()));
    });
}

#[test]
fn a_reset_refuses_ipv6_connects_too() {
    in_namespace(|| {
        assert_eq!(connect(ADDRESS_V6), Ok(()));
        with_rules([rule().ipv6().tcp().daddr(ADDRESS_V6).reset()]);
        assert_eq!(connect(ADDRESS_V6), Err(io::ErrorKind::ConnectionRefused));
        assert_eq!(connect(ADDRESS), Ok(()));
    });
}

#[test]
fn a_rejected_packet_is_answered_with_the_error_the_rule_names() {
    in_namespace(|| {
        let refused = |answer| {
            let mut connection = with_rules([rule().ipv4().tcp().daddr(ADDRESS).reject(answer)]);
            let outcome = connect(ADDRESS);
            commit(&mut connection, |batch| batch.del_table(&table()));
            outcome
        };
        assert_eq!(refused(Unreachable::AdminProhibited), Err(io::ErrorKind::HostUnreachable));
        assert_eq!(refused(Unreachable::Host), Err(io::ErrorKind::HostUnreachable));
        assert_eq!(refused(Unreachable::Port), Err(io::ErrorKind::ConnectionRefused));
        assert_eq!(refused(Unreachable::NoRoute), Err(io::ErrorKind::NetworkUnreachable));
        assert_eq!(connect(ADDRESS), Ok(()));
    });
}

#[test]
fn a_chain_that_drops_by_policy_passes_what_a_rule_accepts() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let closed = Chain::base("output", ChainType::Filter, Hook::Output, priority::FILTER, Policy::Drop);
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_chain(&table(), &closed).add_rule(
                &table(),
                "output",
                rule().ipv4().udp().dport(53).accept(),
            )
        });
        assert!(passes((ADDRESS, 53)));
        assert!(!passes((ADDRESS, 54)));
        assert!(!passes((ADDRESS_V6, 53)));
    });
}

#[test]
fn jumps_come_back_and_gotos_do_not() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_chain(&table(), &Chain::regular("empty"))
                .add_chain(&table(), &Chain::regular("returning"))
                .add_rule(&table(), "returning", rule().ret())
                .add_rule(&table(), "returning", rule().drop())
                .add_rule(&table(), "output", rule().jump("returning"))
                .add_rule(&table(), "output", rule().ipv4().daddr(ADDRESS).jump("empty"))
                .add_rule(&table(), "output", rule().ipv4().daddr(OTHER).goto("empty"))
                .add_rule(&table(), "output", rule().udp().drop())
        });
        assert!(!passes((ADDRESS, 9)));
        assert!(passes((OTHER, 9)));
        // A flushed chain decides nothing any more.
        commit(&mut connection, |batch| batch.flush_chain(&table(), "output"));
        assert!(passes((ADDRESS, 9)));
    });
}

/// For each rule: it drops the first address and port, and passes the second.
#[test]
fn each_match_tells_its_packets_from_others() {
    let range = AddressRange::new(Ipv4Addr::new(198, 51, 100, 5), ADDRESS);
    let beyond = AddressRange::new(OTHER, Ipv4Addr::BROADCAST);
    let inside_v6 = AddressRange::new(Ipv6Addr::LOCALHOST, ADDRESS_V6);
    let (here, there): (SocketAddr, SocketAddr) = ((ADDRESS, 9).into(), (OTHER, 9).into());
    let (here_v6, there_v6): (SocketAddr, SocketAddr) =
        ((ADDRESS_V6, 9).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 8), 9).into());
    let other_port: SocketAddr = (ADDRESS, 10).into();
    let cases: Vec<(&str, Rule, SocketAddr, SocketAddr)> = vec![
        ("daddr", rule().ipv4().daddr(ADDRESS).drop(), here, there),
        ("daddr_not", rule().ipv4().daddr_not(OTHER).drop(), here, there),
        ("daddr_within", rule().ipv4().daddr_within(range).drop(), here, there),
        ("daddr_not_within", rule().ipv4().daddr_not_within(beyond).drop(), here, there),
        ("saddr", rule().ipv4().saddr(ADDRESS).drop(), here, there), // locally, a packet comes from where it goes
        ("saddr_not", rule().ipv4().saddr_not(OTHER).drop(), here, there),
        ("saddr_within", rule().ipv4().saddr_within(range).drop(), here, there),
        ("saddr_not_within", rule().ipv4().saddr_not_within(beyond).drop(), here, there),
        ("daddr v6", rule().ipv6().daddr(ADDRESS_V6).drop(), here_v6, there_v6),
        ("daddr_within v6", rule().ipv6().daddr_within(inside_v6).drop(), here_v6, there_v6),
        ("ipv4", rule().ipv4().drop(), here, here_v6),
        ("ipv6", rule().ipv6().drop(), here_v6, here),
        ("dport", rule().udp().dport(9).drop(), here, other_port),
        ("dport_not", rule().udp().dport_not(10).drop(), here, other_port),
        ("sport_not", rule().udp().dport(9).sport_not(1).drop(), here, other_port),
        ("l4proto_not", rule().ipv4().daddr(ADDRESS).l4proto_not(6).drop(), here, there),
        ("l4proto", rule().ipv4().daddr(ADDRESS).l4proto(17).drop(), here, there),
        ("oifname", rule().ipv4().daddr(ADDRESS).oifname("lo").drop(), here, there),
        ("oifname_not", rule().ipv4().daddr(ADDRESS).oifname_not("eth0").drop(), here, there),
        ("iifname_not", rule().ipv4().daddr(ADDRESS).iifname_not("lo").drop(), here, there),
        ("skuid", rule().ipv4().daddr(ADDRESS).skuid(effective_uid()).drop(), here, there),
        ("skuid_not", rule().ipv4().daddr(ADDRESS).skuid_not(effective_uid() + 1).drop(), here, there),
        ("mark", rule().ipv4().daddr(ADDRESS).set_mark(0x105).mark(0x105).drop(), here, there),
        ("mark_not", rule().ipv4().daddr(ADDRESS).set_mark(0x105).mark_not(5).drop(), here, there),
        (
            "mark_masked",
            rule().ipv4().daddr(ADDRESS).set_mark(0x105).mark_masked(5, 0xff).drop(),
            here,
            there,
        ),
        (
            "ct_state",
            rule().ipv4().daddr(ADDRESS).ct_state(CtState::NEW | CtState::RELATED).drop(),
            here,
            there,
        ),
        (
            "fib_daddr_type",
            rule().ipv4().daddr(ADDRESS).fib_daddr_type(AddressType::Local).drop(),
            here,
            there,
        ),
        (
            "fib_daddr_type_not",
            rule().ipv4().daddr(ADDRESS).fib_daddr_type_not(AddressType::Multicast).drop(),
            here,
            there,
        ),
        ("limit_per_second", rule().ipv4().daddr(ADDRESS).limit_per_second(1, 5).drop(), here, there),
    ];
    in_namespace(move || {
        for (name, rule, matched, unmatched) in cases {
            assert!(passes(matched), "{name}");
            let mut connection = with_rules([rule]);
            assert!(!passes(matched), "{name}: {matched} is to match");
            assert!(passes(unmatched), "{name}: {unmatched} is not to match");
            commit(&mut connection, |batch| batch.del_table(&table()));
        }
    });
}

fn effective_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[test]
fn a_limit_matches_so_many_packets_and_then_the_rest() {
    in_namespace(|| {
        let mut connection = with_rules([rule().udp().limit_per_second(1, 5).drop()]);
        let refused = (0..50).filter(|_| !passes((ADDRESS, 9))).count();
        assert!((5..40).contains(&refused), "{refused}");
        commit(&mut connection, |batch| {
            batch.flush_chain(&table(), "output");
            batch.add_rule(&table(), "output", rule().udp().over_limit_per_second(1, 5).drop())
        });
        let refused = (0..50).filter(|_| !passes((ADDRESS, 9))).count();
        assert!((10..=45).contains(&refused), "{refused}");
    });
}

#[test]
fn an_icmp_type_is_matched() {
    in_namespace(|| {
        const ECHO_REQUEST: u8 = 8;
        const ECHO_REQUEST_V6: u8 = 128;
        let ping = |address| common::succeeds("ping", &["-c1", "-W1", "-n", address]);
        if !ping("198.51.100.7") {
            println!("SKIP no ping program here");
            return;
        }
        with_rules([
            rule().ipv4().icmp().icmp_type(ECHO_REQUEST).drop(),
            rule().ipv6().icmpv6().icmp_type(ECHO_REQUEST_V6).drop(),
        ]);
        assert!(!ping("198.51.100.7"));
        assert!(!ping("2001:db8::7"));
    });
}

#[test]
fn counters_count_what_passed_their_rule() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_counter(&table(), "ninth")
                .add_counter(&table(), "never")
                .add_rule(&table(), "output", rule().udp().dport(9).counter().count("ninth").accept())
                .add_rule(&table(), "output", rule().tcp().count("never").accept())
        });
        for port in [9, 9, 10, 9] {
            assert!(passes((ADDRESS, port)));
        }
        let mut counters: Vec<_> = connection
            .counters(&table())
            .unwrap()
            .into_iter()
            .map(|c| (c.name, c.packets, c.bytes))
            .collect();
        counters.sort();
        assert_eq!(counters, [("never".to_owned(), 0, 0), ("ninth".to_owned(), 3, 3 * 29)]);
        // Adding a counter that is there keeps its count.
        commit(&mut connection, |batch| batch.add_counter(&table(), "ninth"));
        assert_eq!(
            connection.counters(&table()).unwrap().iter().map(|counter| counter.packets).max(),
            Some(3)
        );
    });
}

#[test]
fn a_counter_that_is_taken_tells_each_packet_once() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_counter(&table(), "ninth")
                .add_counter(&table(), "other")
                .add_rule(&table(), "output", rule().udp().dport(9).count("ninth").accept())
                .add_rule(&table(), "output", rule().udp().dport(10).count("other").accept())
        });
        let mut take = |name| {
            let taken = connection.take_counter(&table(), name).unwrap();
            (taken.name, taken.packets, taken.bytes)
        };
        assert_eq!(take("ninth"), ("ninth".to_owned(), 0, 0));
        for port in [9, 9, 10] {
            assert!(passes((ADDRESS, port)));
        }
        assert_eq!(take("ninth"), ("ninth".to_owned(), 2, 2 * 29));
        assert_eq!(take("ninth"), ("ninth".to_owned(), 0, 0));
        assert!(passes((ADDRESS, 9)));
        assert_eq!(take("ninth"), ("ninth".to_owned(), 1, 29));
        assert_eq!(take("other"), ("other".to_owned(), 1, 29), "each by itself");
        let Err(nft::Error::List { what, source }) = connection.take_counter(&table(), "none") else {
            panic!("there is no such counter");
        };
        assert!(what.contains("none") && source.kind() == std::io::ErrorKind::NotFound, "{what}: {source}");
        // The connection is as good as before.
        assert_eq!(connection.counters(&table()).unwrap().len(), 2);
    });
}

/// A loopback with one address, everything routed to it, and marked packets taken for local ones.
fn redirected(test: impl FnOnce(&mut Connection) + Send) {
    in_bare_namespace(|| {
        program("ip", &["addr", "add", "100.64.0.2/32", "dev", "lo"]);
        program("ip", &["addr", "add", "fd00::2/128", "dev", "lo"]);
        for family in ["-4", "-6"] {
            program("ip", &[family, "route", "add", "default", "dev", "lo"]);
            program("ip", &[family, "rule", "add", "fwmark", "1", "lookup", "100"]);
            program("ip", &[family, "route", "add", "local", "default", "dev", "lo", "table", "100"]);
        }
        let mut connection = Connection::open().unwrap();
        let turned = Chain::base("turned", ChainType::Route, Hook::Output, priority::MANGLE, Policy::Accept);
        let arriving =
            Chain::base("arriving", ChainType::Filter, Hook::Prerouting, priority::MANGLE, Policy::Accept);
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &turned)
                .add_chain(&table(), &arriving)
                .add_rule(&table(), "turned", rule().ipv4().tcp().daddr(ADDRESS).set_mark(1).accept())
                .add_rule(&table(), "turned", rule().ipv6().tcp().daddr(ADDRESS_V6).set_mark(1).accept())
                .add_rule(&table(), "turned", rule().ipv4().udp().dport(53).set_mark(1).accept())
                .add_rule(&table(), "turned", rule().ipv4().daddr(OTHER).tcp().reset())
        });
        test(&mut connection);
    });
}

#[test]
fn a_connect_is_handed_to_the_transparent_socket_with_its_destination() {
    redirected(|connection| {
        let here = Ipv4Addr::new(100, 64, 0, 2);
        let here_v6 = "fd00::2".parse::<Ipv6Addr>().unwrap();
        commit(connection, |batch| {
            batch
                .add_rule(&table(), "arriving", rule().mark(1).ipv4().tcp().tproxy(here, 3128).accept())
                .add_rule(&table(), "arriving", rule().mark(1).ipv6().tcp().tproxy(here_v6, 3129).accept())
        });
        for (address, target, refused) in [
            (
                SocketAddr::from((here, 3128)),
                SocketAddr::from((ADDRESS, 443)),
                SocketAddr::from((OTHER, 443)),
            ),
            ((here_v6, 3129).into(), (ADDRESS_V6, 443).into(), (here_v6, 443).into()),
        ] {
            let listener = sys::net::listen_transparent(address, 0, 16).unwrap();
            listener.set_nonblocking(false).unwrap();
            let mut client = TcpStream::connect_timeout(&target, Duration::from_secs(5)).unwrap();
            let (mut server, peer) = listener.accept().unwrap();
            assert_eq!(server.local_addr().unwrap(), target);
            assert_eq!(peer, client.local_addr().unwrap());
            client.write_all(b"ping").unwrap();
            let mut received = [0; 4];
            server.read_exact(&mut received).unwrap();
            assert_eq!(&received, b"ping");

            let error = TcpStream::connect_timeout(&refused, Duration::from_secs(5)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn a_datagram_is_handed_to_the_transparent_socket_with_its_destination() {
    redirected(|connection| {
        let here = Ipv4Addr::new(100, 64, 0, 2);
        commit(connection, |batch| {
            batch.add_rule(&table(), "arriving", rule().mark(1).ipv4().udp().tproxy(here, 53).accept())
        });
        let socket = sys::net::bind_transparent_udp((here, 53).into(), 0).unwrap();
        let client = UdpSocket::bind((here, 0)).unwrap();
        client.send_to(b"query", (ADDRESS, 53)).unwrap();
        let mut buffer = [0; 64];
        let mut received = None;
        common::until("the datagram arrives", || {
            received = sys::udp::recv_orig_dst(&socket, &mut buffer).ok();
            received.is_some()
        });
        let (length, from, destination) = received.unwrap();
        assert_eq!(length, 5);
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(destination, SocketAddr::from((ADDRESS, 53)));
    });
}

#[test]
fn packets_of_transparent_sockets_are_recognised() {
    redirected(|connection| {
        let here = Ipv4Addr::new(100, 64, 0, 2);
        commit(connection, |batch| {
            batch
                .add_counter(&table(), "transparent")
                .add_rule(&table(), "arriving", rule().socket_transparent().count("transparent").end())
                .add_rule(&table(), "arriving", rule().mark(1).ipv4().tcp().tproxy(here, 3128).accept())
        });
        let count = |connection: &mut Connection| connection.counters(&table()).unwrap()[0].packets;

        let plain = TcpListener::bind((here, 80)).unwrap();
        let _client = TcpStream::connect(plain.local_addr().unwrap()).unwrap();
        assert_eq!(count(connection), 0);

        let listener = sys::net::listen_transparent((here, 3128).into(), 0, 16).unwrap();
        listener.set_nonblocking(false).unwrap();
        let mut client = TcpStream::connect_timeout(&(ADDRESS, 443).into(), Duration::from_secs(5)).unwrap();
        let (_server, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        assert!(count(connection) > 0);
    });
}

#[test]
fn untracked_packets_make_no_connection_to_track() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let early = Chain::base("early", ChainType::Filter, Hook::Output, priority::RAW, Policy::Accept);
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &early)
                .add_chain(&table(), &output_chain())
                .add_rule(&table(), "early", rule().ipv4().udp().dport(9).notrack().end())
                .add_rule(&table(), "output", rule().udp().ct_state(CtState::UNTRACKED).drop())
        });
        assert!(!passes((ADDRESS, 9)));
        assert!(passes((ADDRESS, 10)));
    });
}

#[test]
fn a_masquerading_rule_belongs_into_a_nat_chain() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let leaving =
            |kind| Chain::base("leaving", kind, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
        let masquerading = |kind| {
            let mut batch = Batch::new();
            batch.replace_table(&table()).add_chain(&table(), &leaving(kind)).add_rule(
                &table(),
                "leaving",
                rule().oifname("wan").masquerade(),
            );
            batch
        };
        connection.commit(masquerading(ChainType::Filter)).unwrap_err();
        connection.commit(masquerading(ChainType::Nat)).unwrap();
    });
}

#[test]
fn a_value_can_be_looked_up_without_a_family() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_set(&table(), &nft::Set::new("ports", [nft::Field::Port]))
                .add_set(&table(), &nft::Set::new("addresses", [nft::Field::Ipv4]))
                .add_element(&table(), "ports", 9_u16)
                .add_element(&table(), "addresses", ADDRESS)
                .add_rule(&table(), "output", rule().udp().dport_in("ports").drop())
                .add_rule(
                    &table(),
                    "output",
                    rule().ipv4().lookup_not("addresses", Daddr).udp().dport(10).drop(),
                )
        });
        assert!(!passes((ADDRESS, 9)));
        assert!(!passes((ADDRESS_V6, 9)));
        assert!(passes((ADDRESS, 10)));
        assert!(!passes((OTHER, 10)));
        assert!(passes((ADDRESS_V6, 10)));
    });
}
