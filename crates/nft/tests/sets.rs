//! Sets and maps: what is in them, what is not, and for how long. Proved with packets.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, helpers included")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use common::{commit, in_namespace, output_chain, passes, table};
use ipnet::{Ipv4Net, Ipv6Net};
use nft::{
    AddressRange, Batch, Chain, Connection, Daddr, Dport, Element, Field, InterfaceName, Match, Oifname,
    Protocol, Set, Udp, V4, V6, Verdict, rule,
};

/// Which of `addresses` a datagram to port 9 does not reach.
fn dropped<A: Into<IpAddr> + Copy>(addresses: &[A]) -> Vec<bool> {
    addresses.iter().map(|address| !passes((*address, 9))).collect()
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

/// A connection to a table with `set`, and a rule that drops the UDP datagrams whose destination is in it.
fn dropping_v4(set: &Set) -> Connection {
    dropping(set, rule().ipv4().udp().daddr_in(set.name()).drop())
}

fn dropping(set: &Set, rule: nft::Rule) -> Connection {
    let mut connection = Connection::open().unwrap();
    commit(&mut connection, |batch| {
        batch.add_table(&table()).add_chain(&table(), &output_chain()).add_set(&table(), set).add_rule(
            &table(),
            "output",
            rule,
        )
    });
    connection
}

#[test]
fn an_address_is_in_a_set_from_its_addition_to_its_deletion() {
    in_namespace(|| {
        let mut connection = dropping_v4(&Set::new("bound", [Field::Ipv4]));
        let addresses = [v4("198.51.100.1"), v4("198.51.100.2")];
        assert_eq!(dropped(&addresses), [false, false]);
        commit(&mut connection, |batch| batch.add_element(&table(), "bound", addresses[0]));
        assert_eq!(dropped(&addresses), [true, false]);
        // Adding what is there is no error.
        commit(&mut connection, |batch| batch.add_elements(&table(), "bound", addresses));
        assert_eq!(dropped(&addresses), [true, true]);
        commit(&mut connection, |batch| batch.del_element(&table(), "bound", addresses[0]));
        assert_eq!(dropped(&addresses), [false, true]);
        commit(&mut connection, |batch| batch.flush_set(&table(), "bound"));
        assert_eq!(dropped(&addresses), [false, false]);
        // Deleting what is absent is one.
        let mut batch = Batch::new();
        batch.del_element(&table(), "bound", addresses[0]);
        let error = connection.commit(batch).unwrap_err();
        assert!(error.is_not_found());
        assert!(error.to_string().contains("delete 1 element(s) of set `bound`"), "{error}");
    });
}

#[test]
fn a_range_holds_its_ends_and_nothing_beyond() {
    in_namespace(|| {
        let mut connection = dropping_v4(&Set::new("nets", [Field::Ipv4]).interval());
        let nets: [Ipv4Net; 5] = [
            "10.0.0.0/8".parse().unwrap(),
            "10.9.0.0/16".parse().unwrap(),
            "11.0.0.0/8".parse().unwrap(), // adjacent to the first
            "203.0.113.4/31".parse().unwrap(),
            "203.0.113.8/32".parse().unwrap(),
        ];
        commit(&mut connection, |batch| batch.add_ranges(&table(), "nets", nets));
        let inside = ["10.0.0.0", "10.9.1.1", "10.255.255.255", "11.0.0.0", "11.255.255.255"].map(v4);
        assert_eq!(dropped(&inside), [true; 5]);
        assert_eq!(dropped(&["203.0.113.4", "203.0.113.5", "203.0.113.8"].map(v4)), [true; 3]);
        let outside =
            ["9.255.255.255", "12.0.0.0", "203.0.113.3", "203.0.113.6", "203.0.113.7", "203.0.113.9"];
        assert_eq!(dropped(&outside.map(v4)), [false; 6]);
    });
}

#[test]
fn a_range_to_the_last_address_has_no_end() {
    in_namespace(|| {
        let mut connection = dropping_v4(&Set::new("nets", [Field::Ipv4]).interval());
        let high = AddressRange::new(v4("198.51.100.0"), Ipv4Addr::BROADCAST);
        commit(&mut connection, |batch| batch.add_ranges(&table(), "nets", [high]));
        assert_eq!(
            dropped(&["198.51.99.255", "198.51.100.0", "223.255.255.255"].map(v4)),
            [false, true, true]
        );

        let everything: Ipv4Net = "0.0.0.0/0".parse().unwrap();
        commit(&mut connection, |batch| {
            batch.flush_set(&table(), "nets").add_ranges(&table(), "nets", [everything])
        });
        assert_eq!(dropped(&["1.1.1.1", "127.0.0.1", "198.51.99.255", "223.255.255.255"].map(v4)), [true; 4]);

        commit(&mut connection, |batch| batch.flush_set(&table(), "nets"));
        assert_eq!(dropped(&["1.1.1.1", "223.255.255.255"].map(v4)), [false; 2]);
    });
}

#[test]
fn ipv6_ranges_behave_like_ipv4_ranges() {
    in_namespace(|| {
        let set = Set::new("nets", [Field::Ipv6]).interval();
        let mut connection = dropping(&set, rule().ipv6().udp().daddr_in("nets").drop());
        let nets: [Ipv6Net; 3] = [
            "2001:db8::/32".parse().unwrap(),
            "2001:db8:1::/48".parse().unwrap(),
            "fd00::1/128".parse().unwrap(),
        ];
        commit(&mut connection, |batch| batch.add_ranges(&table(), "nets", nets));
        let inside = ["2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "fd00::1"].map(v6);
        assert_eq!(dropped(&inside), [true; 3]);
        let outside = ["2001:db7:ffff::1", "2001:db9::", "fd00::", "fd00::2"].map(v6);
        assert_eq!(dropped(&outside), [false; 4]);
        assert_eq!(dropped(&[v4("10.0.0.1")]), [false]);

        let everything: Ipv6Net = "::/0".parse().unwrap();
        commit(&mut connection, |batch| {
            batch.flush_set(&table(), "nets").add_ranges(&table(), "nets", [everything])
        });
        assert_eq!(dropped(&outside), [true; 4]);
        assert_eq!(dropped(&[v4("10.0.0.1")]), [false]);
    });
}

#[test]
fn a_range_that_overlaps_one_in_the_kernel_is_refused_not_ignored() {
    in_namespace(|| {
        let mut connection = dropping_v4(&Set::new("nets", [Field::Ipv4]).interval());
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        commit(&mut connection, |batch| batch.add_ranges(&table(), "nets", [net("10.0.0.0/9")]));
        let mut batch = Batch::new();
        batch.add_ranges(&table(), "nets", [net("10.0.0.0/8")]);
        connection.commit(batch).unwrap_err();
        assert_eq!(dropped(&[v4("10.1.1.1"), v4("10.200.1.1")]), [true, false]);
        commit(&mut connection, |batch| {
            batch.flush_set(&table(), "nets").add_ranges(
                &table(),
                "nets",
                [net("10.0.0.0/9"), net("10.0.0.0/8")],
            )
        });
        assert_eq!(dropped(&[v4("10.1.1.1"), v4("10.200.1.1")]), [true, true]);
    });
}

#[test]
fn an_address_with_a_port_is_in_a_set_with_that_port_only() {
    in_namespace(|| {
        let set = Set::new("pairs", [Field::Ipv4, Field::Port]);
        let mut connection = dropping(&set, rule().ipv4().udp().daddr_dport_in("pairs").drop());
        let address = v4("198.51.100.1");
        commit(&mut connection, |batch| batch.add_element(&table(), "pairs", (address, 53_u16)));
        assert!(!passes((address, 53)));
        assert!(passes((address, 54)));
        assert!(passes((v4("198.51.100.2"), 53)));
        commit(&mut connection, |batch| batch.del_element(&table(), "pairs", (address, 53_u16)));
        assert!(passes((address, 53)));
    });
}

#[test]
fn an_ipv6_address_with_protocol_and_port_is_one_key() {
    in_namespace(|| {
        let set = Set::new("triples", [Field::Protocol, Field::Ipv6, Field::Port]);
        let key = (Protocol, Daddr, Dport);
        let mut connection = dropping(&set, rule().ipv6().udp().lookup("triples", key).drop());
        let address = v6("2001:db8::1");
        commit(&mut connection, |batch| batch.add_element(&table(), "triples", (6_u8, address, 53_u16)));
        assert!(passes((address, 53)));
        commit(&mut connection, |batch| batch.add_element(&table(), "triples", (17_u8, address, 53_u16)));
        assert!(!passes((address, 53)));
        assert!(passes((address, 54)));
    });
}

#[test]
fn a_network_with_a_port_holds_its_addresses_with_that_port_only() {
    in_namespace(|| {
        let set = Set::new("nets", [Field::Ipv4, Field::Port]).interval();
        let mut connection = dropping(&set, rule().ipv4().udp().daddr_dport_in("nets").drop());
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let nets = [
            (net("10.0.0.0/8"), 5432),
            (net("10.1.0.0/16"), 5432), // inside the first
            (net("10.0.0.0/8"), 443),
            (net("11.0.0.0/8"), 443), // adjacent to it
            (net("0.0.0.0/0"), 7),
        ];
        commit(&mut connection, |batch| batch.add_port_ranges(&table(), "nets", nets));
        for (address, port, inside) in [
            ("10.0.0.0", 5432, true),
            ("10.1.2.3", 5432, true),
            ("10.255.255.255", 5432, true),
            ("11.0.0.0", 5432, false),
            ("11.0.0.0", 443, true),
            ("12.0.0.0", 443, false),
            ("10.0.0.1", 80, false),
            ("198.51.100.1", 7, true),
        ] {
            assert_eq!(!passes((v4(address), port)), inside, "{address}:{port}");
        }
    });
}

#[test]
fn ipv6_networks_with_ports_work_too() {
    in_namespace(|| {
        let set = Set::new("nets", [Field::Ipv6, Field::Port]).interval();
        let mut connection = dropping(&set, rule().ipv6().udp().daddr_dport_in("nets").drop());
        let nets =
            [("2001:db8::/33".parse::<Ipv6Net>().unwrap(), 53), ("2001:db8:8000::/33".parse().unwrap(), 53)];
        commit(&mut connection, |batch| batch.add_port_ranges(&table(), "nets", nets));
        assert!(!passes((v6("2001:db8::1"), 53)));
        assert!(!passes((v6("2001:db8:ffff::1"), 53)));
        assert!(passes((v6("2001:db9::1"), 53)));
        assert!(passes((v6("2001:db8::1"), 54)));
    });
}

#[test]
fn an_element_with_a_timeout_disappears_by_itself() {
    in_namespace(|| {
        let mut connection = dropping_v4(&Set::new("bound", [Field::Ipv4]).timeouts());
        let (brief, lasting) = (v4("198.51.100.1"), v4("198.51.100.2"));
        commit(&mut connection, |batch| {
            batch
                .add_element(&table(), "bound", Element::new(brief).timeout(Duration::from_secs(1)))
                .add_element(&table(), "bound", lasting)
        });
        assert_eq!(dropped(&[brief, lasting]), [true, true]);
        common::until("the element has expired", || passes((brief, 9)));
        assert_eq!(dropped(&[brief, lasting]), [false, true]);
        assert_eq!(connection.elements(&table(), "bound").unwrap().len(), 1);
    });
}

#[test]
fn a_renewed_element_lives_as_long_as_it_was_renewed_for() {
    in_namespace(|| {
        let mut connection = dropping_v4(&Set::new("bound", [Field::Ipv4]).timeouts());
        let address = v4("198.51.100.1");
        // Absent, then longer, then shorter.
        for seconds in [100, 1000, 10] {
            let timeout = Duration::from_secs(seconds);
            let element = Element::new(address).timeout(timeout);
            commit(&mut connection, |batch| batch.renew_element(&table(), "bound", element));
            let elements = connection.elements(&table(), "bound").unwrap();
            assert_eq!(elements.len(), 1);
            assert_eq!(elements[0].key, address.octets());
            let left = elements[0].expires_in.unwrap();
            assert!(left <= timeout && left > timeout - Duration::from_secs(8), "{left:?} of {timeout:?}");
        }
        assert_eq!(dropped(&[address]), [true]);
    });
}

#[test]
fn a_default_timeout_is_for_elements_without_one() {
    in_namespace(|| {
        let mut connection =
            dropping_v4(&Set::new("bound", [Field::Ipv4]).default_timeout(Duration::from_secs(60)));
        commit(&mut connection, |batch| batch.add_element(&table(), "bound", v4("198.51.100.1")));
        let left = connection.elements(&table(), "bound").unwrap()[0].expires_in.unwrap();
        assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(60), "{left:?}");
    });
}

#[test]
fn rules_add_to_a_dynamic_set_until_it_is_full() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let first_of_each = |rule: Match<V4, Udp>| {
            rule.lookup_not("seen", (Daddr, Dport)).add_to_set(
                "seen",
                (Daddr, Dport),
                Some(Duration::from_secs(60)),
            )
        };
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_set(&table(), &Set::new("seen", [Field::Ipv4, Field::Port]).dynamic().timeouts().size(3))
                .add_counter(&table(), "first")
                .add_counter(&table(), "all")
                .add_rule(&table(), "output", rule().ipv4().udp().count("all").end())
                .add_rule(&table(), "output", first_of_each(rule().ipv4().udp()).count("first").end())
        });
        for address in ["198.51.100.1", "198.51.100.2", "198.51.100.1", "198.51.100.3", "198.51.100.4"] {
            assert!(passes((v4(address), 9)));
        }
        let counted: Vec<_> = connection
            .counters(&table())
            .unwrap()
            .into_iter()
            .map(|counter| (counter.name, counter.packets, counter.bytes))
            .collect();
        // A datagram of one byte with its headers is 29 bytes.
        assert_eq!(counted, [("first".to_owned(), 3, 87), ("all".to_owned(), 5, 145)]);
        let mut keys: Vec<_> =
            connection.elements(&table(), "seen").unwrap().into_iter().map(|element| element.key).collect();
        keys.sort();
        assert_eq!(keys, [1, 2, 3].map(|last| vec![198, 51, 100, last, 0, 9, 0, 0]));
    });
}

