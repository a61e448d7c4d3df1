//! Flows by wires: what they amounted to, and how many there may be.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use std::{
    io::{self, ErrorKind::ConnectionRefused, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use gate::{Gate, GateConfig, Limits, WireLimits};
use nft::conntrack::{Entry, Table};
use store::{EventQuery, EventRecord};

use crate::lab::{Lab, PATIENCE, Sandbox, allow, kind};

const SERVER: &str = "10.1.2.3";

/// The events of all sandboxes, once `is_told` of them.
async fn told(lab: &Lab, is_told: impl Fn(&[EventRecord]) -> bool) -> Vec<EventRecord> {
    let mut updates = lab.audit.subscribe(None);
    loop {
        let events = recorded(lab).await;
        if is_told(&events) {
            return events;
        }
        // A connection is looked at some seconds after its beginning.
        let update = tokio::time::timeout(3 * PATIENCE, updates.recv()).await;
        assert!(update.is_ok(), "{events:#?}");
    }
}

/// The events of all sandboxes, once so many flows were permitted.
async fn begun(lab: &Lab, count: usize) -> Vec<EventRecord> {
    told(lab, |events| events.iter().filter(|event| event.kind == "egress_allowed").count() == count).await
}

/// The events of all sandboxes that are recorded by now.
async fn recorded(lab: &Lab) -> Vec<EventRecord> {
    lab.audit.flush().await.unwrap();
    let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
    let mut events = lab.store.events().query(&query).await.unwrap().events;
    events.retain(|event| event.address != Some("169.254.1.1".parse().unwrap()));
    events
}

fn of<'a>(events: &'a [EventRecord], protocol: &str) -> &'a EventRecord {
    let mut found = events.iter().filter(|event| event.protocol.as_deref() == Some(protocol));
    let event = found.next().unwrap();
    assert!(found.next().is_none(), "{events:#?}");
    event
}

/// Gets so many bytes from the server.
fn download(bytes: usize) -> io::Result<()> {
    let mut stream = lab::connect(SocketAddr::new(SERVER.parse().unwrap(), 80))?;
    write!(stream, "GET /bytes/{bytes} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    assert!(answer.len() > bytes);
    Ok(())
}

/// Sends so many echo requests of 100 bytes and waits for each answer.
fn echo_requests(count: u16) {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    let socket =
        UdpSocket::from(socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect((SERVER, 0)).unwrap();
    for number in 0..count {
        let [high, low] = number.to_be_bytes();
        let mut message = vec![8, 0, 0, 0, 0, 0, high, low];
        message.resize(100, 0);
        socket.send(&message).unwrap();
        assert_eq!(socket.recv(&mut [0; 200]).unwrap(), 100);
    }
}

/// A socket with a flow of a datagram each way. Not two with one port: while the world answers from it, it does not
/// listen there.
fn held_datagrams(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((SERVER, port))?;
    socket.send(&[1; 72])?;
    socket.recv(&mut [0; 100])?;
    Ok(socket)
}

fn held_stream(server: &str) -> TcpStream {
    let mut stream = lab::connect(SocketAddr::new(server.parse().unwrap(), 7777)).unwrap();
    stream.write_all(&[1; 1000]).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    stream
}

#[test]
fn the_event_of_a_download_by_the_wire_gets_its_bytes_and_duration_when_it_has_ended() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&[SERVER]).await;
        sandbox.run(|| download(1_000_000).unwrap()).await;
        let events = told(&lab, |events| events.iter().any(|event| event.bytes_up.is_some())).await;
        let event = of(&events, "tcp");
        let (up, down) = (event.bytes_up.unwrap(), event.bytes_down.unwrap());
        assert!((200..100_000).contains(&up), "{event:#?}");
        // With headers; some of them the kernel saves on the way.
        assert!((1_000_000..1_200_000).contains(&down), "{event:#?}");
        assert!(event.duration_ms.unwrap() < 5_000, "{event:#?}");
    });
}

