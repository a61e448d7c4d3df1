"""Corpus section F: names."""

from __future__ import annotations

import os
import struct

import pytest

import probes
import world
from world import ALLOWED, block, datagrams, question, speak

TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "NULL": 10, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "NAPTR": 35,
         "DNAME": 39, "DNSKEY": 48, "SVCB": 64, "HTTPS": 65, "AXFR": 252, "IXFR": 251, "ANY": 255, "CAA": 257, "private": 65399}


def replies(box, queries, server: str = "8.8.8.8", wait: float = 3) -> list[dict | None]:
    """The header of each reply; None where there is none."""
    found = []
    for answer in datagrams(box, [(server, 53, query) for query in queries], wait):
        if not answer.startswith("answer "):
            found.append(None)
            continue
        _, flags, _, answers, _, _ = struct.unpack(">HHHHHH", bytes.fromhex(answer[7:])[:12])
        found.append({"rcode": flags & 15, "answers": answers})
    return found


def test_f117_f118_nothing_of_a_refused_name_is_asked_of_anybody(lab, p1):
    token = probes.canary()
    names = [f"{token[:30]}.evil.test", f"{token}.allowed.test", f"{token}.test", f"allowed.test.{token}.evil.test"]
    queries = [question(name, kind) for name in names for kind in TYPES.values()]
    for reply in replies(p1, queries):
        assert reply is not None
    assert world.bind(p1, "allowed.test") == [ALLOWED]
    assert not lab.asked(token[:30])


def test_f118_of_a_permitted_name_only_addresses_are_answered(lab, p1):
    got = replies(p1, [question("allowed.test", kind) for kind in TYPES.values()])
    for name, reply in zip(TYPES, got, strict=True):
        assert reply["answers"] == (1 if name in ("A", "AAAA", "ANY") else 0), (name, reply)
    assert {line["type"] for line in lab.asked("allowed.test") if line["name"] == "allowed.test"} <= {"A", "AAAA"}


def test_f119_a_tunnel_inside_a_permitted_zone_carries_only_what_its_budget_has(lab, sandbox):
    box = sandbox(network={"allow_out": ["*.allowed.test", "allowed.test", "~[a-z0-9]+\\.sib\\.test"], "deny_out": ["0.0.0.0/0"]})
    other = sandbox(network={"allow_out": ["*.allowed.test"], "deny_out": ["0.0.0.0/0"]})
    token = probes.canary()[:12]

    def told(marker: str = "") -> set[str]:
        return {line["name"] for line in lab.asked(token + marker)}

    # Names run out.
    short = [f"{token}s{number}.allowed.test" for number in range(600)]
    long = [f"{token}l{number:0>48}.{'x' * 60}.{'y' * 60}.allowed.test" for number in range(60)]
    got = [reply["rcode"] for reply in replies(box, [question(name) for name in short])]
    assert got.count(5) > 300 and got[0] == got[200] == 0, got
    # Half a name more is given each second.
    assert 256 <= len(told("s")) <= 256 + 60
    over = lambda events: [event for event in events if event.get("reason") == "dns_labels"]
    events = over(lab.wait_for_events(box.sandbox_id, lambda events: sum(e["count"] for e in over(events)) == got.count(5)))
    assert len(events) <= 3, events
    assert {(e["type"], e["host"], e["rule"]["entry"]) for e in events} == {("dns_blocked", "allowed.test", "*.allowed.test")}

    # Bytes run out before names do, those of another sandbox, whose budget is whole.
    got = [reply["rcode"] for reply in replies(other, [question(name) for name in long])]
    assert got[0] == 0 and got.count(5) > 5, got
    assert sum(len(name) - len(".allowed.test") for name in told("l")) <= 8192 + 1024

    # The server name of a connection is no way around.
    before = len(told())
    tried = speak(box, [(world.bind(box, "allowed.test")[0], 443, world.hello(f"{token}t{number}{'z' * 40}.allowed.test".encode())) for number in range(20)])
    assert tried.count("alert 49") > 10, tried
    assert len(told()) <= before + 10

    # What was asked before, what is permitted as a host, another zone, and another sandbox go on.
    assert world.bind(box, short[0]) and world.bind(box, "allowed.test") == [ALLOWED]
    assert replies(box, [question(f"{token}.sib.test")])[0]["rcode"] != 5
    assert world.bind(other, "short.allowed.test")
    world.twin(lab, box)


