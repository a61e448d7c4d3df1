"""The worked examples print what their pages say they print."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

PROGRAMS = pathlib.Path(__file__).parent / "programs"


def run(name: str) -> str:
    done = subprocess.run(
        [sys.executable, PROGRAMS / f"{name}.py"], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def has(output: str, *patterns: str) -> None:
    """The patterns occur in this order, each on a line of its own."""
    rest = output
    for pattern in patterns:
        found = re.search(rf"^\s*{pattern}\s*$", rest, re.MULTILINE)
        assert found, f"{pattern!r} is missing (or out of order) in:\n{output}"
        rest = rest[found.end() :]


def test_an_agent_reaches_nothing_that_is_not_listed(lab):
    before = len(lab.sink_lines())
    has(
        run("network_policy_agent"),
        r"Sandbox created: sbx-\w+",
        r"\[XX\] 1\.1\.1\.1:80 -> BLOCKED: .*Connection refused",
        r"\[XX\] 8\.8\.8\.8:53 -> BLOCKED: .*Connection refused",
        r"\[XX\] 93\.184\.216\.34:80 -> BLOCKED: .*Connection refused",
        r"Tested 3 targets\.",
        r"Blocked: 3.*",
        r"Connected: 0",
        r"\[PASS\] Network policy is blocking non-allowlisted traffic\.",
    )
    assert lab.sink_lines()[before:] == []


def test_a_domain_allowlist_is_in_force_and_in_the_info(lab):
    has(
        run("domain_allowlist"),
        r"Output: BLOCKED: .*",
        r"\[PASS\] Non-allowlisted destination was blocked\.",
        r"Sandbox ID: sbx-\w+",
        r"State: running",
        r"\[PASS\] Sandbox created with domain allowlist policy\.",
        r"Sandbox sbx-\w+ killed\.",
    )


def test_refusals_happen_in_the_kernel_and_the_listed_host_is_reached(lab):
    asked = len(lab.asked("evil.com"))
    has(
        run("l4_enforcement"),
        r"l4_evil_com: BLOCKED: ConnectionRefusedError: .*",
        r"l4_cloudflare_dns: BLOCKED: ConnectionRefusedError: .*",
        r"l7_evil_com: BLOCKED: URLError: .*",
        r"l4_allowed_openai: REACH",
    )
    assert len(lab.asked("evil.com")) == asked


def test_a_blackout_lets_no_secret_out(lab):
    has(
        run("exfiltration_prevention"),
        r"Output: BLOCKED: .*",
        r"\[PASS\] Data exfiltration was blocked\.",
        r"\[PASS\] DNS exfiltration is inherently blocked by deny-all policy\.",
        r"Content: API_KEY=sk-secret-12345",
        r"\[PASS\] Data is accessible locally within the sandbox\.",
        r"Sandbox sbx-\w+ killed\.",
        r"Done!",
    )
    assert not lab.seen("stolen-data")