#[test]
fn the_events_of_flows_that_are_open_when_a_sandbox_is_detached_get_their_totals() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&[SERVER, "2001:db8:9::1"]).await;
        let other = lab.allowing(&[SERVER]).await;
        let _spared = other.run(|| held_datagrams(10).unwrap()).await;
        let started = Instant::now();
        let held = sandbox.run(|| {
            echo_requests(3);
            (held_stream(SERVER), held_stream("2001:db8:9::1"), held_datagrams(9).unwrap())
        });
        let held = held.await;
        begun(&lab, 5).await;
        let lasted = started.elapsed();
        sandbox.0.detach().await;

        let ended: Vec<_> =
            recorded(&lab).await.into_iter().filter(|event| event.bytes_up.is_some()).collect();
        assert_eq!(ended.len(), 4, "{ended:#?}");
        let (udp, icmp) = (of(&ended, "udp"), of(&ended, "icmp"));
        assert_eq!((udp.bytes_up, udp.bytes_down), (Some(100), Some(100)));
        assert_eq!((icmp.bytes_up, icmp.bytes_down), (Some(360), Some(360)));
        let tcp: Vec<_> = ended.iter().filter(|event| event.protocol.as_deref() == Some("tcp")).collect();
        assert_eq!(tcp.len(), 2);
        for event in tcp {
            assert!((1_000..2_000).contains(&event.bytes_up.unwrap()), "{event:#?}");
            assert!((1_000..2_000).contains(&event.bytes_down.unwrap()), "{event:#?}");
            assert!(event.duration_ms.unwrap() <= (lasted + PATIENCE).as_millis() as u64, "{event:#?}");
        }
        drop(held);
    });
}

#[test]
fn the_events_of_flows_that_a_new_policy_cuts_get_their_totals_and_those_it_permits_go_on() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&[SERVER, "10.1.2.4"]).await;
        let held = sandbox.run(|| (held_stream(SERVER), held_stream("10.1.2.4"), held_datagrams(9).unwrap()));
        let (cut, mut goes_on, datagrams) = held.await;
        begun(&lab, 3).await;
        // The wire stays.
        sandbox.set_policy(&lab, &allow(&["10.1.2.4"])).await;
        let events = recorded(&lab).await;
        let allowed = |to: &str| {
            let to = Some(to.parse().unwrap());
            events.iter().filter(move |event| event.kind == "egress_allowed" && event.address == to)
        };
        assert_eq!(allowed(SERVER).count(), 2);
        for event in allowed(SERVER) {
            assert!(event.bytes_up.unwrap() >= 100 && event.duration_ms.is_some(), "{event:#?}");
        }
        assert!(allowed("10.1.2.4").all(|event| event.bytes_up.is_none()), "{events:#?}");
        assert_eq!(events.iter().filter(|event| event.kind == "egress_revoked").count(), 2);
        let echoed = sandbox.run(move || {
            goes_on.write_all(&[1; 100]).unwrap();
            goes_on.read_exact(&mut [0; 100]).unwrap();
            goes_on
        });
        let goes_on = echoed.await;

        // The wire goes.
        sandbox.set_policy(&lab, &allow(&["api.github.com"])).await;
        let events = recorded(&lab).await;
        let to = Some("10.1.2.4".parse().unwrap());
        let last = events.iter().find(|event| event.kind == "egress_allowed" && event.address == to);
        assert!(last.unwrap().bytes_up.unwrap() >= 1_100, "{events:#?}");
        drop((cut, goes_on, datagrams));
    });
}

#[test]
fn a_flow_that_was_cut_is_not_tracked_by_the_machine_for_days() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&[SERVER]).await;
        let held = sandbox.run(|| held_stream(SERVER)).await;
        let tracked = || {
            let server: IpAddr = SERVER.parse().unwrap();
            let mut tracked = 0;
            let count = |entry: Entry| tracked += usize::from(entry.original.destination == server);
            Table::open().unwrap().list(count).unwrap();
            tracked
        };
        begun(&lab, 1).await;
        assert_eq!(lab.node.run(tracked).unwrap(), 1);
        sandbox.0.detach().await;
        assert_eq!(lab.node.run(tracked).unwrap(), 0);
        drop(held);
    });
}

