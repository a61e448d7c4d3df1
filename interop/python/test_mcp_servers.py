"""A published MCP server in a sandbox, and a published MCP client outside: the server reaches what the policy permits."""

from __future__ import annotations

import asyncio
import io
import os
import pathlib
import subprocess
import sys
import tarfile

import httpx2
import pytest
from declaw import ALL_TRAFFIC
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

import conftest
import probes
from streams import eventually

HERE = pathlib.Path(__file__).parent
LOCKED = {"allow_out": ["files.example.org"], "deny_out": [ALL_TRAFFIC]}
#: With the published server's packages, listening where the client's `get_mcp_url` says.
OVER_HTTP = """
import urllib.request
from mcp.server import MCPServer

server = MCPServer("fetcher")

@server.tool()
def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return f"{answer.status}"

server.run(transport="streamable-http", host="127.0.0.1", port=50005)
"""


@pytest.fixture(scope="session")
def packages(lab):
    """The server with all it needs, for the Python of the `python` template, as an archive."""
    box = conftest.create(lab)
    version = conftest.command(lab, box, "python3 -c 'import sys; print(\"%d.%d\" % sys.version_info[:2])'")["stdout"].strip()
    lab.request("DELETE", f"/sandboxes/{box}")
    directory = pathlib.Path(sys.prefix) / f"mcp-server-{version}"
    requirements = HERE / "requirements-mcp-server.txt"
    stamp = directory / ".ready"
    if not (stamp.exists() and stamp.read_text() == requirements.read_text()):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--only-binary=:all:"]
        pip += ["--python-version", version, "--target", str(directory), "--requirement", str(requirements)]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=600)
        if done.returncode:
            conftest.cannot_be_had("a published MCP server", done.stderr)
        stamp.write_text(requirements.read_text())
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as packed:
        packed.add(directory, arcname="mcp", filter=lambda entry: None if "__pycache__" in entry.name else entry)
    return archive.getvalue()


@pytest.fixture
def equipped(sandbox, packages):
    """A locked sandbox with the packages below /tmp/mcp."""
    box = sandbox(network=LOCKED)
    box.files.write("/tmp/mcp.tar", packages)
    unpacked = box.commands.run("tar --no-same-owner -C /tmp -xf /tmp/mcp.tar && rm /tmp/mcp.tar")
    assert unpacked.exit_code == 0, unpacked.stderr
    return box


def said(result) -> str:
    return "".join(part.text for part in result.content)


async def fetch_both(client: Client) -> tuple[str, str]:
    """Has the server fetch what is permitted and what is not; gives the tokens of both."""
    assert [tool.name for tool in (await client.list_tools()).tools] == ["fetch"]
    good, bad = probes.canary(), probes.canary()
    permitted = await client.call_tool("fetch", {"url": f"http://files.example.org/{good}"})
    assert not permitted.is_error, said(permitted)
    refused = await client.call_tool("fetch", {"url": f"http://evil.com/{bad}"})
    assert refused.is_error, said(refused)
    return good, bad


def test_a_published_server_is_used_over_its_pipes_and_reaches_only_what_is_permitted(lab, equipped):
    server = StdioServerParameters(
        command=sys.executable,
        args=[
            str(HERE / "programs" / "stdio_bridge.py"),
            equipped.sandbox_id,
            "PYTHONPATH=/tmp/mcp python3 -m mcp_server_fetch --ignore-robots-txt",
        ],
        env={name: value for name, value in os.environ.items() if name.startswith("DECLAW_")},
    )

    async def whole():
        async with Client(server, read_timeout_seconds=conftest.PATIENCE) as client:
            return await fetch_both(client)

    good, bad = asyncio.run(whole())
    assert lab.seen(good) and not lab.seen(bad)
    eventually("the server ends with its input", lambda: equipped.commands.list() == [])


def test_a_server_on_the_port_of_the_url_helper_is_used_through_the_api_and_by_nobody_without_a_key(lab, equipped):
    equipped.files.write("/tmp/server.py", OVER_HTTP)
    equipped.commands.run("PYTHONPATH=/tmp/mcp exec python3 /tmp/server.py > /tmp/log 2>&1", background=True)
    eventually("it listens", lambda: equipped.commands.run("grep -q :C355 /proc/net/tcp").exit_code == 0)

    async def whole(key: str):
        async with httpx2.AsyncClient(headers={"X-API-Key": key}, timeout=conftest.PATIENCE) as http:
            async with Client(streamable_http_client(equipped.get_mcp_url(), http_client=http)) as client:
                return await fetch_both(client)

    good, bad = asyncio.run(whole(lab.key))
    assert lab.seen(good) and not lab.seen(bad)
    with pytest.raises(BaseException, match="401|unauthorized|TaskGroup"):
        asyncio.run(whole("dcl_wrong"))
