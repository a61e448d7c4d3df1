//! Sandboxes with a wire: address entries and open policies.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use std::{
    io::{self, ErrorKind::ConnectionRefused, ErrorKind::PermissionDenied, Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use netns::Connection;
use policy::{PolicySpec, Topology};
use testkit::{NODE_V4, NODE_V6};

use crate::lab::{Lab, Sandbox, allow, deny, kind};

#[test]
fn an_address_entry_passes_by_the_wire_with_every_protocol_and_nothing_else_does() {
    lab::run(|lab| async move {
        let sandbox =
            lab.allowing(&["10.1.2.0/24", "10.9.9.9:80", "[2001:db8:9::1]:80", "api.github.com"]).await;
        assert_eq!(sandbox.0.info().topology, Topology::Wire);
        for target in ["10.1.2.3:80", "10.9.9.9:80", "[2001:db8:9::1]:80"] {
            let answer = sandbox.get(target, "x").await.unwrap_or_else(|error| panic!("{target}: {error}"));
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        assert_eq!(sandbox.datagram("10.1.2.3:9").await.unwrap(), b"hello");
        for target in
            ["10.9.9.9:81", "10.1.3.3:80", "93.184.216.34:80", "[2001:db8:9::1]:81", "[2001:db8:9::2]:80"]
        {
            assert_eq!(kind(sandbox.connect(target).await), ConnectionRefused, "{target}");
        }
        assert_eq!(kind(sandbox.datagram("10.9.9.9:81").await), PermissionDenied);
        for address in ["10.1.3.3", "93.184.216.34", "2001:db8:9::2"] {
            assert_eq!(lab.seen_at(address), 0, "{address}");
        }
        // A name still goes through the proxy.
        sandbox.lookup("api.github.com").await;
        assert!(sandbox.get("140.82.112.5:80", "api.github.com").await.unwrap().starts_with("HTTP/1.1 200"));

        let events = lab.events(&sandbox).await;
        let count = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
        assert_eq!((count("egress_allowed"), count("egress_blocked")), (5, 6), "{events:#?}");
        let first = &events.iter().find(|event| event.address == Some("10.1.2.3".parse().unwrap())).unwrap();
        assert_eq!(first.rule.as_ref().unwrap().text, "allow_out[0] 10.1.2.0/24");
    });
}

#[test]
fn a_flow_that_nobody_answers_is_one_event_however_often_it_is_tried() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["10.1.2.3"]).await;
        sandbox
            .run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for _ in 0..20 {
                    // Echoed from another port, which belongs to no flow.
                    socket.send_to(b"x", "10.1.2.3:5000").unwrap();
                }
            })
            .await;
        // What comes later, to know that the others are through.
        sandbox.get("10.1.2.3:80", "x").await.unwrap();
        let events = lab.events(&sandbox).await;
        assert_eq!(events.len(), 2, "{events:#?}");
        assert!(events.iter().all(|event| event.kind == "egress_allowed" && event.count == 1));
    });
}

#[test]
fn what_leaves_has_the_nodes_address() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["10.1.2.3", "2001:db8:9::1"]).await;
        sandbox.get("10.1.2.3:80", "x").await.unwrap();
        sandbox.get("[2001:db8:9::1]:80", "x").await.unwrap();
        let lines = lab.world().sinks().lines().unwrap();
        let sources: Vec<String> = lines
            .iter()
            .filter(|line| line["kind"] == "connect")
            .map(|line| line["source"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(sources.len(), 2, "{lines:?}");
        assert!(sources[0].starts_with(&format!("{NODE_V4}:")), "{sources:?}");
        assert!(sources[1].starts_with(&format!("[{NODE_V6}]:")), "{sources:?}");
    });
}

