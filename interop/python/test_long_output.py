"""Output of commands that is long, and what it takes of the daemon."""

from __future__ import annotations

import pathlib

import conftest

#: What a command prints: characters that JSON makes six times as long.
PRINTED = 32 << 20
#: What the daemon may grow by for it: the output, twice while it is moved to a longer buffer, and what is on its way.
GROWN = 3 * PRINTED


def status(lab, field: str) -> int:
    """A size of the daemon, in bytes."""
    text = pathlib.Path(f"/proc/{lab.variables['BAILIWICK_LAB_DAEMON_PID']}/status").read_text()
    return int(text.split(f"{field}:")[1].split()[0]) << 10


def test_output_takes_memory_for_itself_and_not_for_its_json(lab):
    box = conftest.create(lab)
    try:
        conftest.command(lab, box, "true")
        before = status(lab, "VmRSS")
        # From here on the highest is counted anew.
        pathlib.Path(f"/proc/{lab.variables['BAILIWICK_LAB_DAEMON_PID']}/clear_refs").write_text("5")
        done = conftest.command(lab, box, f"head -c {PRINTED} /dev/zero | tr '\\0' '\\1'")
        assert done["stdout"] == "\1" * PRINTED
        assert "stdout_truncated" not in done
        assert status(lab, "VmHWM") - before < GROWN
    finally:
        lab.request("DELETE", f"/sandboxes/{box}")
