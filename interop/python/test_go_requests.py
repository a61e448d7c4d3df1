"""Requests in the forms in which only the Go client and the CLI make them, and answers in the forms they can read.

Those two are not run here: this stands for what differs from the other clients in their requests and parsers.
"""

from __future__ import annotations

import base64
import json
import re

import pytest

import conftest
from streams import eventually, events, opened

AGENT = {"User-Agent": "Go-http-client/1.1", "X-API-Key": None}
#: What Go's `time.Time` reads.
TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})"


@pytest.fixture
def go(lab):
    """Calls as the Go client makes them: a bearer token, and a content type only with a body."""

    def call(method: str, path: str, body=None, **headers):
        form = {"Authorization": f"Bearer {lab.key}", "Content-Type": None if body is None else "application/json"}
        return lab.request(method, path, body, {**AGENT, **form, **headers})

    return call


@pytest.fixture
def box(go):
    """A sandbox as `Create` makes it without options."""
    status, made = go("POST", "/sandboxes", {"template": "base", "timeout": 300})
    assert status == 201
    yield made["sandbox_id"]
    go("DELETE", f"/sandboxes/{made['sandbox_id']}?async=true")


def test_a_policy_is_an_object_and_everything_is_a_star(go, lab):
    body = {
        "template": "base",
        "timeout": 3600,
        "secure": True,
        "network": {"allow_out": ["api.openai.com"], "deny_out": ["*"], "mask_request_host": False},
        "security": {"audit": {"enabled": True}, "pii": {"enabled": False}, "network": {"deny_out": ["*"]}},
    }
    status, made = go("POST", "/sandboxes", body, **{"Idempotency-Key": "5c8e1b0e-2d1f-4a43-9d9c-4a5f1c1a9e01"})
    assert status == 201, made
    box = made["sandbox_id"]
    assert go("POST", "/sandboxes", body, **{"Idempotency-Key": "5c8e1b0e-2d1f-4a43-9d9c-4a5f1c1a9e01"})[1]["sandbox_id"] == box
    command = "bash -c 'exec 3<>/dev/tcp/{}/80' && echo connected"
    done = conftest.command(lab, box, command.format("api.openai.com"))
    assert done["stdout"] == "connected\n"
    assert "efused" in conftest.command(lab, box, command.format("185.199.108.66"))["stderr"]
    status, refused = go("POST", "/sandboxes", {**body, "security": {"pii": {"enabled": True}}})
    assert status == 501 and "pii" in refused["message"] and refused["code"] == "not_implemented"
    go("DELETE", f"/sandboxes/{box}?async=true")


def test_what_is_read_has_the_types_that_go_insists_on(go, box):
    _, info = go("GET", f"/sandboxes/{box}")
    for field in ("sandbox_id", "template_id", "name", "state"):
        assert isinstance(info[field], str), info
    for field in ("started_at", "end_at"):
        assert info[field] is None or re.fullmatch(TIME, info[field]), info
    assert all(isinstance(value, str) for value in info["metadata"].values())
    _, page = go("GET", "/sandboxes?limit=1&offset=0&state=running")
    assert len(page["sandboxes"]) == 1 and isinstance(page["total"], int) and page["total"] >= 1
    assert go("GET", f"/sandboxes?limit=10&offset={page['total']}&state=running")[1]["sandboxes"] == []
    _, sample = go("GET", f"/sandboxes/{box}/metrics")
    assert re.fullmatch(TIME, sample["timestamp"]) and sample["memory_usage_mb"] > 0, sample
    assert go("GET", f"/sandboxes/{box}/status")[1] == {"is_running": True}
    assert go("PATCH", f"/sandboxes/{box}/timeout", {"timeout": 600})[0] == 200
    assert go("POST", f"/sandboxes/{box}/pause")[0] == 200 and go("POST", f"/sandboxes/{box}/resume")[0] == 200


