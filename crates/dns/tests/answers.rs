//! What a sandbox gets for its queries, and what its queries cause.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use std::{sync::atomic::Ordering, time::Duration};

use dns::{BindRefused, Transport};
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{
        DNSClass, RData, RecordType,
        rdata::opt::{EdnsCode, EdnsOption},
    },
};
use policy::{EventKind, NameSource, PolicySpec, RefusedNames};
use support::{
    FakeServer, FakeZone, Reply, a, aaaa, addresses, allow, ask, ask_message, cname, ede, name, query,
};

fn records(records: Vec<(&'static str, u32, RData)>) -> Reply {
    Reply { code: None, records }
}

fn code(code: ResponseCode) -> Reply {
    Reply { code: Some(code), records: Vec::new() }
}

async fn server() -> FakeServer {
    FakeServer::start([
        (
            "good.test",
            records(vec![a("good.test", 300, "93.184.216.34"), aaaa("good.test", 300, "2606:2800::1")]),
        ),
        ("evil.test", records(vec![a("evil.test", 300, "93.184.216.35")])),
        ("zero.test", records(vec![a("zero.test", 0, "93.184.216.36")])),
        ("long.test", records(vec![a("long.test", i32::MAX.unsigned_abs(), "93.184.216.37")])),
        (
            "alias.test",
            records(vec![
                cname("alias.test", 200, "cdn.example."),
                cname("cdn.example", 100, "edge.example."),
                a("edge.example", 300, "93.184.216.38"),
                a("unrelated.example", 300, "93.184.216.99"),
            ]),
        ),
        (
            "inside.test",
            records(vec![a("inside.test", 300, "10.1.2.3"), a("inside.test", 300, "169.254.169.254")]),
        ),
        (
            "mixed.test",
            records(vec![a("mixed.test", 300, "127.0.0.1"), a("mixed.test", 300, "93.184.216.40")]),
        ),
        ("broken.test", code(ResponseCode::ServFail)),
        ("empty.test", records(Vec::new())),
    ])
    .await
}

#[tokio::test]
async fn a_query_for_a_refused_name_never_leaves_the_node_and_its_permitted_twin_does() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test"]));
    for kind in
        [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::ANY, RecordType::Unknown(65399)]
    {
        for refused in ["evil.test.", "c2VjcmV0.evil.test.", "x.good.test.", "agood.test."] {
            ask(&zone, &upstream, refused, kind).await;
        }
    }
    assert_eq!(server.count(), 0);

    let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.216.34"]);
    assert_eq!(server.count(), 1);
}

#[tokio::test]
async fn a_refused_name_gets_a_sink_address_under_an_allowlist() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test"]));
    let reply = ask(&zone, &upstream, "evil.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["198.18.0.1"]);
    assert!(reply.answers.iter().all(|record| record.ttl <= 10));
    let reply = ask(&zone, &upstream, "evil.test.", RecordType::AAAA).await;
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    // The connection to the sink is what is recorded, with its port; of who asks for IPv6 addresses only, the query.
    assert!(zone.events.lock().is_empty());
    let alone = zone.alone.lock().clone();
    let [event] = alone.as_slice() else { panic!("{alone:?}") };
    assert_eq!((event.kind, &event.name), (EventKind::DnsBlocked, &Some(name("evil.test"))));
    assert_eq!((event.verdict.reason.as_str(), event.name_source), ("default_deny", NameSource::Dns));
    ask(&zone, &upstream, "good.test.", RecordType::AAAA).await;
    assert_eq!(zone.alone.lock().len(), 1);
    assert!(zone.bound.lock().is_empty());
}

#[tokio::test]
async fn without_a_sink_address_left_the_refusal_is_said_and_recorded() {
    let server = server().await;
    let zone = FakeZone::new(&allow(&["good.test"]));
    zone.no_sinks.store(true, Ordering::Relaxed);
    let reply = ask(&zone, &server.upstream(), "evil.test.", RecordType::A).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert_eq!(zone.reasons(), ["default_deny"]);
}

