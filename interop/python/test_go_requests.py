"""Requests in the forms in which the Go client and the CLI make them, and their answers under Go's rules of decoding.

Those two are not run here. What they send and how they read was taken from their published sources, from version 0.1 on;
`go_client.py` has the rules. Where a field is left out, they leave it out.
"""

from __future__ import annotations

import base64
import gzip
import json
import urllib.parse

import pytest

import conftest
from go_client import DEFAULT_LINE, CannotDecode, GoClient, Map, Refused, Time, decoded, pipes, terminal
from streams import eventually

CREATED = {"sandbox_id": str, "envd_access_token": str, "sandbox_domain": str, "traffic_access_token": str}
INFO = {
    "sandbox_id": str, "template_id": str, "name": str, "metadata": Map(str), "started_at": Time, "end_at": Time, "state": str,
}
LIST = {"sandboxes": [INFO], "total": int}
METRICS = {"timestamp": Time, "cpu_usage_percent": float, "memory_usage_mb": float, "disk_usage_mb": float}
KILLED = {"results": Map({"killed": bool, "queued": bool, "error": str})}
RESULT = {"pid": int, "exit_code": int, "stdout": str, "stderr": str}
PROCESSES = [{"pid": int, "cmd": str, "is_pty": bool, "envs": Map(str)}]
ENTRY, WRITTEN = {"path": str, "type": str, "size": int}, {"path": str, "size": int}
MONEY = {"sandbox_free_micros": int, "guardrails_free_micros": int, "balance_micros": int}
USAGE = {
    "owner_id": str, "since": str, "total_cost_micros": int, "total_cost_usd": str, "sandbox_count": int,
    "total_seconds": float, "sandbox_balance_remaining_micros": int, "balance_remaining_micros": int,
    "guardrails_cost_micros": int, "guardrails_cost_usd": str, "guardrails_balance_remaining_micros": int,
}
OVERVIEW = {
    "owner_id": str, "tier": str, "active_sandboxes": int, "wallets": MONEY,
    "tier_limits": {"max_concurrent": int, "max_vcpus": int, "max_memory_mb": int},
    "today": {"compute_cost_micros": int, "guardrails_cost_micros": int, "total_cost_micros": int},
}
KEY = {"key_id": str, "name": str, "masked_key": str, "created_at": str, "revoked": bool}


@pytest.fixture
def go(lab):
    return GoClient(lab)


@pytest.fixture
def box(go):
    """A sandbox as `Create` makes it without options."""
    made = go.send("POST", "/sandboxes", {"template": "base", "timeout": 300}, CREATED)["sandbox_id"]
    yield made
    go.send("DELETE", f"/sandboxes/{made}?async=true")


def run(go, box: str, cmd: str, **options) -> dict:
    return go.send("POST", f"/sandboxes/{box}/commands", {"cmd": cmd, "background": False, **options}, RESULT)


def refusal(call, *arguments, **options) -> Refused:
    with pytest.raises(Refused) as refused:
        call(*arguments, **options)
    return refused.value


def query(path: str, user: str = "") -> str:
    """As `url.Values` encodes it: a plus sign for a space."""
    return urllib.parse.urlencode({"path": path, **({"username": user} if user else {})})


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (b'"1"', int), (b"1.0", int), (b"1e3", int), (b"9223372036854775808", int), (b"true", int), (b"1", str), (b"1", bool),
        (b'["a"]', str), (b'{"a": 1}', {"a": str}), (b'{"A": 1}', {"a": str}), (b"[1]", {"a": str}), (b'""', Time),
        (b'"2026-03-01 12:00:00Z"', Time), (b'{"a": {"b": 1}}', {"a": Map(str)}), (b"{}", ["x"]),
    ],
)
def test_the_decoder_refuses_what_gos_does(data, shape):
    with pytest.raises(CannotDecode):
        decoded(data, shape)


