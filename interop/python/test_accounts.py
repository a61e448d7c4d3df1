"""Several accounts on one daemon: what each sees of itself, and that none sees or touches what another has."""

from __future__ import annotations

import http.client
import json
import pathlib
import re
import urllib.parse
import uuid

import pytest
from declaw import AccountClient, Sandbox
from declaw.exceptions import AuthenticationException, NotFoundException

import conftest
import streams
from command_line import Program


class Keys:
    """Keys of accounts, made and revoked on the machine itself, beside the running daemon."""

    def __init__(self, lab):
        self.program = Program(lab)
        self.data = ["--data-dir", lab.variables["BAILIWICK_LAB_DATA"], "keys"]

    def create(self, account: str) -> dict:
        return self.program.json(*self.data, "create", "--account", account, "--name", "test")

    def revoke(self, key: dict) -> bool:
        return self.program.json(*self.data, "revoke", key["key_id"])["revoked"]

    def list(self, *options: str) -> list[dict]:
        return self.program.json(*self.data, "ls", *options)


@pytest.fixture(scope="module")
def keys(lab):
    return Keys(lab)


@pytest.fixture(scope="module")
def other(lab, keys):
    """The same daemon, as another account than that of `lab`."""
    stranger = conftest.Lab(lab.variables)
    stranger.key = keys.create("other")["api_key"]
    return stranger


def heads(lab, method: str, path: str, body: dict) -> tuple[int, bytes]:
    """The status of an answer, and the first part of it; a stream is left then."""
    at = urllib.parse.urlsplit(lab.api)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
    try:
        connection.request(method, path, json.dumps(body), {"X-API-Key": lab.key})
        response = connection.getresponse()
        endless = response.headers.get_content_type() == "text/event-stream"
        return response.status, b"" if endless else response.read()
    finally:
        connection.close()


#: A body that suits every route that takes one.
BODY = {
    "cmd": "true", "timeout": 300, "data": "eA==", "old_path": "/tmp/walk/file", "new_path": "/tmp/walk/file",
    "files": [], "sandbox_ids": [], "allow_out": ["allowed.test"], "size": {"cols": 80, "rows": 24}, "name": "walk",
}  # fmt: skip

#: Routes that name nothing of anybody: what they answer is of the own account, or of nobody's.
OWN = {
    "POST /sandboxes", "GET /sandboxes", "POST /sandboxes/kill-many", "GET /auth/me", "GET /metrics",
    "GET /health", "GET /openapi.json",
}  # fmt: skip


class Walk:
    """Every route of the daemon's own document, with the things of one account in its path."""

    def __init__(self, lab):
        self.lab = lab
        status, self.document = lab.request("GET", "/openapi.json")
        assert status == 200
        status, me = lab.request("GET", "/auth/me")
        assert status == 200
        self.account = me["owner_id"]

    def routes(self) -> list[tuple[str, str]]:
        found = [(method.upper(), path) for path, item in self.document["paths"].items() for method in item]
        # What ends the sandbox comes last.
        return sorted(found, key=lambda route: (route == ("DELETE", "/sandboxes/{id}"), route[1], route[0]))

    def process(self, box: str, method: str, path: str) -> int:
        """A process of the kind that the route is about, which the route may end."""
        start = f"/sandboxes/{box}/" + path.removeprefix("/sandboxes/{id}/").split("/")[0]
        waits = path.endswith("/wait")
        body = {"cmd": "true" if waits else "cat", "background": True, "stdin": not waits, "timeout": 300}
        status, made = self.lab.request("POST", start, body)
        assert status == 200, (start, made)
        return made.get("pid") or made["cmd_id"]

    def filled(self, box: str, method: str, path: str) -> str:
        values = {"id": box, "account": self.account, "port": "3000", "path": "walk"}
        if "{pid}" in path:
            values["pid"] = str(self.process(box, method, path))
        if "{key}" in path:
            status, made = self.lab.request("POST", f"/accounts/{self.account}/api-keys", {"name": "to be revoked"})
            assert status == 201, made
            values["key"] = made["key_id"]
        target = "/tmp/walk" if path.endswith("/list") else "/tmp/walk/file"
        return re.sub(r"\{(\w+)\}", lambda name: values[name[1]], path) + f"?path={target}"

    def body(self, path: str) -> dict:
        directory = path.endswith(("/mkdir", "/watch"))
        return {**BODY, "path": "/tmp/walk" if directory else "/tmp/walk/file"}