#[test]
fn an_open_policy_reaches_the_public_internet_and_neither_private_ranges_nor_the_floor_nor_the_node() {
    lab::run(|lab| async move {
        let listener = lab.node.run(|| TcpListener::bind("0.0.0.0:9100").unwrap()).unwrap();
        listener.set_nonblocking(true).unwrap();
        let sandbox = lab.attach(&PolicySpec::default()).await;
        assert_eq!(sandbox.0.info().topology, Topology::Wire);
        sandbox.get("93.184.216.34:80", "example.com").await.unwrap();
        sandbox.get("[2606:2800:21f:cb07::1]:80", "example.com").await.unwrap();
        assert_eq!(sandbox.datagram("93.184.216.34:9").await.unwrap(), b"hello");
        let node = NODE_V4.to_string();
        let uplink = lab.node.run(uplink_addresses).unwrap();
        let mut refused =
            vec!["10.1.2.3", "192.168.0.1", "169.254.169.254", "fd00::1", "100.80.0.2", node.as_str()];
        refused.extend(uplink.iter().map(String::as_str));
        for host in refused {
            let host: IpAddr = host.parse().unwrap();
            let target = std::net::SocketAddr::new(host, 9100).to_string();
            assert_eq!(kind(sandbox.connect(&target).await), ConnectionRefused, "{target}");
            assert_eq!(lab.seen_at(&host.to_string()), 0);
        }
        assert_eq!(kind(listener.accept()), io::ErrorKind::WouldBlock);
    });
}

/// The addresses that the machine has, or routes to an uplink.
fn uplink_addresses() -> Vec<String> {
    let addresses = Connection::open().unwrap().addresses().unwrap();
    let is_global = |address: &IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let others = addresses.iter().filter(|own| is_global(&own.address.addr()));
    others.map(|own| own.address.addr().to_string()).chain(["100.95.240.1".to_owned()]).collect()
}

#[test]
fn entries_that_are_denied_are_refused_and_the_rest_passes() {
    lab::run(|lab| async move {
        let sandbox = lab.attach(&deny(&["93.184.216.0/24", "185.199.108.66:443"])).await;
        assert_eq!(kind(sandbox.connect("93.184.216.34:80").await), ConnectionRefused);
        assert_eq!(kind(sandbox.connect("185.199.108.66:443").await), ConnectionRefused);
        assert!(sandbox.get("185.199.108.66:80", "evil.com").await.is_ok());
        assert_eq!(lab.seen_at("93.184.216.34"), 0);
        let events = lab.events(&sandbox).await;
        let refused: Vec<_> = events.iter().filter(|event| event.kind == "egress_blocked").collect();
        let rules: Vec<_> = refused.iter().map(|event| event.rule.as_ref().unwrap().text.as_str()).collect();
        assert_eq!(rules, ["deny_out[0] 93.184.216.0/24", "deny_out[1] 185.199.108.66:443"]);
    });
}

#[test]
fn next_to_a_denied_name_tcp_is_judged_by_its_name_and_datagrams_are_refused() {
    lab::run(|lab| async move {
        let sandbox = lab.attach(&deny(&["evil.com"])).await;
        let answer = sandbox.get("185.199.108.66:80", "evil.com").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        let answer = sandbox.get("93.184.216.34:80", "example.com").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(kind(sandbox.datagram("185.199.108.66:443").await), PermissionDenied);
        assert_eq!(lab.seen_at("185.199.108.66"), 0);
    });
}

