"""The life of a sandbox, as clients see it: time limits, pauses, lists, and what of it a restart of the daemon leaves."""

from __future__ import annotations

import datetime
import json
import re
import uuid

import pytest
from declaw import Sandbox
from declaw.api.client import ApiClient
from declaw.connection_config import ConnectionConfig
from declaw.exceptions import ConflictException, InvalidArgumentException, NotFoundException, SandboxException
from declaw.sandbox.models import SandboxLifecycle, SandboxQuery, SandboxState
from declaw.sandbox_sync.paginator import SandboxPaginator

import conftest
import probes
from streams import eventually

#: Sends a number that goes up, over a name and by an address entry, for ever.
COUNTING = """
import socket, time
def attempt(host, number):
    try:
        with socket.create_connection((host, 80), 5) as connection:
            request = f"GET /{token}-{number} HTTP/1.1\\r\\nHost: allowed.test\\r\\nConnection: close\\r\\n\\r\\n"
            connection.sendall(request.encode())
            while connection.recv(65536):
                pass
    except OSError:
        pass
number = 0
while True:
    number += 1
    attempt("allowed.test", f"name-{number}")
    attempt("185.199.109.66", f"address-{number}")
    time.sleep(0.01)
"""


def counting(box) -> str:
    """Starts such a program, and gives the token of what it sends."""
    token = probes.canary()
    box.files.write("/tmp/counting.py", f"token = {token!r}\n{COUNTING}")
    box.commands.run("python3 /tmp/counting.py", background=True)
    return token


def arrived(lab, token: str) -> set[str]:
    """What has reached the world."""
    return set(re.findall(re.escape(token) + r"-\w+-\d+", json.dumps(lab.seen(token))))


def test_a_paused_sandbox_is_silent_and_goes_on_where_it_was(lab, sandbox):
    policy = {"allow_out": ["allowed.test", "185.199.109.66:80"]}
    box, witness = sandbox(network=policy), sandbox(network=policy)
    token, other = counting(box), counting(witness)
    for each in ("name", "address"):
        eventually(f"{each} arrives", lambda each=each: any(f"{token}-{each}-" in line for line in arrived(lab, token)))
    kept = box.commands.run("echo before; sleep 1; echo after", background=True)

    def pass_time(count: int) -> None:
        """Until another sandbox, which is not paused, has sent so much more."""
        enough = len(arrived(lab, other)) + count
        eventually("the other one sends", lambda: len(arrived(lab, other)) >= enough)

    box.pause()
    assert (box.get_info().state, box.is_running()) == (SandboxState.PAUSED, False)
    # What it had sent before is on its way.
    pass_time(10)
    before = arrived(lab, token)
    pass_time(40)
    assert arrived(lab, token) == before
    assert box.get_info().end_at is None
    for use in (
        lambda: box.commands.run("true"),
        lambda: box.files.read("/tmp/counting.py"),
        lambda: box.pause(),
        lambda: box.pty.create(),
    ):
        with pytest.raises(ConflictException):
            use()

    box.resume()
    eventually("it sends again", lambda: len(arrived(lab, token)) > len(before) + 5)
    assert box.get_info().state == SandboxState.RUNNING
    assert kept.wait().stdout == "before\nafter\n"
    types = [event["type"] for event in lab.events(box.sandbox_id)]
    assert types.index("sandbox_paused") < types.index("sandbox_resumed")
    with pytest.raises(NotFoundException):
        Sandbox.connect("sbx-zzzzzzzz")


def test_a_sandbox_whose_time_is_up_is_paused_if_it_wants_that_and_wakes_when_it_is_used(lab, sandbox):
    lifecycle = SandboxLifecycle(on_timeout="pause", auto_resume=True)
    box = sandbox(timeout=1, lifecycle=lifecycle)
    asleep = sandbox(timeout=1, lifecycle=SandboxLifecycle(on_timeout="pause"))
    killed = sandbox(timeout=1)
    for each, state in ((box, SandboxState.PAUSED), (asleep, SandboxState.PAUSED), (killed, SandboxState.KILLED)):
        eventually(f"it is {state}", lambda each=each, state=state: each.get_info().state == state)
    status, described = lab.request("GET", f"/sandboxes/{box.sandbox_id}")
    assert described["lifecycle"] == {"on_timeout": "pause", "auto_resume": True}
    # To look at it wakes nobody; what is set meanwhile counts from then on.
    box.set_timeout(300)
    asleep_connected = Sandbox.connect(asleep.sandbox_id, timeout=200)
    for each in (box, asleep):
        assert each.get_metrics()[-1].memory_usage_mb > 0
        assert each.get_info().state == SandboxState.PAUSED
    assert box.commands.run("echo awake").stdout == "awake\n"
    assert box.get_info().state == SandboxState.RUNNING
    assert left(box) > 250
    with pytest.raises(ConflictException):
        asleep_connected.commands.run("true")
    asleep.resume()
    assert 150 < left(asleep) <= 200
    with pytest.raises(SandboxException):
        killed.resume()