def test_every_route_hides_what_belongs_to_another_account(lab, other):
    walk = Walk(lab)
    box = conftest.create(lab)
    conftest.command(lab, box, "mkdir -p /tmp/walk && echo content > /tmp/walk/file")
    running = conftest.command(lab, box, "sleep 1000", background=True)["pid"]
    service = {"path": "/tmp/service.py", "data": (pathlib.Path(__file__).parent / "service.py").read_text()}
    assert lab.request("POST", f"/sandboxes/{box}/files", service)[0] in (200, 201)
    conftest.command(lab, box, "python3 -u /tmp/service.py 127.0.0.1 3000", background=True)
    streams.eventually("the service answers", lambda: lab.request("GET", f"/sandboxes/{box}/ports/3000")[0] == 200)
    before = lab.request("GET", f"/sandboxes/{box}")
    unknown = "sbx-zzzzzzzz"
    hidden = 0
    for method, path in walk.routes():
        if f"{method} {path}" in OWN:
            continue
        filled, body = walk.filled(box, method, path), walk.body(path)
        refused = heads(other, method, filled, body)
        expected = (403, "forbidden: cannot access another account") if "{account}" in path else (404, "sandbox not found")
        if method == "HEAD":
            assert refused == (expected[0], b""), (filled, refused)
        else:
            assert (refused[0], json.loads(refused[1])["message"]) == expected, (method, filled, refused)
        # One that does not exist looks the same.
        nothing = filled.replace(box, unknown).replace(f"/accounts/{walk.account}", "/accounts/nobody")
        assert heads(other, method, nothing, body) == refused, (method, nothing)
        hidden += 1
    assert hidden > 40, "the document has fewer routes than there are"

    # Nothing was done.
    assert lab.request("GET", f"/sandboxes/{box}") == before
    assert conftest.command(lab, box, "cat /tmp/walk/file")["stdout"] == "content\n"
    status, commands = lab.request("GET", f"/sandboxes/{box}/commands")
    assert running in [command["pid"] for command in commands], commands
    assert all(not key["revoked"] for key in keys_of(lab, walk.account) if key["name"] == "to be revoked")

    # And all of it is permitted to the account itself.
    for method, path in walk.routes():
        if f"{method} {path}" in OWN or (method, path) == ("POST", "/accounts/{account}/deposits"):
            continue
        status, answer = heads(lab, method, walk.filled(box, method, path), walk.body(path))
        assert status in (200, 201, 202), (method, path, status, answer)
        if path.endswith("/pause"):
            assert lab.request("POST", f"/sandboxes/{box}/resume")[0] == 200
        if (method, path) != ("DELETE", "/sandboxes/{id}"):
            conftest.command(lab, box, "mkdir -p /tmp/walk && echo content > /tmp/walk/file")


def keys_of(lab, account: str) -> list[dict]:
    status, listed = lab.request("GET", f"/accounts/{account}/api-keys")
    assert status == 200, listed
    return listed["api_keys"]


def test_lists_and_kill_many_know_the_own_sandboxes_only(lab, other):
    mine, theirs = conftest.create(lab, metadata={"walk": "1"}), conftest.create(other, metadata={"walk": "1"})
    for asking, own, foreign in [(lab, mine, theirs), (other, theirs, mine)]:
        for query in ("state=all&limit=1000", "metadata[walk]=1", f"metadata={urllib.parse.quote(str({'walk': '1'}))}"):
            status, page = asking.request("GET", f"/sandboxes?{query}")
            found = [box["sandbox_id"] for box in page["sandboxes"]]
            assert own in found and foreign not in found, (query, found)
            assert page["total"] == len(found)
    status, answer = other.request("POST", "/sandboxes/kill-many", {"sandbox_ids": [mine, theirs, "sbx-zzzzzzzz"]})
    not_found = {"error": "sandbox not found"}
    assert answer["results"] == {mine: not_found, theirs: {"killed": True}, "sbx-zzzzzzzz": not_found}
    assert lab.request("GET", f"/sandboxes/{mine}/status") == (200, {"is_running": True})
    lab.request("DELETE", f"/sandboxes/{mine}")