def test_commands_without_user_or_timeout_run_as_the_default_user(go, box):
    path = f"/sandboxes/{box}/commands"
    assert go("POST", path, {"cmd": "id -un; exit 3", "background": False})[1] == {"stdout": "user\n", "stderr": "", "exit_code": 3}
    # As the CLI does: the words are quoted and joined.
    assert go("POST", path, {"cmd": "'echo' 'a b'", "background": False})[1]["stdout"] == "a b\n"
    _, started = go("POST", path, {"cmd": "cat", "background": True, "stdin": True, "timeout": 60.5})
    listed = go("GET", path)[1]
    assert [(each["pid"], each["is_pty"]) for each in listed] == [(started["pid"], False)]
    assert go("DELETE", f"{path}/{started['pid']}")[1] == {"killed": True}
    assert go("GET", f"{path}/{started['pid']}/wait")[1]["exit_code"] == 137


def test_files_without_user_are_the_default_users_and_batches_name_it_for_each(go, box):
    path = f"/sandboxes/{box}/files"
    assert go("POST", path, {"path": "/tmp/text", "data": "x"})[1] == {"path": "/tmp/text", "size": 1}
    files = [{"path": "/tmp/1", "data": "1", "username": "root"}, {"path": "/tmp/2", "data": "2"}]
    assert [each["path"] for each in go("POST", f"{path}/batch", {"files": files})[1]] == ["/tmp/1", "/tmp/2"]
    owners = go("POST", f"/sandboxes/{box}/commands", {"cmd": "stat -c %U /tmp/text /tmp/1 /tmp/2", "background": False})
    assert owners[1]["stdout"] == "user\nroot\nuser\n"
    entries = go("GET", f"{path}/list?path=%2Ftmp")[1]
    assert {(each["name"], each["type"]) for each in entries} >= {("text", "file"), ("1", "file")}
    assert go("PATCH", path, {"old_path": "/tmp/2", "new_path": "/tmp/3"})[0] == 200
    assert go("POST", f"{path}/mkdir", {"path": "/tmp/d"})[1] == {"created": True}
    assert go("DELETE", f"{path}?path=%2Ftmp%2Fd")[0] in (200, 204)
    assert go("GET", f"{path}/exists?path=%2Ftmp%2Fd")[1] == {"exists": False}


def test_connecting_a_terminal_as_the_cli_does_shows_a_prompt_and_what_is_typed(go, lab, box):
    path = f"/sandboxes/{box}/pty"
    _, made = go("POST", path, {"size": {"cols": 120, "rows": 40}})
    connection, response = opened(lab, "GET", f"{path}/{made['pid']}/stream", accept="text/event-stream")
    shown, incoming = b"", events(response)

    def until(text: bytes):
        nonlocal shown
        while text not in shown:
            name, data = next(incoming)
            assert name == "data"
            shown += base64.b64decode(data["data"])

    assert go("POST", f"{path}/{made['pid']}/stdin", {"data": "\n"})[0] == 200
    until(b"$ ")
    go("PATCH", f"{path}/{made['pid']}", {"size": {"cols": 100, "rows": 30}})
    go("POST", f"{path}/{made['pid']}/stdin", {"data": "stty size\n"})
    until(b"30 100\r\n")
    go("POST", f"{path}/{made['pid']}/stdin", {"data": "exit 4\n"})
    assert list(incoming)[-1] == ("exit", {"exit_code": 4})
    connection.close()


def test_every_line_of_a_stream_is_one_that_the_go_client_can_hold(lab, go, box):
    _, made = go("POST", f"/sandboxes/{box}/stdio", {"cmd": "head -c 8000000 /dev/zero | tr '\\0' x; sleep 300"})
    connection, response = opened(lab, "GET", f"/sandboxes/{box}/stdio/{made['cmd_id']}/stream", accept="text/event-stream")
    received = 0
    while received < 4_000_000:
        line = response.readline()
        assert len(line) < 1 << 20
        if line.startswith(b"data: "):
            received += len(base64.b64decode(json.loads(line.removeprefix(b"data: "))["data"]))
    connection.close()
    go("DELETE", f"/sandboxes/{box}/stdio/{made['cmd_id']}")


