//! The same table, once by this crate and once by the reference program, is the same table.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "these are tests, helpers included")]

mod common;

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use common::{commit, in_namespace, program};
use ipnet::{Ipv4Net, Ipv6Net};
use nft::{
    AddressRange, AddressType, Batch, Chain, ChainType, Connection, CtState, Daddr, Dport, Element, Field,
    Hook, Iifname, InterfaceName, Log, Policy, Protocol, Rule, Saddr, Set, Table, Unreachable, Verdict,
    priority, rule,
};
use serde_json::Value;

/// What the reference program lists for a table, without the numbers that the kernel gives objects.
fn listing(table: &str) -> Vec<Value> {
    let text = program("nft", &["-j", "list", "table", "inet", table]);
    let mut listing: Value = serde_json::from_str(&text).unwrap();
    let mut objects = listing["nftables"].as_array_mut().unwrap().split_off(1); // behind the version
    for object in &mut objects {
        anonymise(object, table);
    }
    objects
}

fn anonymise(value: &mut Value, table: &str) {
    match value {
        Value::Object(members) => {
            members.remove("handle");
            members.values_mut().for_each(|member| anonymise(member, table));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| anonymise(item, table)),
        Value::String(text) if text == table => "table".clone_into(text),
        _ => {}
    }
}

/// Makes a table by this crate and one by the reference program's language, and compares their listings.
fn compare(fill: impl FnOnce(&mut Batch, &Table), text: &str) {
    let mut connection = Connection::open().unwrap();
    let ours = Table::inet("ours");
    commit(&mut connection, |batch| {
        batch.replace_table(&ours);
        fill(batch, &ours);
        batch
    });
    // The program reads a file; a heredoc would need a shell.
    let file =
        tempfile(&format!("table inet theirs\ndelete table inet theirs\ntable inet theirs {{\n{text}\n}}\n"));
    program("nft", &["-f", &format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file))]);
    let (ours, theirs) = (listing("ours"), listing("theirs"));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "\nours:   {ours}\ntheirs: {theirs}\n");
    }
    assert_eq!(ours.len(), theirs.len());
}

