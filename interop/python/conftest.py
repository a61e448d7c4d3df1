"""A lab for the whole test session: a small internet in namespaces of its own, with the built daemon inside."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import time
import urllib.parse
import urllib.request

import pytest

import called

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
#: How long anything that should happen "at once" may take before the test fails.
PATIENCE = float(os.environ.get("BAILIWICK_TEST_PATIENCE", "20"))


def cannot_be_had(what: str, why: str):
    """Ends the test: something published that it needs cannot be had on this machine. With STRICT=1 it must."""
    message = f"{what} CANNOT BE HAD HERE, WHAT NEEDS IT IS NOT TESTED: {why}"
    if os.environ.get("STRICT"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


class Lab:
    """The running lab, by the variables it printed."""

    def __init__(self, variables: dict[str, str]):
        self.variables = variables
        self.api = variables["DECLAW_API_URL"]
        self.key = variables["DECLAW_API_KEY"]
        self.sinks = pathlib.Path(variables["BAILIWICK_LAB_SINKS"])
        self.queries = pathlib.Path(variables["BAILIWICK_LAB_DNS"])

    def request(self, method: str, path: str, body=None, headers=None, raw: bytes | None = None):
        """One API call with nothing of a client library in it: (status, decoded JSON or bytes)."""
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        sent = {"X-API-Key": self.key, "Content-Type": "application/json", **(headers or {})}
        sent = {name: value for name, value in sent.items() if value is not None}
        call = urllib.request.Request(self.api + path, data=data, method=method, headers=sent)
        try:
            with urllib.request.urlopen(call, timeout=60) as reply:
                status, payload = reply.status, reply.read()
        except urllib.error.HTTPError as refusal:
            status, payload = refusal.code, refusal.read()
        try:
            return status, json.loads(payload)
        except ValueError:
            return status, payload

    def events(self, sandbox_id: str, **filters: str) -> list[dict]:
        """All audit events of a sandbox, page by page."""
        found: list[dict] = []
        query = dict(filters)
        while True:
            text = urllib.parse.urlencode(query)
            status, page = self.request("GET", f"/sandboxes/{sandbox_id}/audit?{text}")
            assert status == 200, page
            found += page["events"]
            if not page.get("next_cursor"):
                return found
            query["cursor"] = page["next_cursor"]

    def wait_for_events(self, sandbox_id: str, enough, **filters: str) -> list[dict]:
        """The events once `enough(events)` holds; they are written a moment after the decision."""
        deadline = time.monotonic() + PATIENCE
        while True:
            events = self.events(sandbox_id, **filters)
            if enough(events):
                return events
            assert time.monotonic() < deadline, f"the events that should be there are not: {events}"
            time.sleep(0.02)

    @staticmethod
    def _lines(path: pathlib.Path) -> list[dict]:
        # As bytes: what reached the world may have characters that end a line for Python alone. A last line that is
        # being written is for the next time.
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]

    def sink_lines(self) -> list[dict]:
        """Everything that reached the world so far."""
        return self._lines(self.sinks)

    def seen(self, needle: str) -> list[dict]:
        """What reached the world and contains `needle`, the token of a canary."""
        return [line for line in self.sink_lines() if needle in json.dumps(line)]

    def asked(self, needle: str) -> list[dict]:
        """The DNS queries that reached the world's authority and contain `needle`."""
        return [line for line in self._lines(self.queries) if needle in line["name"]]

    def queries_for(self, name: str) -> list[dict]:
        """The DNS queries for exactly this name that reached the world's authority."""
        return [line for line in self._lines(self.queries) if line["name"] == name]


class Process:
    """`xtask lab up`, and what can be done to it."""

    def __init__(self, *arguments: str):
        program = os.environ.get("BAILIWICK_XTASK")
        command = [program] if program else ["cargo", "xtask"]
        templates = os.environ.get("BAILIWICK_TEST_TEMPLATES")
        shared = ["--templates", templates] if templates else []
        self.child = subprocess.Popen(
            [*command, "lab", "up", *shared, *arguments], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
        )
        self.variables = self.wait_until("ready")

    def wait_until(self, state: str) -> dict[str, str]:
        """Reads until the lab says `state`; gives the variables it printed before."""
        variables: dict[str, str] = {}
        assert self.child.stdout
        for line in self.child.stdout:
            line = line.strip()
            if line == state:
                return variables
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                variables[name] = value.strip("'\"")
        raise RuntimeError(f"the lab ended before it was {state}, with exit code {self.child.wait()}")

    def kill_daemon(self) -> None:
        """SIGKILL to the daemon; nothing is tidied up."""
        self.child.send_signal(signal.SIGUSR1)
        self.wait_until("killed")

    def restart_daemon(self) -> None:
        """Starts the daemon again, on the same data."""
        self.child.send_signal(signal.SIGUSR2)
        self.variables.update(self.wait_until("ready"))

    def end(self) -> None:
        """Ends the lab with everything in it."""
        self.child.terminate()
        self.child.wait(timeout=60)


def pytest_configure():
    """Before any test module takes something of the client."""
    called.watch()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """What looks at all other tests is last."""
    items.sort(key=lambda item: item.path.name == "test_methods.py")


@pytest.fixture(scope="session")
def lab():
    """The lab, up for the session."""
    process = Process()
    os.environ.update({name: value for name, value in process.variables.items() if name.startswith("DECLAW_")})
    try:
        yield Lab(process.variables)
    finally:
        process.end()


@pytest.fixture
def sandbox(lab):
    """Makes sandboxes with the published client, and kills them afterwards."""
    from declaw import Sandbox

    made = []

    def create(**arguments):
        arguments.setdefault("template", "python")
        arguments.setdefault("timeout", 300)
        made.append(Sandbox.create(**arguments))
        return made[-1]

    yield create
    for each in made:
        each.kill(wait=True)


@pytest.fixture
def fragile():
    """A lab of its own, whose daemon is killed."""
    process = Process()
    try:
        yield process, Lab(process.variables)
    finally:
        process.end()


def create(lab, **body) -> str:
    status, made = lab.request("POST", "/sandboxes", {"template": "python", "timeout": 300, **body})
    assert status == 201, made
    return made["sandbox_id"]


def command(lab, sandbox: str, cmd: str, **body):
    status, done = lab.request("POST", f"/sandboxes/{sandbox}/commands", {"cmd": cmd, "timeout": 60, **body})
    assert status == 200, done
    return done
