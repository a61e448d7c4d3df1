//! A sandbox under a policy of names: no wire, and nothing passes that the resolver and the proxy do not carry.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use std::{
    io::ErrorKind::{ConnectionRefused, PermissionDenied},
    net::{SocketAddr, TcpListener, UdpSocket},
};

use gate::{GATE_V4, GATE_V6};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use policy::{PolicySpec, Topology};

use crate::lab::{allow, deny, kind};

const GITHUB: &str = "140.82.112.5";
const GITHUB_V6: &str = "2606:50c0:8000::154";

#[test]
fn a_raw_connect_to_an_unlisted_address_never_completes_and_a_bound_one_does() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        assert_eq!(sandbox.0.info().topology, Topology::NoWire);
        for (address, target) in [(GITHUB, format!("{GITHUB}:80")), (GITHUB_V6, format!("[{GITHUB_V6}]:80"))]
        {
            assert_eq!(kind(sandbox.connect(&target).await), ConnectionRefused);
            assert_eq!(lab.seen_at(address), 0);
        }
        let refused = lab.events(&sandbox).await;
        assert_eq!(refused.len(), 2, "{refused:#?}");
        for event in &refused {
            assert_eq!((&*event.kind, event.reason.as_deref()), ("egress_blocked", Some("default_deny")));
            assert_eq!((event.port, event.count), (Some(80), 1));
            assert_eq!(event.rule.as_ref().unwrap().text, "default");
        }

        // The twin: the same addresses, once they are answers for the permitted name.
        assert_eq!(sandbox.lookup("api.github.com").await, [GITHUB.parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(
            sandbox.lookup_v6("api.github.com").await,
            [GITHUB_V6.parse::<std::net::IpAddr>().unwrap()]
        );
        for target in [format!("{GITHUB}:80"), format!("[{GITHUB_V6}]:80")] {
            let answer = sandbox.get(&target, "api.github.com").await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let events = lab.events(&sandbox).await;
        let allowed: Vec<_> = events.iter().filter(|event| event.kind == "egress_allowed").collect();
        assert_eq!(allowed.len(), 2, "{events:#?}");
        assert_eq!(allowed[0].rule.as_ref().unwrap().text, "allow_out[0] api.github.com");
    });
}

#[test]
fn the_name_that_is_claimed_decides_and_not_the_bound_address() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["allowed.test"]).await;
        sandbox.lookup("allowed.test").await;
        let answer = sandbox.get("104.16.1.1:80", "sib.test").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert_eq!(lab.seen_at("104.16.1.1"), 0);
        let answer = sandbox.get("104.16.1.1:80", "allowed.test").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    });
}

#[test]
fn metadata_is_refused_and_recorded_as_the_floor() {
    lab::run(|lab| async move {
        let sandbox = lab.attach(&PolicySpec::default()).await;
        for target in
            ["169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80", "168.63.129.16:32526"]
        {
            assert_eq!(kind(sandbox.connect(target).await), ConnectionRefused);
        }
        for address in ["169.254.169.254", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"] {
            assert_eq!(lab.seen_at(address), 0);
        }
        let events = lab.events(&sandbox).await;
        assert_eq!(events.len(), 4, "{events:#?}");
        for event in events {
            assert_eq!(event.reason.as_deref(), Some("floor"));
            assert_eq!(event.rule.unwrap().text, "floor:metadata");
        }
    });
}

#[test]
fn any_address_answers_dns_over_udp_and_nothing_else() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        let expected: std::net::IpAddr = GITHUB.parse().unwrap();
        for server in ["8.8.8.8:53", "1.2.3.4:53", "[2001:4860:4860::8888]:53", "169.254.169.253:53"] {
            let (code, addresses) = sandbox.resolve("api.github.com", RecordType::A, server).await;
            assert_eq!((code, addresses), (ResponseCode::NoError, vec![expected]), "{server}");
        }
        assert_eq!(kind(sandbox.connect("8.8.8.8:53").await), ConnectionRefused);
        assert_eq!(kind(sandbox.connect("8.8.8.8:443").await), ConnectionRefused);
        assert_eq!(kind(sandbox.datagram("8.8.8.8:54").await), PermissionDenied);
        for address in ["8.8.8.8", "1.2.3.4", "2001:4860:4860::8888"] {
            assert_eq!(lab.seen_at(address), 0, "{address}");
        }
        // Over TCP the resolver is at the gate's own address.
        assert!(sandbox.connect(&format!("{GATE_V4}:53")).await.is_ok());
        assert!(sandbox.connect(&format!("[{GATE_V6}]:53")).await.is_ok());
    });
}