#[test]
fn a_verdict_map_decides_by_the_packets_values() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let name = InterfaceName::new("lo").unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_chain(&table(), &Chain::regular("by_address"))
                .add_set(&table(), &Set::new("interfaces", [Field::Interface]).verdict_map())
                .add_set(&table(), &Set::new("addresses", [Field::Ipv4]).verdict_map())
                .add_rule(&table(), "output", rule().vmap("interfaces", Oifname))
                .add_rule(&table(), "by_address", rule().ipv4().udp().vmap("addresses", Daddr))
                .add_element(
                    &table(),
                    "interfaces",
                    Element::new(name).verdict(Verdict::Jump("by_address".to_owned())),
                )
                .add_element(&table(), "addresses", Element::new(v4("198.51.100.1")).verdict(Verdict::Drop))
                .add_element(&table(), "addresses", Element::new(v4("198.51.100.2")).verdict(Verdict::Accept))
        });
        assert_eq!(dropped(&["198.51.100.1", "198.51.100.2", "198.51.100.3"].map(v4)), [true, false, false]);
        // The same key with another verdict is another element: refused, not ignored.
        let mut batch = Batch::new();
        batch.add_element(&table(), "addresses", Element::new(v4("198.51.100.1")).verdict(Verdict::Accept));
        assert!(connection.commit(batch).unwrap_err().is_exists());
    });
}