def test_the_decoder_takes_what_gos_does():
    shape = {"a": int, "t": Time, "m": Map(str), "f": float, "l": [str]}
    value = decoded(b' {"A": 1, "t": null, "m": {"x": "y"}, "other": [{}], "f": 1, "l": null}', shape)
    assert value == {"a": 1, "t": None, "m": {"x": "y"}, "f": 1.0, "l": None}


def test_a_sandbox_is_made_described_listed_paused_and_ended(go):
    body = {
        "template": "base", "timeout": 3600, "metadata": {"team": "a<b>&c"}, "envs": {"A": "1"}, "secure": False,
        "network": {}, "lifecycle": {"on_timeout": "pause"},
    }
    box = go.send("POST", "/sandboxes", body, CREATED)["sandbox_id"]
    path = f"/sandboxes/{box}"
    info = go.get(path, INFO)
    assert info["sandbox_id"] == box and info["state"] == "running" and info["metadata"] == {"team": "a<b>&c"}
    assert (info["end_at"] - info["started_at"]).total_seconds() == pytest.approx(3600, abs=60)
    pages = [go.get(f"/sandboxes?limit=1&offset={offset}&state=live", LIST) for offset in (0, 1)]
    assert pages[0]["sandboxes"][0]["sandbox_id"] == box and pages[0]["total"] >= 1
    assert len(pages[1]["sandboxes"]) == min(1, pages[0]["total"] - 1)
    assert go.get(f"/sandboxes?offset={pages[0]['total']}&state=live", LIST)["sandboxes"] == []
    assert go.get(f"{path}/metrics", METRICS)["memory_usage_mb"] > 0
    assert go.get(f"{path}/status", {"is_running": bool})["is_running"]
    go.send("PATCH", f"{path}/timeout", {"timeout": 0})
    assert go.get(path, INFO)["end_at"] is None
    go.send("POST", f"{path}/pause")
    assert go.get(path, INFO)["state"] == "paused" and not go.get(f"{path}/status", {"is_running": bool})["is_running"]
    again = refusal(go.send, "POST", f"{path}/pause")
    assert (again.kind, again.code) == ("ConflictError", "sandbox_paused")
    go.send("POST", f"{path}/resume")
    go.send("DELETE", f"{path}?async=true")
    eventually("it has ended", lambda: go.get(path, INFO)["state"] == "killed")
    killed = go.send("POST", "/sandboxes/kill-many?async=true", {"sandbox_ids": [box, "sbx-notthere", "a b"]}, KILLED)
    assert {name for name, each in killed["results"].items() if each["error"]} == {"sbx-notthere", "a b"}
    for lifecycle in ({}, {"auto_resume": True}, {"on_timeout": "kill", "auto_resume": True}):
        made = go.send("POST", "/sandboxes", {"template": "base", "timeout": 60, "lifecycle": lifecycle}, CREATED)
        go.send("DELETE", f"/sandboxes/{made['sandbox_id']}?async=true")