#[test]
fn a_name_that_is_not_permitted_never_leaves_the_node_and_its_connection_is_told_by_name() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        let addresses = sandbox.lookup("exfil.evil.com").await;
        let [sink] = addresses[..] else { panic!("one sink address: {addresses:?}") };
        assert_eq!(sandbox.lookup("exfil.evil.com").await, addresses, "the same one every time");
        assert_eq!(kind(sandbox.connect(&format!("{sink}:8443")).await), ConnectionRefused);
        assert_eq!(lab.asked_for("exfil.evil.com"), 0);
        let events = lab.events(&sandbox).await;
        let [event] = &events[..] else { panic!("one event: {events:#?}") };
        assert_eq!(event.host.as_deref(), Some("exfil.evil.com"));
        assert_eq!((event.host_source.as_deref(), event.port), (Some("dns"), Some(8443)));
        assert_eq!(event.reason.as_deref(), Some("default_deny"));

        sandbox.lookup("api.github.com").await;
        assert!(lab.asked_for("api.github.com") > 0);
    });
}

#[test]
fn a_refused_name_that_is_asked_for_an_ipv6_address_alone_is_told_and_with_both_its_connection_is() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        assert!(sandbox.lookup_v6("alone.evil.com").await.is_empty());
        for name in ["both.evil.com", "api.github.com"] {
            sandbox.lookup_v6(name).await;
            sandbox.lookup(name).await;
        }
        let sink = sandbox.lookup("both.evil.com").await[0];
        assert_eq!(kind(sandbox.connect(&format!("{sink}:443")).await), ConnectionRefused);
        // Whoever asks next is not waited for when the daemon ends.
        lab.gate.settle();
        let events = lab.events(&sandbox).await;
        let mut told: Vec<_> =
            events.iter().map(|event| (&*event.kind, event.host.as_deref(), event.count)).collect();
        told.sort_unstable();
        let expected =
            [("dns_blocked", Some("alone.evil.com"), 1), ("egress_blocked", Some("both.evil.com"), 1)];
        assert_eq!(told, expected);
        assert_eq!(lab.asked_for("alone.evil.com"), 0);
    });
}

#[test]
fn quic_to_a_bound_address_is_refused_at_once() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        sandbox.lookup("api.github.com").await;
        let before = std::time::Instant::now();
        assert_eq!(kind(sandbox.datagram(&format!("{GITHUB}:443")).await), PermissionDenied);
        assert!(before.elapsed() < std::time::Duration::from_secs(1));
        assert_eq!(lab.seen_at(GITHUB), 0);
        let events = lab.events(&sandbox).await;
        let [event] = &events[..] else { panic!("one event: {events:#?}") };
        assert_eq!(event.reason.as_deref(), Some("quic"));
        assert_eq!(event.host.as_deref(), Some("api.github.com"));
        assert_eq!(event.protocol.as_deref(), Some("udp"));
    });
}

#[test]
fn a_sandbox_may_listen_and_talk_to_itself_on_any_port() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        sandbox
            .run(|| {
                for address in
                    ["0.0.0.0:443", "[::1]:443", "127.0.0.53:53", "100.64.0.2:22", "[fd62:6169:6c69::2]:80"]
                {
                    let listener = TcpListener::bind(address).unwrap();
                    let mut own = listener.local_addr().unwrap();
                    if own.ip().is_unspecified() {
                        own.set_ip("127.0.0.1".parse().unwrap());
                    }
                    lab::connect(own).unwrap_or_else(|error| panic!("{own}: {error}"));
                    UdpSocket::bind(address).unwrap();
                }
            })
            .await;
        assert!(lab.events(&sandbox).await.is_empty());
    });
}

#[test]
fn the_gates_own_listeners_cannot_be_connected_to() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com", "100.64.0.0/10:4"]).await;
        for port in [1, 2, 4, 6, 53] {
            for host in ["127.0.0.1", "100.64.0.2", "[::1]"] {
                assert_eq!(kind(sandbox.connect(&format!("{host}:{port}")).await), ConnectionRefused);
            }
        }
        assert_eq!(kind(sandbox.connect(&format!("{GATE_V4}:4")).await), ConnectionRefused);
        assert_eq!(kind(sandbox.connect(&format!("[{GATE_V6}]:4")).await), ConnectionRefused);
    });
}

#[test]
fn a_name_with_a_port_is_reachable_on_that_port_only() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["allowed.test:8080"]).await;
        sandbox.lookup("allowed.test").await;
        assert_eq!(kind(sandbox.connect("104.16.1.1:80").await), ConnectionRefused);
        assert_eq!(lab.seen_at("104.16.1.1"), 0);
        let answer = sandbox.get("104.16.1.1:8080", "allowed.test:8080").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let events = lab.events(&sandbox).await;
        let blocked: Vec<_> = events.iter().filter(|event| event.kind == "egress_blocked").collect();
        let [event] = &blocked[..] else { panic!("one refusal: {events:#?}") };
        assert_eq!((event.port, event.host.as_deref()), (Some(80), Some("allowed.test")));
    });
}