#[test]
fn a_wired_connection_that_a_new_policy_refuses_is_cut_while_it_waits_and_the_wire_goes() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["10.1.2.3"]).await;
        let mut open = echo(&sandbox, sandbox.connect("10.1.2.3:7777").await.unwrap()).await.unwrap();
        let datagrams = sandbox.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.connect("10.1.2.3:7777").unwrap();
            socket
        });
        let datagrams = datagrams.await;
        // It waits for the other side, and sends nothing itself.
        let waiting = tokio::task::spawn_blocking(move || open.read(&mut [0; 1]));
        assert_eq!(sandbox.set_policy(&lab, &allow(&["api.github.com"])).await, 2);
        let cut = tokio::time::timeout(std::time::Duration::from_secs(1), waiting).await;
        assert!(cut.expect("within a second").unwrap().is_err());
        assert!(datagrams.send(b"x").is_err());

        assert_eq!(sandbox.0.info().topology, Topology::NoWire);
        let link = sandbox.run(|| Connection::open().unwrap().link_index("eth0").unwrap()).await;
        assert_eq!(link, None);
        assert_eq!(kind(sandbox.connect("10.1.2.3:80").await), ConnectionRefused);
        let events = lab.events(&sandbox).await;
        let revoked: Vec<_> = events.iter().filter(|event| event.kind == "egress_revoked").collect();
        let protocols: Vec<_> = revoked.iter().map(|event| event.protocol.as_deref()).collect();
        assert_eq!(protocols, [Some("tcp"), Some("udp")], "{events:#?}");
        assert_eq!(revoked[0].generation, Some(2));

        // And names work without the wire, as before with it.
        sandbox.lookup("api.github.com").await;
        assert!(sandbox.get("140.82.112.5:80", "api.github.com").await.unwrap().starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_busy_wired_connection_that_a_new_policy_refuses_is_cut_with_one_event() {
    const UPLOAD: &[u8] = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n";
    let with_and_without_a_wire = [&["10.1.2.9"][..], &["api.github.com"]];
    for entries in with_and_without_a_wire {
        for (to, first) in [("10.1.2.3:80", UPLOAD), ("10.1.2.3:7777", b"\x01")] {
            lab::run(|lab| async move {
                let sandbox = lab.allowing(&["10.1.2.3"]).await;
                let mut busy = sandbox.connect(to).await.unwrap();
                let mut echoed = busy.try_clone().unwrap();
                std::thread::spawn(move || io::copy(&mut echoed, &mut io::sink()));
                let (sent, sends) = mpsc::channel();
                let writing = std::thread::spawn(move || {
                    busy.write_all(first).unwrap();
                    while busy.write_all(&[b'x'; 1000]).is_ok() {
                        let _ = sent.send(());
                    }
                });
                for _ in 0..10 {
                    sends.recv().unwrap();
                }
                sandbox.set_policy(&lab, &allow(entries)).await;
                writing.join().unwrap();
                let events = lab.events(&sandbox).await;
                let mut told: Vec<_> = events.iter().map(|event| (&*event.kind, event.count)).collect();
                // What the kernel has permitted is told by its log, which may come later than the cut.
                told.sort_unstable();
                assert_eq!(
                    told,
                    [("egress_allowed", 1), ("egress_revoked", 1)],
                    "{to} {entries:?}: {events:#?}"
                );
            });
        }
    }
}

#[test]
fn a_wired_connection_that_the_new_policy_permits_lives_on() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["10.1.2.3", "10.1.2.4"]).await;
        let open = echo(&sandbox, sandbox.connect("10.1.2.3:7777").await.unwrap()).await.unwrap();
        let cut = echo(&sandbox, sandbox.connect("10.1.2.4:7777").await.unwrap()).await.unwrap();
        sandbox.set_policy(&lab, &allow(&["10.1.0.0/16:7777", "10.1.2.9"])).await;
        let cut = echo(&sandbox, cut).await.unwrap();
        sandbox.set_policy(&lab, &allow(&["10.1.2.3"])).await;
        echo(&sandbox, open).await.unwrap();
        assert!(echo(&sandbox, cut).await.is_err());
    });
}

#[test]
fn a_connection_through_the_proxy_lives_on_when_the_wire_comes_and_goes() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        sandbox.lookup("api.github.com").await;
        let mut open = sandbox.connect("140.82.112.5:7777").await.unwrap();
        let mut later = None;
        for entries in
            [&["api.github.com", "10.1.2.3"][..], &["api.github.com"], &["api.github.com", "10.0.0.1"]]
        {
            sandbox.set_policy(&lab, &allow(entries)).await;
            open = echo(&sandbox, open).await.unwrap();
            later = Some(match later.take() {
                Some(later) => echo(&sandbox, later).await.unwrap(),
                None => sandbox.connect("140.82.112.5:7778").await.unwrap(),
            });
        }
        assert!(lab.events(&sandbox).await.iter().all(|event| event.kind == "egress_allowed"));
    });
}