/// A connection to the server from this port, whatever was there before.
fn connect_from(port: u16) -> TcpStream {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    // Ends with a reset, and without waiting for anything.
    sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
    bind(&socket, &SocketAddr::from(([0, 0, 0, 0], port))).unwrap();
    connect(&socket, &SocketAddr::new(SERVER.parse().unwrap(), 80)).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn a_connection_from_a_port_that_was_used_a_moment_ago_is_not_taken_for_the_earlier_one() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&[SERVER]).await;
        // So far apart that headers make no difference.
        let amounts = (1..=30).map(|number| number * 100_000);
        let asked = amounts.clone();
        sandbox
            .run(move || {
                for bytes in asked {
                    let mut stream = connect_from(40_000);
                    write!(stream, "GET /bytes/{bytes} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
                    stream.read_exact(&mut vec![0; bytes]).unwrap();
                }
            })
            .await;
        sandbox.0.detach().await;
        let allowed = |event: &&EventRecord| event.kind == "egress_allowed";
        let finished = |events: &[EventRecord]| {
            events.iter().filter(allowed).filter_map(|event| event.bytes_down).count() >= 30
        };
        let mut events = told(&lab, finished).await;
        events.retain(|event| allowed(&event));
        events.sort_by_key(|event| event.id);
        let told: Vec<_> = events.iter().filter_map(|event| event.bytes_down).collect();
        assert_eq!(events.len(), 30);
        let hundreds = |bytes: u64| usize::try_from(bytes).unwrap() / 100_000 * 100_000;
        assert!(amounts.eq(told.iter().copied().map(hundreds)), "{told:?}");
    });
}

/// A gate whose wires may carry little.
async fn strict(wires: WireLimits) -> Gate {
    let upstream = dns::Upstream::new(dns::UpstreamConfig::new(vec!["198.51.100.1:53".parse().unwrap()]));
    let config = GateConfig {
        daemon_id: "strict".to_owned(),
        limits: Limits { wires, ..Limits::default() },
        ..GateConfig::new(upstream.unwrap())
    };
    Gate::start(config).await.unwrap()
}

async fn attach(lab: &Lab, gate: &Gate, id: &str) -> Sandbox {
    let policy = lab.policy(&allow(&[SERVER]));
    let audit = lab.audit.recorder(id, true);
    let request = gate::AttachRequest { sandbox: id.to_owned(), policy, generation: 1, audit };
    Sandbox(gate.attach(request).await.unwrap())
}

#[test]
fn a_sandbox_at_its_limit_of_flows_is_refused_more_with_an_event_and_another_is_not() {
    lab::run(|lab| async move {
        let gate = strict(WireLimits { max_flows: 8, ..WireLimits::default() }).await;
        let (one, other) =
            (attach(&lab, &gate, "sbx-one00001").await, attach(&lab, &gate, "sbx-two00002").await);
        let held =
            one.run(|| (0..8).map(|port| held_datagrams(1000 + port).unwrap()).collect::<Vec<_>>()).await;
        begun(&lab, 8).await;

        assert_eq!(kind(one.connect("10.1.2.3:80").await), ConnectionRefused);
        let refused = one.run(|| kind(held_datagrams(10))).await;
        assert_eq!(refused, io::ErrorKind::HostUnreachable);
        // What is open goes on.
        let held = one.run(move || {
            held[0].send(&[1; 10]).unwrap();
            held[0].recv(&mut [0; 10]).unwrap();
            held
        });
        let held = held.await;
        assert!(other.get("10.1.2.3:80", "x").await.unwrap().starts_with("HTTP/1.1 200"));
        let refused = |events: Vec<EventRecord>| {
            let refused = events.into_iter().filter(|event| event.reason.as_deref() == Some("flow_limit"));
            refused.map(|event| (event.sandbox_id, event.reason, event.port, event.count)).collect::<Vec<_>>()
        };
        let limit = |port| (Some("sbx-one00001".to_owned()), Some("flow_limit".into()), Some(port), 1);
        let is_refused = |event: &&EventRecord| event.reason.as_deref() == Some("flow_limit");
        let events = told(&lab, |events| events.iter().filter(is_refused).count() >= 2).await;
        assert_eq!(refused(events), [limit(80), limit(10)]);

        // With the flows the limit goes.
        one.set_policy(&lab, &allow(&["10.9.9.9"])).await;
        one.set_policy(&lab, &allow(&[SERVER])).await;
        assert!(one.get("10.1.2.3:80", "x").await.unwrap().starts_with("HTTP/1.1 200"));
        assert_eq!(refused(lab.events(&one).await).len(), 2);
        drop((held, one, other));
    });
}

