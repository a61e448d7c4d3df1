//! What one sandbox may have of its proxy: at a limit it is refused at once and recorded, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use std::{sync::Arc, time::Duration};

use policy::{EventKind, NameSource, Rate};
use proxy::{Flows, Limits};
use support::{
    ACCESS_DENIED, GOOD, HelloBuilder, Lab, Server, assert_event, assert_reset, lab, read_exact, read_to_end,
    write,
};
use tokio::net::TcpStream;

const HOUR: Duration = Duration::from_secs(3600);

/// A TLS connection through the proxy that is relayed.
async fn relayed(lab: &Lab, server: &Server, port: u16) -> (TcpStream, TcpStream) {
    let hello = HelloBuilder::named("good.test").build();
    let mut client = lab.connect(GOOD, port).await;
    write(&mut client, &hello).await;
    let mut inside = server.accept().await;
    assert_eq!(read_exact(&mut inside, hello.len()).await, hello);
    (client, inside)
}

/// The last of so many events is this refusal.
async fn refused(lab: &Lab, events: usize, reason: &str) {
    let events = lab.wait_events(events).await;
    let event = events.last().unwrap();
    assert_event(event, EventKind::EgressBlocked, reason, None, NameSource::None);
    assert_eq!(event.address, Some(GOOD.parse().unwrap()));
}

/// A client that has sent only a part of something.
async fn half(lab: &Lab, port: u16, bytes: &[u8]) -> TcpStream {
    let before = lab.flows.half_open();
    let mut client = lab.connect(GOOD, port).await;
    write(&mut client, bytes).await;
    while lab.flows.half_open() == before {
        tokio::task::yield_now().await;
    }
    client
}

/// Lets nothing end by itself.
fn patient(lab: &mut Lab) {
    lab.limits.peek_timeout = HOUR;
}

#[test]
fn connections_that_begin_too_fast_are_reset_and_recorded_and_another_sandbox_is_served() {
    lab(|mut lab| async move {
        lab.permit_good();
        lab.limits.new_flows = Rate { count: 1, period: HOUR, burst: 2 };
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        drop(relayed(&lab, &server, 443).await);
        drop(relayed(&lab, &server, 443).await);
        assert_reset(&mut lab.connect(GOOD, 443).await).await;
        refused(&lab, 3, "flow_rate").await;

        lab.flows = Arc::new(Flows::new());
        lab.proxy(8443);
        let server = Server::listen(GOOD, 8443).await;
        relayed(&lab, &server, 8443).await;
    });
}

#[test]
fn connections_over_the_limit_of_half_open_ones_are_reset_until_one_has_shown_what_it_is() {
    lab(|mut lab| async move {
        patient(&mut lab);
        lab.permit_good();
        lab.limits.max_half_open = 2;
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        let hello = HelloBuilder::named("good.test").build();
        let (beginning, rest) = hello.split_at(20);
        let mut first = half(&lab, 443, beginning).await;
        let second = half(&lab, 443, beginning).await;
        assert_reset(&mut lab.connect(GOOD, 443).await).await;
        refused(&lab, 1, "half_open").await;

        // Another sandbox has its own.
        let flows = std::mem::replace(&mut lab.flows, Arc::new(Flows::new()));
        lab.proxy(8443);
        let other = Server::listen(GOOD, 8443).await;
        relayed(&lab, &other, 8443).await;
        lab.flows = flows;

        write(&mut first, rest).await;
        let mut inside = server.accept().await;
        assert_eq!(read_exact(&mut inside, hello.len()).await, hello);
        let _third = half(&lab, 443, beginning).await;
        drop(second);
        while lab.flows.half_open() > 1 {
            tokio::task::yield_now().await;
        }
        relayed(&lab, &server, 443).await;
    });
}

