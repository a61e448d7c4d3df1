"""`bailiwick selftest --sandbox`: the policy of a running sandbox, tested beside it."""

from __future__ import annotations

import json
import subprocess


def selftest(lab, *arguments: str) -> tuple[int, dict | str]:
    """The exit code, and the report or what was said instead."""
    command = [lab.variables["BAILIWICK_LAB_PROGRAM"], "--data-dir", lab.variables["BAILIWICK_LAB_DATA"], "selftest"]
    done = subprocess.run([*command, "--json", *arguments], capture_output=True, text=True, timeout=100, check=False)
    try:
        return done.returncode, json.loads(done.stdout)["report"]
    except ValueError:
        return done.returncode, done.stderr


def test_the_policy_in_force_of_a_running_sandbox_is_tested_and_the_sandbox_is_left_alone(lab, sandbox):
    box = sandbox(network={"allow_out": ["api.github.com"], "deny_out": ["0.0.0.0/0"]})
    status, body = lab.request("PUT", f"/sandboxes/{box.sandbox_id}/network", {"allow_out": ["*.openai.com:443"]})
    assert status == 200, body
    before = (lab.request("GET", f"/sandboxes/{box.sandbox_id}"), lab.events(box.sandbox_id), lab.sink_lines())

    code, report = selftest(lab, "--sandbox", box.sandbox_id, "--only", "destinations", "--only", "dns")
    assert code == 0, report
    assert report["policy"]["allow_out"] == ["*.openai.com:443"]
    assert report["policy_source"].startswith(box.sandbox_id)
    outcomes = {case["id"]: case["outcome"] for case in report["cases"]}
    assert outcomes["A0"] == "permitted" and outcomes["A1"] == outcomes["A27"] == outcomes["F117"] == "held", outcomes

    assert (lab.request("GET", f"/sandboxes/{box.sandbox_id}"), lab.events(box.sandbox_id), lab.sink_lines()) == before
    assert box.commands.run("echo alive").stdout.strip() == "alive"


def test_a_sandbox_that_is_not_there_is_bad_input(lab):
    code, said = selftest(lab, "--sandbox", "sbx-00000000")
    assert code == 2 and "sbx-00000000" in said, said
