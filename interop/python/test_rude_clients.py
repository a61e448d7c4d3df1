"""Clients that do not behave: they leave in the middle, do not read, send too much, wait for ever."""

from __future__ import annotations

import base64
import json
import pathlib
import socket
import struct
import time
import urllib.parse

import conftest
import machine
import probes
import streams
from streams import eventually
from test_command_streams import until_gone

#: Readers that do not read, and how many of them follow the same sandbox.
READERS, OF_ONE = 1000, 200
#: How long the daemon may take to let go of clients that vanish without a word, in seconds: those that documentation gives it.
LET_GO = 240
#: Requests that may be under way in a sandbox at the same time, readers of its streams included.
UNDER_WAY = 256
#: What each of them may cost the daemon, in bytes, twice what was measured: what is on its way to it, its connection.
OF_A_READER = 512 << 10
#: What a terminal prints.
PRINTED = 1 << 30
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


def head(lab, method: str, path: str, length: int = 0, headers: str = "") -> str:
    """The head of a request."""
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {lab.key}\r\nContent-Length: {length}\r\n{headers}\r\n"


def sent(lab, method: str, path: str, body=None, headers: str = "") -> socket.socket:
    """A connection on which a request was sent, and nothing has been read."""
    data = b"" if body is None else json.dumps(body).encode()
    connection = connected(lab)
    connection.sendall(head(lab, method, path, len(data), headers).encode() + data)
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


def test_a_thousand_readers_that_vanish_without_a_word_are_let_go_and_those_that_are_there_are_not(lab):
    boxes = [conftest.create(lab, timeout=0) for _ in range(READERS // OF_ONE)]
    namespace, address = f"/proc/{daemon(lab)}/ns/net", lab.variables["BAILIWICK_LAB_NODE_API"]
    vanished, there, paths = None, [], []
    descriptors = len(machine.descriptors(daemon(lab)))

    def until_gone(seconds: float) -> None:
        deadline = time.monotonic() + seconds + conftest.PATIENCE
        while len(machine.descriptors(daemon(lab))) > descriptors + READERS // 10:
            assert time.monotonic() < deadline, "the daemon holds on to clients that are not there"
            time.sleep(0.5)

    def as_many_that_say_that_they_go() -> None:
        readers = []
        try:
            for path in paths * OF_ONE:
                readers.append(sent(lab, "GET", f"{path}/stream"))
                assert readers[-1].recv(12) == b"HTTP/1.1 200"
        finally:
            for client in readers:
                reset(client)

    try:
        for number, box in enumerate(boxes):
            # Those of one sandbox have something to read that they do not read; to the others comments are sent.
            command = "cat" if number else "head -c 3000000 /dev/zero; cat"
            status, made = lab.request("POST", f"/sandboxes/{box}/stdio", {"cmd": command})
            assert status == 200, made
            paths.append(f"/sandboxes/{box}/stdio/{made['cmd_id']}")
        # What so many readers cost is not given back to the system, but is there for others.
        as_many_that_say_that_they_go()
        until_gone(0)
        before = memory(lab)
        there = [sent(lab, "GET", f"{path}/stream") for path in paths]
        requests = [head(lab, "GET", f"{path}/stream") for path in paths for _ in range(OF_ONE)]
        vanished = machine.Vanished(namespace, address, requests)
        assert len(machine.descriptors(daemon(lab))) > descriptors + READERS
        until_gone(LET_GO)
        grown = memory(lab) - before
        assert grown < READERS * OF_A_READER // 8, f"{grown >> 20} MiB are left of {READERS} readers"
        # Their places are free for as many again, and whoever was there is still there, also if nothing was read.
        as_many_that_say_that_they_go()
        for path, reader in zip(paths, there, strict=True):
            said = base64.b64encode(b"alive\n").decode()
            assert lab.request("POST", f"{path}/stdin", {"data": said})[0] == 200
            seen = b""
            while said.encode() not in seen[-4096:]:
                piece = reader.recv(1 << 20)
                assert piece, "a reader that was there was let go"
                seen += piece
    finally:
        if vanished:
            vanished.end()
        for client in there:
            reset(client)
        for box in boxes:
            lab.request("DELETE", f"/sandboxes/{box}")


def test_one_reader_more_than_a_sandbox_takes_is_told_so_and_no_other_sandbox_notices(lab, sandbox):
    box, other = sandbox(), sandbox()
    path = f"/sandboxes/{box.sandbox_id}"
    stream = f"{path}/stdio/{box.stdio.start('cat').cmd_id}/stream"
    clients = []
    try:
        for _ in range(UNDER_WAY):
            clients.append(sent(lab, "GET", stream))
            assert clients[-1].recv(12) == b"HTTP/1.1 200"
        connection, response = streams.opened(lab, "GET", stream)
        assert (response.status, response.headers["Retry-After"]) == (429, "1")
        refused = json.loads(response.read())
        connection.close()
        assert refused["code"] == "limit_reached" and str(UNDER_WAY) in refused["message"], refused
        status, refused = lab.request("POST", f"{path}/commands", {"cmd": "true"})
        assert (status, refused["code"]) == (429, "limit_reached"), refused
        assert other.commands.run("echo alive").stdout == "alive\n"
        assert lab.request("GET", f"{path}/status") == (200, {"is_running": True})
        # One leaves, and there is room for one.
        reset(clients.pop())
        eventually("a place is free", lambda: lab.request("POST", f"{path}/commands", {"cmd": "true"})[0] == 200)
        clients.append(sent(lab, "GET", stream))
        assert clients[-1].recv(12) == b"HTTP/1.1 200"
    finally:
        for client in clients:
            reset(client)


def test_a_terminal_that_prints_without_end_takes_no_memory_of_the_daemon(lab, sandbox):
    box = sandbox()
    handle = box.pty.create()
    # Read as it comes: what it says is looked at elsewhere, and here there is much of it.
    reader = sent(lab, "GET", f"/sandboxes/{box.sandbox_id}/pty/{handle.pid}/stream")
    reader.settimeout(10 * conftest.PATIENCE)
    handle.send_stdin(f"stty -opost; head -c {PRINTED} /dev/zero | tr '\\0' x; exit\n")
    before, most, came, last = memory(lab), 0, 0, b""
    piece = bytearray(1 << 20)
    while b"event: exit" not in last:
        length = reader.recv_into(piece)
        assert length, "the stream ended without an exit"
        came, last = came + length, (last + piece[:length])[-100:]
        most = max(most, memory(lab))
    assert came * 3 // 4 >= PRINTED
    assert most - before < GROWN, f"{(most - before) >> 20} MiB more while {came >> 20} MiB came"
    reader.close()


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
