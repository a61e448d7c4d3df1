"""Faults of the daemon and of the machine: nothing passes that should not, everything is accounted for, other
sandboxes do not notice, and afterwards the same sandbox works again."""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import signal
import socket
import sqlite3
import threading
import urllib.parse

import pytest
from declaw.exceptions import SandboxError

import machine
import probes
import world
from world import ALLOWED, ALLOWED_V6, EVIL, EVIL_V6, OTHER, datagrams, hello, request, speak

#: What no policy of these tests permits, over every way there is.
ATTEMPTS = [
    (EVIL, 80, request("allowed.test")),
    (EVIL, 443, hello(b"allowed.test")),
    (EVIL_V6, 443, hello(b"allowed.test")),
    (OTHER, 8443, b"canary"),
    ("169.254.169.254", 80, request("169.254.169.254")),
    ("fd00:ec2::254", 80, request("x")),
    ("198.51.100.2", 9100, b"canary"),
    ("10.0.0.1", 80, b"canary"),
    ("8.8.8.8", 53, b"canary"),
]
DATAGRAMS = [
    (EVIL, 9, b"canary"),
    (EVIL_V6, 9, b"canary"),
    ("8.8.8.8", 53, world.question("allowed.test")),
    ("8.8.8.8", 53, world.question("evil.test")),
    ("198.51.100.2", 53, world.question("evil.test")),
    ("169.254.169.254", 53, world.question("evil.test")),
    ("224.0.0.251", 5353, b"canary"),
]


def daemon(lab) -> int:
    return int(lab.variables["BAILIWICK_LAB_DAEMON_PID"])


def api(lab) -> tuple[str, int]:
    """Where the API listens."""
    url = urllib.parse.urlsplit(lab.api)
    return url.hostname, url.port


def refusals(lab, box) -> tuple[int, int]:
    """How many refusals of a sandbox have events, and how many are said to have none."""
    events = lab.events(box.sandbox_id)
    blocked = sum(event["count"] for event in events if event["type"] == "egress_blocked")
    return blocked, sum(event["count"] for event in events if event["type"] == "audit_gap")


# ---- The packet filter


@pytest.mark.parametrize("policy", ["P1", "P4", "P3", "P0", "P5", "NAMED"])
def test_i_without_its_rules_a_sandbox_gets_out_no_more_than_with_them(lab, sandbox, shared, policy):
    network = world.POLICIES[policy]
    box = sandbox(network=network) if network is not None else sandbox()
    other = shared("P1")
    if policy == "P1":
        world.bind(box, "allowed.test")
    # Where the public internet is permitted, only some of the attempts are attacks.
    permitted = {"P0": {EVIL, EVIL_V6, OTHER, "8.8.8.8"}, "P5": {EVIL_V6, OTHER, "8.8.8.8"}}.get(policy, set())
    attempts = [attempt for attempt in ATTEMPTS if attempt[0] not in permitted]
    packets = [each for each in DATAGRAMS if each[0] not in permitted or each[1] == 53]
    with world.nothing_reaches(lab, other):
        asked = len(lab.asked(""))
        machine.flush_rules_of(box.sandbox_id)
        with contextlib.suppress(SandboxError):  # It is ended as soon as that is noticed.
            said = speak(box, attempts, wait=1)
            assert not [answer for answer in said if "http" in answer or "server" in answer], said
            assert not [answer for answer in datagrams(box, packets, wait=1) if answer.startswith("answer")]
        assert [query for query in lab.asked("")[asked:] if "evil" in query["name"]] == []
    # A new policy brings the rules back, whole; a sandbox that was found without them in between has ended.
    status, answer = lab.request("PUT", f"/sandboxes/{box.sandbox_id}/network", world.POLICIES["P1"])
    assert status in (200, 410) or answer["code"] == "policy_kept", answer
    if status == 200:
        with world.nothing_reaches(lab, box):
            assert set(speak(box, ATTEMPTS)) == {"refused"}


def test_i_a_sandbox_whose_rules_are_gone_is_ended_with_an_event_and_others_are_not(lab, sandbox, p1):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    machine.flush_rules_of(box.sandbox_id)
    world.wait_for(
        lambda: lab.request("GET", f"/sandboxes/{box.sandbox_id}")[1].get("state") == "killed", patience=40
    )
    ended = lab.wait_for_events(
        box.sandbox_id, lambda events: [event for event in events if event["type"] == "sandbox_killed"]
    )
    assert [e["detail"]["reason"] for e in ended if e["type"] == "sandbox_killed"] == ["rules_do_not_hold"]
    world.twin(lab, p1)


# ---- Descriptors

_TRY = """
import os, signal, socket, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
relayed = socket.create_connection(("{allowed}", 80), 8)
def ask(connection, path):
    connection.sendall(f"GET {{path}} HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n".encode())
    return connection.recv(4096)[:12].decode() or "closed"
def outcome(do):
    try:
        return do()
    except OSError as error:
        return type(error).__name__
with open("/tmp/outcomes", "w", buffering=1) as log:
    while not os.path.exists("/tmp/stop"):
        def fresh():
            with socket.create_connection(("{allowed}", 80), 8) as connection:
                return ask(connection, "/new")
        log.write(f"{{outcome(fresh)}} / {{outcome(lambda: ask(relayed, '/relayed'))}}\\n")
        if log.tell() < 40:
            signal.sigwait([signal.SIGUSR1])  # Not before the descriptors are counted.
        time.sleep(0.01)
"""