def test_a_policy_is_an_object_and_everything_is_a_star(go, lab):
    body = {
        "template": "base", "timeout": 3600, "secure": True,
        "network": {
            "allow_out": ["api.openai.com"], "deny_out": ["*"], "allow_public_traffic": False, "mask_request_host": False,
        },
        "security": {
            "audit": {"enabled": True, "redact_sensitive_data": True},
            "code_security": {"detect_suspicious_imports": True, "enabled": False},
            "content_gate": {"enabled": False}, "custom_policy": {"default_deny": True, "enabled": False},
            "env_security": {"mask_patterns": ["*_KEY"]}, "injection_defense": {"enabled": False, "judge": {"enabled": True}},
            "invisible_text": {"detect_zero_width": True, "enabled": False}, "network": {"deny_out": ["*"]},
            "pii": {"enabled": False, "types": ["ssn"]}, "toxicity": {"enabled": False, "threshold": 0},
        },
    }
    key = {"Idempotency-Key": "5c8e1b0e-2d1f-4a43-9d9c-4a5f1c1a9e01"}
    box = go.send("POST", "/sandboxes", body, CREATED, **key)["sandbox_id"]
    assert go.send("POST", "/sandboxes", body, CREATED, **key)["sandbox_id"] == box
    other = refusal(go.send, "POST", "/sandboxes", {**body, "timeout": 60}, **key)
    assert (other.kind, other.code) == ("InvalidArgumentError", "idempotency_key_reused")
    command = "bash -c 'exec 3<>/dev/tcp/{}/80' && echo connected"
    assert run(go, box, command.format("api.openai.com"))["stdout"] == "connected\n"
    assert "efused" in run(go, box, command.format("185.199.108.66"))["stderr"]
    for section in [
        {"pii": {"enabled": True}}, {"toxicity": {"enabled": True, "threshold": 0}},
        {"injection_defense": {"action": "block", "enabled": True, "injection_mode": "balanced", "judge": {"enabled": True}}},
        {"custom_policy": {"default_deny": False, "enabled": True, "policy_ref": "prompt-injection@v3"}},
        {"content_gate": {"domains": ["openai.com"], "enabled": True}},
        {"transformations": [{"direction": "out", "match": "a", "replace": "b"}]},
    ]:
        refused = refusal(go.send, "POST", "/sandboxes", {**body, "security": section})
        assert refused.status == 501 and refused.code == "not_implemented" and list(section)[0] in refused.message
    go.send("DELETE", f"/sandboxes/{box}?async=true")


def test_a_policy_of_the_security_section_alone_holds(go):
    for network in ({}, {"network": {}}):
        body = {"template": "base", "timeout": 60, "security": {"network": {"deny_out": ["*"]}}, **network}
        box = go.send("POST", "/sandboxes", body, CREATED)["sandbox_id"]
        assert run(go, box, "bash -c 'exec 3<>/dev/tcp/185.199.108.66/80'")["exit_code"] == 1
        go.send("DELETE", f"/sandboxes/{box}?async=true")


def test_commands_without_user_or_timeout_run_as_the_default_user(go, box):
    path = f"/sandboxes/{box}/commands"
    assert run(go, box, "id -un; exit 3") == {"pid": 0, "stdout": "user\n", "stderr": "", "exit_code": 3}
    # As the CLI does: the words are quoted and joined, and the time is a number with or without a fraction.
    assert run(go, box, "'echo' 'a b' '<&>'", timeout=60)["stdout"] == "a b <&>\n"
    assert run(go, box, "sleep 300", timeout=0.5)["exit_code"] == 124
    assert run(go, box, "pwd; echo $A", cwd="/tmp", user="root", envs={"A": "1"})["stdout"] == "/tmp\n1\n"
    assert run(go, box, r"printf 'a\377\342\200\250'")["stdout"] == "a\ufffd\u2028"
    assert go.get(path, PROCESSES) == []
    cat = {"cmd": "cat", "background": True, "stdin": True, "envs": {"A": "1"}, "timeout": 60.5}
    pid = go.send("POST", path, cat, {"pid": int})["pid"]
    assert [(each["pid"], each["cmd"], each["is_pty"]) for each in go.get(path, PROCESSES)] == [(pid, "cat", False)]
    go.send("DELETE", f"{path}/{pid}")
    for _ in range(2):
        assert go.get(f"{path}/{pid}/wait", RESULT)["exit_code"] == 137


