"""Corpus section B: tricks with the bytes that are looked at before a connection is carried."""

from __future__ import annotations

import os
import struct

import probes
import world
from world import ALLOWED, EVIL, block, datagrams, extension, hello, hello_message, nothing_reaches, padding, record, server_names, speak

REFUSED = "alert 49"


def in_records(message: bytes, size: int) -> bytes:
    return b"".join(record(message[at : at + size]) for at in range(0, len(message), size))


def shapes(name: bytes) -> dict[str, object]:
    """One ClientHello for `name` in shapes that a reader may stumble over; all of them are proper TLS."""
    plain = hello(name)
    key_share = extension(0xFE00, os.urandom(1184))  # as long as a key share of ML-KEM is, under a private number
    return {
        "b33_one_byte_segments": [plain[at : at + 1] for at in range(len(plain))],
        "b35_one_byte_records": in_records(hello_message(server_names(name)), 1),
        "b35_uneven_records": in_records(hello_message(server_names(name)), 7),
        "b36_post_quantum": hello(name, more=key_share),
        "b36_padded_to_16_kb": hello(name, more=padding(14_000)),
        "grease": hello(name, more=extension(0x0A0A, b"") + extension(0x1A1A, b"\0")),
        "name_last": record(hello_message(padding(300), server_names(name))),
    }


def test_b33_b35_b36_a_client_hello_is_read_right_in_whatever_shape_it_comes(lab, p1):
    passing, refused = shapes(b"allowed.test"), shapes(b"evil.test")
    results = speak(p1, [(ALLOWED, 443, shape) for shape in passing.values()])
    assert dict(zip(passing, results, strict=True)) == dict.fromkeys(passing, "server hello")
    with nothing_reaches(lab, p1):
        results = speak(p1, [(ALLOWED, 443, shape) for shape in refused.values()])
        assert dict(zip(refused, results, strict=True)) == dict.fromkeys(refused, REFUSED)
    block(lab, p1, host="evil.test", address=ALLOWED, port=443, count=len(refused))


def test_b37_to_b45_what_cannot_be_read_or_hides_the_name_is_refused(lab, p1):
    good = server_names(b"allowed.test")
    ech = extension(0xFE0D, b"\0\0\1\0\1\x07\0\x20" + os.urandom(32) + b"\0\x90" + os.urandom(144))
    cases = {
        "b37_a_declared_length_of_16_mb": (record(b"\x01\xff\xff\xff" + os.urandom(2000)), "malformed_tls"),
        "b37_more_than_64_kb": (in_records(b"\x01\x01\x80\0" + os.urandom(98_304), 16_000), "malformed_tls"),
        "b40_ssl2": (b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + os.urandom(40), "tls_version"),
        "b40_ssl3": (record(hello_message(good, legacy=0x0300)[:-1], version=0x0300), None),
        "b44_b45_ech": (hello(b"allowed.test", more=ech), "ech"),
        "two_name_extensions": (record(hello_message(good, server_names(b"evil.test"))), None),
        "name_of_another_kind": (record(hello_message(server_names(b"allowed.test", kind=1))), None),
        "trailing_bytes": (record(hello_message(good) + b"\0"), None),
        "not_a_client_hello": (record(b"\x02" + hello_message(good)[1:]), "malformed_tls"),
        "handshake_length_too_short": (record(b"\x01\0\0\x30" + hello_message(good)[4:]), None),
        "an_empty_record": (record(b"") + hello(b"evil.test"), None),
        "an_alert_first": (record(b"\x01\x5a", kind=21) + hello(b"evil.test"), None),
        "change_cipher_spec_first": (record(b"\x01", kind=20) + hello(b"evil.test"), None),
    }
    with nothing_reaches(lab, p1):
        ports = {case: 9100 + index for index, case in enumerate(cases)}
        results = speak(p1, [(ALLOWED, ports[case], data) for case, (data, _) in cases.items()])
        outcomes = dict(zip(cases, results, strict=True))
        assert {case: got for case, got in outcomes.items() if not got.startswith("alert") and got not in ("reset", "closed")} == {}
    for case, (_, reason) in cases.items():
        event = block(lab, p1, port=ports[case])
        assert reason in (None, event["reason"]), (case, event)