/// A file without a name, which a child inherits.
fn tempfile(content: &str) -> std::fs::File {
    use std::io::{Seek, Write};
    let descriptor = rustix::fs::memfd_create("rules", rustix::fs::MemfdFlags::empty()).unwrap();
    let mut file = std::fs::File::from(descriptor);
    file.write_all(content.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

fn v4(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn v6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn base_and_regular_chains_are_listed_as_meant() {
    in_namespace(|| {
        compare(
            |batch, table| {
                use {ChainType::*, Hook::*};
                batch
                    .add_chain(table, &Chain::base("a", Filter, Prerouting, priority::RAW, Policy::Accept))
                    .add_chain(table, &Chain::base("b", Filter, Input, priority::FILTER, Policy::Drop))
                    .add_chain(table, &Chain::base("c", Filter, Forward, 7, Policy::Drop))
                    .add_chain(table, &Chain::base("d", Route, Output, priority::MANGLE, Policy::Accept))
                    .add_chain(table, &Chain::base("e", Nat, Postrouting, priority::SRCNAT, Policy::Accept))
                    .add_chain(table, &Chain::regular("f"));
            },
            "chain a { type filter hook prerouting priority raw; policy accept; }
             chain b { type filter hook input priority filter; policy drop; }
             chain c { type filter hook forward priority 7; policy drop; }
             chain d { type route hook output priority mangle; policy accept; }
             chain e { type nat hook postrouting priority srcnat; policy accept; }
             chain f { }",
        );
    });
}

#[test]
fn sets_and_their_elements_are_listed_as_meant() {
    in_namespace(|| {
        let nets4 =
            || ["0.0.0.0/8", "10.0.0.0/8", "255.255.255.0/24"].map(|net| net.parse::<Ipv4Net>().unwrap());
        let nets6 = || ["::/128", "fe80::/10", "ff00::/8"].map(|net| net.parse::<Ipv6Net>().unwrap());
        compare(
            |batch, table| {
                batch
                    .add_set(table, &Set::new("a", [Field::Ipv4]))
                    .add_elements(table, "a", [v4("192.0.2.1"), v4("192.0.2.2")])
                    .add_set(
                        table,
                        &Set::new("b", [Field::Ipv6]).size(100).default_timeout(Duration::from_secs(60)),
                    )
                    .add_set(table, &Set::new("c", [Field::Ipv4]).interval())
                    .add_ranges(table, "c", nets4())
                    .add_set(table, &Set::new("d", [Field::Ipv6]).interval())
                    .add_ranges(table, "d", nets6())
                    .add_set(table, &Set::new("e", [Field::Ipv4, Field::Port]))
                    .add_element(table, "e", (v4("192.0.2.1"), 443_u16))
                    .add_set(table, &Set::new("f", [Field::Ipv4, Field::Port]).interval())
                    .add_port_ranges(table, "f", [("10.0.0.0/8".parse::<Ipv4Net>().unwrap(), 5432)])
                    .add_set(table, &Set::new("g", [Field::Protocol, Field::Ipv6, Field::Port]))
                    .add_element(table, "g", (17_u8, v6("2001:db8::1"), 53_u16))
                    .add_set(
                        table,
                        &Set::new("h", [Field::Ipv4, Field::Port]).dynamic().timeouts().size(1000),
                    )
                    .add_set(table, &Set::new("i", [Field::Mark]))
                    .add_element(table, "i", 0x102_u32)
                    .add_set(table, &Set::new("j", [Field::Interface]))
                    .add_element(table, "j", InterfaceName::new("veth0").unwrap());
            },
            r#"set a { type ipv4_addr; elements = { 192.0.2.1, 192.0.2.2 } }
               set b { type ipv6_addr; size 100; timeout 1m; }
               set c { type ipv4_addr; flags interval; elements = { 0.0.0.0/8, 10.0.0.0/8, 255.255.255.0/24 } }
               set d { type ipv6_addr; flags interval; elements = { ::, fe80::/10, ff00::/8 } }
               set e { type ipv4_addr . inet_service; elements = { 192.0.2.1 . 443 } }
               set f { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 5432 } }
               set g { type inet_proto . ipv6_addr . inet_service; elements = { udp . 2001:db8::1 . 53 } }
               set h { type ipv4_addr . inet_service; flags dynamic,timeout; size 1000; }
               set i { type mark; elements = { 0x102 } }
               set j { type ifname; elements = { "veth0" } }"#,
        );
    });
}

#[test]
fn maps_are_listed_as_meant() {
    in_namespace(|| {
        compare(
            |batch, table| {
                let jump = |chain: &str| Verdict::Jump(chain.to_owned());
                batch
                    .add_chain(table, &Chain::regular("one"))
                    .add_set(table, &Set::new("a", [Field::Interface]).verdict_map())
                    .add_element(
                        table,
                        "a",
                        Element::new(InterfaceName::new("veth0").unwrap()).verdict(jump("one")),
                    )
                    .add_set(table, &Set::new("b", [Field::Ipv4, Field::Port]).verdict_map())
                    .add_element(table, "b", Element::new((v4("192.0.2.1"), 80_u16)).verdict(Verdict::Accept))
                    .add_set(table, &Set::new("c", [Field::Ipv4]).map_to(Field::Mark))
                    .add_element(table, "c", Element::new(v4("192.0.2.1")).value(7_u32));
            },
            r#"chain one { }
               map a { type ifname : verdict; elements = { "veth0" : jump one } }
               map b { type ipv4_addr . inet_service : verdict; elements = { 192.0.2.1 . 80 : accept } }
               map c { type ipv4_addr : mark; elements = { 192.0.2.1 : 7 } }"#,
        );
    });
}

/// Rules of a chain at `hook`, ours beside the reference program's words for each.
fn compare_rules(kind: ChainType, hook: Hook, rules: Vec<(Rule, &str)>) {
    let (hook_name, kind_name) = (format!("{hook:?}").to_lowercase(), format!("{kind:?}").to_lowercase());
    let sets = "set four { type ipv4_addr; }
        set six { type ipv6_addr; }
        set pairs { type ipv4_addr . inet_service; }
        set triples { type inet_proto . ipv6_addr . inet_service; }
        set ports { type inet_service; }
        set seen { type ipv4_addr . inet_service; flags dynamic,timeout; size 1000; }
        map marks { type ipv4_addr : mark; }
        map interfaces { type ifname : verdict; }
        counter counted { }
        chain other { }";
    let (ours, theirs): (Vec<_>, Vec<_>) = rules.into_iter().unzip();
    let fill = |batch: &mut Batch, table: &Table| {
        batch
            .add_set(table, &Set::new("four", [Field::Ipv4]))
            .add_set(table, &Set::new("six", [Field::Ipv6]))
            .add_set(table, &Set::new("pairs", [Field::Ipv4, Field::Port]))
            .add_set(table, &Set::new("triples", [Field::Protocol, Field::Ipv6, Field::Port]))
            .add_set(table, &Set::new("ports", [Field::Port]))
            .add_set(table, &Set::new("seen", [Field::Ipv4, Field::Port]).dynamic().timeouts().size(1000))
            .add_set(table, &Set::new("marks", [Field::Ipv4]).map_to(Field::Mark))
            .add_set(table, &Set::new("interfaces", [Field::Interface]).verdict_map())
            .add_counter(table, "counted")
            .add_chain(table, &Chain::regular("other"))
            .add_chain(table, &Chain::base("base", kind, hook, 0, Policy::Accept));
        for rule in ours {
            batch.add_rule(table, "base", rule);
        }
    };
    let chain = format!("chain base {{ type {kind_name} hook {hook_name} priority 0; policy accept;\n");
    compare(fill, &format!("{sets}\n{chain}{}\n}}", theirs.join("\n")));
}

#[test]
fn matches_are_listed_as_meant() {
    let range = AddressRange::new(v4("192.0.2.1"), v4("192.0.2.9"));
    in_namespace(|| {
        compare_rules(
            ChainType::Filter,
            Hook::Output,
            vec![
                (rule().oifname("wan").end(), r#"oifname "wan""#),
                (rule().oifname_not("wan").end(), r#"oifname != "wan""#),
                (rule().mark(0x10).end(), "meta mark 0x10"),
                (rule().mark_not(0x10).end(), "meta mark != 0x10"),
                (rule().mark_masked(0x10, 0xf0).end(), "meta mark & 0xf0 == 0x10"),
                (rule().skuid(1000).end(), "meta skuid 1000"),
                (rule().skuid_not(1000).end(), "meta skuid != 1000"),
                (
                    rule().ct_state(CtState::ESTABLISHED | CtState::RELATED).end(),
                    "ct state established,related",
                ),
                (rule().ct_state(CtState::INVALID).end(), "ct state invalid"),
                (rule().ct_mark(7).end(), "ct mark 7"),
                (rule().set_ct_mark(0x0102).end(), "ct mark set 0x102"),
                (rule().fib_daddr_type(AddressType::Local).end(), "fib daddr type local"),
                (rule().fib_daddr_type_not(AddressType::Broadcast).end(), "fib daddr type != broadcast"),
                (rule().limit_per_second(10, 20).end(), "limit rate 10/second burst 20 packets"),
                (rule().over_limit_per_second(10, 20).end(), "limit rate over 10/second burst 20 packets"),
                (rule().ipv4().end(), "meta nfproto ipv4"),
                (rule().ipv4().daddr(v4("192.0.2.1")).end(), "ip daddr 192.0.2.1"),
                (rule().ipv4().saddr_not(v4("192.0.2.1")).end(), "ip saddr != 192.0.2.1"),
                (rule().ipv4().daddr_within(range).end(), "ip daddr 192.0.2.1-192.0.2.9"),
                (rule().ipv4().daddr_not_within(range).end(), "ip daddr != 192.0.2.1-192.0.2.9"),
                (rule().ipv6().daddr(v6("2001:db8::1")).end(), "ip6 daddr 2001:db8::1"),
                (rule().ipv6().saddr(v6("2001:db8::1")).end(), "ip6 saddr 2001:db8::1"),
                (rule().ipv4().daddr_in("four").end(), "ip daddr @four"),
                (rule().ipv4().saddr_not_in("four").end(), "ip saddr != @four"),
                (rule().ipv6().daddr_in("six").end(), "ip6 daddr @six"),
                (rule().tcp().dport(443).end(), "tcp dport 443"),
                (rule().udp().sport_not(53).end(), "udp sport != 53"),
                (rule().tcp().dport_in("ports").end(), "tcp dport @ports"),
                (rule().tcp().syn().end(), "tcp flags & (fin|syn|rst|ack) == syn"),
                (rule().l4proto(132).end(), "meta l4proto sctp"),
                (rule().l4proto_not(6).end(), "meta l4proto != tcp"),
                (rule().ipv4().icmp().icmp_type(8).end(), "icmp type echo-request"),
                (rule().ipv6().icmpv6().icmp_type(128).end(), "icmpv6 type echo-request"),
                (rule().ipv4().tcp().daddr_dport_in("pairs").end(), "ip daddr . tcp dport @pairs"),
                (
                    rule().ipv6().udp().lookup_not("triples", (Protocol, Saddr, Dport)).end(),
                    "meta l4proto . ip6 saddr . udp dport != @triples",
                ),
            ],
        );
    });
}

#[test]
fn statements_are_listed_as_meant() {
    let log = Log { group: 5, prefix: "refused".to_owned(), snaplen: 64, qthreshold: 8 };
    let hour = Some(Duration::from_secs(3600));
    in_namespace(|| {
        compare_rules(
            ChainType::Filter,
            Hook::Output,
            vec![
                (rule().accept(), "accept"),
                (rule().drop(), "drop"),
                (rule().ret(), "return"),
                (rule().jump("other"), "jump other"),
                (rule().goto("other"), "goto other"),
                (rule().set_mark(0x42).end(), "meta mark set 0x42"),
                (rule().ipv4().set_mark_from("marks", Daddr).end(), "meta mark set ip daddr map @marks"),
                (rule().counter().end(), "counter"),
                (rule().count("counted").end(), r#"counter name "counted""#),
                (rule().log(&log).end(), r#"log prefix "refused" group 5 snaplen 64 queue-threshold 8"#),
                (rule().tcp().reset(), "meta l4proto tcp reject with tcp reset"),
                (rule().reject(Unreachable::AdminProhibited), "reject with icmpx type admin-prohibited"),
                (rule().reject(Unreachable::Port), "reject with icmpx type port-unreachable"),
                (rule().reject(Unreachable::Host), "reject with icmpx type host-unreachable"),
                (rule().reject(Unreachable::NoRoute), "reject with icmpx type no-route"),
                (
                    rule().ipv4().tcp().add_to_set("seen", (Daddr, Dport), None).end(),
                    "add @seen { ip daddr . tcp dport }",
                ),
                (
                    rule().ipv4().tcp().update_set("seen", (Daddr, Dport), hour).end(),
                    "update @seen { ip daddr . tcp dport timeout 1h }",
                ),
            ],
        );
    });
}

#[test]
fn rules_for_packets_that_arrive_are_listed_as_meant() {
    in_namespace(|| {
        compare_rules(
            ChainType::Filter,
            Hook::Prerouting,
            vec![
                (rule().iifname("lo").end(), r#"iifname "lo""#),
                (rule().iifname_not("lo").end(), r#"iifname != "lo""#),
                (rule().vmap("interfaces", Iifname), "iifname vmap @interfaces"),
                (rule().socket_transparent().end(), "socket transparent 1"),
                (rule().notrack().end(), "notrack"),
                (
                    rule().mark(1).ipv4().tcp().tproxy(v4("100.64.0.2"), 3128).accept(),
                    "meta mark 1 meta nfproto ipv4 meta l4proto tcp tproxy ip to 100.64.0.2:3128 accept",
                ),
                (
                    rule().mark(1).ipv6().udp().tproxy(v6("fd00::2"), 53).set_mark(2).accept(),
                    "meta mark 1 meta nfproto ipv6 meta l4proto udp tproxy ip6 to [fd00::2]:53 meta mark set 2 accept",
                ),
            ],
        );
        compare_rules(
            ChainType::Nat,
            Hook::Postrouting,
            vec![(rule().oifname("wan").masquerade(), r#"oifname "wan" masquerade"#)],
        );
    });
}