#[test]
fn a_connection_that_is_older_than_the_wire_goes_on_through_the_proxy_and_is_cut_once() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        sandbox.lookup("api.github.com").await;
        let older = echo(&sandbox, sandbox.connect("140.82.112.5:7777").await.unwrap()).await.unwrap();
        sandbox.set_policy(&lab, &allow(&["api.github.com", "140.82.112.0/24"])).await;
        let older = echo(&sandbox, older).await.unwrap();
        let newer = echo(&sandbox, sandbox.connect("140.82.112.5:7777").await.unwrap()).await.unwrap();
        sandbox.set_policy(&lab, &allow(&["10.1.2.3"])).await;
        assert!(echo(&sandbox, older).await.is_err() && echo(&sandbox, newer).await.is_err());
        let mut revoked = lab.events(&sandbox).await;
        revoked.retain(|event| event.kind != "egress_allowed");
        let hosts: Vec<_> =
            revoked.iter().map(|event| (&*event.kind, event.host.as_deref(), event.count)).collect();
        let name = Some("api.github.com");
        assert_eq!(hosts, [("egress_revoked", name, 1), ("egress_revoked", None, 1)], "{revoked:#?}");
    });
}

#[test]
fn a_connection_from_the_wires_address_that_gets_a_wire_is_cut_at_both_ends_and_recorded_once() {
    for (address, port, kind) in [
        ("140.82.112.5", 80, "egress_revoked"),
        ("140.82.112.5", 443, "egress_revoked"),
        ("140.82.112.5", 7777, "egress_allowed"),
        ("[::ffff:140.82.112.5]", 80, "egress_revoked"),
        ("[::ffff:140.82.112.5]", 7777, "egress_allowed"),
    ] {
        lab::run(|lab| async move {
            let sandbox = lab.allowing(&["api.github.com", "10.1.2.3"]).await;
            sandbox.lookup("api.github.com").await;
            let mut older = sandbox.connect(&format!("{address}:{port}")).await.unwrap();
            if port == 7777 {
                older = echo(&sandbox, older).await.unwrap();
            }
            sandbox.set_policy(&lab, &allow(&["api.github.com", "140.82.112.0/24"])).await;
            assert!(echo(&sandbox, older).await.is_err(), "{port}");
            let gone = async {
                while sandbox.0.info().flows > 0 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(lab::PATIENCE, gone).await.expect("the proxy has heard of it");
            let events = lab.events(&sandbox).await;
            let [event] = &events[..] else { panic!("{port}: one event: {events:#?}") };
            assert_eq!((&*event.kind, event.count), (kind, 1), "{port}");
            // The twin goes by the wire.
            echo(&sandbox, sandbox.connect("140.82.112.5:7777").await.unwrap()).await.unwrap();
        });
    }
}

#[test]
fn a_connection_that_begins_as_soon_as_the_wire_is_there_lives_on() {
    lab::run(|lab| async move {
        let closed = deny(&["0.0.0.0/0"]);
        let sandbox = lab.attach(&closed).await;
        for _ in 0..10 {
            let (trying, tries) = tokio::sync::oneshot::channel();
            let first = sandbox.run(move || {
                let to = "93.184.216.34:7777".parse().unwrap();
                let mut trying = Some(trying);
                loop {
                    match lab::connect(to) {
                        Ok(stream) => return stream,
                        Err(error) => assert_eq!(error.kind(), ConnectionRefused),
                    }
                    if let Some(trying) = trying.take() {
                        trying.send(()).unwrap();
                    }
                }
            });
            let opened = async {
                tries.await.unwrap();
                sandbox.set_policy(&lab, &PolicySpec::default()).await;
            };
            let (first, ()) = tokio::join!(first, opened);
            let first = echo(&sandbox, first).await.unwrap();
            sandbox.set_policy(&lab, &closed).await;
            assert!(echo(&sandbox, first).await.is_err());
        }
    });
}

#[test]
fn names_are_resolved_and_connected_to_while_the_first_wire_comes() {
    lab::run(|lab| async move {
        for _ in 0..5 {
            let sandbox = lab.allowing(&["api.github.com"]).await;
            sandbox.lookup("api.github.com").await;
            let done = Arc::new(AtomicBool::new(false));
            let until = Arc::clone(&done);
            let busy = sandbox.run(move || {
                let query = lab::query("api.github.com", hickory_proto::rr::RecordType::A);
                let mut tries = 0;
                // And once more when it is there.
                let mut is_last = false;
                while !std::mem::replace(&mut is_last, until.load(Ordering::SeqCst)) {
                    let reply = lab::datagram("8.8.8.8:53".parse().unwrap(), &query).unwrap();
                    assert_eq!(lab::read_reply(&reply).1.len(), 1);
                    drop(lab::connect("140.82.112.5:7777".parse().unwrap()).unwrap());
                    tries += 1;
                }
                tries
            });
            let change = async {
                sandbox.set_policy(&lab, &allow(&["api.github.com", "10.1.2.3"])).await;
                done.store(true, Ordering::SeqCst);
            };
            let (tries, ()) = tokio::join!(busy, change);
            assert!(tries > 1);
            let events = lab.events(&sandbox).await;
            assert!(events.iter().all(|event| event.kind != "egress_blocked"), "{events:?}");
            sandbox.0.detach().await;
        }
    });
}

#[test]
fn a_socket_bound_to_the_wire_does_not_get_past_the_resolver_or_the_proxy() {
    lab::run(|lab| async move {
        for spec in [allow(&["api.github.com", "10.1.2.3"]), PolicySpec::default()] {
            let sandbox = lab.attach(&spec).await;
            sandbox.lookup("api.github.com").await;
            let is_open = spec == PolicySpec::default();
            sandbox
                .run(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(past_the_resolver(is_open));
                })
                .await;
            assert_eq!(lab.seen_at("8.8.8.8"), 0);
            assert_eq!(lab.asked_for("past.example.com"), 0);
            sandbox.0.detach().await;
        }
        assert_eq!(lab.seen_at("140.82.112.5"), 0);
    });
}