#[test]
fn a_sandbox_that_opens_flows_too_fast_is_refused_some_and_another_is_not() {
    lab::run(|lab| async move {
        let limits = WireLimits { new_flows: 1, burst: 20, ..WireLimits::default() };
        let gate = strict(limits).await;
        let (one, other) =
            (attach(&lab, &gate, "sbx-one00001").await, attach(&lab, &gate, "sbx-two00002").await);
        let reached = one.run(|| (0..50).filter(|port| held_datagrams(1000 + port).is_ok()).count()).await;
        assert!((20..50).contains(&reached), "{reached}");
        assert!(other.get("10.1.2.3:80", "x").await.unwrap().starts_with("HTTP/1.1 200"));
        let refused = |event: &&EventRecord| event.reason.as_deref() == Some("flow_limit");
        told(&lab, |events| {
            let refused: u64 = events.iter().filter(refused).map(|event| event.count).sum();
            refused == 50 - u64::try_from(reached).unwrap()
        })
        .await;
        drop((one, other));
    });
}

#[test]
fn refusals_over_a_limit_that_are_too_many_for_the_log_are_counted() {
    lab::run(|lab| async move {
        let limits = WireLimits { new_flows: 1, burst: 1, ..WireLimits::default() };
        let gate = strict(limits).await;
        let sandbox = attach(&lab, &gate, "sbx-one00001").await;
        let sent = sandbox.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let sent = (1_001..=6_000).filter(|port| socket.send_to(b"x", (SERVER, *port)).is_ok()).count();
            u64::try_from(sent).unwrap()
        });
        let sent = sent.await;
        sandbox.0.detach().await;
        // The end of the uplink's log is read a little later.
        let events = told(&lab, |events| events.iter().map(|event| event.count).sum::<u64>() == sent).await;
        let gap = events.iter().find(|event| event.kind == "audit_gap").unwrap();
        assert_eq!(gap.reason.as_deref(), Some("uplink_log_limit"));
    });
}

#[test]
fn all_that_the_uplink_counted_is_recorded_over_changes_of_the_policy_and_to_the_end() {
    lab::run(|lab| async move {
        let limits = WireLimits { new_flows: 1, burst: 40, ..WireLimits::default() };
        let gate = strict(limits).await;
        let sandbox = attach(&lab, &gate, "sbx-one00001").await;
        // Some are too many.
        sandbox.run(|| (0..50).filter(|port| held_datagrams(1000 + port).is_ok()).count()).await;
        // Without the wire, and with another one in its place.
        sandbox.set_policy(&lab, &allow(&["api.github.com"])).await;
        sandbox.set_policy(&lab, &allow(&[SERVER])).await;
        assert!(sandbox.get("10.1.2.3:80", "x").await.unwrap().starts_with("HTTP/1.1 200"));
        sandbox.0.detach().await;
        drop(sandbox);
        // The wire's place is given back when the end of the log has been read.
        let released = async {
            while gate.stats().sandboxes > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, released).await.unwrap();
        let events = recorded(&lab).await;
        assert!(events.iter().all(|event| event.kind != "audit_gap"), "{events:#?}");
        let reasons: Vec<_> = events.iter().filter_map(|event| event.reason.as_deref()).collect();
        assert!(reasons.contains(&"flow_limit") && reasons.contains(&"allow_entry"), "{reasons:?}");
    });
}
