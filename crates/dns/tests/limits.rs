//! What one sandbox may ask of its resolver.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use std::{sync::Arc, time::Duration};

use dns::Limits;
use hickory_proto::{op::ResponseCode, rr::RecordType};
use policy::{EventKind, HostName, NameSource, PolicySpec, Rate};
use support::{FakeServer, FakeZone, Reply, a, addresses, allow, ask, ede};

const HOUR: Duration = Duration::from_secs(3600);

/// So many, and no more while a test runs.
fn only(burst: u32) -> Rate {
    Rate { count: 1, period: HOUR, burst }
}

async fn server() -> FakeServer {
    let reply = |owner| Reply { code: None, records: vec![a(owner, 300, "93.184.216.34")] };
    let names = ["good.test", "host.good.test", "n0.good.test", "host.other.test"];
    FakeServer::start(names.map(|name| (name, reply(name)))).await
}

fn limited(entries: &[&str], limits: Limits) -> Arc<FakeZone> {
    FakeZone::limited(&allow(entries), limits)
}

#[tokio::test]
async fn queries_that_come_too_fast_are_refused_without_their_names_and_another_sandbox_is_answered() {
    let (server, limits) = (server().await, Limits { queries: only(2), ..Limits::default() });
    let (one, other) = (limited(&["good.test"], limits), limited(&["good.test"], limits));
    let upstream = server.upstream();
    for _ in 0..2 {
        assert_eq!(addresses(&ask(&one, &upstream, "good.test.", RecordType::A).await), ["93.184.216.34"]);
    }
    for name in ["good.test.", "evil.test.", "more.evil.test."] {
        let reply = ask(&one, &upstream, name, RecordType::A).await;
        assert_eq!((reply.response_code, addresses(&reply).len()), (ResponseCode::Refused, 0));
        assert_eq!(ede(&reply).unwrap(), (15, "over a limit of the sandbox: dns_rate (default)".to_owned()));
    }
    assert_eq!(one.reasons(), ["dns_rate"; 3]);
    let events = one.events.lock().clone();
    let same = events.iter().all(|event| {
        (event.kind, &event.name, event.name_source) == (EventKind::DnsBlocked, &None, NameSource::None)
    });
    assert!(same, "{events:?}");
    assert_eq!(addresses(&ask(&other, &upstream, "good.test.", RecordType::A).await), ["93.184.216.34"]);
    assert_eq!(other.reasons(), [""; 0]);
}

#[tokio::test]
async fn of_a_permitted_zone_only_so_many_new_names_are_asked() {
    let (server, limits) = (server().await, Limits { zone_names: only(3), ..Limits::default() });
    let entries = ["host.good.test", "*.good.test", "*.other.test"];
    let (zone, upstream) = (limited(&entries, limits), server.upstream());
    for number in 0..20 {
        let reply = ask(&zone, &upstream, &format!("n{number}.good.test."), RecordType::A).await;
        let expected = match number {
            0 => ResponseCode::NoError,
            1 | 2 => ResponseCode::NXDomain,
            _ => ResponseCode::Refused,
        };
        assert_eq!(reply.response_code, expected, "{number}");
    }
    assert_eq!(server.count(), 3);
    assert_eq!(zone.reasons(), ["dns_labels"; 17]);
    for event in zone.events.lock().iter() {
        assert_eq!(event.verdict.rule.to_string(), "allow_out[1] *.good.test");
        assert_eq!(event.name.as_ref().map(HostName::as_str), Some("good.test"));
    }
    // Names that were asked, the host that is permitted as such, and another zone.
    for (name, kind, count) in [
        ("n0.good.test.", RecordType::A, 3),
        ("N1.Good.Test.", RecordType::AAAA, 3),
        ("host.good.test.", RecordType::A, 4),
        ("host.other.test.", RecordType::A, 5),
    ] {
        assert_ne!(ask(&zone, &upstream, name, kind).await.response_code, ResponseCode::Refused, "{name}");
        assert_eq!(server.count(), count, "{name}");
    }
    // Another sandbox has its own budget, and what is in the cache costs none.
    let other = limited(&entries, Limits { zone_names: only(1), ..limits });
    for name in ["n0.good.test.", "n1.good.test.", "n2.good.test.", "x.good.test."] {
        assert_ne!(ask(&other, &upstream, name, RecordType::A).await.response_code, ResponseCode::Refused);
    }
    assert_eq!(server.count(), 6);
}

