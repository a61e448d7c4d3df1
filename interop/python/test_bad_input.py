"""Bad input gets a 4xx that names the field, and nothing is half made."""

from __future__ import annotations

import pytest

CREATE = {"template": "python", "timeout": 60}


@pytest.mark.parametrize(
    "body,status,says",
    [
        ({"template": "no-such-template"}, (400, 404), "no-such-template"),
        ({**CREATE, "network": {"allow_out": ["ok.example.com", "not a host"]}}, (400,), "allow_out[1]"),
        ({**CREATE, "network": {"deny_out": ["*.com"]}}, (400,), "deny_out[0]"),
        ({**CREATE, "network": {"allow_out": "api.github.com"}}, (400,), "allow_out"),
        ({**CREATE, "timeout": "soon"}, (400,), "timeout"),
        ({**CREATE, "resources": {"cpu": 64}}, (403,), "resources"),
        ({**CREATE, "security": {"pii": {"enabled": True}}}, (501,), "security.pii"),
        ({**CREATE, "security": {"policy_json": "{\"pii\": {\"enabled\": true}}"}}, (501,), "security.pii"),
        ({**CREATE, "security": {"policy_json": "{"}}, (400,), "policy_json"),
    ],
)
def test_a_bad_creation_is_refused_by_field_and_makes_nothing(lab, body, status, says):
    before = lab.request("GET", "/sandboxes?state=all")[1]["total"]
    got, answer = lab.request("POST", "/sandboxes", body)
    assert got in status, answer
    assert says in answer["message"], answer
    assert lab.request("GET", "/sandboxes?state=all")[1]["total"] == before


def test_a_missing_or_wrong_key_is_refused_and_both_headers_work(lab):
    for headers in [{"X-API-Key": None}, {"X-API-Key": "dcl_wrong"}, {"X-API-Key": None, "Authorization": "Bearer x"}]:
        status, answer = lab.request("GET", "/sandboxes", headers=headers)
        assert status == 401 and answer["message"].startswith("unauthorized"), answer
    assert lab.request("GET", "/sandboxes")[0] == 200
    bearer = {"X-API-Key": None, "Authorization": f"Bearer {lab.key}"}
    assert lab.request("GET", "/sandboxes", headers=bearer)[0] == 200


def test_unknown_and_killed_sandboxes_say_so(lab, sandbox):
    assert lab.request("GET", "/sandboxes/sbx-nosuchid")[0] == 404
    box = sandbox()
    box.kill(wait=True)
    assert lab.request("GET", f"/sandboxes/{box.sandbox_id}")[1]["state"] == "killed"
    status, answer = lab.request("POST", f"/sandboxes/{box.sandbox_id}/commands", {"cmd": "true"})
    assert status == 410, answer


def test_what_is_not_there_yet_says_so(lab, sandbox):
    box = sandbox()
    for method, path in [("POST", "snapshot"), ("POST", "restore")]:
        status, answer = lab.request(method, f"/sandboxes/{box.sandbox_id}/{path}", {})
        assert (status, answer["code"]) == (501, "not_implemented"), (path, answer)


def test_commands_fail_the_way_a_shell_user_expects(lab, sandbox):
    box = sandbox()
    path = f"/sandboxes/{box.sandbox_id}/commands"
    run = lambda **body: lab.request("POST", path, body)
    assert run(cmd="exit 3")[1]["exit_code"] == 3
    assert run(cmd="no-such-program")[1]["exit_code"] == 127
    status, answer = run(cmd="true", user="nobody-here")
    assert status == 400 and "nobody-here" in answer["message"], answer
    status, answer = run(cmd="true", cwd="/no/such/directory")
    assert status in (400, 404) and "/no/such/directory" in answer["message"], answer
    status, done = run(cmd="echo so far; sleep 60 & sleep 60", timeout=1)
    assert (done["exit_code"], done["stdout"]) == (124, "so far\n"), done
    assert "60" not in run(cmd="ps ax -o args= | grep '[s]leep 60' || true")[1]["stdout"]
    assert run(cmd="true")[1]["exit_code"] == 0


def test_out_of_memory_kills_the_command_and_not_the_sandbox(lab, sandbox):
    box = sandbox()
    done = box.commands.run("python3 -c 'b = bytearray(64 << 30); b[::4096] = b[::4096]; x = [bytes(1 << 20) for _ in range(1 << 20)]'", timeout=120)
    assert done.exit_code != 0
    done = box.commands.run("python3 -c 'x = [bytearray(b\"x\" * (1 << 20)) for _ in range(1 << 16)]'", timeout=120)
    assert done.exit_code == 137, done
    assert box.commands.run("echo alive").stdout == "alive\n"


def test_files_say_what_is_wrong(lab, sandbox):
    box = sandbox()
    base = f"/sandboxes/{box.sandbox_id}/files"
    assert lab.request("GET", f"{base}?path=/no/such/file")[0] == 404
    assert lab.request("GET", f"{base}/info?path=/no/such/file")[0] == 404
    assert lab.request("GET", f"{base}?path=/etc")[0] == 400
    assert lab.request("GET", f"{base}?path=")[0] == 400
    assert lab.request("POST", base, {"path": "/tmp/a%00b\0c", "data": "x"})[0] == 400
    assert lab.request("GET", f"{base}/exists?path=/no/such/file")[1] == {"exists": False}
    big = b"{\"path\": \"/tmp/big\", \"data\": \"" + b"x" * (11 << 20) + b"\"}"
    assert lab.request("POST", base, raw=big)[0] == 413
    assert lab.request("GET", f"{base}/exists?path=/tmp/big")[1] == {"exists": False}


def test_a_symbolic_link_leads_nowhere_outside(lab, sandbox):
    box = sandbox()
    box.commands.run("ln -s / /tmp/root; ln -s /proc/1/root /tmp/init-root; ln -s ../../../../etc/shadow /tmp/shadow")
    base = f"/sandboxes/{box.sandbox_id}/files"
    own = box.commands.run("cat /etc/hostname").stdout
    status, seen = lab.request("GET", f"{base}?path=/tmp/root/etc/hostname")
    assert status == 200 and seen.decode() == own
    assert lab.request("GET", f"{base}?path=/tmp/init-root/etc/hostname")[0] in (200, 400, 403, 404)
    assert lab.request("GET", f"{base}?path=/tmp/shadow&username=user")[0] in (400, 403, 404)


def test_idempotent_creation_has_its_three_answers(lab):
    key = {"Idempotency-Key": "4d2f8c1e-1111-4222-8333-444455556666"}
    status, first = lab.request("POST", "/sandboxes", CREATE, headers=key)
    assert status == 201
    status, again = lab.request("POST", "/sandboxes", CREATE, headers=key)
    assert (status, again["sandbox_id"]) == (201, first["sandbox_id"])
    status, other = lab.request("POST", "/sandboxes", {**CREATE, "timeout": 61}, headers=key)
    assert (status, other["code"]) == (422, "idempotency_key_reused")
    lab.request("DELETE", f"/sandboxes/{first['sandbox_id']}")