#[tokio::test]
async fn a_refused_name_gets_what_the_policy_says_with_an_extended_error() {
    let server = server().await;
    let upstream = server.upstream();
    for (mode, expected) in
        [(RefusedNames::Refused, ResponseCode::Refused), (RefusedNames::Nxdomain, ResponseCode::NXDomain)]
    {
        let zone = FakeZone::new(&PolicySpec { refused_names: mode, ..allow(&["good.test"]) });
        let reply = ask(&zone, &upstream, "evil.test.", RecordType::A).await;
        assert_eq!(reply.response_code, expected);
        let (code, text) = ede(&reply).unwrap();
        assert_eq!(code, 15);
        assert!(text.contains("default_deny"), "{text}");
        let events = zone.events.lock();
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(event.kind, EventKind::DnsBlocked);
        assert_eq!(event.name, Some(name("evil.test")));
        assert_eq!(event.name_source, NameSource::Dns);
    }
}

#[tokio::test]
async fn other_record_types_of_a_refused_name_are_refused_and_recorded() {
    let server = server().await;
    let zone = FakeZone::new(&allow(&["good.test"]));
    for kind in [RecordType::TXT, RecordType::MX, RecordType::HTTPS, RecordType::SVCB, RecordType::PTR] {
        let reply = ask(&zone, &server.upstream(), "evil.test.", kind).await;
        assert_eq!(reply.response_code, ResponseCode::Refused);
        assert_eq!(ede(&reply).unwrap().0, 15);
    }
    assert_eq!(zone.events.lock().len(), 5);
}

#[tokio::test]
async fn other_record_types_of_a_permitted_name_are_empty_and_not_looked_up() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test"]));
    for kind in [RecordType::HTTPS, RecordType::SVCB, RecordType::TXT, RecordType::Unknown(65399)] {
        let reply = ask(&zone, &upstream, "good.test.", kind).await;
        assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    }
    let reply = ask(&zone, &upstream, "good.test.", RecordType::ANY).await;
    assert!(matches!(reply.answers[0].data, RData::HINFO(_)));
    let reply = ask(&zone, &upstream, "good.test.", RecordType::AXFR).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert_eq!(server.count(), 0);
    assert_eq!(zone.reasons(), ["dns_type"]);
}

#[tokio::test]
async fn under_a_blackout_no_name_resolves() {
    let server = server().await;
    let zone = FakeZone::new(&PolicySpec { deny_out: vec!["0.0.0.0/0".to_owned()], ..PolicySpec::default() });
    for kind in [RecordType::A, RecordType::AAAA, RecordType::TXT] {
        let reply = ask(&zone, &server.upstream(), "good.test.", kind).await;
        assert_eq!(reply.response_code, ResponseCode::Refused);
        assert_eq!(ede(&reply).unwrap().0, 15);
    }
    assert_eq!(zone.events.lock().len(), 3);
    assert_eq!(server.count(), 0);

    let open = FakeZone::new(&PolicySpec::default());
    assert_eq!(
        addresses(&ask(&open, &server.upstream(), "good.test.", RecordType::A).await),
        ["93.184.216.34"]
    );
}

#[tokio::test]
async fn names_of_the_floor_are_refused_by_an_open_policy_too() {
    let server = server().await;
    let zone = FakeZone::new(&PolicySpec::default());
    for floor in ["metadata.google.internal.", "METADATA.google.internal.", "instance-data."] {
        let reply = ask(&zone, &server.upstream(), floor, RecordType::A).await;
        assert_eq!(reply.response_code, ResponseCode::Refused, "{floor}");
    }
    assert_eq!(zone.reasons(), ["floor"; 3]);
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn an_answer_on_the_floor_or_a_private_range_is_dropped() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["~.*\\.test"]));
    let reply = ask(&zone, &upstream, "inside.test.", RecordType::A).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert!(ede(&reply).unwrap().1.contains("private_range"));
    assert!(zone.bound.lock().is_empty());
    assert_eq!(zone.reasons(), ["private_range"]);
    assert_eq!(zone.events.lock()[0].address, Some("10.1.2.3".parse().unwrap()));

    // What is left of a mixed answer is given, the rest is recorded.
    let reply = ask(&zone, &upstream, "mixed.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.216.40"]);
    assert_eq!(zone.bound.lock()[0].addresses, ["93.184.216.40".parse::<std::net::IpAddr>().unwrap()]);

    // An address entry that covers it permits it; nothing permits the floor.
    let zone = FakeZone::new(&allow(&["~.*\\.test", "10.1.0.0/16"]));
    let reply = ask(&zone, &upstream, "inside.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["10.1.2.3"]);
}