def test_the_same_idempotency_key_of_two_accounts_makes_two_sandboxes(lab, other):
    key = {"Idempotency-Key": str(uuid.uuid4())}
    body = {"template": "python", "timeout": 300}
    made = [asking.request("POST", "/sandboxes", body, key) for asking in (lab, other, lab, other)]
    assert [status for status, _ in made] == [201] * 4, made
    first, second, again, second_again = [answer["sandbox_id"] for _, answer in made]
    assert (again, second_again) == (first, second) and first != second
    # Another body is refused to the one whose key it is, and says nothing about the other's.
    status, refused = other.request("POST", "/sandboxes", {**body, "timeout": 301}, key)
    assert (status, refused["code"]) == (422, "idempotency_key_reused")
    lab.request("DELETE", f"/sandboxes/{first}")
    other.request("DELETE", f"/sandboxes/{second}")


def test_a_ratchet_token_and_its_events_stay_with_the_account_of_the_sandbox(lab, other):
    mine, theirs = conftest.create(lab), conftest.create(other)
    status, ratchet = lab.request("POST", f"/sandboxes/{mine}/ratchet")
    assert status == 201, ratchet
    holder = conftest.Lab(lab.variables)
    holder.key = ratchet["token"]
    narrow = {"allow_out": ["allowed.test"]}
    assert holder.request("PUT", f"/sandboxes/{theirs}/network", narrow)[0] == 404
    assert holder.request("PUT", f"/sandboxes/{mine}/network", narrow)[0] == 200
    assert any(event["type"] == "policy_changed" for event in lab.events(mine))
    assert not any(event["type"] == "policy_changed" for event in other.events(theirs))
    lab.request("DELETE", f"/sandboxes/{mine}")
    other.request("DELETE", f"/sandboxes/{theirs}")


def test_the_numbers_of_the_service_are_for_the_operator(lab, other):
    assert lab.request("GET", "/metrics")[0] == 200
    status, refused = other.request("GET", "/metrics")
    assert status == 403 and "numbers of all accounts" in refused["message"], refused


def test_the_published_client_reads_its_account(lab, other):
    status, me = other.request("GET", "/auth/me")
    assert (status, me["owner_id"]) == (200, "other"), me
    with AccountClient(api_key=other.key) as client:
        account = client.get_account("other")
        assert (account.owner_id, account.tier, account.email) == ("other", "self-hosted", "")
        assert account.created_at.startswith("20")
        assert client.get_wallet().sandbox_balance_usd == 0
        assert client.list_deposits() == {"deposits": [], "total": 0, "has_more": False}
        with pytest.raises(AuthenticationException):
            client.get_account("local")
    status, refused = other.request("POST", "/accounts/other/deposits", {"amount_micros": 1_000_000})
    assert (status, refused["code"]) == (400, "no_billing"), refused


def test_a_key_made_by_api_or_on_the_machine_works_until_it_is_revoked_there_or_here(lab, keys, other):
    by_api = other.request("POST", "/accounts/other/api-keys", {"name": "by API"})[1]
    on_machine = keys.create("other")
    for key in (by_api, on_machine):
        box = Sandbox.create(template="python", timeout=300, api_key=key["api_key"])
        assert other.request("GET", f"/sandboxes/{box.sandbox_id}")[0] == 200
        box.kill(wait=True)
    listed = {key["key_id"]: key for key in keys.list("--account", "other")}
    assert listed[by_api["key_id"]]["name"] == "by API"
    assert {key["account"] for key in listed.values()} == {"other"}
    assert {"other", "local"} <= {key["account"] for key in keys.list()}
    for key in (by_api, on_machine):
        # Neither list shows the key itself.
        assert key["api_key"][8:40] not in json.dumps([keys.list(), keys_of(other, "other")])

    # Each is revoked on the other side than it was made on, and is dead with the next request.
    assert keys.revoke(by_api) is True
    assert other.request("DELETE", f"/accounts/other/api-keys/{on_machine['key_id']}") == (200, {"revoked": True})
    for key in (by_api, on_machine):
        with pytest.raises(AuthenticationException):
            Sandbox.create(template="python", timeout=300, api_key=key["api_key"])
    assert keys.revoke(by_api) is False
    with pytest.raises(NotFoundException):
        Sandbox.connect("sbx-zzzzzzzz", api_key=other.key)


