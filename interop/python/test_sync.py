"""The published client's methods that no other test is about."""

from __future__ import annotations

import pathlib
import urllib.error
import urllib.request

import declaw
import pytest
from declaw import ConnectionConfig, PtySize, Sandbox, SandboxPaginator, SandboxQuery, SandboxState, WriteEntry
from declaw.api.client import get_shared_client

from streams import Collected, eventually


def test_a_sandbox_is_found_again_and_lives_as_long_as_it_is_told(sandbox):
    box = sandbox(timeout=600)
    again = Sandbox.connect(box.sandbox_id)
    assert again.sandbox_id == box.sandbox_id and again.is_running() is True
    again.close()
    info = box.get_info()
    assert (info.sandbox_id, info.state) == (box.sandbox_id, SandboxState.RUNNING)
    assert 600 <= (info.end_at - info.started_at).total_seconds() < 601
    box.set_timeout(1)
    eventually("it has ended", lambda: not box.is_running())
    with pytest.raises(declaw.NotFoundException, match="HTTP 404"):
        Sandbox.connect("sbx-notthere")


def test_the_list_is_paged_and_filtered(sandbox):
    ids = {sandbox(metadata={"owner": "it's \"me\""}).sandbox_id for _ in range(3)}
    query = SandboxQuery(metadata={"owner": "it's \"me\""}, state=[SandboxState.RUNNING, SandboxState.PAUSED])
    assert {each["sandbox_id"] for each in Sandbox.list(query=query)["sandboxes"]} == ids
    pages = SandboxPaginator(get_shared_client(ConnectionConfig()), query=query, limit=2)
    found = []
    while pages.has_next:
        found.append([info.sandbox_id for info in pages.next_items()])
    assert [len(page) for page in found] == [2, 1] and {each for page in found for each in page} == ids


def test_several_are_killed_by_their_ids(sandbox):
    one, two, three = (sandbox().sandbox_id for _ in range(3))
    results = Sandbox.kill_many([one, "sbx-notthere"], wait=True)
    assert results[one] == {"killed": True} and "not found" in results["sbx-notthere"]["error"]
    assert Sandbox.kill_by_id(two, wait=True) is True
    assert Sandbox.kill_by_id(three) is True


def test_a_paused_sandbox_uses_no_time_and_goes_on(sandbox):
    box = sandbox()
    box.pause()
    assert box.get_info().state == SandboxState.PAUSED
    with pytest.raises(declaw.ConflictException, match="paused"):
        box.commands.run("true")
    box.resume()
    assert box.commands.run("echo on").stdout == "on\n"
    assert box.get_metrics()[0].memory_usage_mb > 0


def test_a_command_in_the_background_is_fed_by_any_handle(sandbox):
    box = sandbox()
    handle = box.commands.run("read line; echo got $line", background=True)
    box.commands.send_stdin(handle.pid, "this\n")
    assert box.commands.connect(handle.pid).wait().stdout == "got this\n"
    handle.disconnect()
    closed = box.commands.run("cat; echo over", background=True, stdin=False)
    assert closed.wait().stdout == "over\n"


def test_files_are_what_was_written(sandbox):
    files = sandbox().files
    entries = [WriteEntry("/tmp/many/1", "one"), WriteEntry("/tmp/many/2", bytes(range(256)))]
    assert [(each.path, each.size) for each in files.write_files(entries)] == [("/tmp/many/1", 3), ("/tmp/many/2", 256)]
    assert files.read("/tmp/many/2", format="bytes") == bytes(range(256))
    assert files.read("/tmp/many/1") == "one"
    assert [(each.name, each.size) for each in files.list("/tmp/many")] == [("1", 3), ("2", 256)]
    assert files.rename("/tmp/many/1", "/tmp/many/a b").path == "/tmp/many/a b"
    assert files.get_info("/tmp/many/a b").size == 3
    files.remove("/tmp/many/a b")
    assert files.make_dir("/tmp/made/deep") is True and files.make_dir("/tmp/made/deep") is False
    files.remove("/tmp/made")
    assert not files.exists("/tmp/made") and not files.exists("/tmp/many/a b")
    handle = files.watch_dir("/tmp/many")
    handle.stop()
    assert handle.get_new_events() == []


def test_a_terminal_is_used_by_its_number(sandbox):
    box = sandbox()
    shown = Collected()
    handle = box.pty.create(on_data=shown)
    box.pty.resize(handle.pid, PtySize(cols=50, rows=20))
    box.pty.send_stdin(handle.pid, "stty size\n")
    shown.until(b"20 50\r\n")
    assert handle.exit_code is None
    assert box.pty.kill(handle.pid) is True and box.pty.kill(handle.pid) is False
    process = box.stdio.start("exit 3")
    assert process.wait(timeout=60).exit_code == 3 and process.exit_code == 3


def test_the_addresses_of_a_sandbox_take_and_give_files_with_the_key_only(lab, sandbox):
    box = sandbox()
    base = f"{lab.api}/sandboxes/{box.sandbox_id}"
    assert (box.envd_api_url, box.get_host(3000)) == (base, f"{base}/ports/3000")
    assert box.get_mcp_url() == f"{base}/ports/50005/mcp"
    assert box.connection_config.api_url == lab.api and box.sandbox_domain == box.connection_config.domain
    assert box.traffic_access_token is None
    content = bytes(range(256)) * 100

    def call(url: str, method: str, data=None, key=lab.key):
        request = urllib.request.Request(url, data=data, method=method, headers={"X-API-Key": key} if key else {})
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.read()

    call(box.upload_url("/tmp/raw & file", "root"), "PUT", content)
    assert call(box.download_url("/tmp/raw & file"), "GET") == content
    for key in (None, "dcl_wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            call(box.download_url("/tmp/raw & file"), "GET", key=key)


def test_a_large_file_goes_in_and_out_whole(sandbox, tmp_path: pathlib.Path):
    files = sandbox().files
    content = tmp_path / "large"
    content.write_bytes(bytes(range(251)) * 200_000)
    files.write("/tmp/large", content.read_bytes())
    assert bytes(files.read("/tmp/large", format="bytes")) == content.read_bytes()


def test_clients_of_other_things_are_closed(lab):
    for kind in (declaw.AccountClient, declaw.VaultClient):
        with kind() as client:
            assert client is not None
        client.close()