def test_f121_single_labels_and_special_names_are_not_asked(lab, p1):
    names = ["localsite", "wpad", "printer.local", "x.onion", "x.invalid", "_dmarc", "x.cluster.local", "kubernetes.default.svc"]
    replies(p1, [question(name, kind) for name in names for kind in (1, 28, 16)])
    world.bind(p1, "allowed.test")
    assert not [name for name in names if lab.asked(name)]


def test_f122_what_a_query_says_besides_its_name_stays_on_the_node(lab, p1):
    cookie = os.urandom(16)
    options = struct.pack(">HH", 10, len(cookie)) + cookie + struct.pack(">HH", 8, 8) + b"\0\1\x20\0" + bytes([192, 0, 2, 1])
    edns = b"\0" + struct.pack(">HHIH", 41, 1232, 0x00008000, len(options)) + options
    before = len(lab.asked(""))
    assert replies(p1, [question("aLLoWeD.tEsT", 1, edns)])[0] == {"rcode": 0, "answers": 1}
    asked = lab.asked("")[before:]
    assert all(line["name"] == line["name"].lower() for line in asked), asked


def test_f124_broken_queries_are_answered_as_such_or_not_at_all(lab, p1):
    head = struct.pack(">HHHHHH", 1, 0x0100, 1, 0, 0, 0)
    cases = {
        "two_questions": question("allowed.test", count=2),
        "none": question("allowed.test", count=0),
        "a_loop": head + b"\xc0\x0c\0\1\0\1",
        "a_pointer_ahead": head + b"\xc0\x20\0\1\0\1",
        "cut": question("allowed.test")[:20],
        "a_response": struct.pack(">HHHHHH", 1, 0x8180, 1, 0, 0, 0) + question("allowed.test")[12:],
        "an_update": struct.pack(">HHHHHH", 1, 0x2800, 1, 0, 0, 0) + question("allowed.test")[12:],
        "chaos": question("allowed.test")[:-2] + b"\0\3",
        "a_dot_inside_a_label": question(b"\x0callowed.test\0"),
        "nul_inside_a_label": question(b"\x0ballowed\0.ev\4test\0"),
        "label_of_64": head + b"\x40" + b"a" * 64 + b"\0\0\1\0\1",
        "root": question(b"\0"),
        "one_byte": b"\0",
        "nothing": b"",
        "noise": os.urandom(300),
    }
    before = len(lab.asked(""))
    got = dict(zip(cases, replies(p1, cases.values(), wait=0.3), strict=True))
    assert {case: reply for case, reply in got.items() if reply and reply["rcode"] == 0} == {}
    assert lab.asked("")[before:] == []
    assert world.bind(p1, "allowed.test") == [ALLOWED]


def test_f124_the_resolver_speaks_tcp_at_its_own_address_only(lab, p1):
    query = question("allowed.test")
    framed = struct.pack(">H", len(query)) + query
    result = probes.run(p1, f"""
        def ask(address, frames, receive):
            connection = tcp(address, 53)
            for frame in frames:
                connection.sendall(frame)
            got = b""
            while len(got) < receive:
                chunk = connection.recv(4096)
                if not chunk:
                    break
                got += chunk
            return len(got)
        framed = {framed!r}
        say([
            outcome(lambda: ask("100.64.0.1", [framed], 30)),
            outcome(lambda: ask("100.64.0.1", [framed * 20], 20 * 46)),
            outcome(lambda: ask("100.64.0.1", [framed[at:at + 1] for at in range(len(framed))], 30)),
            outcome(lambda: ask("100.64.0.1", [b"\\xff\\xff" + bytes(65535)], 2)),
            outcome(lambda: ask("8.8.8.8", [framed], 30)),
            outcome(lambda: ask("127.0.0.53", [framed], 30)),
        ])
        """)
    assert [each["ok"] for each in result] == [True, True, True, True, False, False], result
    assert result[0]["value"] >= 30 and result[1]["value"] >= 20 * 46


