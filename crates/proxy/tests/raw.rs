//! Connections that are neither TLS nor HTTP, and what all relays do.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use std::{sync::atomic::Ordering, time::Duration};

use policy::{EventKind, NameSource, PolicySpec};
use proxy::Workers;
use rustix::time::{ClockId, clock_gettime};
use support::{
    ACCESS_DENIED, EVIL, GOOD, HelloBuilder, Lab, Server, assert_event, assert_reset, lab, read_exact,
    read_to_end, write,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

/// A relayed connection to port 22 of `good.test`: the client's end and the server's end.
async fn relayed(lab: &Lab, server: &Server) -> (TcpStream, TcpStream) {
    let mut client = lab.connect(GOOD, 22).await;
    write(&mut client, b"SSH-2.0-client\r\n").await;
    let mut inside = server.accept().await;
    assert_eq!(read_exact(&mut inside, 16).await, b"SSH-2.0-client\r\n");
    (client, inside)
}

async fn ssh(lab: &Lab) -> Server {
    lab.permit_good();
    lab.egress.bind(GOOD, "good.test");
    lab.proxy(22);
    Server::listen(GOOD, 22).await
}

#[test]
fn an_unknown_protocol_passes_to_a_bound_address_of_a_permitted_name_and_to_no_other() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let evil = Server::listen(EVIL, 22).await;
        lab.egress.bind(EVIL, "evil.test");
        relayed(&lab, &server).await;

        for (address, reason, name) in
            [(EVIL, "default_deny", Some("evil.test")), ("93.184.216.99", "not_bound", None)]
        {
            let before = lab.events().len();
            let mut client = lab.connect(address, 22).await;
            write(&mut client, b"SSH-2.0-client\r\n").await;
            assert_reset(&mut client).await;
            let source = if name.is_some() { NameSource::Dns } else { NameSource::None };
            let events = lab.wait_events(before + 1).await;
            assert_event(&events[before], EventKind::EgressBlocked, reason, name, source);
        }
        assert_event(
            &lab.events()[0],
            EventKind::EgressAllowed,
            "allow_entry",
            Some("good.test"),
            NameSource::Dns,
        );
        assert!(!evil.was_reached());
    });
}

#[test]
fn under_an_open_policy_that_denies_a_name_an_unknown_protocol_passes_only_to_bound_addresses() {
    lab(|lab| async move {
        lab.set_policy(&PolicySpec { deny_out: vec!["evil.test".to_owned()], ..PolicySpec::default() });
        lab.egress.bind(GOOD, "good.test");
        lab.proxy(22);
        let (good, evil) = (Server::listen(GOOD, 22).await, Server::listen(EVIL, 22).await);
        relayed(&lab, &good).await;
        let before = lab.events().len();
        let mut client = lab.connect(EVIL, 22).await;
        write(&mut client, b"SSH-2.0-client\r\n").await;
        assert_reset(&mut client).await;
        let events = lab.wait_events(before + 1).await;
        assert_event(&events[before], EventKind::EgressBlocked, "not_bound", None, NameSource::None);
        assert!(!evil.was_reached());
    });
}

#[test]
fn an_unknown_protocol_never_passes_on_the_ports_of_the_web() {
    lab(|lab| async move {
        ssh(&lab).await;
        for port in [80, 443] {
            lab.proxy(port);
            let server = Server::listen(GOOD, port).await;
            let mut client = lab.connect(GOOD, port).await;
            write(&mut client, b"SSH-2.0-client\r\n").await;
            assert_reset(&mut client).await;
            // A server that speaks first is not waited for either.
            let mut client = lab.connect(GOOD, port).await;
            assert_reset(&mut client).await;
            assert!(!server.was_reached());
        }
        let reasons: Vec<_> = lab.events().iter().map(|event| event.verdict.reason.as_str()).collect();
        assert_eq!(reasons, ["unknown_protocol", "peek_timeout", "unknown_protocol", "peek_timeout"]);
    });
}

#[test]
fn a_server_may_speak_first_at_a_bound_address_of_a_permitted_name() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let mut client = lab.connect(GOOD, 22).await;
        let mut inside = server.accept().await;
        write(&mut inside, b"SSH-2.0-server\r\n").await;
        assert_eq!(read_exact(&mut client, 16).await, b"SSH-2.0-server\r\n");
        write(&mut client, b"SSH-2.0-client\r\n").await;
        assert_eq!(read_exact(&mut inside, 16).await, b"SSH-2.0-client\r\n");
        write(&mut inside, b"and on").await;
        assert_eq!(read_exact(&mut client, 6).await, b"and on");
        drop(inside);
        assert_eq!(read_to_end(&mut client).await.0, b"");
        client.shutdown().await.unwrap();
        let totals = lab.wait_finished(0).await;
        assert_eq!((totals.bytes_up, totals.bytes_down), (16, 22));

        let mut client = lab.connect(EVIL, 22).await;
        assert_reset(&mut client).await;
    });
}

