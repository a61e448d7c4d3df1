//! Faults of the daemon: a connection that meets one ends, and is recorded; nothing else notices.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use std::sync::Arc;

use policy::{EventKind, NameSource};
use proxy::{Flows, Limits, Workers};
use support::{GOOD, HelloBuilder, Lab, Panics, Server, assert_event, assert_reset, lab, read_exact, write};
use tokio::net::TcpStream;

/// A TLS connection through the proxy that is relayed.
async fn relayed(lab: &Lab, server: &Server, port: u16) -> (TcpStream, TcpStream) {
    let hello = HelloBuilder::named("good.test").build();
    let mut client = lab.connect(GOOD, port).await;
    write(&mut client, &hello).await;
    let mut inside = server.accept().await;
    assert_eq!(read_exact(&mut inside, hello.len()).await, hello);
    (client, inside)
}

/// A connection that names this host.
async fn named(lab: &Lab, name: &str, port: u16) -> TcpStream {
    let mut client = lab.connect(GOOD, port).await;
    write(&mut client, &HelloBuilder::named(name).build()).await;
    client
}

/// A connection that was open before still carries data, both ways.
async fn still_carries((client, inside): &mut (TcpStream, TcpStream)) {
    write(client, b"up").await;
    assert_eq!(read_exact(inside, 2).await, b"up");
    write(inside, b"down").await;
    assert_eq!(read_exact(client, 4).await, b"down");
}

#[test]
fn a_connection_that_panics_is_reset_and_recorded_and_no_other_notices() {
    lab(|mut lab| async move {
        lab.permit(&["good.test", "faulty.test"]);
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        let mut open = relayed(&lab, &server, 443).await;

        *lab.egress.panics.lock() = Some(Panics::Name("faulty.test".to_owned()));
        for count in 2..5 {
            assert_reset(&mut named(&lab, "faulty.test", 443).await).await;
            let events = lab.wait_events(count).await;
            let event = events.last().unwrap();
            assert_event(event, EventKind::EgressBlocked, "daemon_fault", None, NameSource::None);
            assert_eq!((event.address, event.port), (Some(GOOD.parse().unwrap()), Some(443)));
        }
        still_carries(&mut open).await;
        // Nothing of them is left: no place among the flows, no binding held.
        drop(relayed(&lab, &server, 443).await);
        drop(open);
        lab.wait_idle().await;
        assert_eq!(lab.egress.held.load(std::sync::atomic::Ordering::SeqCst), 0);
        assert_eq!(lab.flows.half_open(), 0);

        // Another sandbox on the same thread is served, and this one again when the fault is over.
        *lab.egress.panics.lock() = None;
        lab.egress.resolve("faulty.test", &[GOOD]);
        let client = named(&lab, "faulty.test", 443).await;
        server.accept().await;
        drop(client);
        lab.flows = Arc::new(Flows::new());
        lab.proxy(8443);
        let other = Server::listen(GOOD, 8443).await;
        relayed(&lab, &other, 8443).await;
    });
}

#[test]
fn what_panics_while_a_connection_is_accepted_costs_that_connection_only() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let server = Server::listen(GOOD, 443).await;
        let mut open = relayed(&lab, &server, 443).await;
        *lab.egress.panics.lock() = Some(Panics::Hold);
        for count in 2..4 {
            assert_reset(&mut lab.connect(GOOD, 443).await).await;
            let events = lab.wait_events(count).await;
            let event = events.last().unwrap();
            assert_event(event, EventKind::EgressBlocked, "daemon_fault", None, NameSource::None);
        }
        still_carries(&mut open).await;
        *lab.egress.panics.lock() = None;
        relayed(&lab, &server, 443).await;
    });
}

#[test]
fn the_threads_of_the_proxies_outlive_a_panic_of_their_connections() {
    lab(|lab| async move {
        lab.permit(&["good.test", "faulty.test"]);
        let workers = Workers::start(1).unwrap();
        for port in [443, 8443] {
            let (egress, flows) = (lab.egress.clone(), lab.flows.clone());
            let (listener, stop, workers) = (lab.listener(port), lab.stop.clone(), workers.clone());
            tokio::spawn(async move {
                workers.serve(vec![vec![listener]], egress, flows, Limits::default(), stop).await
            });
        }
        *lab.egress.panics.lock() = Some(Panics::Name("faulty.test".to_owned()));
        assert_reset(&mut named(&lab, "faulty.test", 443).await).await;
        for port in [443, 8443] {
            let server = Server::listen(GOOD, port).await;
            relayed(&lab, &server, port).await;
        }
    });
}
