//! Each sandbox has its limits: at one of them it is refused more with an event that says which, and the sandbox beside
//! it is served as if nothing were.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use gate::{AttachRequest, BindingLimits, ByteLimits, FlowLimits, Gate, GateConfig, Limits, NameLimits};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use policy::Rate;
use store::{EventQuery, EventRecord};

use crate::lab::{Lab, PATIENCE, Sandbox, allow};

const ALLOWED: &str = "104.16.1.1:80";
const HOUR: Duration = Duration::from_secs(3600);

/// A gate with these limits, and two sandboxes of it.
async fn two(lab: &Lab, limits: Limits, entries: &[&str]) -> (Gate, [Sandbox; 2]) {
    let upstream = dns::Upstream::new(dns::UpstreamConfig::new(vec!["198.51.100.1:53".parse().unwrap()]));
    let config = GateConfig { daemon_id: "limits".to_owned(), limits, ..GateConfig::new(upstream.unwrap()) };
    let gate = Gate::start(config).await.unwrap();
    let mut both = Vec::new();
    for id in ["sbx-one00001", "sbx-two00002"] {
        let (policy, audit) = (lab.policy(&allow(entries)), lab.audit.recorder(id, true));
        let request = AttachRequest { sandbox: id.to_owned(), policy, generation: 1, audit };
        both.push(Sandbox(gate.attach(request).await.unwrap()));
    }
    (gate, both.try_into().ok().unwrap())
}

async fn bound(both: &[Sandbox; 2]) {
    for sandbox in both {
        assert_eq!(sandbox.lookup("allowed.test").await.len(), 1);
    }
}

/// The refusals of both, as (sandbox, reason, count).
async fn refusals(lab: &Lab, sandbox: &Sandbox) -> Vec<(String, String, u64)> {
    let refused = |event: &EventRecord| event.kind == "egress_blocked" || event.kind == "dns_blocked";
    let events = lab.events(sandbox).await.into_iter().filter(refused);
    events.map(|event| (event.sandbox_id.unwrap(), event.reason.unwrap().into_owned(), event.count)).collect()
}

fn of_one(reason: &str, count: u64) -> [(String, String, u64); 1] {
    [("sbx-one00001".to_owned(), reason.to_owned(), count)]
}

