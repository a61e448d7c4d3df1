"""Corpus section F: what a resolver's own messages could carry, and answers that are not what they should be."""

from __future__ import annotations

import json
import os
import struct

import probes
import world
from world import ALLOWED, EVIL, block, question, request, speak

NOTHING_ELSE = ["0.0.0.0/0"]


def ttls(box, *names: str) -> list[int]:
    """The time to live that each name's first address is answered with."""
    found = []
    for answer in world.datagrams(box, [("8.8.8.8", 53, question(name)) for name in names]):
        reply = bytes.fromhex(answer.removeprefix("answer "))
        assert reply[7] >= 1, reply
        at = 12 + reply[12:].index(b"\0") + 5
        at += 2 if reply[at] >= 0xC0 else reply[at:].index(b"\0") + 1
        found.append(struct.unpack(">I", reply[at + 4 : at + 8])[0])
    return found


def test_f123_the_numbers_and_ports_of_a_query_are_not_those_of_the_one_that_leaves(lab, sandbox):
    """What is left is when a permitted name is asked for first: a documented limit (`timing_and_volume`)."""
    box = sandbox(network={"allow_out": ["*.allowed.test", "allowed.test"], "deny_out": NOTHING_ELSE})
    token = probes.canary()[6:22]
    secret = os.urandom(64)
    # Two bytes of it in the identity and one in the source port of each query.
    queries = [
        (int.from_bytes(secret[at : at + 2], "big"), 20000 + secret[at], question(f"{token}{at}.allowed.test", identity=int.from_bytes(secret[at : at + 2], "big")))
        for at in range(0, 62, 2)
    ]
    got = probes.run(box, f"""
        def ask(port, query):
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(8)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            client.bind(("0.0.0.0", port))
            client.connect(("8.8.8.8", 53))
            client.send(query)
            return client.recv(512)[:2] == query[:2]
        say([outcome(lambda: ask(port, bytes.fromhex(query))) for port, query in {[(port, query.hex()) for _, port, query in queries]!r}])
        """)
    assert [each.get("value") for each in got] == [True] * len(queries), got
    asked = {line["name"]: line for line in lab.asked(token)}
    assert len(asked) == len(queries)
    same = [line for (identity, port, _), line in zip(queries, (asked[f"{token}{at}.allowed.test"] for at in range(0, 62, 2)), strict=True)
            if line["id"] == identity or line["peer"].endswith(f":{port}")]
    # By chance, once in a thousand runs.
    assert len(same) <= 1, same
    assert {line["peer"].rsplit(":", 1)[0] for line in asked.values()} == {lab.variables["BAILIWICK_LAB_NODE"]}
    # Asked again with other numbers, nothing leaves at all.
    before = len(lab.asked(""))
    again = [question(f"{token}0.allowed.test", identity=identity) for identity in range(200)]
    assert all(answer.startswith("answer ") for answer in world.datagrams(box, [("8.8.8.8", 53, query) for query in again]))
    assert lab.asked("")[before:] == []
    # Nor is a secret in the numbers of a refused query any louder.
    refused = [question(f"{token}.evil.test", identity=identity) for identity, _, _ in queries]
    world.datagrams(box, [("8.8.8.8", 53, query) for query in refused])
    world.twin(lab, box)
    assert not [line for line in lab.asked("evil.test") if token in line["name"]]