def test_files_without_user_are_the_default_users_and_batches_name_it_for_each(go, box):
    path = f"/sandboxes/{box}/files"
    text = 'a "quoted" <b>&\u2028 \U0001f600\n'
    written = go.send("POST", path, {"data": text, "path": "/tmp/text"}, WRITTEN)
    assert written == {"path": "/tmp/text", "size": len(text.encode())}
    assert go.bytes("GET", f"{path}?{query('/tmp/text')}") == text.encode()
    files = [{"path": "/tmp/1", "data": "1", "username": "root"}, {"path": "/tmp/2", "data": "2"}]
    assert [each["path"] for each in go.send("POST", f"{path}/batch", {"files": files}, [WRITTEN])] == ["/tmp/1", "/tmp/2"]
    assert run(go, box, "stat -c %U /tmp/text /tmp/1 /tmp/2")["stdout"] == "user\nroot\nuser\n"
    listed = {each["path"]: each for each in go.get(f"{path}/list?{query('/tmp')}", [ENTRY])}
    assert (listed["/tmp/text"]["type"], listed["/tmp/text"]["size"]) == ("file", len(text.encode()))
    go.send("PATCH", path, {"new_path": "/tmp/3", "old_path": "/tmp/2"})
    go.send("POST", f"{path}/mkdir", {"path": "/tmp/d/e"})
    assert go.get(f"{path}/info?{query('/tmp/d')}", ENTRY)["type"] == "dir"
    go.send("DELETE", f"{path}?{query('/tmp/d')}")
    assert not go.get(f"{path}/exists?{query('/tmp/d')}", {"exists": bool})["exists"]
    for missing in (f"{path}?{query('/tmp/none')}", f"{path}/raw?{query('/tmp/none')}", f"{path}/info?{query('/tmp/none')}"):
        assert refusal(go.bytes, "GET", missing).kind == "NotFoundError"
    assert refusal(go.bytes, "GET", f"{path}?{query('/tmp')}").kind == "InvalidArgumentError"


def test_bytes_arrive_as_they_are_whatever_the_path_and_although_go_unpacks_what_is_compressed(go, box):
    path = f"/sandboxes/{box}/files/raw"
    octets = {"Content-Type": "application/octet-stream"}
    # Every reader of HTTP in Go says that it takes gzip; a file that is gzip is none the less a file.
    for name, data in [("/tmp/a b&c+d#é%41", bytes(range(256)) * 5000), ("/tmp/empty", b""), ("/tmp/x.gz", gzip.compress(b"x"))]:
        at = f"{path}?{query(name, 'user')}"
        assert decoded(go.bytes("PUT", at, data, **octets), WRITTEN) == {"path": name, "size": len(data)}
        assert go.bytes("GET", at) == data
        assert go.get(f"/sandboxes/{box}/files/exists?{query(name)}", {"exists": bool})["exists"]


@pytest.mark.parametrize("cols, rows, size", [(120, 40, b"40 120"), (0, 0, b"24 80")], ids=["known", "unknown"])
def test_connecting_a_terminal_as_the_cli_does_shows_a_prompt_and_what_is_typed(go, box, cols, rows, size):
    path = f"/sandboxes/{box}/pty"
    asked = {"size": {"cols": cols, "rows": rows}, "timeout": 3600, "user": "user"}
    pid = go.send("POST", path, asked, {"pid": int})["pid"]
    assert [each["is_pty"] for each in go.get(f"/sandboxes/{box}/commands", PROCESSES)] == [True]
    shown, incoming = b"", terminal(go.stream(f"{path}/{pid}/stream"), DEFAULT_LINE)

    def until(text: bytes):
        nonlocal shown
        while text not in shown:
            shown += next(incoming)

    go.send("POST", f"{path}/{pid}/stdin", {"data": "\n"})
    until(b"$ ")
    go.send("POST", f"{path}/{pid}/stdin", {"data": "stty size\n"})
    until(size + b"\r\n")
    go.send("PATCH", f"{path}/{pid}", {"size": {"cols": 100, "rows": 30}})
    go.send("POST", f"{path}/{pid}/stdin", {"data": "stty size\n"})
    until(b"30 100\r\n")
    # The keys of a terminal in raw mode, and text that is cut in the middle of a character.
    go.send("POST", f"{path}/{pid}/stdin", {"data": "echo \ufffd\x1b[D\x7f\x03"})
    go.send("POST", f"{path}/{pid}/stdin", {"data": "exit 4\n"})
    list(incoming)
    assert refusal(go.send, "POST", f"{path}/{pid}/stdin", {"data": "x"}).kind in ("NotFoundError", "ConflictError")
    go.send("DELETE", f"{path}/{pid}")