#[test]
fn a_request_whose_head_has_not_come_completely_is_half_open() {
    lab(|mut lab| async move {
        patient(&mut lab);
        lab.permit_good();
        lab.limits.max_half_open = 1;
        lab.proxy(80);
        let server = Server::listen(GOOD, 80).await;
        let mut first = half(&lab, 80, b"GET / HTTP/1.1\r\nHost: ").await;
        assert_reset(&mut lab.connect(GOOD, 80).await).await;
        refused(&lab, 1, "half_open").await;
        write(&mut first, b"good.test\r\n\r\n").await;
        let mut inside = server.accept().await;
        assert!(read_exact(&mut inside, 14).await.starts_with(b"GET / HTTP/1.1"));
        // Between two requests nothing is half open.
        assert_eq!(lab.flows.half_open(), 0);
        half(&lab, 80, b"GET ").await;
    });
}

#[test]
fn a_client_that_waits_for_its_server_is_half_open_only_once_it_has_begun() {
    lab(|mut lab| async move {
        patient(&mut lab);
        lab.permit_good();
        lab.egress.bind(GOOD, "good.test");
        lab.limits.max_half_open = 1;
        lab.proxy(22);
        lab.proxy(443);
        let server = Server::listen(GOOD, 22).await;
        let mut client = lab.connect(GOOD, 22).await;
        let mut inside = server.accept().await;
        assert_eq!(lab.flows.half_open(), 0);
        let other = half(&lab, 443, b"\x16\x03").await;
        write(&mut client, b"\x16\x03").await;
        assert_reset(&mut client).await;
        let (_, ended) = read_to_end(&mut inside).await;
        ended.unwrap();
        let events = lab.wait_events(2).await;
        assert_event(&events[1], EventKind::EgressBlocked, "half_open", None, NameSource::None);

        drop(other);
        while lab.flows.half_open() > 0 {
            tokio::task::yield_now().await;
        }
        let mut client = lab.connect(GOOD, 22).await;
        let mut inside = server.accept().await;
        write(&mut client, b"SSH-2.0-client\r\n").await;
        read_exact(&mut inside, 16).await;
    });
}

#[test]
fn what_an_address_entry_permits_is_not_read_and_never_half_open() {
    lab(|mut lab| async move {
        patient(&mut lab);
        lab.permit(&[GOOD, "evil.test"]);
        lab.limits.max_half_open = 0;
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        let mut client = lab.connect(GOOD, 443).await;
        let mut inside = server.accept().await;
        write(&mut client, b"\x16").await;
        assert_eq!(read_exact(&mut inside, 1).await, b"\x16");
        assert_reset(&mut lab.connect(support::EVIL, 443).await).await;
        assert_eq!(lab.wait_events(2).await[1].verdict.reason.as_str(), "half_open");
    });
}

#[test]
fn what_is_half_open_does_not_stay_so() {
    lab(|mut lab| async move {
        lab.permit_good();
        lab.limits = Limits { max_half_open: 1, peek_timeout: Duration::from_millis(50), ..lab.limits };
        lab.proxy(443);
        let mut slow = lab.connect(GOOD, 443).await;
        write(&mut slow, b"\x16\x03").await;
        assert_eq!(read_to_end(&mut slow).await.0, ACCESS_DENIED);
        assert_eq!(lab.wait_events(1).await[0].verdict.reason.as_str(), "peek_timeout");
        assert_eq!(lab.flows.half_open(), 0);
    });
}

#[test]
fn a_name_that_may_not_be_looked_up_any_more_is_refused_with_that_reason() {
    lab(|lab| async move {
        lab.permit(&["good.test", "evil.test"]);
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        *lab.egress.over_limit.lock() = Some("evil.test".parse().unwrap());
        let mut client = lab.connect(GOOD, 443).await;
        write(&mut client, &HelloBuilder::named("evil.test").build()).await;
        assert_eq!(read_to_end(&mut client).await.0, ACCESS_DENIED);
        let events = lab.wait_events(1).await;
        assert_event(&events[0], EventKind::EgressBlocked, "dns_labels", Some("evil.test"), NameSource::Sni);
        relayed(&lab, &server, 443).await;
    });
}