#[tokio::test]
async fn aliases_are_followed_here_and_the_client_gets_addresses_under_its_own_name() {
    let server = server().await;
    let zone = FakeZone::new(&allow(&["alias.test"]));
    let reply = ask(&zone, &server.upstream(), "alias.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.216.38"]);
    assert_eq!(reply.answers.len(), 1);
    assert_eq!(reply.answers[0].name.to_ascii(), "alias.test.");
    assert!(reply.answers[0].ttl <= 100);
    assert_eq!(zone.bound.lock()[0].name, name("alias.test"));
}

#[tokio::test]
async fn ttls_have_a_floor_and_a_cap_and_bindings_live_as_long() {
    let server = server().await;
    let zone = FakeZone::new(&allow(&["~.*\\.test"]));
    for (asked, least, most) in [("zero.test.", 1, 60), ("long.test.", 3500, 3600), ("good.test.", 250, 300)]
    {
        let reply = ask(&zone, &server.upstream(), asked, RecordType::A).await;
        let ttl = reply.answers[0].ttl;
        assert!((least..=most).contains(&ttl), "{asked} {ttl}");
        let bound = zone.bound.lock().last().cloned().unwrap();
        assert!(bound.ttl >= Duration::from_secs(60) && bound.ttl >= Duration::from_secs(u64::from(ttl)));
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_bound_is_not_given() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test"]));
    zone.bind_results.lock().push(BindRefused::Limit);
    let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::Refused, 0));
    assert_eq!(zone.reasons(), ["binding_limit"]);

    zone.bind_results.lock().push(BindRefused::Kernel("no".to_owned()));
    let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::ServFail, 0));
    assert_eq!(zone.reasons(), ["binding_limit", "daemon_fault"]);
    zone.bind_results.lock().extend([const { BindRefused::Superseded }; 4]);
    let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
    assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::ServFail, 0));
    assert_eq!(zone.reasons(), ["binding_limit", "daemon_fault", "daemon_fault"]);
    assert!(zone.events.lock().iter().all(|event| event.name == Some(name("good.test"))));

    let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.216.34"]);
    assert_eq!(zone.reasons().len(), 3);
    assert_eq!(zone.bound.lock().len(), 1);
}

#[tokio::test]
async fn a_policy_that_changes_during_the_lookup_judges_its_answer() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test"]));
    zone.bind_results.lock().push(BindRefused::Superseded);
    *zone.successor.lock() =
        Some(PolicySpec { refused_names: RefusedNames::Refused, ..allow(&["other.test"]) });
    let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert!(zone.bound.lock().is_empty());

    let zone = FakeZone::new(&allow(&["good.test"]));
    zone.bind_results.lock().push(BindRefused::Superseded);
    *zone.successor.lock() = Some(allow(&["good.test", "other.test"]));
    let reply = ask(&zone, &upstream, "good.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.216.34"]);
    assert_eq!(zone.bound.lock()[0].generation, 2);
}