def test_an_open_stream_breaks_off_when_its_key_is_revoked_on_the_machine(lab, keys, other):
    box = conftest.create(other)
    status, made = other.request("POST", f"/sandboxes/{box}/pty", {"size": {"cols": 80, "rows": 24}})
    assert status == 200, made
    key = keys.create("other")
    watcher = conftest.Lab(lab.variables)
    watcher.key = key["api_key"]
    path = f"/sandboxes/{box}/pty/{made['pid']}/stream"
    (connection, dying), (kept, living) = streams.opened(watcher, "GET", path), streams.opened(other, "GET", path)
    assert (dying.status, living.status) == (200, 200)
    assert keys.revoke(key)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        while dying.read1(65536):
            pass
    assert watcher.request("GET", "/auth/me")[0] == 401
    # The terminal itself, and whoever else watches it, go on.
    assert other.request("POST", f"/sandboxes/{box}/pty/{made['pid']}/stdin", {"data": "exit 7\n"})[0] == 200
    assert list(streams.events(living))[-1] == ("exit", {"exit_code": 7})
    connection.close()
    kept.close()
    other.request("DELETE", f"/sandboxes/{box}")


def test_keys_are_kept_without_a_daemon(lab, tmp_path):
    program = Program(lab)
    data = ["--data-dir", str(tmp_path / "data"), "keys"]
    assert program.json(*data, "ls") == []
    made = program.json(*data, "create", "--account", "ci")
    assert program(*data, "create").stdout.startswith(b"dcl_")
    assert [key["account"] for key in program.json(*data, "ls")] == ["ci", "local"]
    assert program.json(*data, "revoke", made["key_id"]) == {"key_id": made["key_id"], "revoked": True}
    assert [key["revoked"] for key in program.json(*data, "ls")] == [True, False]
    for wrong in (["create", "--account", "a/b"], ["create", "--name", ""], ["revoke", "key-none"], ["ls", "--account", ""]):
        assert program.error(*data, *wrong, code=2)


def test_usage_is_counted_for_the_account_that_used_it(lab, other):
    with AccountClient(api_key=other.key) as client:
        client.set_owner_id("other")

        def seconds() -> int:
            summary = client.get_usage()
            assert (summary.total_cost_micros, summary.guardrails["total_cost_micros"]) == (0, 0)
            return summary.compute["total_seconds"]

        before, made = seconds(), client.get_usage().compute["sandbox_count"]
        foreign = lab.request("GET", "/accounts/local/usage")[1]
        box = Sandbox.create(template="python", timeout=300, api_key=other.key)
        streams.eventually("it has run for two seconds", lambda: seconds() >= before + 2)
        box.kill(wait=True)
        assert client.get_usage().compute["sandbox_count"] == made + 1
        assert lab.request("GET", "/accounts/local/usage")[1]["sandbox_count"] == foreign["sandbox_count"]
        daily = client.get_daily_usage()
        assert len(daily) == 30 and daily[-1].total_cost_micros == 0
        overview = client.get_overview()
        assert (overview.owner_id, overview.tier, overview.wallet.balance_micros) == ("other", "self-hosted", 0)
        active = overview.active_sandboxes
        box = Sandbox.create(template="python", timeout=300, api_key=other.key)
        assert client.get_overview().active_sandboxes == active + 1
        box.kill(wait=True)
    status, answer = other.request("GET", "/accounts/other/overview")
    assert answer["tier_limits"] == {"max_concurrent": 1000, "max_vcpus": 2, "max_memory_mb": 2048}, answer
    assert answer["today"]["total_seconds"] >= 2, answer


def test_usage_is_kept_when_the_daemon_dies(fragile):
    process, lab = fragile
    box, ended = conftest.create(lab), conftest.create(lab)
    usage = lambda: lab.request("GET", "/accounts/local/usage")[1]  # noqa: E731
    streams.eventually("they have run", lambda: usage()["total_seconds"] >= 2)
    assert lab.request("DELETE", f"/sandboxes/{ended}")[0] == 200
    before = usage()
    process.kill_daemon()
    process.restart_daemon()
    lab = conftest.Lab(process.variables)
    after = usage()
    assert after["total_seconds"] >= before["total_seconds"] and after["sandbox_count"] == before["sandbox_count"] == 2
    streams.eventually("it goes on", lambda: usage()["total_seconds"] > after["total_seconds"])
    assert lab.request("DELETE", f"/sandboxes/{box}")[0] == 200
    assert usage()["sandbox_count"] == 2