HOSTILE = ["private.test", "loopback.test", "metadata.test", "node.test", "wire.test", "gate.test", "cgnat.test", "zero.test",
           "broadcast.test", "reserved.test", "sink.test", "ietf.test", "rfc1918a.test", "rfc1918b.test", "rebind.test",
           "six-mapped.test", "six-local.test", "six-nat64.test", "six-6to4.test", "six-ula.test"]


@pytest.mark.parametrize("entry", ["*", "names"])
def test_f125_f127_f128_an_answer_that_leads_inside_is_dropped(lab, sandbox, entry):
    box = sandbox(network={"allow_out": ["*"] if entry == "*" else [*HOSTILE, "allowed.test", "six.test", "mixed.test"]})
    asked = [(name, kind) for name in HOSTILE for kind in (1, 1, 28)]
    for (name, kind), reply in zip(asked, world.lookups(box, asked), strict=True):
        assert reply["addresses"] in ([], ["104.16.3.3"]), (name, kind, reply)
    twins = world.lookups(box, [("mixed.test", 1), ("allowed.test", 1), ("six.test", 28)])
    assert [reply["addresses"] for reply in twins] == [["104.16.4.4"], [ALLOWED], ["2606:4700:6::6"]]
    if entry == "names":
        # Said to the proxy, they lead nowhere either.
        names = [name for name in HOSTILE if name != "rebind.test"]
        attempts = [(ALLOWED, 80, world.request(name)) for name in names] + [(ALLOWED, 443, world.hello(name.encode())) for name in names]
        assert set(speak(box, attempts)) <= {"http 403", "alert 49", "reset"}
    private = [e for e in lab.wait_for_events(box.sandbox_id, lambda events: [e for e in events if e.get("host") == "private.test"]) if e.get("host") == "private.test"]
    assert {event["reason"] for event in private} == {"private_range"}, private


def test_f127_the_machines_own_address_is_named_as_the_floor(lab, sandbox):
    box = sandbox(network={"allow_out": ["node.test", "198.51.100.0/24", "100.64.0.0/10"]})
    assert world.bind(box, "node.test") == []
    node, port = lab.variables["BAILIWICK_LAB_NODE"], 9100
    assert set(speak(box, [(node, port, b"x"), ("100.64.0.1", port, b"x"), ("100.80.0.9", port, b"x")])) == {"refused"}
    event = block(lab, box, address=node, port=port)
    assert event["reason"] == "floor" and event["rule"]["floor"] == "node", event
    assert not [line for line in lab.sink_lines() if line["kind"] == "node"]


def test_f133_any_server_address_is_answered_by_the_node(lab, p1):
    servers = [world.EVIL, "8.8.8.8", "9.9.9.9", "203.0.113.1", "10.0.0.1", "169.254.169.253", world.EVIL_V6]
    for server in servers:
        reply = replies(p1, [question("allowed.test")], server)[0]
        assert reply == {"rcode": 0, "answers": 1}, server
    assert not [line for line in lab.asked("") if not line["peer"].startswith("198.51.100.2")]


def test_f134_the_clients_own_resolver_entry_opens_nothing_else(lab, sandbox):
    """The published client adds 8.8.8.8 beside names; here it is sent as it would be on the wire."""
    box = sandbox(network={"allow_out": ["allowed.test"], "deny_out": ["0.0.0.0/0"]})
    before = len(lab.sink_lines())
    assert speak(box, [("8.8.8.8", port, b"x") for port in (443, 80, 22, 53)]) == ["refused"] * 4
    assert datagrams(box, [("8.8.8.8", 123, b"x")]) == ["refused"]
    assert lab.sink_lines()[before:] == []


