//! What one sandbox may have of its proxy: at a limit it is refused at once and recorded, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use std::{io::ErrorKind, sync::Arc, time::Duration};

use policy::{EventKind, NameSource, Rate};
use proxy::{ByteLimits, Flows, Limits};
use support::{
    ACCESS_DENIED, GOOD, HelloBuilder, Lab, Server, assert_event, assert_reset, lab, read_exact, read_to_end,
    write,
};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

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
fn requests_that_follow_others_too_fast_wait_and_other_connections_do_not() {
    lab(|mut lab| async move {
        lab.permit_good();
        lab.limits.new_requests = Rate { count: 1, period: HOUR, burst: 1 };
        lab.proxy(80);
        let server = Server::listen(GOOD, 80).await;
        let request = b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n";
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, &request.repeat(3)).await;
        let mut inside = server.accept().await;
        let there = lab.wait_events(2).await.len();
        let mut other = lab.connect(GOOD, 80).await;
        write(&mut other, request).await;
        let mut other_inside = server.accept().await;
        assert!(read_exact(&mut other_inside, 14).await.starts_with(b"GET / HTTP/1.1"));
        assert_eq!((there, lab.wait_events(3).await.len()), (2, 3), "the third of the first client waits");

        lab.flows = Arc::new(Flows::new());
        lab.limits.new_requests = Rate::per_second(20, 1);
        lab.proxy(8080);
        let server = Server::listen(GOOD, 8080).await;
        let mut client = lab.connect(GOOD, 8080).await;
        write(&mut client, &request.repeat(3)).await;
        let _second = server.accept().await;
        assert_eq!(lab.wait_events(6).await.len(), 6, "whoever waits is served in the end");
        drop((client, inside.shutdown().await));
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

/// The last of so many events is that a flow to `good.test` was cut for its bytes.
async fn cut(lab: &Lab, events: usize) {
    let events = lab.wait_events(events).await;
    let event = events.last().unwrap();
    assert_event(event, EventKind::EgressRevoked, "byte_budget", Some("good.test"), NameSource::Sni);
    assert_eq!((event.address, event.port), (Some(GOOD.parse().unwrap()), Some(443)));
}

#[test]
fn of_a_sandbox_that_has_sent_what_it_may_every_flow_is_cut_and_no_other_begins() {
    lab(|mut lab| async move {
        let hello = u64::try_from(HelloBuilder::named("good.test").build().len()).unwrap();
        lab.permit_good();
        lab.limits.bytes = ByteLimits { up: 2 * hello + 10, ..ByteLimits::default() };
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        let (mut first, mut first_inside) = relayed(&lab, &server, 443).await;
        let (mut second, mut second_inside) = relayed(&lab, &server, 443).await;
        write(&mut first, b"0123456789").await;
        assert_eq!(read_exact(&mut first_inside, 10).await, b"0123456789");
        // What comes down is not limited.
        write(&mut second_inside, &[7; 100_000]).await;
        read_exact(&mut second, 100_000).await;

        write(&mut first, b"x").await;
        for end in [&mut first, &mut first_inside, &mut second, &mut second_inside] {
            assert_reset(end).await;
        }
        cut(&lab, 4).await;
        assert_reset(&mut lab.connect(GOOD, 443).await).await;
        refused(&lab, 5, "byte_budget").await;
        let totals = [lab.wait_finished(0).await, lab.wait_finished(1).await];
        assert_eq!(totals.map(|totals| totals.bytes_up), [hello + 10, hello]);

        lab.flows = Arc::new(Flows::new());
        lab.proxy(8443);
        let server = Server::listen(GOOD, 8443).await;
        relayed(&lab, &server, 8443).await;
    });
}

#[test]
fn a_sandbox_gets_no_more_bytes_than_it_may() {
    const MOST: usize = 400_000;
    lab(|mut lab| async move {
        lab.permit_good();
        lab.limits.bytes = ByteLimits { down: MOST as u64, ..ByteLimits::default() };
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        let (mut client, mut inside) = relayed(&lab, &server, 443).await;
        // So many that they are spliced at last.
        write(&mut inside, &[7; MOST / 2]).await;
        read_exact(&mut client, MOST / 2).await;
        let sending = tokio::spawn(async move { while inside.write_all(&[7; MOST]).await.is_ok() {} });
        let (bytes, ended) = read_to_end(&mut client).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(bytes.len() <= MOST / 2, "{}", bytes.len());
        timeout(support::DEADLINE, sending).await.expect("its server is told, too").unwrap();
        cut(&lab, 2).await;
    });
}

#[test]
fn requests_and_responses_count_together() {
    lab(|mut lab| async move {
        lab.permit_good();
        lab.limits.bytes = ByteLimits { total: 400, ..ByteLimits::default() };
        lab.proxy(80);
        let server = Server::listen(GOOD, 80).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut inside = server.accept().await;
        read_exact(&mut inside, 30).await;
        write(&mut inside, &[b'x'; 300]).await;
        assert_eq!(read_exact(&mut client, 300).await, [b'x'; 300]);
        let body =
            [b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 200\r\n\r\n".to_vec(), vec![b'y'; 200]];
        write(&mut client, &body.concat()).await;
        assert_reset(&mut client).await;
        let events = lab.wait_events(3).await;
        assert_event(
            &events[2],
            EventKind::EgressRevoked,
            "byte_budget",
            Some("good.test"),
            NameSource::Host,
        );
        let (_, ended) = read_to_end(&mut inside).await;
        assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}
