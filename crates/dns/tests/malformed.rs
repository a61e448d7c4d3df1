//! Whatever arrives: no panic, and no query upstream.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use std::time::Duration;

use dns::{Limits, Transport};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::NS},
};
use policy::Rate;
use proptest::prelude::*;
use support::{FakeServer, FakeZone, Reply, a, addresses, allow, ask_message, ede, query};

/// Every query is one too many.
fn nothing() -> Limits {
    let queries = Rate { count: 1, period: Duration::from_secs(3600), burst: 0 };
    Limits { queries, ..Limits::default() }
}

type Push = fn(&mut Message, Record) -> &mut Message;

/// So many records behind the question, with names that point to the one asked for.
fn with_records(mut message: Message, count: usize, push: Push) -> Message {
    let name = message.queries[0].name().clone();
    for _ in 0..count {
        push(&mut message, Record::from_rdata(name.clone(), 60, RData::NS(NS(name.clone()))));
    }
    message
}

#[tokio::test]
async fn a_query_that_brings_records_is_malformed_and_one_with_what_queries_may_have_is_answered() {
    let server = FakeServer::start([(
        "good.test",
        Reply { code: None, records: vec![a("good.test", 300, "93.184.216.34")] },
    )])
    .await;
    let upstream = server.upstream();
    let good = query("good.test.", RecordType::A);
    let (answer, authority, additional): (Push, Push, Push) =
        (Message::add_answer, Message::add_authority, Message::add_additional);
    for (count, push) in [(1, answer), (1, authority), (2, additional), (290, authority)] {
        let zone = FakeZone::new(&allow(&["good.test"]));
        let reply = ask_message(&zone, &upstream, &with_records(good.clone(), count, push)).await;
        assert_eq!((reply.response_code, addresses(&reply).len()), (ResponseCode::FormErr, 0));
        assert_eq!(zone.reasons(), ["malformed_dns"]);
    }
    assert_eq!(server.count(), 0);
    // With EDNS, there is one other.
    for count in [0, 1] {
        let zone = FakeZone::new(&allow(&["good.test"]));
        let reply = ask_message(&zone, &upstream, &with_records(good.clone(), count, additional)).await;
        assert_eq!((addresses(&reply), zone.reasons().len()), (vec!["93.184.216.34".to_owned()], 0));
    }
}

#[tokio::test]
async fn of_a_query_that_is_one_too_many_nothing_is_read_behind_its_question() {
    let server = FakeServer::start([]).await;
    let (upstream, zone) = (server.upstream(), FakeZone::limited(&allow(&["good.test"]), nothing()));
    let good = query("good.test.", RecordType::A);
    // As if there were hundreds of records, which cannot be read.
    let mut endless = good.to_vec().unwrap();
    endless[6..10].copy_from_slice(&[2, 0, 2, 0]);
    endless.extend_from_slice(&[0xff; 4000]);
    // EDNS with options that cannot be read either.
    let mut options = good.to_vec().unwrap();
    let length = options.len();
    options[length - 2..].copy_from_slice(&[0xff, 0xff]);
    for bytes in [good.to_vec().unwrap(), endless, options] {
        let reply = dns::answer(&bytes, &*zone, &upstream, Transport::Udp).await.unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!(
            (reply.response_code, reply.queries[0].name()),
            (ResponseCode::Refused, &name("good.test."))
        );
        assert_eq!(ede(&reply).unwrap(), (15, "over a limit of the sandbox: dns_rate (default)".to_owned()));
    }
    // To a client without EDNS nothing is said by it.
    let mut plain = good.clone();
    plain.edns = None;
    let reply = ask_message(&zone, &upstream, &plain).await;
    assert_eq!((reply.response_code, ede(&reply)), (ResponseCode::Refused, None));
    assert_eq!((zone.reasons(), server.count()), (vec!["dns_rate".to_owned(); 4], 0));
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = FakeServer::start([]).await;
        let upstream = server.upstream();
        let policy = allow(&["not-what-is-asked.example"]);
        for zone in [FakeZone::new(&policy), FakeZone::limited(&policy, nothing())] {
            for transport in [Transport::Udp, Transport::Tcp] {
                if let Some(reply) = dns::answer(bytes, &*zone, &upstream, transport).await {
                    prop_assert!(transport == Transport::Tcp || reply.len() <= 1232);
                    let reply = Message::from_vec(&reply).unwrap();
                    prop_assert_eq!(&reply.id.to_be_bytes()[..], &bytes[..2]);
                }
            }
        }
        prop_assert_eq!(server.count(), 0);
        Ok(())
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes)?;
    }

    #[test]
    fn damaged_queries_are_survived(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = query("some.name.of.some.length.test.", RecordType::A).to_vec().unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let length = cut.index(bytes.len() * 2).min(bytes.len());
        check(&bytes[..length])?;
    }
}