def test_f130_times_to_live_have_a_floor_and_a_cap_and_a_connection_keeps_its_address(lab, sandbox):
    names = ["ttl-zero.test", "ttl-huge.test", "ttl-long.test", "turning.test"]
    box = sandbox(network={"allow_out": [*names, "allowed.test"], "deny_out": NOTHING_ELSE})
    assert all(1 <= ttl <= 3600 for ttl in ttls(box, *names)), ttls(box, *names)
    zero, huge, long = ttls(box, *names[:3])
    assert zero <= 60 and huge > 3000 and long > 3000, (zero, huge, long)
    # Neither 0 nor what is over 31 bits makes each connection a lookup of its own.
    for name in ("ttl-zero.test", "ttl-huge.test"):
        assert "http 200" in speak(box, [(name, 8084, request(name))])[0]
        world.lookups(box, [(name, 1)] * 5)
        assert len([line for line in lab.queries_for(name) if line["type"] == "A"]) == 1, lab.queries_for(name)

    # A name whose server gives another address each time: one connection is to one of them, however long it is.
    first, second = probes.canary(), probes.canary()
    [address] = world.bind(box, "turning.test")
    assert address in ("104.16.7.4", "104.16.7.5")
    keep = lambda token: request("turning.test", f"/{token}").replace(b"Connection: close", b"X: y")
    result = probes.run(box, f"""
        client = tcp({address!r}, 8084)
        client.sendall({keep(first)!r})
        client.recv(65536)
        for _ in range(5):
            socket.getaddrinfo("turning.test", 80)
        client.sendall({keep(second)!r})
        say(client.recv(65536)[:12].decode())
        """)
    assert result == "HTTP/1.1 200"
    lines = world.wait_for(lambda: [*(line for line in lab.seen(first) + lab.seen(second) if line["kind"] == "http")])
    assert {(line["destination"], line["source"]) for line in lines} == {(address, lines[0]["source"])} and len(lines) == 2, lines
    # Its other address was never an answer: it is nobody's.
    other = "104.16.7.5" if address == "104.16.7.4" else "104.16.7.4"
    assert speak(box, [(other, 8085, request("turning.test")), (address, 8085, request("turning.test"))]) == ["refused", "http 200"]
    event = block(lab, box, address=other, port=8085)
    assert event["reason"] in ("default_deny", "deny_entry"), event


def test_f132_only_what_an_answer_says_of_its_own_name_counts(lab, sandbox):
    allowed = ["x.moved.test", "x.moved-evil.test", "poison.test", "victim.test", "allowed.test", "six.test"]
    box = sandbox(network={"allow_out": allowed, "deny_out": NOTHING_ELSE})
    world.twin(lab, box)
    # A subtree that is elsewhere is followed like an alias; the client is told addresses, under the name it asked for.
    moved, evil, poison = world.lookups(box, [("x.moved.test", 1), ("x.moved-evil.test", 1), ("poison.test", 1)])
    assert moved == {"rcode": 0, "answers": 1, "addresses": ["104.16.1.9"]}
    assert evil == {"rcode": 0, "answers": 1, "addresses": [EVIL]}
    assert speak(box, [("x.moved.test", 8084, request("x.moved.test"))]) == ["http 200"]
    # The other end of it is no permitted name for that: neither to the resolver nor to the proxy.
    assert world.bind(box, "x.allowed.test")[0].startswith("198.18.")
    attempts = [(EVIL, 8085, request("x.evil.test")), (EVIL, 443, world.hello(b"x.evil.test")), ("104.16.1.9", 8086, request("x.allowed.test"))]
    assert speak(box, attempts) == ["http 403", "alert 49", "http 403"]
    for port, host in ((8085, "x.evil.test"), (443, "x.evil.test"), (8086, "x.allowed.test")):
        assert block(lab, box, host=host, port=port)["reason"] == "deny_entry"

    # Records about others, in whatever section, are not believed.
    assert poison == {"rcode": 0, "answers": 1, "addresses": ["104.16.7.6"]}
    token = probes.canary()
    for name, address in (("victim.test", "104.16.7.7"), ("allowed.test", ALLOWED)):
        assert world.bind(box, name) == [address]
        assert speak(box, [(name, 8087, request(name, f"/{token}"))]) == ["http 200"]
    assert {line["destination"] for line in lab.seen(token)} == {"104.16.7.7", ALLOWED}

    # A permitted name with addresses of the other family only: no data for the one, a way for the other.
    none, six = world.lookups(box, [("six.test", 1), ("six.test", 28)])
    assert none == {"rcode": 0, "answers": 0, "addresses": []} and six["addresses"] == ["2606:4700:6::6"]
    assert speak(box, [("2606:4700:6::6", 8088, request("six.test")), ("2606:4700:6::7", 8088, request("six.test"))]) == ["http 200", "refused"]
    block(lab, box, address="2606:4700:6::7", port=8088)
    world.twin(lab, box)
    assert "victim.test" not in json.dumps([line for line in lab.sink_lines() if line.get("destination") == EVIL])