async fn is_served(sandbox: &Sandbox) {
    let answer = sandbox.get(ALLOWED, "allowed.test").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A connection is made, and then reset before a word.
async fn is_reset(sandbox: &Sandbox) {
    let to: SocketAddr = ALLOWED.parse().unwrap();
    let read = sandbox.run(move || match lab::connect(to) {
        Ok(mut stream) => stream.read(&mut [0]),
        Err(error) => Err(error),
    });
    assert_eq!(read.await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// A connection on which a first request was answered.
fn held() -> io::Result<TcpStream> {
    let mut stream = lab::connect(ALLOWED.parse().unwrap())?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: allowed.test\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"HTTP/1.1 200");
    Ok(stream)
}

/// Waits until so many connections are open, and so many of them half open.
async fn has_flows(sandbox: &Sandbox, open: usize, half_open: usize) {
    let waiting = async {
        while (sandbox.0.info().flows, sandbox.0.info().half_open) != (open, half_open) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
}

#[test]
fn a_sandbox_with_as_many_proxied_connections_as_it_may_have_is_refused_more() {
    lab::run(|lab| async move {
        let flows = FlowLimits { max_flows: 2, ..FlowLimits::default() };
        let (_gate, both) = two(&lab, Limits { flows, ..Limits::default() }, &["allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        let first = one.run(held).await.unwrap();
        let _second = one.run(held).await.unwrap();
        is_reset(one).await;
        is_reset(one).await;
        is_served(other).await;
        assert_eq!(refusals(&lab, one).await, of_one("flow_limit", 2));
        drop(first);
        has_flows(one, 1, 0).await;
        is_served(one).await;
    });
}

#[test]
fn a_sandbox_that_begins_proxied_connections_too_fast_is_refused_some() {
    lab::run(|lab| async move {
        let new_flows = Rate { count: 1, period: HOUR, burst: 3 };
        let flows = FlowLimits { new_flows, ..FlowLimits::default() };
        let (_gate, both) = two(&lab, Limits { flows, ..Limits::default() }, &["allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        for _ in 0..3 {
            is_served(one).await;
        }
        is_reset(one).await;
        is_served(other).await;
        assert_eq!(refusals(&lab, one).await, of_one("flow_rate", 1));
    });
}

#[test]
fn a_sandbox_that_leaves_its_connections_half_open_is_refused_more() {
    lab::run(|lab| async move {
        let flows = FlowLimits { max_half_open: 4, peek_timeout: HOUR, ..FlowLimits::default() };
        let (_gate, both) = two(&lab, Limits { flows, ..Limits::default() }, &["allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        let half = || {
            let mut stream = lab::connect(ALLOWED.parse().unwrap()).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
            stream
        };
        let mut open: Vec<_> = one.run(move || (0..4).map(|_| half()).collect()).await;
        has_flows(one, 4, 4).await;
        is_reset(one).await;
        is_served(other).await;
        assert_eq!(refusals(&lab, one).await, of_one("half_open", 1));
        let mut first = open.pop().unwrap();
        let answer = one.run(move || {
            first.write_all(b"allowed.test\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            first.read_to_string(&mut answer).unwrap();
            answer
        });
        assert!(answer.await.starts_with("HTTP/1.1 200"));
        is_served(one).await;
    });
}

#[test]
fn a_client_of_the_web_that_says_nothing_is_refused_and_elsewhere_its_server_may_speak_first() {
    lab::run(|lab| async move {
        let flows = FlowLimits { peek_timeout: Duration::from_millis(100), ..FlowLimits::default() };
        let (_gate, both) = two(&lab, Limits { flows, ..Limits::default() }, &["allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        // It is accepted when the kernel has waited for its first byte for a while.
        is_reset(one).await;
        assert_eq!(refusals(&lab, one).await, of_one("peek_timeout", 1));
        // A client that ends its stream without a byte is not waited for.
        let ended = one.run(|| {
            let mut stream = lab::connect(ALLOWED.parse().unwrap())?;
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read(&mut [0])
        });
        assert!(!matches!(ended.await, Ok(1..)));
        has_flows(one, 0, 0).await;
        // The twin: at another port, the proxy connects for it, and what it sends then comes through.
        let elsewhere = SocketAddr::new(ALLOWED.parse::<SocketAddr>().unwrap().ip(), 22);
        let greeted = other.run(move || {
            let mut stream = lab::connect(elsewhere)?;
            let mut greeting = [0; 4];
            stream.read_exact(&mut greeting).map(|()| greeting)
        });
        assert_eq!(&greeted.await.unwrap(), b"SSH-");
    });
}

#[test]
fn a_silent_connection_that_a_new_policy_refuses_is_one_event() {
    lab::run(|lab| async move {
        let flows = FlowLimits { peek_timeout: Duration::from_millis(100), ..FlowLimits::default() };
        let (_gate, both) = two(&lab, Limits { flows, ..Limits::default() }, &["allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        let mut silent = one.connect(ALLOWED).await.unwrap();
        one.set_policy(&lab, &allow(&["sib.test"])).await;
        let told = one.run(move || silent.read(&mut [0])).await;
        assert_eq!(told.unwrap_err().kind(), ErrorKind::ConnectionReset);
        has_flows(one, 0, 0).await;
        assert_eq!(refusals(&lab, one).await, of_one("peek_timeout", 1));
        is_served(other).await;
    });
}

#[test]
fn a_sandbox_with_as_many_bindings_as_it_may_have_gets_no_more() {
    lab::run(|lab| async move {
        let bindings = BindingLimits { max_names: 1, ..BindingLimits::default() };
        let (_gate, both) =
            two(&lab, Limits { bindings, ..Limits::default() }, &["allowed.test", "sib.test"]).await;
        bound(&both).await;
        let [one, _] = &both;
        let (code, found) = one.resolve("sib.test", RecordType::A, "8.8.8.8:53").await;
        assert_eq!((code, found.len()), (ResponseCode::Refused, 0));
        is_served(one).await;
        assert_eq!(refusals(&lab, one).await, of_one("binding_limit", 1));
    });
}

const RESOLVER: &str = "8.8.8.8:53";

#[test]
fn a_sandbox_that_asks_for_names_too_fast_is_refused() {
    lab::run(|lab| async move {
        let names =
            NameLimits { queries: Rate { count: 1, period: HOUR, burst: 2 }, ..NameLimits::default() };
        let (_gate, both) = two(&lab, Limits { names, ..Limits::default() }, &["allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        assert_eq!(one.lookup("allowed.test").await.len(), 1);
        for name in ["allowed.test", "evil.test", "other.evil.test"] {
            assert_eq!(one.resolve(name, RecordType::A, RESOLVER).await, (ResponseCode::Refused, vec![]));
        }
        assert_eq!(other.lookup("allowed.test").await.len(), 1);
        // What is bound stays so.
        is_served(one).await;
        assert_eq!(refusals(&lab, one).await, of_one("dns_rate", 3));
    });
}

#[test]
fn a_sandbox_has_only_so_many_new_names_of_a_permitted_zone_looked_up_however_it_asks_for_them() {
    lab::run(|lab| async move {
        let names =
            NameLimits { zone_names: Rate { count: 1, period: HOUR, burst: 2 }, ..NameLimits::default() };
        let (_gate, both) =
            two(&lab, Limits { names, ..Limits::default() }, &["allowed.test", "*.allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        for number in 0..4 {
            let name = format!("secret{number}.allowed.test");
            let (code, found) = one.resolve(&name, RecordType::A, RESOLVER).await;
            let expected = if number < 2 { (ResponseCode::NoError, 1) } else { (ResponseCode::Refused, 0) };
            assert_eq!((code, found.len()), expected, "{name}");
        }
        let events = lab.events(one).await;
        let event = events.iter().find(|event| event.reason.as_deref() == Some("dns_labels")).unwrap();
        assert_eq!((&*event.kind, event.count), ("dns_blocked", 2));
        assert_eq!(event.rule.as_ref().unwrap().text, "allow_out[1] *.allowed.test");
        assert_eq!(event.host.as_deref(), Some("allowed.test"));

        // In the head of a request to another address of the zone, it is the same.
        let answer = one.get(ALLOWED, "secret4.allowed.test").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("\"dns_labels\""), "{answer}");
        assert_eq!(lab.asked_for("secret"), 2);
        is_served(one).await;
        let answer = other.get(ALLOWED, "secret5.allowed.test").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(other.lookup("secret6.allowed.test").await.len(), 1);
        assert_eq!((lab.asked_for("secret5"), lab.asked_for("secret6")), (2, 1));
    });
}

/// Gets so many bytes through the proxy.
fn download(bytes: usize) -> io::Result<usize> {
    let mut stream = lab::connect(ALLOWED.parse().unwrap())?;
    write!(stream, "GET /bytes/{bytes} HTTP/1.1\r\nHost: allowed.test\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)
}

#[test]
fn a_sandbox_that_has_moved_as_many_bytes_as_it_may_is_cut_off_and_another_is_not() {
    lab::run(|lab| async move {
        let bytes = ByteLimits { total: 1_000_000, ..ByteLimits::default() };
        let flows = FlowLimits { bytes, ..FlowLimits::default() };
        let (_gate, both) = two(&lab, Limits { flows, ..Limits::default() }, &["allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        let mut waiting = one.run(held).await.unwrap();
        assert!(one.run(|| download(600_000)).await.unwrap() > 600_000);
        assert!(other.run(|| download(600_000)).await.unwrap() > 600_000);
        let cut = one.run(|| download(600_000)).await.unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
        // The rest of the answer that it had, and then the same.
        let cut = one.run(move || waiting.read_to_end(&mut Vec::new())).await.unwrap_err();
        assert_eq!(cut.kind(), ErrorKind::ConnectionReset);
        is_reset(one).await;
        is_served(other).await;
        assert_eq!(refusals(&lab, one).await, of_one("byte_budget", 1));
        let events = lab.events(one).await;
        let revoked = events.iter().filter(|event| event.kind == "egress_revoked");
        let revoked: Vec<_> = revoked.map(|event| (event.reason.as_deref(), event.host.as_deref())).collect();
        assert_eq!(revoked, [(Some("byte_budget"), Some("allowed.test")); 2]);
        let moved: u64 = events
            .iter()
            .filter(|event| event.sandbox_id.as_deref() == Some("sbx-one00001"))
            .filter_map(|event| Some(event.bytes_up? + event.bytes_down?))
            .sum();
        assert!((600_000..=1_000_000).contains(&moved), "{moved}");
    });
}

const SERVER: &str = "10.1.2.3";

/// The events of a kind and reason, once there are so many.
async fn told(lab: &Lab, kind: &str, reason: &str, count: usize) -> Vec<EventRecord> {
    let mut updates = lab.audit.subscribe(None);
    loop {
        lab.audit.flush().await.unwrap();
        let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
        let mut events = lab.store.events().query(&query).await.unwrap().events;
        events.retain(|event| event.kind == kind && event.reason.as_deref() == Some(reason));
        if events.len() >= count {
            return events;
        }
        let update = tokio::time::timeout(3 * PATIENCE, updates.recv()).await;
        assert!(update.is_ok(), "{events:#?}");
    }
}

#[test]
fn what_goes_by_a_wire_counts_as_well_and_is_cut_when_it_is_too_much() {
    lab::run(|lab| async move {
        let bytes = ByteLimits { down: 1_000_000, ..ByteLimits::default() };
        let flows = FlowLimits { bytes, ..FlowLimits::default() };
        let (_gate, both) = two(&lab, Limits { flows, ..Limits::default() }, &[SERVER, "allowed.test"]).await;
        bound(&both).await;
        let [one, other] = &both;
        let held_by_wire = || {
            let mut stream = lab::connect(SocketAddr::new(SERVER.parse().unwrap(), 7777)).unwrap();
            stream.write_all(&[1; 10]).unwrap();
            stream.read_exact(&mut [0; 10]).unwrap();
            stream
        };
        let mut by_wire = one.run(held_by_wire).await;
        let mut other_by_wire = other.run(held_by_wire).await;
        let mut by_proxy = one.run(held).await.unwrap();
        for sandbox in &both {
            let got = sandbox.get(&format!("{SERVER}:80"), "x").await.unwrap();
            assert!(got.starts_with("HTTP/1.1 200"), "{got}");
        }
        let too_much = one.run(|| {
            let mut stream = lab::connect(SocketAddr::new(SERVER.parse().unwrap(), 80)).unwrap();
            write!(stream, "GET /bytes/1500000 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            // Whether all of it comes before that is noticed is a matter of time.
            drop(stream.read_to_end(&mut Vec::new()));
        });
        too_much.await;
        let revoked = told(&lab, "egress_revoked", "byte_budget", 2).await;
        let of: Vec<_> = revoked.iter().map(|event| (event.sandbox_id.as_deref(), event.port)).collect();
        for port in [80, 7777] {
            assert!(of.contains(&(Some("sbx-one00001"), Some(port))), "{of:?}");
        }
        for stream in [&mut by_wire, &mut by_proxy] {
            let ended = stream.read_to_end(&mut Vec::new()).unwrap_err();
            assert!(
                matches!(ended.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted),
                "{ended}"
            );
        }
        assert_eq!(lab::kind(one.connect(&format!("{SERVER}:80")).await), ErrorKind::ConnectionRefused);
        assert_eq!(lab::kind(one.datagram(&format!("{SERVER}:5000")).await), ErrorKind::HostUnreachable);
        is_reset(one).await;
        let refused = told(&lab, "egress_blocked", "byte_budget", 3).await;
        assert!(refused.iter().all(|event| event.sandbox_id.as_deref() == Some("sbx-one00001")));

        // Another way to the same address is none.
        one.set_policy(&lab, &allow(&["allowed.test"])).await;
        one.set_policy(&lab, &allow(&["10.0.0.0/8"])).await;
        assert_eq!(lab::kind(one.connect(&format!("{SERVER}:80")).await), ErrorKind::ConnectionRefused);
        other_by_wire.write_all(&[1; 10]).unwrap();
        other_by_wire.read_exact(&mut [0; 10]).unwrap();
        is_served(other).await;
    });
}