#[test]
fn a_client_that_only_listens_gets_all_that_the_server_says() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let mut client = lab.connect(GOOD, 22).await;
        client.shutdown().await.unwrap();
        let mut inside = server.accept().await;
        write(&mut inside, b"the time is").await;
        drop(inside);
        let (answer, end) = read_to_end(&mut client).await;
        assert_eq!(answer, b"the time is");
        end.unwrap();
    });
}

#[test]
fn silence_is_no_way_around_the_server_name() {
    lab(|lab| async move {
        lab.permit_good();
        lab.egress.bind(GOOD, "good.test");
        lab.proxy(8443);
        let server = Server::listen(GOOD, 8443).await;
        for (name, permitted) in [("evil.test", false), ("good.test", true)] {
            let mut client = lab.connect(GOOD, 8443).await;
            // The proxy has found the client silent and connected for it.
            let mut early = server.accept().await;
            let hello = HelloBuilder::named(name).build();
            write(&mut client, &hello).await;
            assert_eq!(read_to_end(&mut early).await.0, b"", "nothing was sent on the early connection");
            if permitted {
                let mut inside = server.accept().await;
                assert_eq!(read_exact(&mut inside, hello.len()).await, hello);
            } else {
                assert_eq!(read_to_end(&mut client).await.0, ACCESS_DENIED);
            }
        }

        // After the server has spoken it is too late to be something else.
        let mut client = lab.connect(GOOD, 8443).await;
        let mut inside = server.accept().await;
        write(&mut inside, b"220 ready\r\n").await;
        read_exact(&mut client, 11).await;
        write(&mut client, &HelloBuilder::named("evil.test").build()).await;
        assert_reset(&mut client).await;
        assert_eq!(read_to_end(&mut inside).await.0, b"");
    });
}

#[test]
fn an_address_entry_covers_every_protocol() {
    lab(|lab| async move {
        lab.permit(&["93.184.216.99:443", "10.0.0.0/8"]);
        for (address, port) in [("93.184.216.99", 443), ("10.1.2.3", 8443)] {
            lab.proxy(port);
            let server = Server::listen(address, port).await;
            let mut client = lab.connect(address, port).await;
            let mut inside = server.accept().await;
            write(&mut inside, b"hello").await;
            assert_eq!(read_exact(&mut client, 5).await, b"hello");
            write(&mut client, &HelloBuilder::default().build()).await;
            read_exact(&mut inside, 10).await;
        }
        lab.proxy(22);
        assert_reset(&mut lab.connect("93.184.216.99", 22).await).await;
    });
}

#[test]
fn each_direction_ends_by_itself() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let (mut client, mut inside) = relayed(&lab, &server).await;
        write(&mut client, b"last words").await;
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut inside).await.0, b"last words");
        // The other direction goes on.
        for _ in 0..3 {
            write(&mut inside, b"still here").await;
            assert_eq!(read_exact(&mut client, 10).await, b"still here");
        }
        inside.shutdown().await.unwrap();
        let (rest, end) = read_to_end(&mut client).await;
        assert_eq!(rest, b"");
        end.unwrap();
        let totals = lab.wait_finished(0).await;
        assert_eq!((totals.bytes_up, totals.bytes_down), (26, 30));
        lab.wait_idle().await;
        assert_eq!(lab.egress.held.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset_after_what_was_sent_before() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let (mut client, mut inside) = relayed(&lab, &server).await;
        write(&mut inside, b"before").await;
        assert_eq!(read_exact(&mut client, 6).await, b"before");
        inside.set_zero_linger().unwrap();
        drop(inside);
        assert_reset(&mut client).await;

        let (client, mut inside) = relayed(&lab, &server).await;
        client.set_zero_linger().unwrap();
        drop(client);
        assert_reset(&mut inside).await;
    });
}

/// An endless stream of bytes, another one for each seed, of which no cut or swapped part could pass for the whole.
struct Pattern {
    block: Vec<u8>,
    at: usize,
}

impl Pattern {
    fn new(seed: u64) -> Self {
        let mut state = seed;
        let block = (0..65_521).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        Self { block: block.collect(), at: 0 }
    }

    /// The next bytes, at most `most` of them.
    fn next(&mut self, most: usize) -> &[u8] {
        let from = self.at;
        let to = (from + most).min(self.block.len());
        self.at = to % self.block.len();
        &self.block[from..to]
    }
}

async fn send_pattern(mut half: impl AsyncWriteExt + Unpin, seed: u64, length: usize) {
    let mut pattern = Pattern::new(seed);
    let mut left = length;
    while left > 0 {
        let piece = pattern.next(left);
        half.write_all(piece).await.unwrap();
        left -= piece.len();
    }
    half.shutdown().await.unwrap();
}