#[test]
fn an_answer_that_leads_inside_is_not_bound() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["private.test", "loopback.test", "metadata.test", "mixed.test"]).await;
        for name in ["private.test", "loopback.test", "metadata.test"] {
            assert_eq!(sandbox.lookup(name).await, [] as [std::net::IpAddr; 0], "{name}");
        }
        assert_eq!(sandbox.lookup("mixed.test").await, ["104.16.4.4".parse::<std::net::IpAddr>().unwrap()]);
        assert_eq!(kind(sandbox.connect("192.168.1.1:80").await), ConnectionRefused);
        assert_eq!(sandbox.0.info().bindings, 1);
    });
}

#[test]
fn under_a_blackout_no_name_resolves_and_nothing_passes() {
    lab::run(|lab| async move {
        let sandbox = lab.attach(&deny(&["0.0.0.0/0"])).await;
        let (code, addresses) = sandbox.resolve("api.github.com", RecordType::A, "8.8.8.8:53").await;
        assert_eq!((code, addresses), (ResponseCode::Refused, vec![]));
        assert_eq!(kind(sandbox.connect(&format!("{GITHUB}:443")).await), ConnectionRefused);
        assert_eq!(lab.asked_for("api.github.com"), 0);
        assert_eq!(lab.seen_at(GITHUB), 0);
    });
}

#[test]
fn a_tighter_policy_holds_for_the_next_connection_and_cuts_the_one_that_is_open() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com", "allowed.test"]).await;
        sandbox.lookup("api.github.com").await;
        sandbox.lookup("allowed.test").await;
        let open = sandbox.connect("140.82.112.5:7777").await.unwrap();
        let kept = sandbox.connect("104.16.1.1:7777").await.unwrap();
        let (open, kept) = echo_once(&sandbox, open, kept).await;

        assert_eq!(sandbox.set_policy(&lab, &allow(&["allowed.test"])).await, 2);
        assert_eq!(sandbox.0.info().generation, 2);
        let cut = sandbox.run(move || echo(open)).await;
        assert!(cut.is_err(), "{cut:?}");
        sandbox.run(move || echo(kept)).await.unwrap();
        assert_eq!(kind(sandbox.connect("140.82.112.5:80").await), ConnectionRefused);
        assert!(sandbox.get("104.16.1.1:80", "allowed.test").await.unwrap().starts_with("HTTP/1.1 200"));

        let events = lab.events(&sandbox).await;
        let revoked: Vec<_> = events.iter().filter(|event| event.kind == "egress_revoked").collect();
        let [event] = &revoked[..] else { panic!("one revocation: {events:#?}") };
        assert_eq!((event.host.as_deref(), event.generation), (Some("api.github.com"), Some(2)));
    });
}

#[test]
fn a_connection_that_has_said_nothing_is_judged_by_the_policy_in_force_when_it_speaks() {
    let name = Some("allowed.test");
    let wired = "93.184.216.0/24";
    let by_proxy = [
        (allow(&["allowed.test", "sib.test"]), 200, name),
        (allow(&["allowed.test", wired]), 200, name),
        (allow(&["sib.test"]), 403, name),
        (allow(&["sib.test", wired]), 403, name),
        (deny(&["0.0.0.0/0"]), 403, name),
        (deny(&["104.16.0.0/16", "2606:4700::/32"]), 403, name),
    ];
    // Others to there go by a wire then.
    let by_wire = [(allow(&["104.16.0.0/16", "2606:4700::/32"]), 200, None), (deny(&[wired]), 200, name)];
    let names = allow(&["allowed.test"]);
    for (to, begin, then) in [
        ("104.16.1.1", &names, [&by_proxy[..], &by_wire].concat()),
        ("2606:4700:1::1", &names, [&by_proxy[..], &by_wire].concat()),
        // With a wire from the beginning, its address is what connections come from.
        ("104.16.1.1", &allow(&["allowed.test", wired]), by_proxy.to_vec()),
    ] {
        for (spec, status, host) in then {
            let begin = begin.clone();
            lab::run(|lab| async move {
                let sandbox = lab.attach(&begin).await;
                sandbox.lookup("allowed.test").await;
                sandbox.lookup_v6("allowed.test").await;
                let silent =
                    sandbox.connect(&SocketAddr::new(to.parse().unwrap(), 80).to_string()).await.unwrap();
                sandbox.set_policy(&lab, &spec).await;
                let answer = sandbox.run(move || lab::get(silent, "allowed.test")).await.unwrap();
                let begins = format!("HTTP/1.1 {status} ");
                assert!(answer.starts_with(&begins), "{to} {begin:?} {spec:?}: {answer}");
                assert_eq!(lab.seen_at(to) > 0, status == 200, "{to} {spec:?}");
                let mut events = lab.events(&sandbox).await;
                events.retain(|event| event.kind.starts_with("egress_"));
                let [event] = &events[..] else { panic!("{to} {spec:?}: one event: {events:#?}") };
                let kind = if status == 200 { "egress_allowed" } else { "egress_blocked" };
                assert_eq!((&*event.kind, event.host.as_deref()), (kind, host), "{to} {spec:?}");
                assert_eq!((event.count, event.generation), (1, Some(2)), "{to} {spec:?}");
            });
        }
    }
}