def test_a_sandbox_around_a_server_as_the_cli_makes_it_reaches_nothing_and_ends_with_its_input(lab, go):
    body = {"template": "python", "timeout": 3600, "envs": {"TOKEN": "t"}, "network": {"deny_out": ["*"]}}
    box = go("POST", "/sandboxes", body)[1]["sandbox_id"]
    upload = lab.request("PUT", f"/sandboxes/{box}/files/raw?path=%2Fwork%2Fserver.py", raw=b"x", headers=AGENT)
    assert upload[0] in (400, 401), "as nobody"
    form = {**AGENT, "Authorization": f"Bearer {lab.key}", "Content-Type": "application/octet-stream"}
    server = b"import sys, os\nfor line in sys.stdin: print(os.environ['TOKEN'], line, end='', flush=True)\n"
    assert lab.request("PUT", f"/sandboxes/{box}/files/raw?path=%2Ftmp%2Fserver.py", raw=server, headers=form)[0] == 200
    path = f"/sandboxes/{box}/stdio"
    _, made = go("POST", path, {"cmd": "python3 /tmp/server.py", "envs": {"TOKEN": "t"}})
    _, response = opened(lab, "GET", f"{path}/{made['cmd_id']}/stream", accept="text/event-stream")
    incoming = events(response)
    go("POST", f"{path}/{made['cmd_id']}/stdin", {"data": base64.b64encode(b"hello\n").decode()})
    name, data = next(incoming)
    assert (name, base64.b64decode(data["data"])) == ("stdout", b"t hello\n")
    assert go("POST", f"{path}/{made['cmd_id']}/stdin/close")[0] == 200
    assert list(incoming)[-1] == ("exit", {"exit_code": 0})
    assert go("POST", "/sandboxes/kill-many?async=true", {"sandbox_ids": [box]})[1]["results"] == {box: {"queued": True}}
    eventually("it has ended", lambda: go("GET", f"/sandboxes/{box}/status")[1] == {"is_running": False})


def test_logging_in_learns_who_one_is_and_what_one_has(go):
    _, me = go("GET", "/auth/me")
    status, account = go("GET", f"/accounts/{me['owner_id']}")
    assert status == 200 and account["owner_id"] == me["owner_id"]
    for amount in ("sandbox_free_micros", "guardrails_free_micros", "balance_micros"):
        assert account[amount] == 0
    assert go("GET", f"/accounts/{me['owner_id']}/deposits?limit=20&offset=0")[1]["entries"] == []
    _, key = go("POST", f"/accounts/{me['owner_id']}/api-keys", {"name": "of the cli"})
    keys = go("GET", f"/accounts/{me['owner_id']}/api-keys")[1]["api_keys"]
    (listed,) = [each for each in keys if each["key_id"] == key["key_id"]]
    assert not listed["revoked"] and key["api_key"] not in json.dumps(keys)
    assert go("GET", "/auth/me", Authorization=f"Bearer {key['api_key']}")[0] == 200
    assert go("DELETE", f"/accounts/{me['owner_id']}/api-keys/{key['key_id']}")[0] == 200
    assert go("GET", "/auth/me", Authorization=f"Bearer {key['api_key']}")[0] == 401


def test_an_error_has_a_message_because_nothing_else_is_read(go, box):
    for method, path, body, status in [
        ("GET", "/sandboxes/sbx-notthere", None, 404),
        ("POST", "/sandboxes", {"template": "no-such", "timeout": 300}, 400),
        ("POST", f"/sandboxes/{box}/snapshot", None, 501),
        ("POST", "/templates/build", {"base_image": "debian:12", "run_cmds": ["true"]}, 501),
        ("GET", "/no/such/route", None, 404),
    ]:
        got, answer = go(method, path, body)
        assert got == status and isinstance(answer["message"], str) and answer["message"], (path, answer)