async fn past_the_resolver(is_open: bool) {
    let a_while = std::time::Duration::from_millis(300);
    let socket = tokio::net::UdpSocket::bind("0.0.0.0:0").await.unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    let query = lab::query("past.example.com", hickory_proto::rr::RecordType::A);
    for server in ["8.8.8.8:53", "10.1.2.3:53"] {
        let _refused_or_lost = socket.send_to(&query, server).await;
        let answer = tokio::time::timeout(a_while, socket.recv_from(&mut [0; 512])).await;
        assert!(!matches!(answer, Ok(Ok(_))), "{server}: {answer:?}");
    }
    if !is_open {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        let connected =
            tokio::time::timeout(a_while, socket.connect("140.82.112.5:443".parse().unwrap())).await;
        assert!(!matches!(connected, Ok(Ok(_))));
    }
}

#[test]
fn sandboxes_do_not_reach_each_other() {
    lab::run(|lab| async move {
        let (one, other) =
            (lab.attach(&PolicySpec::default()).await, lab.attach(&PolicySpec::default()).await);
        let listener = other.run(|| TcpListener::bind("0.0.0.0:8000").unwrap()).await;
        listener.set_nonblocking(true).unwrap();
        for last in 1..4 {
            let target = format!("100.80.0.{last}:8000");
            let reached = one.connect(&target).await;
            let own = one.run(move || own_address(last)).await;
            assert!(own || kind(reached) == ConnectionRefused, "{target}");
        }
        assert_eq!(kind(listener.accept()), io::ErrorKind::WouldBlock);
    });
}

fn own_address(last: u8) -> bool {
    let own: IpAddr = [100, 80, 0, last].into();
    Connection::open().unwrap().addresses().unwrap().iter().any(|address| address.address.addr() == own)
}

