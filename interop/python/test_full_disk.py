"""A full disk under the daemon's data: connections are decided as ever, nothing is half made, no event is lost."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
import time

import pytest

import conftest
from conftest import command, create
from machine import traces

#: Room for the database and two sandboxes, and soon full.
SIZE = "64m"
ALLOWED, OTHER = "104.16.1.1", "185.199.109.66"


@pytest.fixture
def small_disk():
    """A lab whose data is on a disk of its own: the lab, and the directory on it."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="bailiwick-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", directory], check=True)
    process = None
    try:
        process = conftest.Process("--directory", str(directory))
        yield conftest.Lab(process.variables), directory
    finally:
        if process:
            process.end()
        subprocess.run(["umount", "-l", directory], check=True)
        directory.rmdir()


def fill(directory: pathlib.Path) -> pathlib.Path:
    """Fills the disk to its last byte; gives the file that does."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        block = bytes(1 << 20)
        while block:
            try:
                file.write(block)
            except OSError:
                block = block[: len(block) // 2]
    return filler


def connect(lab, box: str, host: str) -> str:
    """How a connection from the sandbox comes out; the program needs no disk."""
    program = f"import socket; socket.create_connection(('{host}', 80), 5)"
    done = command(lab, box, f'python3 -B -c "{program}"')
    return "passed" if done["exit_code"] == 0 else done["stderr"].strip().splitlines()[-1]


def test_on_a_full_disk_connections_are_decided_and_nothing_is_half_made(small_disk):
    lab, directory = small_disk
    data = pathlib.Path(lab.variables["BAILIWICK_LAB_DATA"])
    box = create(lab, network={"allow_out": ["allowed.test"]})
    command(lab, box, "getent ahostsv4 allowed.test")
    listed = lab.request("GET", "/sandboxes")[1]
    filler = fill(directory)
    # Until the database has used up what its files still hold.
    deadline = time.monotonic() + conftest.PATIENCE
    while (made := lab.request("POST", "/sandboxes", {"template": "python", "timeout": 300}))[0] == 201:
        assert time.monotonic() < deadline, "the disk is never full"
        lab.request("DELETE", f"/sandboxes/{made[1]['sandbox_id']}")
    status, answer = made
    assert (status, answer["code"]) == (503, "store_unavailable"), made
    for _ in range(3):
        assert connect(lab, box, ALLOWED) == "passed"
        assert "ConnectionRefusedError" in connect(lab, box, OTHER)

    filler.unlink()
    assert lab.request("GET", "/sandboxes")[1] == listed
    events = []
    while sum(event["count"] for event in events if event.get("address") == OTHER) < 3:
        assert time.monotonic() < deadline + 30, events
        status, page = lab.request("GET", f"/sandboxes/{box}/audit?limit=1000")
        events = page["events"] if status == 200 else []
    assert sum(event["count"] for event in events if event.get("address") == OTHER) == 3
    assert not [event for event in events if event["type"] == "audit_gap"], json.dumps(events)
    another = create(lab, network={"allow_out": ["allowed.test"]})
    command(lab, another, "getent ahostsv4 allowed.test")
    assert connect(lab, another, ALLOWED) == "passed"
    for each in (box, another):
        assert lab.request("DELETE", f"/sandboxes/{each}")[1] == {"killed": True}
    assert os.listdir(data / "sandboxes") == []
    assert not any(traces(data, [box, another]).values())