#[tokio::test]
async fn of_a_permitted_zone_only_so_many_bytes_of_names_are_asked() {
    let (server, limits) = (server().await, Limits { zone_bytes: only(130), ..Limits::default() });
    let (zone, upstream) = (limited(&["*.good.test"], limits), server.upstream());
    let long = |letter: &str| format!("{}.good.test.", letter.repeat(60));
    for letter in ["a", "b"] {
        let reply = ask(&zone, &upstream, &long(letter), RecordType::A).await;
        assert_eq!(reply.response_code, ResponseCode::NXDomain);
    }
    let reply = ask(&zone, &upstream, &long("c"), RecordType::A).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    let text = "over a limit of the sandbox: dns_labels (allow_out[0] *.good.test)";
    assert_eq!(ede(&reply).unwrap(), (15, text.to_owned()));
    // What is shorter still fits.
    let reply = ask(&zone, &upstream, "host.good.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["93.184.216.34"]);
    assert_eq!((server.count(), zone.reasons()), (3, vec!["dns_labels".to_owned()]));
}

#[tokio::test]
async fn where_everything_is_permitted_names_are_not_budgeted() {
    let (server, limits) = (server().await, Limits { zone_names: only(1), ..Limits::default() });
    let (zone, upstream) = (FakeZone::limited(&PolicySpec::default(), limits), server.upstream());
    for number in 0..20 {
        let reply = ask(&zone, &upstream, &format!("n{number}.good.test."), RecordType::A).await;
        assert_ne!(reply.response_code, ResponseCode::Refused);
    }
    assert_eq!(server.count(), 20);
}

#[tokio::test]
async fn a_sandbox_with_as_many_lookups_as_are_free_for_all_is_refused_more_and_another_is_served() {
    let server = server().await;
    let upstream = server.upstream_of(8);
    let (one, other) = (FakeZone::new(&allow(&["*"])), FakeZone::new(&allow(&["*"])));
    server.open.send(false).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (one, upstream) = (Arc::clone(&one), upstream.clone());
        waiting.spawn(async move { ask(&one, &upstream, &format!("w{number}.test."), RecordType::A).await });
    }
    eventually(|| server.count() == 4).await;
    let reply = ask(&one, &upstream, "good.test.", RecordType::A).await;
    assert_eq!(reply.response_code, ResponseCode::Refused);
    assert_eq!(ede(&reply).unwrap(), (15, "over a limit of the sandbox: dns_lookups (default)".to_owned()));
    assert_eq!((one.reasons(), server.count()), (vec!["dns_lookups".to_owned()], 4));
    // That is no answer about the name: whoever has a place asks.
    let served = {
        let (other, upstream) = (Arc::clone(&other), upstream.clone());
        tokio::spawn(async move { ask(&other, &upstream, "good.test.", RecordType::A).await })
    };
    eventually(|| server.count() == 5).await;
    // And whoever has none waits for the answer of another to the same question.
    let joined = {
        let (one, upstream) = (Arc::clone(&one), upstream.clone());
        tokio::spawn(async move { ask(&one, &upstream, "good.test.", RecordType::A).await })
    };
    server.open.send(true).unwrap();
    for reply in [served, joined] {
        assert_eq!(addresses(&reply.await.unwrap()), ["93.184.216.34"]);
    }
    assert_eq!(waiting.join_all().await.len(), 4);
    assert_eq!((one.reasons().len(), other.reasons().len(), server.count()), (1, 0, 5));
    ask(&one, &upstream, "host.good.test.", RecordType::A).await;
    assert_eq!((one.reasons().len(), server.count()), (1, 6));
}

/// Waits for the server, which is another task.
async fn eventually(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
}
