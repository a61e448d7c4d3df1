//! The requests against a real kernel, in namespaces of the test's own.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use netns::{
    Connection, Family, LOCAL_TABLE, LinkIndex, MAIN_TABLE, Monitor, NetNs, Route, RouteKind, SocketTable,
    Transport, Veth, sysctl,
};

const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

fn namespace() -> NetNs {
    NetNs::create_and(|| Connection::open()?.bring_up(LinkIndex::LOOPBACK))
        .map(|(ns, up)| {
            up.unwrap();
            ns
        })
        .unwrap()
}

/// Two namespaces with a wire between them, 10.9.0.1 and fd00:9::1 on this end, .2 and ::2 on the other.
fn wired() -> (NetNs, NetNs) {
    let (here, there) = (namespace(), namespace());
    there
        .run(|| {
            sysctl::set("ipv6/conf/default/addr_gen_mode", "1").unwrap();
        })
        .unwrap();
    here.run(|| {
        sysctl::set("ipv6/conf/default/addr_gen_mode", "1").unwrap();
        let mut connection = Connection::open().unwrap();
        let veth =
            Veth { name: "w0", peer_name: "eth0", peer_namespace: there.as_fd(), hardware_address: MAC };
        let link = connection.create_veth(&veth).unwrap();
        connection.bring_up(link).unwrap();
        connection.add_address(link, "10.9.0.1/32".parse().unwrap()).unwrap();
        connection.add_address(link, "fd00:9::1/128".parse().unwrap()).unwrap();
        connection.set_route(&Route::direct("10.9.0.2/32".parse().unwrap(), link)).unwrap();
        connection.set_route(&Route::direct("fd00:9::2/128".parse().unwrap(), link)).unwrap();
    })
    .unwrap();
    there
        .run(|| {
            let mut connection = Connection::open().unwrap();
            let link = connection.link_index("eth0").unwrap().expect("the peer is born here");
            connection.bring_up(link).unwrap();
            connection.add_address(link, "10.9.0.2/32".parse().unwrap()).unwrap();
            connection.add_address(link, "fd00:9::2/128".parse().unwrap()).unwrap();
            for default in ["0.0.0.0/0", "::/0"] {
                connection.set_route(&Route::direct(default.parse().unwrap(), link)).unwrap();
            }
        })
        .unwrap();
    (here, there)
}

fn connects(from: &NetNs, to: SocketAddr) -> bool {
    from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_ok()).unwrap()
}

#[test]
fn a_veth_pair_carries_both_families_without_asking_for_neighbours() {
    let (here, there) = wired();
    for (address, other) in [("10.9.0.1:0", "10.9.0.2:0"), ("[fd00:9::1]:0", "[fd00:9::2]:0")] {
        let listener = here.run(|| TcpListener::bind(address)).unwrap().unwrap();
        assert!(connects(&there, listener.local_addr().unwrap()));
        let listener = there.run(|| TcpListener::bind(other)).unwrap().unwrap();
        assert!(connects(&here, listener.local_addr().unwrap()));
    }
    let link_local = here.run(|| Connection::open().unwrap().addresses().unwrap()).unwrap();
    assert!(
        !link_local
            .iter()
            .any(|own| matches!(own.address.addr(), IpAddr::V6(v6) if v6.is_unicast_link_local())),
        "{link_local:?}"
    );
}

#[test]
fn a_link_that_is_running_sends_and_one_whose_other_end_is_down_is_not_running() {
    for _ in 0..50 {
        let (here, there) = wired();
        here.run(|| {
            let mut connection = Connection::open().unwrap();
            let link = connection.link_index("w0").unwrap().unwrap();
            assert!(connection.wait_until_running(link, Duration::from_secs(5)).unwrap());
        })
        .unwrap();
        let receiver = there.run(|| UdpSocket::bind("10.9.0.2:0")).unwrap().unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = here.run(|| UdpSocket::bind("10.9.0.1:0")).unwrap().unwrap();
        sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
        receiver.recv(&mut [0; 1]).unwrap();
    }
    let (here, there) = (namespace(), namespace());
    here.run(|| {
        let mut connection = Connection::open().unwrap();
        let veth =
            Veth { name: "w0", peer_name: "eth0", peer_namespace: there.as_fd(), hardware_address: MAC };
        let link = connection.create_veth(&veth).unwrap();
        connection.bring_up(link).unwrap();
        assert!(!connection.wait_until_running(link, Duration::from_millis(1)).unwrap());
    })
    .unwrap();
}