#[tokio::test]
async fn letter_case_and_edns_options_are_echoed_or_dropped_and_never_sent_upstream() {
    let server = server().await;
    let zone = FakeZone::new(&allow(&["good.test"]));
    let mut asked = query("gOOd.TesT.", RecordType::A);
    let options = asked.edns.as_mut().unwrap().options_mut();
    options.insert(EdnsOption::Unknown(8, b"\0\x01\x18\0\x01\x02\x03".to_vec()));
    options.insert(EdnsOption::Unknown(65001, b"secret".to_vec()));
    let reply = ask_message(&zone, &server.upstream(), &asked).await;
    assert_eq!(reply.queries[0].name().to_ascii(), "gOOd.TesT.");
    assert_eq!(reply.answers[0].name.to_ascii(), "gOOd.TesT.");
    assert!(reply.edns.unwrap().option(EdnsCode::Unknown(65001)).is_none());

    let queries = server.queries.lock();
    assert_eq!(queries[0].queries[0].name().to_ascii(), "good.test.");
    assert!(queries[0].edns.as_ref().is_none_or(|edns| edns.options().as_ref().is_empty()));
}

#[tokio::test]
async fn a_client_without_edns_gets_none() {
    let server = server().await;
    let zone = FakeZone::new(&PolicySpec { refused_names: RefusedNames::Refused, ..allow(&["good.test"]) });
    let mut asked = query("evil.test.", RecordType::A);
    asked.edns = None;
    let reply = ask_message(&zone, &server.upstream(), &asked).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert!(reply.edns.is_none());
}

#[tokio::test]
async fn ipv6_addresses_are_given_only_where_there_is_a_path() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test"]));
    let reply = ask(&zone, &upstream, "good.test.", RecordType::AAAA).await;
    assert_eq!((reply.response_code, reply.answers.len(), server.count()), (ResponseCode::NoError, 0, 0));
    zone.ipv6.store(true, Ordering::Relaxed);
    let reply = ask(&zone, &upstream, "good.test.", RecordType::AAAA).await;
    assert_eq!(addresses(&reply), ["2606:2800::1"]);
}

#[tokio::test]
async fn negative_and_failed_answers_are_passed_on_as_they_are() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["~.*\\.test"]));
    for (asked, expected) in [
        ("absent.test.", ResponseCode::NXDomain),
        ("empty.test.", ResponseCode::NoError),
        ("broken.test.", ResponseCode::ServFail),
    ] {
        let reply = ask(&zone, &upstream, asked, RecordType::A).await;
        assert_eq!((reply.response_code, reply.answers.len()), (expected, 0), "{asked}");
        let before = server.count();
        ask(&zone, &upstream, asked, RecordType::A).await;
        assert_eq!(server.count(), before, "{asked} is cached");
    }
    assert!(zone.events.lock().is_empty());
}

#[tokio::test]
async fn localhost_is_answered_here() {
    let server = server().await;
    let zone = FakeZone::new(&allow(&["good.test"]));
    for asked in ["localhost.", "app.LOCALHOST."] {
        let reply = ask(&zone, &server.upstream(), asked, RecordType::A).await;
        assert_eq!(addresses(&reply), ["127.0.0.1"]);
        let reply = ask(&zone, &server.upstream(), asked, RecordType::AAAA).await;
        assert_eq!(addresses(&reply), ["::1"]);
    }
    assert_eq!(server.count(), 0);
}

// One thread: all lookups have joined before the server's task runs.
#[tokio::test]
async fn identical_lookups_are_one_query_and_answers_are_cached_for_all_sandboxes() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["good.test"]));
    let mut waiting = tokio::task::JoinSet::new();
    server.open.send(false).unwrap();
    for _ in 0..20 {
        let (zone, upstream) = (zone.clone(), upstream.clone());
        waiting.spawn(async move { ask(&zone, &upstream, "good.test.", RecordType::A).await });
    }
    tokio::task::yield_now().await;
    server.open.send(true).unwrap();
    while let Some(reply) = waiting.join_next().await {
        assert_eq!(addresses(&reply.unwrap()), ["93.184.216.34"]);
    }
    let neighbour = FakeZone::new(&allow(&["~.*\\.test"]));
    ask(&neighbour, &upstream, "good.test.", RecordType::A).await;
    assert_eq!(server.count(), 1);
    assert_eq!(neighbour.bound.lock().len(), 1);
}