def left(box) -> float:
    """Seconds until its time is up."""
    return (box.get_info().end_at - datetime.datetime.now(datetime.timezone.utc)).total_seconds()


def test_the_time_limit_can_be_absent_and_be_set_in_three_ways(lab, sandbox):
    # The client itself makes 300 of 0.
    status, made = lab.request("POST", "/sandboxes", {"template": "python", "timeout": 0})
    assert (status, made["timeout"], made["end_at"]) == (201, 0, None)
    box = Sandbox.connect(made["sandbox_id"])
    assert box.get_info().end_at is None
    box.set_timeout(100)
    assert 50 < left(box) <= 100
    box = Sandbox.connect(box.sandbox_id, timeout=1000)
    assert 900 < left(box) <= 1000
    box.set_timeout(0)
    assert box.get_info().end_at is None
    for bad in (-1, 1e9, "soon", None):
        status, refused = lab.request("PATCH", f"/sandboxes/{box.sandbox_id}/timeout", {"timeout": bad})
        assert (status, "timeout" in refused["message"]) == (400, True), refused
    assert lab.request("GET", f"/sandboxes/{box.sandbox_id}?timeout=soon")[0] == 400
    box.set_timeout(1)
    eventually("it ends", lambda: box.get_info().state == SandboxState.KILLED)
    with pytest.raises(SandboxException) as ended:
        box.set_timeout(60)
    assert ended.value.code == "sandbox_killed"


def test_pages_have_each_sandbox_once_while_others_come_and_go(lab, sandbox):
    label = {"pages": uuid.uuid4().hex}
    boxes = [sandbox(metadata=label) for _ in range(7)]
    boxes[3].pause()
    query = SandboxQuery(metadata=label, state=[SandboxState.RUNNING, SandboxState.PAUSED])
    pages = SandboxPaginator(ApiClient(ConnectionConfig()), query, limit=2)
    seen = []
    while pages.has_next:
        found = [info.sandbox_id for info in pages.next_items()]
        seen += found
        # One that was shown goes, and a new one comes.
        Sandbox.kill_by_id(found[0], wait=True)
        sandbox(metadata=label)
    assert seen == [box.sandbox_id for box in reversed(boxes)]

    def listed(**query) -> list[str]:
        return [info["sandbox_id"] for info in Sandbox.list(SandboxQuery(metadata=label, **query))["sandboxes"]]

    assert listed(state=[SandboxState.PAUSED]) == [boxes[3].sandbox_id]
    assert set(listed(state=[SandboxState.LIVE])).isdisjoint(listed(state=[SandboxState.KILLED]))
    assert boxes[3].sandbox_id in listed() and len(listed()) == 7
    assert Sandbox.list(SandboxQuery(metadata={"pages": "none"})) == {"sandboxes": [], "next_token": None, "total": 0}

    first = Sandbox.list(SandboxQuery(metadata=label), limit=3)
    assert first["total"] == 7
    status, second = lab.request("GET", f"/sandboxes?metadata[pages]={label['pages']}&limit=3&offset=3")
    token = Sandbox.list(SandboxQuery(metadata=label), limit=3, next_token=first["next_token"])
    assert token["sandboxes"] == second["sandboxes"] and len(second["sandboxes"]) == 3
    for bad in ("3", "x", first["next_token"] + ".", first["next_token"][:-1] + "_", "s1.-.sbx-0"):
        with pytest.raises(InvalidArgumentException) as refused:
            Sandbox.list(next_token=bad)
        assert "next_token" in str(refused.value)


