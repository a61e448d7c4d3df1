"""Clients that do not behave: they leave in the middle, do not read, send too much, wait for ever."""

from __future__ import annotations

import base64
import json
import pathlib
import socket
import struct
import urllib.parse

import conftest
import machine
import probes
import streams
from streams import eventually
from test_command_streams import until_gone

#: Readers that do not read, and how many of them follow the same sandbox.
READERS, OF_ONE = 1000, 200
#: What each of them may cost the daemon, in bytes, twice what was measured: what is on its way to it, its connection.
OF_A_READER = 512 << 10
#: What a terminal prints: 32 MiB, and not more, because a debug build takes seconds for that already.
PRINTED = 32 << 20
#: What the daemon may grow by meanwhile, in bytes.
GROWN = 16 << 20


def daemon(lab) -> int:
    return int(lab.variables["BAILIWICK_LAB_DAEMON_PID"])


def memory(lab) -> int:
    """What the daemon has in memory, in bytes."""
    status = pathlib.Path(f"/proc/{daemon(lab)}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


def connected(lab) -> socket.socket:
    at = urllib.parse.urlsplit(lab.api)
    return socket.create_connection((at.hostname, at.port), timeout=conftest.PATIENCE)


def sent(lab, method: str, path: str, body=None, headers: str = "") -> socket.socket:
    """A connection on which a request was sent, and nothing has been read."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {lab.key}\r\nContent-Length: {len(data)}\r\n{headers}\r\n"
    connection = connected(lab)
    connection.sendall(head.encode() + data)
    return connection


def reset(connection: socket.socket) -> None:
    """Ends a connection as a client does that dies."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def until_there(box, marker: str) -> None:
    look = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '{marker[:-1]}[{marker[-1]}]' || true"
    eventually(f"{marker} runs", lambda: box.commands.run(look).stdout.strip() != "0")


def test_a_client_that_leaves_takes_its_foreground_command_with_it_and_no_background_command(lab, sandbox):
    box = sandbox()
    path = f"/sandboxes/{box.sandbox_id}/commands"
    kept = box.commands.run(f"sleep 300; : {probes.canary()}", background=True)
    for leave in (socket.socket.close, reset):
        marker = probes.canary()
        client = sent(lab, "POST", path, {"cmd": f"sleep 300; : {marker}"})
        until_there(box, marker)
        leave(client)
        until_gone(box, marker)
    # One that leaves before it has the answer has started its background command all the same.
    marker = probes.canary()
    client = sent(lab, "POST", path, {"cmd": f"sleep 300; : {marker}", "background": True})
    until_there(box, marker)
    reset(client)
    assert sorted(marker in each.cmd for each in box.commands.list()) == [False, True]
    assert kept.kill()


def test_a_thousand_readers_that_do_not_read_cost_little_and_hold_up_nobody(lab):
    boxes = [conftest.create(lab, timeout=0) for _ in range(READERS // OF_ONE)]
    clients = []
    try:
        before, descriptors = memory(lab), len(machine.descriptors(daemon(lab)))
        for box in boxes:
            status, made = lab.request("POST", f"/sandboxes/{box}/stdio", {"cmd": "head -c 65536 /dev/zero; cat"})
            assert status == 200, made
            path = f"/sandboxes/{box}/stdio/{made['cmd_id']}/stream"
            clients += [sent(lab, "GET", path) for _ in range(OF_ONE)]
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
        grown = memory(lab) - before
        assert grown < READERS * OF_A_READER, f"{grown >> 20} MiB for {READERS} readers"
        for box in boxes:
            assert conftest.command(lab, box, "echo alive")["stdout"] == "alive\n"
        for client in clients:
            reset(client)
        clients = []
        gone = lambda: len(machine.descriptors(daemon(lab))) < descriptors + READERS // 10
        eventually("the daemon has let go of them", gone)
    finally:
        for client in clients:
            reset(client)
        for box in boxes:
            lab.request("DELETE", f"/sandboxes/{box}")


def test_a_terminal_that_prints_without_end_takes_no_memory_of_the_daemon(lab, sandbox):
    box = sandbox()
    handle = box.pty.create()
    _, response = streams.opened(lab, "GET", f"/sandboxes/{box.sandbox_id}/pty/{handle.pid}/stream")
    handle.send_stdin(f"stty -opost; head -c {PRINTED} /dev/zero | tr '\\0' x; exit\n")
    before, most, shown = memory(lab), 0, 0
    for number, (name, data) in enumerate(streams.events(response)):
        if name == "exit":
            break
        shown += len(data["data"]) * 3 // 4
        if number % 1000 == 0:
            most = max(most, memory(lab))
    assert shown >= PRINTED
    assert most - before < GROWN, f"{(most - before) >> 20} MiB more while {shown >> 20} MiB were shown"


def test_whoever_waits_for_a_command_that_takes_days_is_told_that_it_still_runs(lab, sandbox):
    box = sandbox(timeout=31_536_000)
    path = f"/sandboxes/{box.sandbox_id}/commands"
    for seconds, status in [(31_536_000, 200), (31_536_001, 400)]:
        got, started = lab.request("POST", path, {"cmd": "sleep 864000", "background": True, "timeout": seconds})
        assert got == status, started
    running = box.commands.list()[0].pid
    connection, response = streams.opened(lab, "GET", f"{path}/{running}/wait")
    # The answer has begun although the command has not ended: the head, and white space before the JSON.
    assert response.status == 200 and response.read(1) == b" "
    assert box.commands.kill(running)
    assert json.loads(response.read())["exit_code"] == 137
    connection.close()


def test_what_is_too_large_is_refused_and_the_daemon_goes_on(lab, sandbox):
    box = sandbox()
    path = f"/sandboxes/{box.sandbox_id}"
    process = box.stdio.start("wc -c")
    # Just below the longest body, and above.
    for mebibytes, status in [(7, 200), (8, 413)]:
        data = base64.b64encode(bytes(mebibytes << 20)).decode()
        assert lab.request("POST", f"{path}/stdio/{process.cmd_id}/stdin", {"data": data})[0] == status
    process.close_stdin()
    out = streams.Collected()
    process.stream(on_stdout=out)
    assert out.data == b"%d\n" % (7 << 20)

    long = sent(lab, "GET", f"{path}/status", headers=f"X-Long: {'x' * (300 << 10)}\r\n")
    assert long.recv(12) == b"HTTP/1.1 200"
    for headers in (f"X-Long: {'x' * (1 << 20)}\r\n", "".join(f"X-{n}: y\r\n" for n in range(1000))):
        assert sent(lab, "GET", f"{path}/status", headers=headers).recv(12) == b"HTTP/1.1 431"
    assert sent(lab, "GET", f"{path}/status?{'x' * (70 << 10)}").recv(12) == b"HTTP/1.1 414"

    # HTTP/2: a frame of 16 MiB is announced to who takes 16 KiB at most.
    client = connected(lab)
    client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0" + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(65536))
    said = b""
    try:
        while piece := client.recv(65536):
            said += piece
    except ConnectionResetError:
        pass
    kinds = []
    while len(said) >= 9:
        kinds.append(said[3])
        said = said[9 + int.from_bytes(said[:3], "big") :]
    assert kinds and kinds[-1] == 7, f"the last frame should be GOAWAY: {kinds}"
    assert lab.request("GET", f"{path}/status") == (200, {"is_running": True})