#[test]
fn a_map_gives_the_mark() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        commit(&mut connection, |batch| {
            batch
                .add_table(&table())
                .add_chain(&table(), &output_chain())
                .add_set(&table(), &Set::new("marks", [Field::Ipv6]).map_to(Field::Mark))
                .add_element(&table(), "marks", Element::new(v6("2001:db8::1")).value(7_u32))
                .add_element(&table(), "marks", Element::new(v6("2001:db8::2")).value(8_u32))
                .add_rule(&table(), "output", rule().ipv6().udp().set_mark_from("marks", Daddr).end())
                .add_rule(&table(), "output", rule().mark(7).drop())
        });
        assert_eq!(dropped(&["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(v6)), [true, false, false]);
    });
}

#[test]
fn an_ipv6_rule_never_matches_an_ipv4_packet() {
    in_namespace(|| {
        let mut connection = Connection::open().unwrap();
        let typed_v6 = |rule: Match<V6, Udp>| rule.daddr_not(Ipv6Addr::LOCALHOST).drop();
        commit(&mut connection, |batch| {
            batch.add_table(&table()).add_chain(&table(), &output_chain()).add_rule(
                &table(),
                "output",
                typed_v6(rule().ipv6().udp()),
            )
        });
        assert!(passes((v4("198.51.100.1"), 9)));
        assert!(passes((Ipv6Addr::LOCALHOST, 9)));
        assert!(!passes((v6("2001:db8::1"), 9)));
    });
}