def test_b38_b39_a_client_hello_that_does_not_come_is_given_up_on(lab, sandbox):
    """Silence after the first byte, or one byte now and then: the time runs from the connection's beginning."""
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    result = probes.run(
        box,
        f"""
        # The published client repeats a request that it got no good answer to; then the program runs twice.
        with open("/tmp/runs", "a") as runs:
            print(os.getpid(), file=runs)
        begun = time.monotonic()
        connections = []
        for _ in range(200):
            connection = tcp({ALLOWED!r}, 443)
            connection.sendall(b"\\x16\\x03")
            connections.append(connection)
        slow = tcp({ALLOWED!r}, 443)
        slow.settimeout(1)
        ended = None
        for byte in {hello(b"allowed.test")!r}:
            try:
                slow.sendall(bytes([byte]))
                if slow.recv(1) is not None:
                    ended = time.monotonic() - begun
                    break
            except socket.timeout:
                pass
            except OSError:
                ended = time.monotonic() - begun
                break
            if time.monotonic() - begun > 15:
                break
        open_still = 0
        for connection in connections:
            connection.settimeout(3)
            try:
                while connection.recv(100):
                    pass
            except socket.timeout:
                open_still += 1
            except OSError:
                pass
        say([ended, open_still])
        """,
    )
    ended, open_still = result
    assert ended is not None and ended < 12 and open_still == 0, result
    world.twin(lab, box)
    runs = box.files.read("/tmp/runs").split()
    assert len(runs) == 1, f"the client has had the program run {len(runs)} times: its connections cannot be told apart"
    block(lab, box, count=201, reason="peek_timeout", address=ALLOWED, port=443)


def test_b42_what_follows_the_client_hello_goes_where_the_first_one_was_permitted(lab, p1):
    """A second ClientHello is the server's to answer: it is at the address of the permitted name."""
    before = len(lab.sink_lines())
    speak(p1, [(ALLOWED, 443, hello(b"allowed.test") + hello(b"evil.test"))])
    world.twin(lab, p1)
    assert {line["destination"] for line in lab.sink_lines()[before:]} == {ALLOWED}


def test_b44_b45_ech_passes_when_the_policy_says_so(lab, sandbox):
    ech = extension(0xFE0D, b"\0\0\1\0\1\x07\0\x20" + os.urandom(32) + b"\0\x90" + os.urandom(144))
    box = sandbox(network={"allow_out": ["allowed.test"]})
    world.bind(box, "allowed.test")
    attempts = [(ALLOWED, 443, hello(b"allowed.test", more=ech)), (ALLOWED, 443, hello(b"evil.test", more=ech))]
    assert speak(box, attempts) == [REFUSED, REFUSED]
    status, body = lab.request("PUT", f"/sandboxes/{box.sandbox_id}/network", {"allow_out": ["allowed.test"], "ech": "permit"})
    assert status == 200, body
    assert speak(box, attempts) == ["server hello", REFUSED]


def test_b47_starttls_to_an_unlisted_host_is_refused_before_a_byte(lab, p1):
    with nothing_reaches(lab, p1):
        assert speak(p1, [(EVIL, port, b"EHLO x\r\n") for port in (25, 587, 143, 5432)]) == ["refused"] * 4


def test_b47_a_permitted_host_may_speak_first(lab, p1):
    assert speak(p1, [(ALLOWED, 25, [])])[0].startswith("data 220 lab ESMTP")


def test_b48_dtls_is_refused_at_once(lab, p1):
    message = b"\x16\xfe\xfd" + bytes(8) + struct.pack(">H", 60) + os.urandom(60)
    with nothing_reaches(lab, p1):
        assert datagrams(p1, [(ALLOWED, 443, message), (EVIL, 443, message), (ALLOWED, 4433, message)]) == ["refused"] * 3
    assert block(lab, p1, address=ALLOWED, port=443, protocol="udp")["reason"] == "quic"
    block(lab, p1, address=ALLOWED, port=4433, protocol="udp")


def test_silence_is_no_way_around_the_client_hello(lab, p1):
    """Where a server may speak first the client can wait; what it says then is still judged."""
    with nothing_reaches(lab, p1, but=lambda line: line["kind"] == "connect"):
        result = probes.run(
            p1,
            f"""
            def attempt(data):
                connection = tcp({ALLOWED!r}, 9443)
                time.sleep(0.4)  # longer than the proxy waits for a first byte
                connection.sendall(data)
                return connection.recv(7)[:1].hex()
            say([outcome(lambda: attempt(bytes.fromhex(data))) for data in {[hello(b"sib.test").hex(), hello(b"allowed.test").hex()]!r}])
            """,
        )
    assert [each["value"] for each in result] == ["15", "16"]
    block(lab, p1, host="sib.test", port=9443)
