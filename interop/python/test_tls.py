"""A daemon with a certificate: the published client finds it by its domain alone, and speaks HTTP/2 where it can."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from declaw import AsyncSandbox, ConnectionConfig, Sandbox, TimeoutException
from declaw.api.async_client import reset_async_shared_clients
from declaw.api.client import get_shared_client, reset_shared_clients

import conftest
import secure
from streams import Collected


@pytest.fixture(scope="module")
def certified(tmp_path_factory):
    with secure.lab(conftest.Process, tmp_path_factory.mktemp("tls")) as variables:
        yield variables


@pytest.fixture
def trusting(certified, monkeypatch):
    """The environment of a client that is to use the daemon: its domain, a key, and whom to trust."""
    for name in ("DECLAW_DOMAIN", "DECLAW_API_KEY"):
        monkeypatch.setenv(name, certified[name])
    monkeypatch.setenv("SSL_CERT_FILE", certified["BAILIWICK_LAB_CERTIFICATE"])
    reset_shared_clients()
    yield certified
    reset_shared_clients()


def test_everything_that_streams_does_so_over_tls(trusting):
    with Sandbox.create(template="python") as box:
        assert box.envd_api_url.startswith(f"https://{trusting['DECLAW_DOMAIN']}")
        streamed = Collected()
        done = box.commands.run_stream("seq 1 3; exit 5", on_stdout=lambda text: streamed(text.encode()))
        assert (done.exit_code, done.stdout, streamed.data) == (5, "1\n2\n3", b"123")
        out = Collected()
        process = box.stdio.start("cat", on_stdout=out)
        process.send_stdin(b"\x00\xff")
        out.until(b"\x00\xff")
        process.close_stdin()
        assert process.wait(timeout=60).exit_code == 0
        shown = Collected()
        terminal = box.pty.create(on_data=shown)
        terminal.send_stdin("echo sa''id\n")
        shown.until(b"said\r\n")
        assert terminal.kill() is True
        content = bytes(range(251)) * 80_000
        box.files.write("/tmp/large", content)
        assert bytes(box.files.read("/tmp/large", format="bytes")) == content
        assert box.kill(wait=True) is True


def test_many_at_once_share_a_connection(trusting):
    async def whole():
        boxes = await asyncio.gather(*(AsyncSandbox.create() for _ in range(20)))
        said = await asyncio.gather(*(box.run_command(f"sleep 0.2; echo {number}") for number, box in enumerate(boxes)))
        await AsyncSandbox.kill_many([box.sandbox_id for box in boxes], wait=True)
        await reset_async_shared_clients()
        return [done.stdout for done in said]

    assert asyncio.run(whole()) == [f"{number}\n" for number in range(20)]


def test_http_2_is_spoken_where_both_can_and_http_1_otherwise(trusting):
    response = get_shared_client(ConnectionConfig()).get("/sandboxes")
    assert response.http_version == "HTTP/2"
    assert httpx.get(f"{trusting['DECLAW_API_URL']}/health").http_version == "HTTP/1.1"


def test_who_does_not_trust_the_certificate_sends_no_key(certified, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    reset_shared_clients()
    with pytest.raises(TimeoutException, match="CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
        Sandbox.list(domain=certified["DECLAW_DOMAIN"], api_key="dcl_secret")
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"http://{certified['DECLAW_DOMAIN']}:443/health")
