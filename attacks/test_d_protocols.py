"""Corpus section D: QUIC, and HTTP's ways to carry datagrams."""

from __future__ import annotations

import os
import struct

import pytest

import probes
import world
from world import ALLOWED, EVIL, block, datagrams, nothing_reaches, speak

#: RFC 9000 and RFC 9369.
QUIC_V1, QUIC_V2 = 1, 0x6B3343CF


def quic(version: int, kind: int, payload: bytes = b"", size: int = 1200) -> bytes:
    """A packet with a long header. Kinds are those of version 1; version 2 numbers them differently. What is in it
    is protected with keys that follow from the connection id, so that it looks like noise to everybody on the way."""
    bits = (kind + 1) % 4 if version == QUIC_V2 else kind
    head = bytes([0xC0 | bits << 4 | 3]) + struct.pack(">I", version) + b"\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
    if kind == 0:
        head += b"\0"  # no token
    body = payload + os.urandom(max(0, size - len(head) - len(payload) - 2))
    return head + struct.pack(">H", 0x4000 | len(body)) + body


def packets(canary: bytes) -> dict[str, bytes]:
    return {
        "initial v1": quic(QUIC_V1, 0, canary),
        "initial v2": quic(QUIC_V2, 0, canary),
        "0-rtt v1": quic(QUIC_V1, 1, canary),
        "0-rtt v2": quic(QUIC_V2, 1, canary),
        "unknown version": quic(0x1A2A3A4A, 0, canary),
        "version negotiation": b"\x80\0\0\0\0\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + struct.pack(">II", QUIC_V1, QUIC_V2) + canary,
        "initial and 0-rtt together": quic(QUIC_V1, 0, canary, 700) + quic(QUIC_V1, 1, canary, 500),
        "short header": b"\x43" + os.urandom(8) + canary + os.urandom(40),
    }


def test_d88_quic_is_refused_at_once_to_the_permitted_host_and_to_any_other(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    token = probes.canary()
    sent = packets(token.encode())
    with nothing_reaches(lab, box):
        for target in (ALLOWED, world.ALLOWED_V6, EVIL, world.EVIL_V6):
            # Bound, as when a client has looked the name up and tries HTTP/3 first.
            world.lookups(box, [("allowed.test", 1), ("allowed.test", 28)])
            results = datagrams(box, [(target, 443, packet) for packet in sent.values()])
            assert dict(zip(sent, results, strict=True)) == dict.fromkeys(sent, "refused"), target
    assert not lab.seen(token)
    for target in (ALLOWED, world.ALLOWED_V6):
        event = block(lab, box, count=len(sent), address=target, port=443, protocol="udp")
        assert (event["reason"], event["host"]) == ("quic", "allowed.test"), event
    for target in (EVIL, world.EVIL_V6):
        event = block(lab, box, count=len(sent), address=target, port=443, protocol="udp")
        assert event["reason"] == "deny_entry" and event["rule"]["text"].startswith("deny_out[0]"), event
    # On another port it is a datagram like any other.
    assert datagrams(box, [(ALLOWED, 8443, sent["initial v1"])]) == ["refused"]
    assert block(lab, box, address=ALLOWED, port=8443, protocol="udp")["host"] == "allowed.test"


def test_d88_quic_passes_to_an_address_entry_and_to_no_other_address(lab, p3):
    token = probes.canary()
    initial = packets(token.encode())["initial v1"]
    assert datagrams(p3, [(ALLOWED, 443, initial), (EVIL, 443, initial)]) == ["answer " + initial[:600].hex(), "refused"]
    assert {line["destination"] for line in lab.seen(token)} == {ALLOWED}


def masque(target: str, more: str = "") -> bytes:
    """A request to carry datagrams, as HTTP/1.1 has it (RFC 9298 section 3.2)."""
    return (f"GET {target} HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\n"
            f"Upgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n{more}\r\n").encode()


def capsule(payload: bytes) -> bytes:
    """A DATAGRAM capsule with context 0 (RFC 9297)."""
    body = b"\0" + payload
    return b"\0" + struct.pack(">H", 0x4000 | len(body)) + body


@pytest.mark.parametrize("port", [80, 8080])
def test_d90_no_proxy_for_datagrams_is_switched_to_at_the_permitted_host(lab, sandbox, port):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    path = f"/.well-known/masque/udp/{EVIL}/443/"
    asked, inside = probes.canary(), probes.canary()

    # The offer is a request to the permitted host like any other: it gets there without the offer. What would be
    # datagrams after the switch is read as the next request, and refused as none.
    assert speak(box, [(ALLOWED, port, masque(f"{path}?{asked}") + capsule(inside.encode()))])[0].startswith("http 200")
    [line] = world.wait_for(lambda: [line for line in lab.seen(asked) if line["kind"] == "http"])
    assert line["destination"] == ALLOWED and "upgrade" not in line["headers"], line
    assert line["headers"].get("connection") in (None, "keep-alive"), line
    assert not lab.seen(inside)
    event = block(lab, box, address=ALLOWED, port=port)
    assert event["reason"] == "malformed_http", event

    # Not a request to the permitted host: by its form, by its method.
    with nothing_reaches(lab, box):
        refused = [
            (ALLOWED, port + 1, masque(f"http://proxy.evil.test{path}")),
            (ALLOWED, port + 2, f"CONNECT {EVIL}:443 HTTP/1.1\r\nHost: allowed.test\r\nUpgrade: connect-udp\r\n\r\n".encode()),
            (ALLOWED, port + 3, masque(path, more="Upgrade: h2c\r\n")),
            (ALLOWED, port + 4, masque(path).replace(b"Host: allowed.test", b"Host: evil.test")),
        ]
        assert speak(box, refused) == ["http 403"] * 4
    reasons = ["http_absolute_form", "http_connect", "http_h2c"]
    for number, reason in enumerate(reasons, 1):
        assert block(lab, box, address=ALLOWED, port=port + number)["reason"] == reason
    event = block(lab, box, port=port + 4)
    assert event["host"] == "evil.test" and event["rule"]["text"].startswith("deny_out[0]"), event

    # The twin: the one switch that is passed on.
    token = probes.canary()
    socket = ("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
              "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
    data = f"GET /{token} HTTP/1.1\r\nHost: allowed.test\r\n{socket}\r\n".encode()
    speak(box, [(ALLOWED, port, data)], wait=2)
    [line] = world.wait_for(lambda: [line for line in lab.seen(token) if line["kind"] == "http"])
    assert line["headers"]["upgrade"] == "websocket", line