#[test]
fn a_link_counts_the_bytes_that_it_moves_each_way() {
    let (here, there) = wired();
    let receiver = there.run(|| UdpSocket::bind("10.9.0.2:0")).unwrap().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let to = receiver.local_addr().unwrap();
    here.run(|| {
        let mut connection = Connection::open().unwrap();
        let link = connection.link_index("w0").unwrap().unwrap();
        assert!(connection.wait_until_running(link, Duration::from_secs(5)).unwrap());
        let before = connection.link_bytes("w0").unwrap().unwrap();
        let sender = UdpSocket::bind("10.9.0.1:0").unwrap();
        sender.send_to(&[7; 1000], to).unwrap();
        receiver.recv(&mut [0; 1000]).unwrap();
        let after = connection.link_bytes("w0").unwrap().unwrap();
        let sent = after.sent - before.sent;
        // With headers, and whatever the kernel itself has sent.
        assert!((1000..2000).contains(&sent), "{sent}");
        assert!(after.received - before.received < 1000);
        assert_eq!(connection.link_bytes("w1").unwrap(), None);
    })
    .unwrap();
}

#[test]
fn deleting_one_end_takes_the_other_with_it() {
    let (here, there) = wired();
    here.run(|| {
        let mut connection = Connection::open().unwrap();
        let link = connection.link_index("w0").unwrap().unwrap();
        connection.delete_link(link).unwrap();
        assert_eq!(connection.link_index("w0").unwrap(), None);
    })
    .unwrap();
    there.run(|| assert_eq!(Connection::open().unwrap().link_index("eth0").unwrap(), None)).unwrap();
}

#[test]
fn default_routes_are_seen_and_those_over_loopback_do_not_count() {
    let (here, there) = wired();
    let has = |ns: &NetNs, family| ns.run(|| Connection::open().unwrap().has_default_route(family)).unwrap();
    for family in [Family::V4, Family::V6] {
        assert!(!has(&here, family).unwrap());
        assert!(has(&there, family).unwrap());
    }
    here.run(|| {
        let mut connection = Connection::open().unwrap();
        connection.set_route(&Route::direct("0.0.0.0/0".parse().unwrap(), LinkIndex::LOOPBACK)).unwrap();
    })
    .unwrap();
    assert!(!has(&here, Family::V4).unwrap());
}

#[test]
fn marked_packets_are_taken_as_local() {
    let ns = namespace();
    ns.run(|| {
        let mut connection = Connection::open().unwrap();
        for (family, default, own) in
            [(Family::V4, "0.0.0.0/0", "100.64.0.2/32"), (Family::V6, "::/0", "fd00::2/128")]
        {
            connection.add_address(LinkIndex::LOOPBACK, own.parse().unwrap()).unwrap();
            connection.add_mark_rule(family, 1, 100).unwrap();
            connection.add_mark_rule(family, 1, 100).unwrap();
            let mut local = Route::direct(default.parse().unwrap(), LinkIndex::LOOPBACK);
            local.table = 100;
            local.kind = RouteKind::Local;
            connection.set_route(&local).unwrap();
            connection.set_route(&local).unwrap();
        }
        for (server, target) in [("0.0.0.0:0", "192.0.2.1"), ("[::]:0", "2001:db8::1")] {
            let server = UdpSocket::bind(server).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let target = SocketAddr::new(target.parse().unwrap(), server.local_addr().unwrap().port());
            let unspecified: SocketAddr =
                if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
            let client = UdpSocket::bind(unspecified).unwrap();
            assert!(client.send_to(b"x", target).is_err(), "no route without the mark");
            sys::net::set_mark(&client, 1).unwrap();
            client.send_to(b"x", target).unwrap();
            assert_eq!(server.recv(&mut [0; 8]).unwrap(), 1);
        }
    })
    .unwrap();
}