def test_i_without_descriptors_new_connections_are_refused_and_others_go_on(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    box.files.write("/tmp/try.py", _TRY.format(allowed=ALLOWED))
    box.commands.run("python3 /tmp/try.py", background=True, timeout=60)
    outcomes = machine.root_of(box.sandbox_id) / "tmp" / "outcomes"

    def lines():
        return outcomes.read_text().splitlines() if outcomes.exists() else []

    passes = "HTTP/1.1 200 / HTTP/1.1 200"
    world.wait_for(lambda: passes in lines())
    process = daemon(lab)
    before = resource.prlimit(process, resource.RLIMIT_NOFILE)
    opened = machine.descriptors(process)
    most = max(opened) + 1
    idle = []
    try:
        resource.prlimit(process, resource.RLIMIT_NOFILE, (most, before[1]))
        # What is free below the limit is taken by clients of the API that say nothing.
        while len(machine.descriptors(process)) < most:
            there = len(machine.descriptors(process))
            idle.append(socket.create_connection(api(lab), 10))
            world.wait_for(lambda: len(machine.descriptors(process)) > there)
        start = len(lines())
        os.kill(machine.process_of(box.sandbox_id, "/tmp/try.py"), signal.SIGUSR1)
        world.wait_for(lambda: len(lines()) >= start + 12)
        meanwhile = lines()[start + 1 : start + 12]
    finally:
        resource.prlimit(process, resource.RLIMIT_NOFILE, before)
        for client in idle:
            client.close()
    # Reset at once: an attempt that hangs would be a TimeoutError after eight seconds.
    assert {line.split(" / ")[0] for line in meanwhile} == {"ConnectionResetError"}, meanwhile
    # What is relayed already goes on.
    assert {line.split(" / ")[1] for line in meanwhile} == {"HTTP/1.1 200"}, meanwhile
    after = len(lines())
    world.wait_for(lambda: passes in lines()[after:])
    box.files.write("/tmp/stop", "")
    found = lab.wait_for_events(
        box.sandbox_id, lambda events: sum(e["count"] for e in events if e.get("reason") == "daemon_fault") >= len(meanwhile)
    )
    assert {event["type"] for event in found if event.get("reason") == "daemon_fault"} == {"egress_blocked"}
    world.wait_for(lambda: len(machine.descriptors(process)) <= len(opened))


# ---- The log of refused packets


def test_i_what_the_kernel_could_not_tell_is_counted(lab, sandbox, p1):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    process, attempts, token = daemon(lab), 30_000, probes.canary()
    box.files.write("/tmp/flood.py", f"""
import signal, socket
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
open("/tmp/ready", "w").close()
signal.sigwait([signal.SIGUSR1])
for number in range({attempts}):
    try:
        client.sendto(b"{token}", ("{EVIL}", 1024 + number % 60000))
    except OSError:
        pass
open("/tmp/sent", "w").close()
""")
    box.commands.run("python3 /tmp/flood.py", background=True, timeout=60)
    root = machine.root_of(box.sandbox_id)
    world.wait_for(lambda: (root / "tmp" / "ready").exists())
    os.kill(process, signal.SIGSTOP)
    try:
        os.kill(machine.process_of(box.sandbox_id, "/tmp/flood.py"), signal.SIGUSR1)
        world.wait_for(lambda: (root / "tmp" / "sent").exists(), patience=60)
    finally:
        os.kill(process, signal.SIGCONT)
    # Every attempt has an event or is counted as one without; none is counted twice.
    world.wait_for(lambda: sum(refusals(lab, box)) >= attempts, patience=60)
    blocked, gap = refusals(lab, box)
    assert blocked + gap == attempts and gap > 0 and blocked > 0, (blocked, gap)
    world.twin(lab, box)
    world.twin(lab, p1)
    assert not lab.seen(token)


# ---- The store


def test_i_while_the_database_is_locked_connections_are_decided_and_nothing_is_half_made(lab, p1, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    world.bind(box, "allowed.test")
    data = pathlib.Path(lab.variables["BAILIWICK_LAB_DATA"])
    there = lab.request("GET", "/sandboxes")[1]
    directories = sorted(os.listdir(data / "sandboxes"))
    database = sqlite3.connect(data / "bailiwick.db", isolation_level=None, timeout=10)
    answers = []
    creating = threading.Thread(
        target=lambda: answers.append(lab.request("POST", "/sandboxes", {"template": "python", "timeout": 60}))
    )
    try:
        database.execute("BEGIN EXCLUSIVE")
        creating.start()
        with world.nothing_reaches(lab, box):
            assert speak(box, [(EVIL, 7001, b"x")] * 3) == ["refused"] * 3
        world.twin(lab, p1)
        assert lab.request("GET", f"/sandboxes/{box.sandbox_id}")[0] == 200
        creating.join(timeout=60)
    finally:
        database.rollback()
        database.close()
    creating.join()
    status, answer = answers[0]
    assert status == 503 and answer["code"] == "store_unavailable", answers
    # Nothing of it is left, and nothing that happened meanwhile is missing.
    assert lab.request("GET", "/sandboxes")[1] == there
    world.wait_for(lambda: sorted(os.listdir(data / "sandboxes")) == directories)
    # Reading events waits for those that are not stored yet; the writer tries again after some seconds at most.
    world.wait_for(lambda: lab.request("GET", f"/sandboxes/{box.sandbox_id}/audit")[0] == 200)
    events = lab.wait_for_events(
        box.sandbox_id, lambda events: [e for e in events if e["type"] == "egress_blocked" and e["port"] == 7001]
    )
    assert [e["count"] for e in events if e.get("port") == 7001] == [3]
    assert not [event for event in events if event["type"] == "audit_gap"]
    made = sandbox(network=world.POLICIES["P1"])
    world.bind(made, "allowed.test")
    world.twin(lab, made)
