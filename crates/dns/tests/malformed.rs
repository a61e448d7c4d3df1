//! Whatever arrives: no panic, and no query upstream.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use dns::Transport;
use hickory_proto::{op::Message, rr::RecordType};
use proptest::prelude::*;
use support::{FakeServer, FakeZone, allow, query};

fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = FakeServer::start([]).await;
        let upstream = server.upstream();
        let zone = FakeZone::new(&allow(&["not-what-is-asked.example"]));
        for transport in [Transport::Udp, Transport::Tcp] {
            if let Some(reply) = dns::answer(bytes, &*zone, &upstream, transport).await {
                prop_assert!(transport == Transport::Tcp || reply.len() <= 1232);
                let reply = Message::from_vec(&reply).unwrap();
                prop_assert_eq!(&reply.id.to_be_bytes()[..], &bytes[..2]);
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