#[test]
fn what_routes_say_is_local_is_listed_and_what_they_say_of_marked_packets_is_not() {
    let ns = namespace();
    ns.run(|| {
        let mut connection = Connection::open().unwrap();
        connection.add_address(LinkIndex::LOOPBACK, "192.0.2.7/24".parse().unwrap()).unwrap();
        let monitor = Monitor::open().unwrap();
        let mut route = |network: &str, kind, table| {
            let route = Route::direct(network.parse().unwrap(), LinkIndex::LOOPBACK);
            connection.set_route(&Route { kind, table, ..route }).unwrap();
            assert!(monitor.drain().unwrap());
        };
        let local = ["203.0.113.0/24", "2001:db8:7::/48", "198.51.100.0/25"];
        route(local[0], RouteKind::Local, LOCAL_TABLE);
        route(local[1], RouteKind::Local, LOCAL_TABLE);
        route(local[2], RouteKind::Local, MAIN_TABLE);
        let others = ["0.0.0.0/0", "::/0", "10.0.0.0/8"];
        route(others[0], RouteKind::Local, 100);
        route(others[1], RouteKind::Local, 100);
        route(others[2], RouteKind::Unicast, MAIN_TABLE);
        let listed = connection.local_destinations().unwrap();
        for network in local.iter().chain(&["192.0.2.7/32", "192.0.2.255/32", "127.0.0.0/8", "::1/128"]) {
            assert!(listed.contains(&network.parse().unwrap()), "{network}: {listed:?}");
        }
        for network in others {
            assert!(!listed.contains(&network.parse().unwrap()), "{network}");
        }
    })
    .unwrap();
}

#[test]
fn addresses_are_listed_and_a_change_is_reported() {
    let ns = namespace();
    ns.run(|| {
        let monitor = Monitor::open().unwrap();
        assert!(!monitor.drain().unwrap());
        let mut connection = Connection::open().unwrap();
        let added = ["192.0.2.7/24", "2001:db8::7/64"].map(|text| text.parse().unwrap());
        for address in added {
            connection.add_address(LinkIndex::LOOPBACK, address).unwrap();
        }
        assert!(monitor.drain().unwrap());
        let listed = connection.addresses().unwrap();
        for address in added {
            assert!(listed.iter().any(|own| own.address == address && own.link == LinkIndex::LOOPBACK));
        }
        let [first, _] = added;
        connection.delete_address(LinkIndex::LOOPBACK, first).unwrap();
        assert!(!connection.addresses().unwrap().iter().any(|own| own.address == first));
    })
    .unwrap();
}

#[test]
fn a_connected_socket_is_listed_and_dies_when_destroyed() {
    let ns = namespace();
    let (mut client, server, found) = ns
        .run(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let server = listener.accept().unwrap().0;
            let mut table = SocketTable::open().unwrap();
            let listed = table.connected(Transport::Tcp, Family::V4).unwrap();
            let own = client.local_addr().unwrap();
            let found: Vec<_> = listed.into_iter().filter(|socket| socket.local == own).collect();
            for socket in &found {
                table.destroy(socket).unwrap();
                table.destroy(socket).unwrap();
            }
            (client, server, found)
        })
        .unwrap();
    let [socket] = &found[..] else { panic!("one socket expected: {found:?}") };
    assert_eq!(socket.remote, server.local_addr().unwrap());
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().raw_os_error(), Some(103), "ECONNABORTED");
}

#[test]
fn an_address_is_reachable_as_soon_as_it_is_added() {
    for _ in 0..200 {
        let ns = namespace();
        ns.run(|| {
            let mut connection = Connection::open().unwrap();
            for own in ["192.0.2.7", "2001:db8::7"] {
                let own: IpAddr = own.parse().unwrap();
                connection.add_address(LinkIndex::LOOPBACK, own.into()).unwrap();
                let listener = TcpListener::bind((own, 0)).unwrap();
                // A lost SYN would be repeated after a second only.
                let at_once = Duration::from_millis(900);
                TcpStream::connect_timeout(&listener.local_addr().unwrap(), at_once).unwrap();
            }
        })
        .unwrap();
    }
}