async fn expect_pattern(mut half: impl AsyncReadExt + Unpin, seed: u64, length: usize) {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 64 << 10];
    let mut received = 0;
    loop {
        let n = half.read(&mut buffer).await.unwrap();
        if n == 0 {
            break;
        }
        received += n;
        let mut bytes = &buffer[..n];
        while !bytes.is_empty() {
            let expected = pattern.next(bytes.len());
            assert!(bytes.starts_with(expected));
            bytes = &bytes[expected.len()..];
        }
    }
    assert_eq!(received, length);
}

#[test]
fn sixty_four_mebibytes_each_way_at_the_same_time_arrive_unchanged() {
    const LENGTH: usize = 64 << 20;
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let (mut client, mut inside) = relayed(&lab, &server).await;
        let ((client_read, client_write), (inside_read, inside_write)) = (client.split(), inside.split());
        tokio::join!(
            send_pattern(client_write, 1, LENGTH),
            expect_pattern(inside_read, 1, LENGTH),
            send_pattern(inside_write, 2, LENGTH),
            expect_pattern(client_read, 2, LENGTH),
        );
        let totals = lab.wait_finished(0).await;
        let length = u64::try_from(LENGTH).unwrap();
        assert_eq!((totals.bytes_up, totals.bytes_down), (length + 16, length));
    });
}

#[test]
fn the_end_of_the_stream_does_not_overtake_bytes_that_the_receiver_is_slow_to_take() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let (mut client, inside) = relayed(&lab, &server).await;
        // The server sends all and closes before the client reads anything.
        send_pattern(inside, 3, 3 << 20).await;
        expect_pattern(&mut client, 3, 3 << 20).await;
    });
}

#[test]
fn a_relay_that_has_to_wait_uses_no_processor() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let (mut client, mut inside) = relayed(&lab, &server).await;
        // The client reads nothing: socket, pipe and socket fill up behind it. Its own stream has ended.
        client.shutdown().await.unwrap();
        read_to_end(&mut inside).await.1.unwrap();
        let piece = vec![0; 1 << 20];
        while timeout(Duration::from_millis(200), inside.write(&piece)).await.is_ok() {}

        let used = || {
            let time = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
        };
        let before = used();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let waiting = used() - before;
        assert!(waiting < Duration::from_millis(50), "{waiting:?}");
        assert_eq!(lab.flows.len(), 1);
    });
}

#[test]
fn five_hundred_connections_at_the_same_time_do_not_mix() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let mut pairs = Vec::new();
        for _ in 0..500 {
            pairs.push(relayed(&lab, &server).await);
        }
        assert_eq!(lab.flows.len(), 500);
        let mut tasks = JoinSet::new();
        for (i, (mut client, mut inside)) in pairs.into_iter().enumerate() {
            tasks.spawn(async move {
                let seed = u64::try_from(i).unwrap();
                let ((cr, cw), (ir, iw)) = (client.split(), inside.split());
                tokio::join!(
                    send_pattern(cw, seed, 200_000),
                    expect_pattern(ir, seed, 200_000),
                    send_pattern(iw, seed + 1000, 200_000),
                    expect_pattern(cr, seed + 1000, 200_000),
                );
            });
        }
        tasks.join_all().await;
        lab.wait_idle().await;
        assert_eq!(lab.egress.held.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_policy_that_no_longer_permits_a_flow_cuts_it_and_leaves_its_neighbour() {
    lab(|lab| async move {
        lab.permit(&["good.test", "other.test"]);
        lab.egress.bind(GOOD, "good.test");
        lab.egress.bind("93.184.216.35", "other.test");
        lab.proxy(22);
        let good = Server::listen(GOOD, 22).await;
        let other = Server::listen("93.184.216.35", 22).await;
        let (mut client, mut inside) = relayed(&lab, &good).await;
        let mut neighbour = lab.connect("93.184.216.35", 22).await;
        write(&mut neighbour, b"SSH-2.0-client\r\n").await;
        let mut neighbour_inside = other.accept().await;
        read_exact(&mut neighbour_inside, 16).await;

        let started = std::time::Instant::now();
        lab.set_policy(&PolicySpec { allow_out: vec!["other.test".to_owned()], ..PolicySpec::default() });
        assert_reset(&mut client).await;
        assert_reset(&mut inside).await;
        assert!(started.elapsed().as_millis() < 1000);
        let events = lab.wait_events(3).await;
        assert_event(
            &events[2],
            EventKind::EgressRevoked,
            "default_deny",
            Some("good.test"),
            NameSource::Dns,
        );
        assert_eq!(events[2].generation, 2);
        assert_eq!(lab.wait_finished(0).await.bytes_up, 16);

        write(&mut neighbour, b"on").await;
        assert_eq!(read_exact(&mut neighbour_inside, 2).await, b"on");
        assert_eq!(lab.flows.len(), 1);
    });
}

#[test]
fn a_policy_that_comes_while_a_flow_is_judged_judges_it() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let good = Server::listen(GOOD, 443).await;
        let lab = std::sync::Arc::new(lab);
        *lab.egress.meanwhile.lock() = Some(Box::new({
            let lab = lab.clone();
            move || {
                lab.set_policy(&PolicySpec { allow_out: vec!["x.test".to_owned()], ..PolicySpec::default() })
            }
        }));
        let mut client = lab.connect(GOOD, 443).await;
        write(&mut client, &HelloBuilder::named("good.test").build()).await;
        assert_eq!(read_to_end(&mut client).await.0, ACCESS_DENIED);
        let events = lab.wait_events(1).await;
        assert_event(
            &events[0],
            EventKind::EgressBlocked,
            "default_deny",
            Some("good.test"),
            NameSource::Sni,
        );
        assert_eq!(events[0].generation, 2);
        assert!(!good.was_reached());
    });
}

