"""What is left, and what passes, when the daemon dies without warning."""

from __future__ import annotations

import base64
import os
import pathlib
import time

import conftest
import machine
import probes
import streams
from conftest import command, create
from machine import traces

ALLOWED = "104.16.1.1"


#: Writes a line for each attempt to send the token, for ever.
CHATTER = """
import socket, time
while True:
    for address in [("104.16.1.1", 80), ("185.199.109.66", 80)]:
        try:
            connection = socket.create_connection(address, 2)
            connection.sendall(b"GET /{token} HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n")
            connection.recv(100)
            outcome = "passed"
        except OSError as error:
            outcome = type(error).__name__
        with open("/tmp/attempts", "a") as log:
            log.write(f"{{address[0]}} {{outcome}}\\n")
    time.sleep(0.05)
"""


def test_h163_nothing_passes_while_the_daemon_is_dead_and_the_next_one_adopts(fragile):
    process, lab = fragile
    box = create(lab, network={"allow_out": ["allowed.test"]})
    token = probes.canary()
    lab.request(
        "PUT", f"/sandboxes/{box}/files/raw?path=/tmp/chatter.py", raw=CHATTER.format(token=token).encode(),
        headers={"Content-Type": "application/octet-stream"},
    )
    command(lab, box, "getent ahostsv4 allowed.test")
    command(lab, box, "python3 /tmp/chatter.py", background=True)
    deadline = time.monotonic() + conftest.PATIENCE
    while not lab.seen(token):
        assert time.monotonic() < deadline, "the permitted twin does not pass"
    process.kill_daemon()
    quiet_from = len(lab.sink_lines())
    # The program inside goes on trying; give it time for a good many attempts.
    time.sleep(2)
    assert [line for line in lab.sink_lines()[quiet_from:] if line["kind"] != "packet"] == []
    process.restart_daemon()
    status, info = lab.request("GET", f"/sandboxes/{box}")
    assert status == 200 and info["state"] == "running", info
    attempts = command(lab, box, "cat /tmp/attempts")["stdout"].splitlines()
    assert "104.16.1.1 passed" in attempts
    assert not [line for line in attempts if line.startswith("185.199.109.66") and "passed" in line]
    # Adopted with its policy: the listed host passes again, the other does not.
    command(lab, box, "getent ahostsv4 allowed.test")
    answer = command(lab, box, f"python3 -c \"import socket; socket.create_connection(('{ALLOWED}', 80), 5)\"")
    assert answer["exit_code"] == 0, answer
    refused = command(lab, box, "python3 -c \"import socket; socket.create_connection(('185.199.109.66', 4163), 5)\"")
    assert "ConnectionRefusedError" in refused["stderr"], refused
    match = lambda events: [e for e in events if e["type"] == "egress_blocked" and e.get("port") == 4163]
    [event] = match(lab.wait_for_events(box, match))
    assert (event["address"], event["reason"], event["count"], event["generation"]) == ("185.199.109.66", "default_deny", 1, 1), event


#: Takes the port of name servers at all addresses as soon as it can, as one that is started again and again does; and tries
#: to take what the daemon listens on.
NAME_SERVER = """
import socket, time
held = []
def take(port, kind):
    server = socket.socket(socket.AF_INET6, kind)
    server.bind(("::", port))
    held.append(server)
    if kind == socket.SOCK_STREAM:
        server.listen()
while True:
    try:
        take(53, socket.SOCK_DGRAM)
        break
    except OSError:
        time.sleep(0.01)
take(53, socket.SOCK_STREAM)
taken = []
for port in range(1, 16):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        try:
            take(port, kind)
            taken.append(str(port))
        except PermissionError:
            pass
open("/tmp/taking", "w").write(" ".join(taken))
import os
os.rename("/tmp/taking", "/tmp/taken")
time.sleep(1000)
"""


def test_what_takes_the_daemons_ports_while_it_is_dead_keeps_the_next_one_from_nothing(fragile):
    process, lab = fragile
    box = create(lab, network={"allow_out": ["allowed.test"]})
    lab.request(
        "PUT", f"/sandboxes/{box}/files/raw?path=/tmp/server.py", raw=NAME_SERVER.encode(),
        headers={"Content-Type": "application/octet-stream"},
    )
    command(lab, box, "python3 /tmp/server.py", background=True, user="root")
    taken = machine.root_of(box) / "tmp" / "taken"
    process.kill_daemon()
    deadline = time.monotonic() + conftest.PATIENCE
    while not taken.exists():
        assert time.monotonic() < deadline, "port 53 is not free while no daemon is there"
        time.sleep(0.01)
    # Of the first fifteen, the last alone is anybody's.
    assert taken.read_text() == "15 15"
    process.restart_daemon()
    status, info = lab.request("GET", f"/sandboxes/{box}")
    assert status == 200 and info["state"] == "running", info
    for lookup in ("getent ahostsv4 allowed.test", "RES_OPTIONS=use-vc getent ahostsv4 allowed.test"):
        assert ALLOWED in command(lab, box, lookup)["stdout"], lookup
    answer = command(lab, box, f"python3 -c \"import socket; socket.create_connection(('{ALLOWED}', 80), 5)\"")
    assert answer["exit_code"] == 0, answer
    # And its policy can be replaced, which is tried from inside.
    assert lab.request("PUT", f"/sandboxes/{box}/network", {"allow_out": ["sib.test"]})[0] == 200
    assert command(lab, box, "getent ahostsv4 allowed.test")["stdout"].split()[0].startswith("198.18.")