def test_every_line_of_a_terminal_is_one_that_the_first_go_client_can_hold(go, box):
    path = f"/sandboxes/{box}/pty"
    pid = go.send("POST", path, {"size": {"cols": 80, "rows": 24}, "timeout": 3600, "user": "user"}, {"pid": int})["pid"]
    flood = "head -c {} /dev/zero | tr '\\0' x; echo; {}\n"
    # Some of it is shown before anybody watches, and comes in the largest pieces there are; only the end of that is kept.
    go.send("POST", f"{path}/{pid}/stdin", {"data": "stty -opost -echo; " + flood.format(300_000, "touch /tmp/shown")})
    eventually("it is shown", lambda: run(go, box, "test -e /tmp/shown")["exit_code"] == 0)
    stream = go.stream(f"{path}/{pid}/stream")
    go.send("POST", f"{path}/{pid}/stdin", {"data": flood.format(4_000_000, "exit")})
    shown = b"".join(terminal(stream, DEFAULT_LINE))
    assert 4_000_000 < shown.count(b"x") <= 4_300_000 + 100


def test_every_line_of_a_stream_is_one_that_the_go_client_can_hold(go, box):
    path = f"/sandboxes/{box}/stdio"
    command = "head -c 3000000 /dev/zero | tr '\\0' x; head -c 100000 /dev/zero >&2; exit 5"
    made = go.send("POST", path, {"cmd": command, "user": "user"}, {"cmd_id": str})["cmd_id"]
    # Twice: `Wait` reads the stream anew from its beginning.
    for _ in range(2):
        seen = list(pipes(go.stream(f"{path}/{made}/stream")))
        assert seen[-1] == ("exit", 5)
        assert sum(len(data) for name, data in seen if name == "stdout") == 3_000_000
        assert b"".join(data for name, data in seen if name == "stderr") == bytes(100_000)
    made = go.send("POST", path, {"cmd": "sleep 300", "user": "user"}, {"cmd_id": str})["cmd_id"]
    stream = go.stream(f"{path}/{made}/stream")
    go.send("DELETE", f"{path}/{made}")
    assert list(pipes(stream)) == [("exit", 137)]
    assert refusal(go.stream, f"{path}/4194303/stream").kind == "NotFoundError"


def test_a_sandbox_around_a_server_as_the_cli_makes_it_reaches_nothing_and_ends_with_its_input(lab, go):
    body = {"template": "python", "timeout": 3600, "envs": {"TOKEN": "t"}, "network": {"deny_out": ["*"]}}
    box = go.send("POST", "/sandboxes", body, CREATED)["sandbox_id"]
    upload = f"/sandboxes/{box}/files/raw?{query('/tmp/server.py')}"
    octets = {"Content-Type": "application/octet-stream"}
    assert refusal(GoClient(lab, "dcl_nobody").bytes, "PUT", upload, b"x", **octets).kind == "AuthenticationError"
    server = b"import sys, os\nfor line in sys.stdin: print(os.environ['TOKEN'], line, end='', flush=True)\n"
    go.bytes("PUT", upload, server, **octets)
    path = f"/sandboxes/{box}/stdio"
    command = {"cmd": "python3 /tmp/server.py", "user": "user", "envs": {"TOKEN": "t"}}
    made = go.send("POST", path, command, {"cmd_id": str})["cmd_id"]
    incoming = pipes(go.stream(f"{path}/{made}/stream"))
    go.send("POST", f"{path}/{made}/stdin", {"data": base64.b64encode(b"hello\n").decode()})
    assert next(incoming) == ("stdout", b"t hello\n")
    assert run(go, box, "python3 -c \"import socket; socket.create_connection(('185.199.108.66', 80), 5)\"")["exit_code"] == 1
    go.send("POST", f"{path}/{made}/stdin/close")
    assert list(incoming) == [("exit", 0)]
    go.send("DELETE", f"{path}/{made}")
    killed = go.send("POST", "/sandboxes/kill-many?async=true", {"sandbox_ids": [box]}, KILLED)
    assert killed["results"][box] == {"killed": False, "queued": True, "error": ""}
    eventually("it has ended", lambda: not go.get(f"/sandboxes/{box}/status", {"is_running": bool})["is_running"])


