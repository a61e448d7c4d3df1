//! Connections that begin with a ClientHello.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use policy::{EchMode, EventKind, NameSource, PolicySpec};
use support::{
    ACCESS_DENIED, EVIL, GOOD, HelloBuilder, Lab, Server, assert_event, lab, read_exact, read_to_end, write,
};

/// Sends a ClientHello through the proxy and sees that the server gets it unchanged and both sides can go on.
async fn passes(lab: &Lab, server: &Server, address: &str, hello: &[u8]) {
    let mut client = lab.connect(address, 443).await;
    write(&mut client, hello).await;
    let mut inside = server.accept().await;
    assert_eq!(read_exact(&mut inside, hello.len()).await, hello);
    write(&mut inside, b"server hello").await;
    assert_eq!(read_exact(&mut client, 12).await, b"server hello");
}

/// Sends a ClientHello through the proxy and sees that it gets the alert, at once and regularly.
async fn is_refused(lab: &Lab, address: &str, hello: &[u8]) {
    let mut client = lab.connect(address, 443).await;
    write(&mut client, hello).await;
    let (answer, end) = read_to_end(&mut client).await;
    assert_eq!(answer, ACCESS_DENIED);
    end.unwrap();
}

#[test]
fn a_permitted_server_name_is_relayed_and_a_refused_one_gets_an_alert() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let (good, evil) = (Server::listen(GOOD, 443).await, Server::listen(EVIL, 443).await);
        is_refused(&lab, EVIL, &HelloBuilder::named("evil.test").build()).await;
        passes(&lab, &good, GOOD, &HelloBuilder::named("GOOD.test").build()).await;

        let events = lab.wait_events(2).await;
        assert_event(
            &events[0],
            EventKind::EgressBlocked,
            "default_deny",
            Some("evil.test"),
            NameSource::Sni,
        );
        assert_event(&events[1], EventKind::EgressAllowed, "allow_entry", Some("good.test"), NameSource::Sni);
        assert_eq!((events[1].address, events[1].port), (Some(GOOD.parse().unwrap()), Some(443)));
        assert!(!evil.was_reached());
    });
}

#[test]
fn a_permitted_name_goes_to_its_own_address_and_not_to_the_one_the_client_chose() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let (good, evil) = (Server::listen(GOOD, 443).await, Server::listen(EVIL, 443).await);
        passes(&lab, &good, EVIL, &HelloBuilder::named("good.test").build()).await;
        assert_eq!(lab.wait_events(1).await[0].address, Some(GOOD.parse().unwrap()));
        assert!(!evil.was_reached());
    });
}

#[test]
fn a_name_goes_to_the_address_the_client_chose_where_the_name_is_bound_to_it() {
    lab(|lab| async move {
        lab.permit_good();
        lab.egress.bind("93.184.216.35", "good.test");
        lab.proxy(443);
        let second = Server::listen("93.184.216.35", 443).await;
        passes(&lab, &second, "93.184.216.35", &HelloBuilder::named("good.test").build()).await;
    });
}

#[test]
fn a_client_hello_in_pieces_of_one_byte_is_read() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let good = Server::listen(GOOD, 443).await;
        for (name, permitted) in [("good.test", true), ("evil.test", false)] {
            let hello = HelloBuilder::named(name).build();
            let mut client = lab.connect(GOOD, 443).await;
            for byte in &hello {
                write(&mut client, &[*byte]).await;
                tokio::task::yield_now().await;
            }
            if permitted {
                let mut inside = good.accept().await;
                assert_eq!(read_exact(&mut inside, hello.len()).await, hello);
            } else {
                assert_eq!(read_to_end(&mut client).await.0, ACCESS_DENIED);
            }
        }
    });
}

#[test]
fn what_follows_the_client_hello_at_once_is_not_lost() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let good = Server::listen(GOOD, 443).await;
        let early = [&HelloBuilder::named("good.test").build()[..], &[23, 3, 3, 0, 3, 1, 2, 3]].concat();
        passes(&lab, &good, GOOD, &early).await;
    });
}

#[test]
fn a_client_hello_that_does_not_name_exactly_one_host_is_refused() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let good = Server::listen(GOOD, 443).await;
        let ssl2 = [0x80, 0x2e, 1, 3, 1, 0, 21, 0, 0, 0, 16];
        let mut huge = HelloBuilder::named("good.test").build();
        huge[6..9].copy_from_slice(&[0xff, 0xff, 0xff]);
        let cases: Vec<(Vec<u8>, &str, Option<&str>)> = vec![
            (HelloBuilder::default().build(), "no_sni", None),
            (HelloBuilder::named("93.184.216.34").build(), "invalid_sni", None),
            (HelloBuilder::named("good.test\0.evil.test").build(), "invalid_sni", None),
            (HelloBuilder::named("good.test").name("evil.test").build(), "multiple_sni", None),
            (HelloBuilder::named("good.test").ech().build(), "ech", Some("good.test")),
            (ssl2.to_vec(), "tls_version", None),
            (huge, "malformed_tls", None),
            (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], "malformed_tls", None),
        ];
        for (i, (hello, reason, name)) in cases.iter().enumerate() {
            is_refused(&lab, GOOD, hello).await;
            let source = if name.is_some() { NameSource::Sni } else { NameSource::None };
            assert_event(&lab.wait_events(i + 1).await[i], EventKind::EgressBlocked, reason, *name, source);
        }
        passes(&lab, &good, GOOD, &HelloBuilder::named("good.test").build()).await;
    });
}

