"""A daemon that dies in the middle of creating or ending a sandbox: the next one leaves nothing half made."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import threading
import time

import pytest

import probes
from conftest import command, create
from machine import processes_of

#: Where the daemon is killed: so many milliseconds after the request was sent. Both take about ten; the rest is for
#: machines that are slower, or busy.
PLACES = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 60]
#: Without a wire, and with one.
POLICIES = [{"allow_out": ["allowed.test"]}, {"allow_out": ["104.16.1.1"]}]

_TRY = """
import json, socket, sys
outcomes = []
for host in ("104.16.1.1", "185.199.109.66"):
    try:
        client = socket.create_connection((host, 80), 5)
        client.sendall(b"GET /" + sys.argv[1].encode() + b" HTTP/1.1\\r\\nHost: allowed.test\\r\\n\\r\\n")
        outcomes.append(client.recv(12).decode())
    except OSError as error:
        outcomes.append(type(error).__name__)
print(json.dumps(outcomes))
"""


class Crashes:
    """A lab whose daemon is killed over and over, beside a sandbox that lives through all of it."""

    def __init__(self, process, lab):
        self.process, self.lab = process, lab
        self.data = pathlib.Path(lab.variables["BAILIWICK_LAB_DATA"]) / "sandboxes"
        status = self.data.stat()
        self.group = f"bailiwick-{status.st_dev:x}-{status.st_ino:x}"
        self.survivor = create(lab, network=POLICIES[0])
        self.wired = create(lab, network=POLICIES[1])
        self.links = self.interfaces()

    def daemon(self) -> int:
        return int(self.lab.variables["BAILIWICK_LAB_DAEMON_PID"])

    def interfaces(self) -> set[str]:
        """The interfaces of the node, which is where the daemon is."""
        lines = pathlib.Path(f"/proc/{self.daemon()}/net/dev").read_text().splitlines()[2:]
        return {line.split(":")[0].strip() for line in lines}

    def crash(self, milliseconds: float, method: str, path: str, body=None):
        """Sends a request, kills the daemon so long after, and starts it again. Gives the answer, if there was one."""
        answers = []

        def send():
            try:
                answers.append(self.lab.request(method, path, body))
            except OSError:
                pass  # The daemon died before it answered.

        sending = threading.Thread(target=send)
        sending.start()
        time.sleep(milliseconds / 1000)  # The place of the fault, not a wait for anything.
        os.kill(self.daemon(), signal.SIGKILL)
        self.process.kill_daemon()
        sending.join()
        self.process.restart_daemon()
        return answers[0] if answers else None

    def check(self) -> set[str]:
        """What is listed works and is confined, and nothing else is there. Gives what is listed."""
        status, listed = self.lab.request("GET", "/sandboxes")
        assert status == 200
        assert {box["state"] for box in listed["sandboxes"]} == {"running"}, listed
        boxes = {box["sandbox_id"] for box in listed["sandboxes"]}
        for gone in {self.survivor, self.wired} - boxes:
            pytest.fail(f"{gone} is gone: {self.lab.request('GET', f'/sandboxes/{gone}/audit?limit=1000')[1]['events'][-3:]}")
        for box in boxes:
            token = probes.canary()
            # Bindings are the daemon's, and go with it.
            command(self.lab, box, "getent ahostsv4 allowed.test")
            done = command(self.lab, box, f"python3 - {token} <<'EOF'{_TRY}EOF")
            assert json.loads(done["stdout"]) == ["HTTP/1.1 200", "ConnectionRefusedError"], (box, done)
            assert {line["destination"] for line in self.lab.seen(token)} == {"104.16.1.1"}
        assert {path.name for path in self.data.iterdir()} == boxes
        groups = pathlib.Path("/sys/fs/cgroup").rglob(f"{self.group}/**/sbx-*")
        assert {path.name for path in groups} == boxes
        assert {box for box in boxes if processes_of(box)} == boxes
        strangers = [text for text in self.cgroups() if not any(box in text for box in boxes)]
        assert not strangers, strangers
        mounts = pathlib.Path("/proc/self/mountinfo").read_text().splitlines()
        assert not [line for line in mounts if str(self.data) in line]
        assert self.interfaces() == self.links
        return boxes

    def cgroups(self) -> list[str]:
        """The control group of every process that is in one of a sandbox of this daemon."""
        found = []
        for process in pathlib.Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    text = (process / "cgroup").read_text()
                except OSError:
                    continue  # It ended meanwhile.
                # A group can only be removed when its processes have ended; who has to reap them is another matter.
                if f"{self.group}/sbx-" in text and "(deleted)" not in text:
                    found.append(text)
        return found


@pytest.fixture
def crashes(fragile):
    return Crashes(*fragile)


def test_a_daemon_killed_at_any_step_of_creating_leaves_a_whole_sandbox_or_none(crashes):
    before = crashes.check()
    outcomes = {"made": 0, "nothing": 0}
    for turn, place in enumerate(PLACES):
        body = {"template": "python", "timeout": 300, "network": POLICIES[turn % 2]}
        answer = crashes.crash(place, "POST", "/sandboxes", body)
        made = crashes.check() - before
        assert len(made) <= 1, made
        if answer is not None:
            # What was answered survives.
            assert answer[0] == 201 and made == {answer[1]["sandbox_id"]}, (answer, made)
        outcomes["made" if made else "nothing"] += 1
        for box in made:
            assert crashes.lab.request("DELETE", f"/sandboxes/{box}")[1] == {"killed": True}
        assert crashes.check() == before
    assert outcomes["nothing"], outcomes


def test_a_daemon_killed_at_any_step_of_ending_leaves_a_whole_sandbox_or_none(crashes):
    before = crashes.check()
    for turn, place in enumerate(PLACES):
        victim = create(crashes.lab, network=POLICIES[turn % 2])
        answer = crashes.crash(place, "DELETE", f"/sandboxes/{victim}")
        left = crashes.check() - before
        assert left <= {victim}, left
        state = crashes.lab.request("GET", f"/sandboxes/{victim}")[1]["state"]
        assert state == ("running" if left else "killed")
        if answer is not None:
            assert answer == (200, {"killed": True}) and not left, (answer, left)
        for box in left:
            assert crashes.lab.request("DELETE", f"/sandboxes/{box}")[1] == {"killed": True}