def test_kill_many_tells_of_each_what_became_of_it(lab, sandbox):
    running, paused, killed = sandbox(), sandbox(), sandbox()
    paused.pause()
    killed.kill(wait=True)
    ids = [running.sandbox_id, paused.sandbox_id, killed.sandbox_id, "sbx-zzzzzzzz", "../x"]
    assert Sandbox.kill_many(ids, wait=True) == {
        running.sandbox_id: {"killed": True},
        paused.sandbox_id: {"killed": True},
        killed.sandbox_id: {"killed": False},
        "sbx-zzzzzzzz": {"error": "sandbox not found"},
        "../x": {"error": "sandbox not found"},
    }
    assert {box.get_info().state for box in (running, paused, killed)} == {SandboxState.KILLED}
    more = [sandbox(), sandbox()]
    assert Sandbox.kill_many([box.sandbox_id for box in more]) == {box.sandbox_id: {"queued": True} for box in more}
    assert not any(box.is_running() for box in more)
    with pytest.raises(InvalidArgumentException):
        Sandbox.kill_many(["sbx-zzzzzzzz"] * 1001)


def test_states_times_pages_and_answers_outlive_the_daemon(fragile):
    process, lab = fragile
    key = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"template": "python", "timeout": 600, "lifecycle": {"on_timeout": "pause", "auto_resume": True}}
    status, made = lab.request("POST", "/sandboxes", body, key)
    assert status == 201, made
    box, endless = made["sandbox_id"], conftest.create(lab, timeout=0)
    later = conftest.create(lab, timeout=1, lifecycle={"on_timeout": "pause"})
    counter = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done"
    conftest.command(lab, box, counter, background=True, timeout=300)
    assert lab.request("POST", f"/sandboxes/{box}/pause")[0] == 200
    status, page = lab.request("GET", "/sandboxes?limit=1")
    status, rest = lab.request("GET", f"/sandboxes?next_token={page['next_token']}")
    before = {each: lab.request("GET", f"/sandboxes/{each}") for each in (box, endless)}

    process.kill_daemon()
    process.restart_daemon()
    lab = conftest.Lab(process.variables)

    assert {each: lab.request("GET", f"/sandboxes/{each}") for each in (box, endless)} == before
    assert before[box][1]["state"] == "paused" and before[endless][1]["end_at"] is None
    # One whose time was up while no daemon ran, or is up now, is paused like any other.
    eventually("it is paused", lambda: lab.request("GET", f"/sandboxes/{later}")[1]["state"] == "paused")
    after = lab.request("GET", f"/sandboxes?next_token={page['next_token']}")[1]
    assert [each["sandbox_id"] for each in after["sandboxes"]] == [each["sandbox_id"] for each in rest["sandboxes"]]
    assert lab.request("POST", "/sandboxes", body, key) == (201, made)
    status, refused = lab.request("POST", "/sandboxes", {**body, "timeout": 5}, key)
    assert (status, refused["code"]) == (422, "idempotency_key_reused")

    first = int(conftest.command(lab, box, "cat /tmp/count")["stdout"])
    counted = lambda: int(conftest.command(lab, box, "cat /tmp/count")["stdout"] or 0)  # noqa: E731
    eventually("it counts on", lambda: counted() > first)
    assert lab.request("GET", f"/sandboxes/{box}")[1]["state"] == "running"
    assert lab.request("POST", f"/sandboxes/{later}/resume")[0] == 200


def test_metrics_have_a_history_that_outlives_the_daemon(fragile):
    process, lab = fragile
    box = conftest.create(lab)
    conftest.command(lab, box, "while :; do :; done", background=True, timeout=300)

    def metrics(query: str = "") -> list[dict]:
        status, answer = lab.request("GET", f"/sandboxes/{box}/metrics{query}")
        assert status == 200, answer
        return answer

    now = metrics()
    assert len(now) == 1 and now[0]["memory_usage_mb"] > 0 and now[0]["cpu_usage_percent"] > 0, now
    eventually("there is a measurement", lambda: len(metrics()) > 1)
    first = metrics()[0]
    assert first["cpu_usage_percent"] > 5, first
    # One client reads an object: that of now.
    status, single = lab.request("GET", f"/sandboxes/{box}/metrics", headers={"User-Agent": "Go-http-client/1.1"})
    assert single["timestamp"] > first["timestamp"] and single["cpu_usage_percent"] > 0, single
    process.kill_daemon()
    process.restart_daemon()
    lab = conftest.Lab(process.variables)
    assert metrics()[0] == first
    at = first["timestamp"].replace("+", "%2B")
    assert metrics(f"?end={at}") == [] and metrics(f"?start={at}")[0] == first
    times = [datetime.datetime.fromisoformat(each["timestamp"]) for each in metrics()]
    assert times == sorted(times)
    lab.request("POST", f"/sandboxes/{box}/pause")
    assert metrics()[0] == first
    lab.request("DELETE", f"/sandboxes/{box}")
    assert lab.request("GET", f"/sandboxes/{box}/metrics")[0] == 410