#[tokio::test]
async fn a_lookup_whose_first_asker_goes_away_still_answers_the_others() {
    let server = server().await;
    let upstream = server.upstream();
    server.open.send(false).unwrap();
    let good = name("good.test");
    let first = tokio::spawn({
        let (upstream, good) = (upstream.clone(), good.clone());
        async move { upstream.lookup(&good, dns::Family::V4, &dns::Asker::default()).await }
    });
    tokio::task::yield_now().await;
    let second = tokio::spawn({
        let (upstream, good) = (upstream.clone(), good.clone());
        async move { upstream.lookup(&good, dns::Family::V4, &dns::Asker::default()).await }
    });
    tokio::task::yield_now().await;
    first.abort();
    server.open.send(true).unwrap();
    assert_eq!(second.await.unwrap().unwrap().addresses.len(), 1);
}

#[tokio::test]
async fn what_is_not_one_question_of_class_in_is_refused_without_an_upstream_query() {
    let server = server().await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&PolicySpec::default());
    let good = query("good.test.", RecordType::A);

    let mut two = good.clone();
    two.add_query(good.queries[0].clone());
    assert_eq!(ask_message(&zone, &upstream, &two).await.response_code, ResponseCode::FormErr);
    let mut none = good.clone();
    none.queries.clear();
    assert_eq!(ask_message(&zone, &upstream, &none).await.response_code, ResponseCode::FormErr);
    let mut chaos = good.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(ask_message(&zone, &upstream, &chaos).await.response_code, ResponseCode::Refused);
    let mut notify = good.clone();
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(ask_message(&zone, &upstream, &notify).await.response_code, ResponseCode::NotImp);
    let mut future = good.clone();
    future.edns.as_mut().unwrap().set_version(1);
    assert_eq!(u16::from(ask_message(&zone, &upstream, &future).await.response_code), 16);
    assert_eq!(ask(&zone, &upstream, ".", RecordType::A).await.response_code, ResponseCode::Refused);
    let dotted = hickory_proto::rr::Name::from_labels([b"good.test".as_slice()]).unwrap();
    let mut inner_dot = good.clone();
    inner_dot.queries[0].set_name(dotted);
    assert_eq!(ask_message(&zone, &upstream, &inner_dot).await.response_code, ResponseCode::Refused);

    let bytes = good.to_vec().unwrap();
    let cut = dns::answer(&bytes[..20], &*zone, &upstream, Transport::Udp).await.unwrap();
    let cut = Message::from_vec(&cut).unwrap();
    assert_eq!((cut.id, cut.response_code), (good.id, ResponseCode::FormErr));
    assert!(dns::answer(&bytes[..11], &*zone, &upstream, Transport::Udp).await.is_none());
    let mut response = bytes.clone();
    response[2] |= 0x80;
    assert!(dns::answer(&response, &*zone, &upstream, Transport::Udp).await.is_none());
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn an_answer_too_large_for_a_datagram_says_so_and_is_whole_in_a_stream() {
    let many = (1..=60).map(|i| a("many.test", 300, &format!("93.184.217.{i}"))).collect();
    let server = FakeServer::start([("many.test", records(many))]).await;
    let upstream = server.upstream();
    let zone = FakeZone::new(&allow(&["many.test"]));
    let mut asked = query("many.test.", RecordType::A);
    // The rest is neither told nor bound.
    assert_eq!(ask_message(&zone, &upstream, &asked).await.answers.len(), 32);
    assert_eq!(zone.bound.lock().last().unwrap().addresses.len(), 32);
    asked.edns = None;
    let bytes = asked.to_vec().unwrap();
    let reply = dns::answer(&bytes, &*zone, &upstream, Transport::Udp).await.unwrap();
    assert!(reply.len() <= 512);
    assert!(Message::from_vec(&reply).unwrap().truncation);
    let reply = dns::answer(&bytes, &*zone, &upstream, Transport::Tcp).await.unwrap();
    assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 32);
}