def test_f136_a_flood_of_queries_is_answered_or_refused_and_the_resolver_lives(lab, sandbox, p1):
    box = sandbox(network={"allow_out": ["*.allowed.test"], "deny_out": ["0.0.0.0/0"]})
    counted = probes.run(box, """
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.setblocking(False)
        client.connect(("8.8.8.8", 53))
        sent = got = 0
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            try:
                client.send(struct.pack(">HHHHHH", sent & 65535, 0x0100, 1, 0, 0, 0) + b"\\x08x%07d\\x07allowed\\x04test\\0\\0\\1\\0\\1" % sent)
                sent += 1
            except OSError:
                pass
            try:
                while client.recv(512):
                    got += 1
            except OSError:
                pass
        say([sent, got])
        """)
    sent, got = counted
    assert sent > 1000 and got > 100, counted
    # A neighbour is served meanwhile and after.
    assert world.bind(p1, "allowed.test") == [ALLOWED]
    world.wait_for(lambda: probes.lookup(box, "nobody.evil.test")["ok"])
    reasons = {event["reason"] for event in lab.events(box.sandbox_id) if event["type"] == "dns_blocked"}
    assert reasons & {"dns_rate", "dns_labels"}, reasons


def test_f137_the_c_library_finds_permitted_names_and_only_those(lab, p1):
    done = p1.commands.run("getent ahosts allowed.test; getent hosts localhost")
    assert ALLOWED in done.stdout and "localhost" in done.stdout, done
    assert ALLOWED not in p1.commands.run("getent ahosts sib.test; true").stdout


def test_what_one_sandbox_may_look_up_is_no_answer_for_another(lab, sandbox, p1):
    other = sandbox(network={"allow_out": ["sib.test", "private.test", "10.0.0.0/8"]})
    assert world.bind(other, "sib.test") == [ALLOWED] and world.bind(other, "private.test") == ["10.1.2.3"]
    assert world.bind(p1, "sib.test")[0].startswith("198.18.")
    strict = sandbox(network={"allow_out": ["private.test"]})
    assert world.bind(strict, "private.test") == []
    # Nor does a binding of the one open an address to the other.
    assert speak(strict, [(ALLOWED, 443, world.hello(b"sib.test")), ("10.1.2.3", 80, b"x")]) == ["refused"] * 2
    assert speak(other, [(ALLOWED, 443, world.hello(b"sib.test"))]) == ["server hello"]


@pytest.mark.parametrize("policy", ["P3", "NAMED"])
def test_f133_no_choice_of_interface_gets_a_query_past_the_resolver(lab, shared, policy):
    box = shared(policy)
    # Under P3 no name is permitted, under the other only this one is not.
    name = f"{probes.canary()}.evil.test" if policy == "P3" else "evil.test"
    query = question(name)
    result = probes.run(box, f"""
        query = {query!r}
        found = []
        def ask(family, server, prepare=None, ancillary=()):
            client = socket.socket(family, socket.SOCK_DGRAM)
            client.settimeout(0.1)
            if prepare:
                prepare(client)
            client.sendmsg([query], list(ancillary), 0, (server, 53))
            return client.recv(512)[3] & 15
        for index, name in socket.if_nameindex():
            device = lambda client: client.setsockopt(socket.SOL_SOCKET, 25, name.encode())
            unicast = lambda client: client.setsockopt(0, 50, struct.pack(">I", index))
            info = (0, 8, struct.pack("=I4s4s", index, bytes(4), bytes(4)))
            for server in ("8.8.8.8", {world.EVIL!r}, {ALLOWED!r}, "198.51.100.1"):
                found.append(outcome(lambda: ask(socket.AF_INET, server, device)))
                found.append(outcome(lambda: ask(socket.AF_INET, server, unicast)))
                found.append(outcome(lambda: ask(socket.AF_INET, server, None, [info])))
            info6 = (41, 50, bytes(16) + struct.pack("=I", index))
            found.append(outcome(lambda: ask(socket.AF_INET6, {world.EVIL_V6!r}, device)))
            found.append(outcome(lambda: ask(socket.AF_INET6, {world.EVIL_V6!r}, None, [info6])))
        say(len(found))
        """)
    assert result >= 14
    world.twin(lab, box)
    assert not [line for line in lab.asked("evil.test") if line["name"] == name]