#[test]
fn encrypted_client_hello_passes_only_where_the_policy_says_so() {
    lab(|lab| async move {
        lab.permit_good();
        let spec = PolicySpec { allow_out: vec!["good.test".to_owned()], ..PolicySpec::default() };
        lab.set_policy(&PolicySpec { ech: EchMode::Permit, ..spec.clone() });
        lab.proxy(443);
        let good = Server::listen(GOOD, 443).await;
        let hello = HelloBuilder::named("good.test").ech().build();
        let mut client = lab.connect(GOOD, 443).await;
        write(&mut client, &hello).await;
        let mut inside = good.accept().await;
        read_exact(&mut inside, hello.len()).await;

        // A policy that refuses it cuts what is open.
        lab.set_policy(&spec);
        support::assert_reset(&mut client).await;
        let events = lab.wait_events(2).await;
        assert_event(&events[1], EventKind::EgressRevoked, "ech", Some("good.test"), NameSource::Sni);
    });
}

#[test]
fn a_rule_for_one_port_does_not_permit_another() {
    lab(|lab| async move {
        lab.permit(&["good.test:443"]);
        lab.proxy(443);
        lab.proxy(8443);
        let (good, other) = (Server::listen(GOOD, 443).await, Server::listen(GOOD, 8443).await);
        let hello = HelloBuilder::named("good.test").build();
        passes(&lab, &good, GOOD, &hello).await;
        let mut client = lab.connect(GOOD, 8443).await;
        write(&mut client, &hello).await;
        assert_eq!(read_to_end(&mut client).await.0, ACCESS_DENIED);
        assert!(!other.was_reached());
    });
}

#[test]
fn a_permitted_name_that_resolves_to_a_private_address_is_refused() {
    lab(|lab| async move {
        lab.permit_good();
        lab.egress.resolve("good.test", &["10.0.0.1", "169.254.169.254"]);
        lab.proxy(443);
        let inside = Server::listen("10.0.0.1", 443).await;
        let hello = HelloBuilder::named("good.test").build();
        is_refused(&lab, GOOD, &hello).await;
        assert!(matches!(lab.events()[0].verdict.reason.as_str(), "private_range" | "floor"));
        assert!(!inside.was_reached());

        // The public one among them is taken.
        lab.egress.resolve("good.test", &["10.0.0.1", GOOD]);
        passes(&lab, &Server::listen(GOOD, 443).await, EVIL, &hello).await;
    });
}

#[test]
fn a_client_that_begins_and_stops_is_refused_in_time_and_its_slot_is_free_again() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let hello = HelloBuilder::named("good.test").build();
        let mut clients = Vec::new();
        for length in [0, 1, 5, hello.len() - 1] {
            let mut client = lab.connect(GOOD, 443).await;
            write(&mut client, &hello[..length]).await;
            clients.push(client);
        }
        let events = lab.wait_events(4).await;
        assert!(events.iter().all(|event| event.verdict.reason.as_str() == "peek_timeout"));
        drop(clients);
        lab.wait_idle().await;
    });
}

#[test]
fn a_client_that_sends_a_byte_now_and_then_does_not_move_the_deadline() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let mut client = lab.connect(GOOD, 443).await;
        let hello = HelloBuilder::named("good.test").build();
        let mut dripping = Box::pin(async {
            let mut pace = tokio::time::interval(lab.limits.peek_timeout / 4);
            for byte in &hello {
                pace.tick().await;
                if tokio::io::AsyncWriteExt::write_all(&mut client, &[*byte]).await.is_err() {
                    return;
                }
            }
            unreachable!("the whole ClientHello was taken");
        });
        tokio::select! {
            () = &mut dripping => {}
            events = lab.wait_events(1) => assert_eq!(events[0].verdict.reason.as_str(), "peek_timeout"),
        }
    });
}

#[test]
fn a_name_that_cannot_be_resolved_or_reached_ends_in_a_reset_and_an_event_without_bytes() {
    lab(|lab| async move {
        lab.permit(&["good.test", "nowhere.test"]);
        lab.proxy(443);
        for (i, name) in ["nowhere.test", "good.test"].into_iter().enumerate() {
            // Nobody listens at good.test.
            let mut client = lab.connect(GOOD, 443).await;
            write(&mut client, &HelloBuilder::named(name).build()).await;
            support::assert_reset(&mut client).await;
            let totals = lab.wait_finished(i).await;
            assert_eq!((totals.bytes_up, totals.bytes_down), (0, 0));
            assert_eq!(lab.events()[i].kind, EventKind::EgressAllowed);
        }
    });
}

#[test]
fn the_next_address_is_tried_when_one_does_not_answer() {
    lab(|lab| async move {
        lab.permit_good();
        lab.egress.resolve("good.test", &["93.184.216.35", GOOD]);
        lab.proxy(443);
        let good = Server::listen(GOOD, 443).await;
        passes(&lab, &good, EVIL, &HelloBuilder::named("good.test").build()).await;
    });
}

#[test]
fn ipv6_follows_the_same_rules() {
    const GOOD_V6: &str = "2606:2800:21f::34";
    lab(|lab| async move {
        lab.permit_good();
        lab.egress.resolve("good.test", &[GOOD, GOOD_V6]);
        lab.proxy(443);
        let good = Server::listen(GOOD_V6, 443).await;
        let evil = Server::listen("2606:2800:21f::66", 443).await;
        // The client's family is tried first.
        passes(&lab, &good, "2606:2800:21f::66", &HelloBuilder::named("good.test").build()).await;
        is_refused(&lab, "2606:2800:21f::66", &HelloBuilder::named("evil.test").build()).await;
        assert!(!evil.was_reached());
    });
}
