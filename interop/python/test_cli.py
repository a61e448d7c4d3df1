"""The command line against a running daemon: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time

import pytest

import probes
from command_line import Program

#: How long anything that should happen "at once" may take before a test fails.
PATIENCE = float(os.environ.get("BAILIWICK_TEST_PATIENCE", "20"))


@pytest.fixture(scope="module")
def bailiwick(lab):
    return Program(lab)


_HOLD = """
held = []
for name in {names!r}:
    client = socket.create_connection((name, 80), 8)
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: " + name.encode() + b"\\r\\n\\r\\n")
    client.recv(65536)
    held.append(client)
open("/tmp/held", "w").close()
while not os.path.exists("/tmp/changed"):
    time.sleep(0.01)
ended = []
for client in held:
    client.settimeout(1)
    try:
        ended.append("data" if client.recv(10) else "closed")
    except socket.timeout:
        ended.append("alive")
    except OSError as error:
        ended.append(type(error).__name__)
say(ended)
"""


def hold(box, *names):
    """Opens a connection to each name and keeps it until told that the policy has changed; then tells how it is."""
    box.files.write("/tmp/hold.py", probes._PRELUDE + _HOLD.format(names=list(names)))
    handle = box.commands.run("python3 /tmp/hold.py", background=True, timeout=60)
    deadline = time.monotonic() + PATIENCE
    while not box.files.exists("/tmp/held"):
        assert time.monotonic() < deadline, "the connections are not there"
        time.sleep(0.02)

    def tell():
        box.files.write("/tmp/changed", "")
        return json.loads(handle.wait().stdout)

    return tell


def test_policy_set_cuts_what_is_no_longer_permitted_and_nothing_else(lab, sandbox, bailiwick):
    box = sandbox(network={"allow_out": ["allowed.test", "sib.test"]})
    tell = hold(box, "allowed.test", "sib.test")
    answer = bailiwick.json("policy", "set", box.sandbox_id, "--allow-out", "allowed.test")
    assert answer["network"]["allow_out"] == ["allowed.test"]
    alive, cut = tell()
    assert alive == "alive" and cut in ("closed", "ConnectionResetError"), (alive, cut)
    lab.wait_for_events(
        box.sandbox_id,
        lambda events: [e["host"] for e in events if e["type"] == "egress_revoked"] == ["sib.test"],
    )
    assert probes.connect(box, "allowed.test", 80)["ok"]
    assert not probes.connect(box, "sib.test", 80)["ok"]


def test_policy_get_gives_what_policy_set_takes(sandbox, bailiwick, tmp_path):
    box = sandbox(network={"allow_out": ["allowed.test:443"], "deny_out": ["*"]})
    rows = [line.split() for line in bailiwick("policy", "get", box.sandbox_id).stdout.decode().splitlines()]
    assert rows == [["LIST", "INDEX", "ENTRY"], ["allow_out", "0", "allowed.test:443"], ["deny_out", "0", "*"]]
    policy = bailiwick("policy", "get", box.sandbox_id, "--json").stdout
    bailiwick("policy", "set", box.sandbox_id, "--open")
    assert "public internet" in bailiwick("policy", "get", box.sandbox_id).stdout.decode()
    bailiwick("policy", "set", box.sandbox_id, "--policy", "-", stdin=policy)
    assert bailiwick("policy", "get", box.sandbox_id, "--json").stdout == policy
    file = tmp_path / "policy.json"
    file.write_bytes(policy)
    bailiwick("policy", "set", box.sandbox_id, "--policy", str(file))


def test_a_bad_policy_changes_nothing_and_is_named_by_list_index_and_entry(sandbox, bailiwick, tmp_path):
    box = sandbox(network={"allow_out": ["allowed.test"]})
    before = bailiwick.json("policy", "get", box.sandbox_id)
    wrong = bailiwick.error(
        "policy", "set", box.sandbox_id, "--allow-out", "allowed.test", "--allow-out", "*.com", code=2
    )
    assert "network.allow_out[1]" in wrong and "*.com" in wrong, wrong
    wrong = bailiwick.error("policy", "set", box.sandbox_id, "--deny-out", "10.0.0.0/33", code=2)
    assert "network.deny_out[0]" in wrong and "10.0.0.0/33" in wrong, wrong
    file = tmp_path / "policy.json"
    for content, named in [('{"allowed": ["a.test"]}', "allowed"), ("{}", "--open"), ("[", "body")]:
        file.write_text(content)
        assert named in bailiwick.error("policy", "set", box.sandbox_id, "--policy", str(file), code=2)
    assert "--open" in bailiwick.error("policy", "set", box.sandbox_id, code=2)
    bailiwick.error("policy", "set", box.sandbox_id, "--open", "--deny-out", "*", code=2)
    assert bailiwick.json("policy", "get", box.sandbox_id) == before


def test_a_ratchet_token_narrows_the_policy_and_does_nothing_else(sandbox, bailiwick):
    box = sandbox(network={"allow_out": ["allowed.test", "sib.test"]})
    token = bailiwick("policy", "ratchet", box.sandbox_id).stdout.decode().strip()
    ratchet = {**bailiwick.environment, "BAILIWICK_API_KEY": token}
    bailiwick("policy", "set", box.sandbox_id, "--allow-out", "allowed.test", environment=ratchet)
    wider = bailiwick.error("policy", "set", box.sandbox_id, "--allow-out", "other.test", code=1, environment=ratchet)
    assert "allow_out[0]" in wider and "policy_widens" in wider, wider
    assert "ratchet_only" in bailiwick.error("sandbox", "kill", box.sandbox_id, code=1, environment=ratchet)
    assert bailiwick.json("policy", "get", box.sandbox_id)["allow_out"] == ["allowed.test"]
    assert bailiwick.json("policy", "ratchet", box.sandbox_id, "--revoke") == {"revoked": True}
    again = bailiwick.error("policy", "set", box.sandbox_id, "--deny-out", "*", code=1, environment=ratchet)
    assert "401" in again, again
    assert bailiwick.json("policy", "ratchet", box.sandbox_id, "--revoke") == {"revoked": False}


def test_what_is_wrong_with_address_key_or_sandbox_is_said_with_what_to_do(lab, bailiwick, tmp_path):
    def with_variables(**variables):
        return {**{k: v for k, v in bailiwick.environment.items() if "API" not in k}, **variables}

    unknown = bailiwick.error("sandbox", "info", "sbx-nosuchid", code=2)
    assert "sandbox not found (404)" in unknown and "sandbox ls" in unknown, unknown
    assert "policy" not in bailiwick.error("policy", "get", "../keys", code=2)
    wrong = bailiwick.error("sandbox", "ls", code=1, environment={**bailiwick.environment, "BAILIWICK_API_KEY": "x"})
    assert "401" in wrong and "keys create" in wrong, wrong
    missing = bailiwick.error("sandbox", "ls", code=2, environment=with_variables(BAILIWICK_API_URL=lab.api))
    assert "BAILIWICK_API_KEY" in missing, missing
    nobody = with_variables(BAILIWICK_API_URL="http://127.0.0.1:9", BAILIWICK_API_KEY="x")
    assert "127.0.0.1:9" in bailiwick.error("sandbox", "ls", code=1, environment=nobody)
    bad = bailiwick.error("sandbox", "ls", "--api-url", "127.0.0.1", code=2)
    assert "127.0.0.1" in bad, bad
    # The variables of the published clients, and a file instead of a variable.
    bailiwick("sandbox", "ls", environment=with_variables(DECLAW_API_URL=lab.api, DECLAW_API_KEY=lab.key))
    domain = lab.variables["DECLAW_DOMAIN"]
    bailiwick("sandbox", "ls", environment=with_variables(DECLAW_DOMAIN=domain, DECLAW_API_KEY=lab.key))
    key = tmp_path / "key"
    key.write_text(lab.key + "\n")
    bailiwick("sandbox", "ls", "--api-key-file", str(key), environment=with_variables(BAILIWICK_API_URL=lab.api))


def test_a_sandbox_lives_and_ends_by_the_command_line(lab, bailiwick):
    created = bailiwick(
        "sandbox", "create", "--template", "python", "--timeout", "300", "--label", "made-by=cli", "--env", "WORD=here",
        "--allow-out", "allowed.test", "--on-timeout", "pause",
    )  # fmt: skip
    box = created.stdout.decode().strip()
    try:
        listed = bailiwick.json("sandbox", "ls")
        assert [(s["sandbox_id"], s["state"]) for s in listed if s["metadata"] == {"made-by": "cli"}] == [(box, "running")]
        found = bailiwick.json("sandbox", "ls", "--label", "made-by=cli", "--state", "running")
        assert [each["sandbox_id"] for each in found] == [box]
        assert bailiwick.json("sandbox", "ls", "--label", "made-by=nobody") == []
        row = [line for line in bailiwick("sandbox", "ls").stdout.decode().splitlines() if box in line]
        assert len(row) == 1 and "made-by=cli" in row[0], row
        info = bailiwick.json("sandbox", "info", box)
        assert info["network"]["allow_out"] == ["allowed.test"] and info["timeout"] == 300
        assert "allowed.test" in bailiwick("sandbox", "info", box).stdout.decode()

        done = bailiwick("sandbox", "exec", box, "--", "sh", "-c", "echo out $WORD; echo err >&2; exit 7", code=7)
        assert (done.stdout, done.stderr) == (b"out here\n", b"err\n")
        done = bailiwick("sandbox", "exec", box, "--json", "--user", "root", "-w", "/", "--", "id -u; pwd; exit 3", code=3)
        done = json.loads(done.stdout)
        assert (done["stdout"], done["exit_code"]) == ("0\n/\n", 3)
        bailiwick("sandbox", "exec", box, "--timeout", "0.2", "--", "sleep 60", code=124)

        bailiwick.json("sandbox", "pause", box)
        stopped = bailiwick.error("sandbox", "exec", box, "--", "true", code=1)
        assert "sandbox_paused" in stopped and "sandbox resume" in stopped, stopped
        bailiwick("sandbox", "resume", box)
        bailiwick("sandbox", "exec", box, "--", "true")
        assert bailiwick.json("sandbox", "set-timeout", box, "600") == {"sandbox_id": box, "timeout": 600}
        info = bailiwick.json("sandbox", "info", box)
        assert (info["timeout"], info["lifecycle"]) == (600, {"on_timeout": "pause", "auto_resume": False})
        waking = bailiwick.json("sandbox", "create", "--template", "python", "--auto-resume")["sandbox_id"]
        bailiwick("sandbox", "pause", waking)
        bailiwick("sandbox", "exec", waking, "--", "true")
        bailiwick("sandbox", "kill", waking)

        events = bailiwick("sandbox", "logs", box, "--json").stdout.split(b"\n")[:-1]
        kinds = [json.loads(event)["type"] for event in events]
        assert kinds[:3] == ["sandbox_created", "sandbox_paused", "sandbox_resumed"], kinds
        assert "sandbox_created" in bailiwick("sandbox", "logs", box).stdout.decode()
    finally:
        killed = bailiwick("sandbox", "kill", box, "sbx-nosuchid", code=2)
    assert killed.stdout.decode() == f"{box} killed\n" and b"sbx-nosuchid" in killed.stderr
    assert bailiwick.json("sandbox", "kill", box) == [{"sandbox_id": box, "killed": False}]
    assert "sandbox_killed" in bailiwick.error("sandbox", "exec", box, "--", "true", code=1)
    bad = bailiwick.error("sandbox", "create", "--template", "python", "--deny-out", "ok.test", "--deny-out", "*.com", code=2)
    assert "network.deny_out[1]" in bad, bad
    bailiwick.error("sandbox", "create", "--label", "nothing", code=2)
    bailiwick.error("sandbox", "ls", "--label", "nothing", code=2)
    bailiwick.error("sandbox", "create", "--on-timeout", "sleep", code=2)
    bailiwick.error("sandbox", "create", "--template", "no-such-template", code=2)


def test_files_are_copied_in_and_out_as_they_are(sandbox, bailiwick, tmp_path):
    box = sandbox(network={"deny_out": ["*"]}).sandbox_id
    content = os.urandom(3_000_000)
    source, target = tmp_path / "source.bin", tmp_path / "target.bin"
    source.write_bytes(content)
    copied = bailiwick.json("sandbox", "cp", str(source), f"{box}:/home/user/in/")
    assert copied == {"source": str(source), "target": f"{box}:/home/user/in/source.bin", "bytes": len(content)}
    bailiwick("sandbox", "cp", f"{box}:/home/user/in/source.bin", str(target))
    assert target.read_bytes() == content
    bailiwick("sandbox", "cp", f"{box}:/home/user/in/source.bin", str(tmp_path / "directory"))
    (tmp_path / "into").mkdir()
    bailiwick("sandbox", "cp", f"{box}:/home/user/in/source.bin", str(tmp_path / "into"))
    assert (tmp_path / "into" / "source.bin").read_bytes() == content
    bailiwick("sandbox", "cp", "-", f"{box}:/tmp/piped", stdin=b"\x00piped\xff")
    assert bailiwick("sandbox", "cp", f"{box}:/tmp/piped", "-").stdout == b"\x00piped\xff"

    missing = bailiwick.error("sandbox", "cp", f"{box}:/tmp/none", str(target), code=2)
    assert "/tmp/none" in missing, missing
    assert target.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["directory", "into", "source.bin", "target.bin"]
    bailiwick.error("sandbox", "cp", str(tmp_path / "none"), f"{box}:/tmp/x", code=2)
    bailiwick.error("sandbox", "cp", str(source), str(target), code=2)
    bailiwick.error("sandbox", "cp", str(source), f"{box}:/etc/not-mine", code=2)


def test_audit_verify_finds_tampering_beside_a_running_daemon(lab, sandbox, bailiwick, tmp_path):
    box = sandbox(network={"allow_out": ["allowed.test"]})
    probes.connect(box, "185.199.109.66", 4444)
    lab.wait_for_events(box.sandbox_id, lambda events: any(e["type"] == "egress_blocked" for e in events))
    data = lab.variables["BAILIWICK_LAB_DATA"]
    assert bailiwick.json("--data-dir", data, "audit", "verify", box.sandbox_id)["intact"]
    # In a copy, so that the daemon's own stays as it is.
    copy = tmp_path / "data"
    copy.mkdir(mode=0o700)
    for name in ("bailiwick.db", "bailiwick.db-wal"):
        shutil.copy(os.path.join(data, name), copy)
    assert bailiwick.json("--data-dir", str(copy), "audit", "verify", box.sandbox_id)["intact"]
    with sqlite3.connect(copy / "bailiwick.db") as database:
        changed = database.execute(
            "UPDATE events SET body = json_set(body, '$[4]', '192.0.2.1') WHERE sandbox_id = ? AND type = 'egress_blocked'", [box.sandbox_id]
        )
        assert changed.rowcount == 1
    answer = bailiwick.json("--data-dir", str(copy), "audit", "verify", box.sandbox_id, code=1)
    found = [finding for chain in answer["chains"] for finding in chain["findings"]]
    assert [(finding["problem"], bool(finding["time"])) for finding in found] == [("changed", True)], answer
    table = bailiwick("--data-dir", str(copy), "audit", "verify", code=1).stdout.decode()
    assert "BROKEN" in table and box.sandbox_id in table, table
    assert bailiwick.json("--data-dir", data, "audit", "verify", box.sandbox_id)["intact"]