#[test]
fn connections_over_the_limit_are_reset_and_recorded() {
    lab(|mut lab| async move {
        lab.limits.max_flows = 2;
        let server = ssh(&lab).await;
        let first = relayed(&lab, &server).await;
        let _second = relayed(&lab, &server).await;
        let mut third = lab.connect(GOOD, 22).await;
        assert_reset(&mut third).await;
        assert_eq!(lab.wait_events(3).await[2].verdict.reason.as_str(), "flow_limit");
        drop(first);
        lab.wait_finished(0).await;
        relayed(&lab, &server).await;
    });
}

#[test]
fn stopping_the_proxy_cuts_what_is_open() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let (mut client, mut inside) = relayed(&lab, &server).await;
        lab.stop.cancel();
        assert_reset(&mut client).await;
        assert_reset(&mut inside).await;
        lab.wait_idle().await;
    });
}

#[test]
fn worker_threads_relay_as_the_callers_runtime_does_and_stop_with_the_server() {
    lab(|lab| async move {
        lab.permit_good();
        lab.egress.bind(GOOD, "good.test");
        let server = Server::listen(GOOD, 22).await;
        let workers = Workers::start(2).unwrap();
        let listener = lab.listener(22);
        let (egress, flows, limits, stop) =
            (lab.egress.clone(), lab.flows.clone(), lab.limits, lab.stop.clone());
        let serving =
            tokio::spawn(
                async move { workers.serve(vec![vec![listener]], egress, flows, limits, stop).await },
            );
        let (mut client, mut inside) = relayed(&lab, &server).await;
        write(&mut inside, b"back").await;
        assert_eq!(read_exact(&mut client, 4).await, b"back");
        lab.stop.cancel();
        serving.await.unwrap().unwrap();
        assert_reset(&mut client).await;
        assert_reset(&mut inside).await;
    });
}

#[test]
fn while_policies_come_and_go_no_flow_outlives_the_one_that_permitted_it() {
    lab(|lab| async move {
        let server = ssh(&lab).await;
        let accepting = tokio::spawn(async move {
            let mut open = Vec::new();
            loop {
                open.push(server.accept().await);
            }
        });
        let spec = |name: &str| PolicySpec { allow_out: vec![name.to_owned()], ..PolicySpec::default() };
        let mut clients = Vec::new();
        for i in 0..40 {
            for _ in 0..5 {
                let mut client = lab.connect(GOOD, 22).await;
                let _ = client.write_all(b"SSH-2.0-client\r\n").await;
                clients.push(client);
            }
            for _ in 0..i % 7 {
                tokio::task::yield_now().await;
            }
            lab.set_policy(&spec(if i % 2 == 0 { "other.test" } else { "good.test" }));
        }
        lab.set_policy(&spec("other.test"));
        lab.wait_idle().await;
        accepting.abort();
        // Every flow that was permitted has ended, and was recorded as ended.
        for (i, event) in lab.events().iter().enumerate() {
            if event.kind == EventKind::EgressAllowed {
                lab.wait_finished(i).await;
            }
        }
        assert!(lab.events().iter().any(|event| event.kind == EventKind::EgressRevoked));
    });
}

#[test]
fn the_destination_is_held_from_the_accepted_connections_beginning_to_its_end() {
    lab(|lab| async move {
        lab.permit_good();
        lab.proxy(443);
        let client = lab.connect(GOOD, 443).await;
        let accepted = async {
            while lab.egress.held.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        timeout(support::DEADLINE, accepted).await.expect("held before it has said anything");
        drop(client);
        lab.wait_idle().await;
        assert_eq!(lab.egress.held.load(Ordering::SeqCst), 0);
    });
}