def test_logging_in_learns_who_one_is_and_what_one_has(lab, go):
    owner = go.get("/auth/me", {"owner_id": str})["owner_id"]
    base = f"/accounts/{owner}"
    account = go.get(base, {"owner_id": str, "email": str, "tier": str, "created_at": str, **MONEY})
    assert account["owner_id"] == owner and account["tier"] and account["balance_micros"] == 0
    assert decoded(json.dumps(account["created_at"]).encode(), Time)
    assert go.get(f"{base}/deposits", {"entries": [{"deposit_id": str}]})["entries"] == []
    usage, overview = go.get(f"{base}/usage", USAGE), go.get(f"{base}/overview", OVERVIEW)
    assert usage["total_cost_usd"] == "0.00" and decoded(json.dumps(usage["since"]).encode(), Time)
    assert overview["tier_limits"]["max_concurrent"] > 0 and overview["wallets"]["balance_micros"] == 0
    made = go.send("POST", f"{base}/api-keys", {"name": "of the cli"}, {"key_id": str, "api_key": str, "name": str})
    keys = go.get(f"{base}/api-keys", {"api_keys": [KEY]})["api_keys"]
    (listed,) = [each for each in keys if each["key_id"] == made["key_id"]]
    assert not listed["revoked"] and listed["masked_key"] and made["api_key"] not in json.dumps(keys)
    with_it = GoClient(lab, made["api_key"])
    assert with_it.get("/auth/me", {"owner_id": str})["owner_id"] == owner
    go.send("DELETE", f"{base}/api-keys/{urllib.parse.quote(made['key_id'], safe='')}")
    assert refusal(with_it.get, "/auth/me", {}).kind == "AuthenticationError"


def test_an_error_has_a_message_because_nothing_else_is_read(go, box):
    for method, path, body, kind in [
        ("GET", "/sandboxes/sbx-notthere", None, "NotFoundError"),
        ("DELETE", "/sandboxes/sbx-notthere?async=true", None, "NotFoundError"),
        ("GET", "/sandboxes?limit=x", None, "InvalidArgumentError"),
        ("GET", "/accounts/somebody", None, "AuthenticationError"),
        ("POST", "/sandboxes", {"template": "no-such", "timeout": 300}, "InvalidArgumentError"),
        ("PATCH", f"/sandboxes/{box}/timeout", {"timeout": -1}, "InvalidArgumentError"),
        ("POST", f"/sandboxes/{box}/commands", {"cmd": "true", "user": "nobody-such"}, "InvalidArgumentError"),
        ("POST", f"/sandboxes/{box}/files", {"path": "/tmp/x", "data": "x" * (11 << 20)}, "NotEnoughSpaceError"),
        ("POST", f"/sandboxes/{box}/snapshot", None, "SandboxError"),
        ("GET", "/teams", None, "SandboxError"),
        ("POST", "/templates/build", {"base_image": "debian:12", "run_cmds": ["true"]}, "SandboxError"),
        ("GET", "/no/such/route", None, "NotFoundError"),
    ]:
        refused = refusal(go.send, method, path, body)
        assert refused.kind == kind, (path, refused)
        assert refused.status < 500 or (refused.status, refused.code) == (501, "not_implemented"), refused