async fn echo_once(
    sandbox: &lab::Sandbox,
    one: std::net::TcpStream,
    other: std::net::TcpStream,
) -> (std::net::TcpStream, std::net::TcpStream) {
    sandbox.run(move || (echo(one).unwrap(), echo(other).unwrap())).await
}

fn echo(mut stream: std::net::TcpStream) -> std::io::Result<std::net::TcpStream> {
    use std::io::{Read, Write};
    stream.write_all(b"\x01ping")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer)?;
    Ok(stream)
}

#[test]
fn repeated_refusals_are_one_event_with_their_number() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        for _ in 0..50 {
            assert_eq!(kind(sandbox.connect("93.184.216.34:443").await), ConnectionRefused);
        }
        let events = lab.events(&sandbox).await;
        let [event] = &events[..] else { panic!("one event: {events:#?}") };
        assert_eq!(event.count, 50);
    });
}

#[test]
fn a_flood_of_refusals_is_bounded_and_what_was_not_recorded_is_counted() {
    lab::run(|lab| async move {
        const PACKETS: u64 = 40_000;
        let sandbox = lab.allowing(&["api.github.com"]).await;
        sandbox
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for _ in 0..PACKETS {
                    socket.send_to(b"x", "93.184.216.34:9").unwrap_err();
                }
            })
            .await;
        sandbox.0.detach().await;
        lab.audit.flush().await.unwrap();
        let page = lab.store.events().query(&store::EventQuery::default()).await.unwrap();
        let count = |kind: &str| -> u64 {
            page.events.iter().filter(|event| event.kind == kind).map(|event| event.count).sum()
        };
        let (refused, gap) = (count("egress_blocked"), count("audit_gap"));
        assert_eq!(refused + gap, PACKETS, "{refused} + {gap}");
        assert!(refused > 0 && gap > 0, "{refused} + {gap}");
    });
}

/// The gaps that were recorded, by reason.
async fn gaps(lab: &lab::Lab) -> Vec<(String, u64)> {
    lab.audit.flush().await.unwrap();
    let page = lab.store.events().query(&store::EventQuery::default()).await.unwrap();
    let gaps = page.events.iter().filter(|event| event.kind == "audit_gap");
    gaps.map(|gap| (gap.reason.as_deref().unwrap().to_owned(), gap.count)).collect()
}

#[test]
fn what_the_kernel_counted_and_nobody_recorded_is_an_audit_gap() {
    lab::run(|lab| async move {
        let refused = async |sandbox: &lab::Sandbox, port: u16| {
            let attempts = move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for _ in 0..7 {
                    let _refused = socket.send_to(b"x", ("93.184.216.34", port));
                }
            };
            sandbox.run(attempts).await;
        };
        // The twin: everything that was counted was recorded, over a change of the policy too.
        let sandbox = lab.allowing(&["api.github.com"]).await;
        refused(&sandbox, 9).await;
        sandbox.0.set_policy(lab.policy(&lab::allow(&["*.github.com"]))).await.unwrap();
        refused(&sandbox, 9).await;
        sandbox.0.detach().await;
        assert_eq!(gaps(&lab).await, []);

        let sandbox = lab.allowing(&["api.github.com"]).await;
        // As if the kernel had not managed to log what it counted.
        sandbox
            .run(|| {
                use nft::{Batch, Chain, ChainType, Hook, Policy, Table, priority, rule};
                let (table, mut batch) = (Table::inet("bailiwick"), Batch::new());
                let lossy =
                    Chain::base("lossy", ChainType::Filter, Hook::Output, priority::RAW, Policy::Accept);
                batch.add_chain(&table, &lossy);
                batch.add_rule(&table, "lossy", rule().udp().dport(7).count("refused").drop());
                nft::Connection::open().unwrap().commit(batch).unwrap();
            })
            .await;
        refused(&sandbox, 7).await;
        refused(&sandbox, 9).await;
        sandbox.0.detach().await;
        sandbox.0.detach().await;
        assert_eq!(gaps(&lab).await, [("kernel_counter".to_owned(), 7)]);
    });
}