#[test]
fn nothing_reaches_a_wired_sandbox_that_it_did_not_ask_for() {
    lab::run(|lab| async move {
        let sandbox = lab.attach(&PolicySpec::default()).await;
        let listener = sandbox.run(|| TcpListener::bind("0.0.0.0:8000").unwrap()).await;
        listener.set_nonblocking(true).unwrap();
        // The machine's own namespace has a route to the uplink, but none to the sandboxes behind it.
        for target in ["100.80.0.1:8000", "100.64.0.2:8000"] {
            let target = target.parse().unwrap();
            let node = lab.node.try_clone().unwrap();
            let reached = tokio::task::spawn_blocking(move || {
                node.run(|| TcpStream::connect_timeout(&target, std::time::Duration::from_secs(1))).unwrap()
            });
            // What answers, if anything, is the world.
            drop(reached.await.unwrap());
        }
        assert_eq!(kind(listener.accept()), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn without_an_ipv6_path_all_ipv6_is_refused_and_no_such_address_is_told() {
    lab::run(|lab: Lab| async move {
        lab.node
            .run(|| {
                let mut connection = Connection::open().unwrap();
                let link = connection.link_index("eth0").unwrap().unwrap();
                connection.delete_route(&netns::Route::direct("::/0".parse().unwrap(), link)).unwrap();
            })
            .unwrap();
        let gate = lab::start_gate("six").await;
        let sandbox = Sandbox(gate.attach(lab.request(&PolicySpec::default())).await.unwrap());
        assert_eq!(kind(sandbox.connect("[2606:2800:21f:cb07::1]:80").await), ConnectionRefused);
        assert!(sandbox.lookup_v6("example.com").await.is_empty());
        assert!(sandbox.get("93.184.216.34:80", "example.com").await.is_ok());
        drop((sandbox, gate));
    });
}

#[test]
fn an_address_that_the_machine_gets_later_is_on_the_floor_from_then_on() {
    becomes_the_machines_own(|connection| {
        let link = connection.link_index("eth0").unwrap().unwrap();
        connection.add_address(link, "10.1.2.3/32".parse().unwrap()).unwrap();
    });
}

#[test]
fn a_network_that_a_route_makes_the_machines_own_is_on_the_floor_from_then_on() {
    becomes_the_machines_own(|connection| {
        let network = netns::Route::direct("10.1.2.2/31".parse().unwrap(), netns::LinkIndex::LOOPBACK);
        let local = netns::Route { kind: netns::RouteKind::Local, table: netns::LOCAL_TABLE, ..network };
        connection.set_route(&local).unwrap();
    });
}

/// What makes 10.1.2.3 an address of the machine, and not 10.1.2.4, is noticed.
fn becomes_the_machines_own(change: fn(&mut Connection)) {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["10.1.2.0/24"]).await;
        sandbox.get("10.1.2.3:80", "x").await.unwrap();
        let listener = lab
            .node
            .run(|| {
                change(&mut Connection::open().unwrap());
                TcpListener::bind("10.1.2.3:80").unwrap()
            })
            .unwrap();
        let refused = async {
            while sandbox.0.info().generation == 1 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(lab::PATIENCE, refused).await.expect("the new address is noticed");
        // The connection may be there already when the old ones are looked through.
        let refused = kind(sandbox.connect("10.1.2.3:80").await);
        assert!(matches!(refused, ConnectionRefused | io::ErrorKind::ConnectionAborted), "{refused}");
        assert_eq!(kind(sandbox.connect("10.1.2.3:80").await), ConnectionRefused);
        sandbox.get("10.1.2.4:80", "x").await.unwrap();
        let events = lab.events(&sandbox).await;
        let refused = events.iter().find(|event| event.kind == "egress_blocked").unwrap();
        assert_eq!(refused.rule.as_ref().unwrap().text, "floor:node");
        drop(listener);
    });
}

async fn echo(sandbox: &Sandbox, mut stream: TcpStream) -> io::Result<TcpStream> {
    sandbox
        .run(move || {
            stream.write_all(b"\x01ping")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            Ok(stream)
        })
        .await
}