def test_a_timeout_is_kept_across_a_restart(fragile):
    process, lab = fragile
    short = create(lab, timeout=4)
    long = create(lab, timeout=300)
    process.kill_daemon()
    process.restart_daemon()
    deadline = time.monotonic() + conftest.PATIENCE
    while lab.request("GET", f"/sandboxes/{short}")[1]["state"] != "killed":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert lab.request("GET", f"/sandboxes/{long}")[1]["state"] == "running"


def test_nothing_of_a_killed_sandbox_is_left(fragile):
    _, lab = fragile
    data = pathlib.Path(lab.variables["BAILIWICK_LAB_DATA"])
    opened = pathlib.Path(f"/proc/{lab.variables['BAILIWICK_LAB_DAEMON_PID']}/fd")
    # The uplink, which the first wire needs, stays with the daemon.
    lab.request("DELETE", f"/sandboxes/{create(lab, network=None)}")
    descriptors = len(os.listdir(opened))
    boxes = [
        create(lab, network=network)
        for network in [{"allow_out": ["allowed.test"]}, {"allow_out": ["1.1.1.1"]}, {"deny_out": ["0.0.0.0/0"]}, None]
    ]
    for box in boxes:
        command(lab, box, "sleep 1000", background=True)
    there = traces(data, boxes)
    assert there["cgroups"] and there["directories"] and len(there["processes"]) >= 2 * len(boxes), there
    for box in boxes:
        assert lab.request("DELETE", f"/sandboxes/{box}")[1] == {"killed": True}
    assert not any(traces(data, boxes).values()), traces(data, boxes)
    # The namespaces of wired ones are kept until the uplink's log has told of them.
    deadline = time.monotonic() + conftest.PATIENCE
    while len(os.listdir(opened)) > descriptors:
        assert time.monotonic() < deadline, [os.readlink(path) for path in opened.iterdir()]
        time.sleep(0.05)


def test_a_second_daemon_on_the_same_directory_is_refused(fragile):
    import subprocess

    _, lab = fragile
    program = pathlib.Path(f"/proc/{lab.variables['BAILIWICK_LAB_DAEMON_PID']}/exe").readlink()
    second = subprocess.run(
        [program, "--data-dir", lab.variables["BAILIWICK_LAB_DATA"], "serve", "--listen", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=30, check=False,
    )
    assert second.returncode == 1
    assert lab.variables["BAILIWICK_LAB_DATA"] in second.stderr
    assert f"in use by process {lab.variables['BAILIWICK_LAB_DAEMON_PID']}" in second.stderr


def test_a_stdio_session_and_a_terminal_outlive_the_daemon(fragile):
    process, lab = fragile
    box = create(lab)
    base = f"/sandboxes/{box}"
    command_line = "echo before; while read line; do echo $line; done; exit 5"
    _, session = lab.request("POST", f"{base}/stdio", {"cmd": command_line})
    _, terminal = lab.request("POST", f"{base}/pty", {})
    where = f"{base}/stdio/{session['cmd_id']}"
    process.kill_daemon()
    process.restart_daemon()
    assert lab.request("POST", f"{where}/stdin", {"data": base64.b64encode(b"after\n").decode()})[0] == 200
    assert lab.request("POST", f"{where}/stdin/close", {})[0] == 200
    found = list(streams.events(streams.opened(lab, "GET", f"{where}/stream")[1]))
    assert streams.decoded(found, "stdout") == b"before\nafter\n" and found[-1] == ("exit", {"exit_code": 5})
    assert [data.get("entry_id") for _, data in found] == [1, 2, None]
    assert lab.request("POST", f"{base}/pty/{terminal['pid']}/stdin", {"data": "exit 6\n"})[0] == 200
    shown = list(streams.events(streams.opened(lab, "GET", f"{base}/pty/{terminal['pid']}/stream")[1]))
    assert shown[-1] == ("exit", {"exit_code": 6})
