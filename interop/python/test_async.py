"""The asynchronous half of the published client."""

from __future__ import annotations

import asyncio
import functools
import time

import declaw
import pytest
from declaw import ALL_TRAFFIC, AsyncSandbox, ConnectionConfig, PtySize, SandboxLifecycle, SandboxQuery, SandboxState, WriteEntry
from declaw.api.async_client import get_shared_async_client, reset_async_shared_clients

import conftest
from streams import Collected


def asynchronous(test):
    """Runs a test in an event loop of its own, with `create` for sandboxes that are killed afterwards."""

    @functools.wraps(test)
    def run(lab):
        async def whole():
            made = []

            async def create(**options):
                made.append(await AsyncSandbox.create(**options))
                return made[-1]

            try:
                await test(create)
            finally:
                await AsyncSandbox.kill_many([box.sandbox_id for box in made], wait=True)
                await reset_async_shared_clients()

        asyncio.run(whole())

    del run.__wrapped__  # or pytest would look for fixtures with the names of its arguments
    return run


async def eventually(what: str, happened) -> None:
    deadline = time.monotonic() + conftest.PATIENCE
    while not await happened():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        await asyncio.sleep(0.02)


async def shown(collected: Collected, text: bytes) -> None:
    async def happened():
        return text in collected.data

    await eventually(f"{text!r} is shown", happened)


@asynchronous
async def test_a_sandbox_is_what_was_asked_for_and_is_found_again(create):
    box = await create(metadata={"owner": "ann"}, envs={"COLOUR": "green"}, timeout=600)
    info = await box.get_info()
    assert (info.sandbox_id, info.state, info.metadata) == (box.sandbox_id, SandboxState.RUNNING, {"owner": "ann"})
    assert 600 <= (info.end_at - info.started_at).total_seconds() < 601
    assert await box.is_running() is True
    assert (await box.run_command("echo $COLOUR")).stdout == "green\n"
    async with await AsyncSandbox.connect(box.sandbox_id) as again:
        assert again.sandbox_id == box.sandbox_id
        assert await again.is_running() is True
    await box.set_timeout(1000)
    assert ((await box.get_info()).end_at - info.started_at).total_seconds() >= 1000
    assert (await box.get_metrics())[0].memory_usage_mb > 0


@asynchronous
async def test_fifty_sandboxes_at_once_are_fifty(create):
    boxes = await asyncio.gather(*(create(metadata={"owner": "fifty"}) for _ in range(50)))
    said = await asyncio.gather(*(box.run_command(f"echo {number}") for number, box in enumerate(boxes)))
    assert [done.stdout for done in said] == [f"{number}\n" for number in range(50)]
    query = SandboxQuery(metadata={"owner": "fifty"}, state=[SandboxState.RUNNING])
    listed = (await AsyncSandbox.list(query=query))["sandboxes"]
    ids = {box.sandbox_id for box in boxes}
    assert {each["sandbox_id"] for each in listed} == ids
    pages = declaw.AsyncSandboxPaginator(await get_shared_async_client(ConnectionConfig()), query=query, limit=20)
    found = []
    while pages.has_next:
        found.append([info.sandbox_id for info in await pages.next_items()])
    assert [len(page) for page in found] == [20, 20, 10] and {each for page in found for each in page} == ids
    killed = await AsyncSandbox.kill_many(list(ids), wait=True)
    assert killed == {each: {"killed": True} for each in ids}


@asynchronous
async def test_killing_ends_a_sandbox_whether_or_not_one_waits_for_it(create):
    waited, queued, by_id, queued_by_id = await asyncio.gather(*(create() for _ in range(4)))
    assert await waited.kill(wait=True) is True
    assert (await waited.get_info()).state == SandboxState.KILLED
    assert await queued.kill() is True
    assert await AsyncSandbox.kill_by_id(by_id.sandbox_id, wait=True) is True
    assert await AsyncSandbox.kill_by_id(queued_by_id.sandbox_id) is True
    for box in (waited, queued, by_id, queued_by_id):

        async def gone(box=box):
            return not await box.is_running()

        await eventually("it has ended", gone)
    with pytest.raises(declaw.NotFoundException):
        await AsyncSandbox.kill_by_id("sbx-notthere")


@asynchronous
async def test_a_paused_sandbox_is_one_until_it_is_resumed(create):
    box = await create(lifecycle=SandboxLifecycle(on_timeout="kill"))
    await box.pause()
    assert (await box.get_info()).state == SandboxState.PAUSED
    with pytest.raises(declaw.ConflictException, match="paused"):
        await box.run_command("true")
    await box.resume()
    assert (await box.run_command("echo on")).stdout == "on\n"


@asynchronous
async def test_a_command_in_the_background_is_fed_and_waited_for(create):
    box = await create()
    handle = await box.run_command("read line; echo got $line; exit 4", background=True, envs={"A": "b"}, cwd="/tmp")
    assert [(each.pid, each.is_pty) for each in await box.list_commands()] == [(handle.pid, False)]
    await box.send_command_stdin(handle.pid, "this\n")
    lines = []
    with pytest.raises(declaw.CommandExitException) as ended:
        await box.connect_command(handle.pid).wait(on_stdout=lines.append)
    assert (ended.value.exit_code, ended.value.stdout, lines) == (4, "got this\n", ["got this\n"])
    await handle.disconnect()
    other, third = [await box.run_command("sleep 300", background=True) for _ in range(2)]
    assert await other.kill() is True and await other.kill() is False
    assert await box.kill_command(third.pid) is True and await box.kill_command(third.pid) is False


@asynchronous
async def test_a_command_that_is_cancelled_is_killed(create):
    box = await create()

    async def runs():
        return [each.cmd for each in await box.list_commands()]

    task = asyncio.create_task(box.run_command("sleep 300", timeout=None))
    await eventually("it runs", runs)
    task.cancel()

    async def gone():
        return not await runs()

    await eventually("it is gone", gone)


@asynchronous
async def test_files_are_what_was_written(create):
    box = await create()
    everything = bytes(range(256))
    assert (await box.write_file("/tmp/deep/text", "grüße\r\n")).size == 9
    assert (await box.write_file("/tmp/bytes", everything)).path == "/tmp/bytes"
    assert await box.read_file("/tmp/deep/text") == "grüße\r\n"
    assert await box.read_file("/tmp/bytes", format="bytes") == everything
    written = await box.write_files([WriteEntry("/tmp/many/1", "one"), WriteEntry("/tmp/many/2", "two")])
    assert [(each.path, each.size) for each in written] == [("/tmp/many/1", 3), ("/tmp/many/2", 3)]
    assert [each.name for each in await box.list_files("/tmp/many")] == ["1", "2"]
    assert (await box.get_file_info("/tmp/bytes")).size == 256
    assert (await box.rename_file("/tmp/bytes", "/tmp/moved")).path == "/tmp/moved"
    assert await box.file_exists("/tmp/bytes") is False and await box.file_exists("/tmp/moved") is True
    assert await box.make_dir("/tmp/made") is True and await box.make_dir("/tmp/made") is False
    await box.remove_file("/tmp/many")
    assert await box.file_exists("/tmp/many") is False
    for attempt in (box.read_file("/tmp/none"), box.get_file_info("/tmp/none"), box.list_files("/tmp/none")):
        with pytest.raises(declaw.NotFoundException, match="/tmp/none"):
            await attempt


@asynchronous
async def test_a_terminal_shows_what_it_does_and_is_found_again(create):
    box = await create(envs={"COLOUR": "green"})
    one = Collected()
    handle = await box.pty.create(PtySize(cols=93, rows=27), envs={"SHAPE": "round"}, on_data=one)
    await handle.send_stdin("stty size; echo $COLOUR $SHAPE\n")
    await shown(one, b"27 93\r\ngreen round\r\n")
    await handle.resize(PtySize(cols=101, rows=41))
    await box.pty.resize(handle.pid, PtySize(cols=50, rows=20))
    await box.pty.send_stdin(handle.pid, "stty size\n")
    await shown(one, b"20 50")
    again = Collected()
    other = box.pty.connect(handle.pid, on_data=again)

    async def answers():
        await other.send_stdin(b"echo ba''ck\n")
        return b"back\r\n" in again.data

    await eventually("it answers", answers)
    await other.send_stdin("exit 7\n")
    assert (await other.wait(timeout=60)).exit_code == 7 and (await handle.wait(timeout=60)).exit_code == 7
    assert (handle.exit_code, other.exit_code) == (7, 7)


@asynchronous
async def test_a_terminal_is_read_bit_by_bit_left_and_killed(create):
    box = await create()
    handle = await box.pty.create()
    text = b""
    async for chunk in handle:
        text += chunk
        if b"$ " in text:
            break
    await handle.disconnect()
    assert handle.exit_code is None
    assert await box.pty.kill(handle.pid) is True
    assert await handle.kill() is False


@asynchronous
async def test_streams_of_a_command_with_pipes_are_separate_and_come_late_too(create):
    box = await create()
    out, err = Collected(), Collected()
    process = await box.stdio.start("echo oh >&2; cat; exit 3", on_stdout=out, on_stderr=err)
    assert process.cmd_id
    await process.send_stdin(b"\x00\xff\n")
    await process.close_stdin()
    assert (await process.wait(timeout=60)).exit_code == 3
    assert (out.data, err.data, process.exit_code) == (b"\x00\xff\n", b"oh\n", 3)
    late = await box.stdio.start("echo one; echo two >&2; read line; echo $line", envs={"A": "b"}, cwd="/tmp", user="root")
    parts = []
    async for part in late:
        parts.append(part)
        if len(parts) == 2:
            break
    assert sorted(parts) == [("stderr", b"two\n"), ("stdout", b"one\n")]
    await late.send_stdin("three\n")
    rest = Collected()
    assert (await late.stream(on_stdout=rest)).exit_code == 0
    assert rest.data == b"three\n"
    doomed = await box.stdio.start("sleep 300")
    assert await doomed.kill() is True and await doomed.kill() is False


@asynchronous
async def test_a_policy_is_in_force_and_a_wrong_one_makes_no_sandbox(create):
    locked = await create(network={"allow_out": ["api.openai.com"], "deny_out": [ALL_TRAFFIC]})
    shut = await create(allow_internet_access=False)
    command = "bash -c 'exec 3<>/dev/tcp/{}/80' && echo connected"
    assert (await locked.run_command(command.format("api.openai.com"))).stdout == "connected\n"
    assert "efused" in (await locked.run_command(command.format("185.199.108.66"))).stderr
    assert "efused" in (await shut.run_command(command.format("93.184.216.34"))).stderr
    with pytest.raises(declaw.InvalidArgumentException, match="allow_out"):
        await create(network={"allow_out": ["exa mple.com"]})


@asynchronous
async def test_each_answer_has_its_class_of_error(create):
    with pytest.raises(declaw.AuthenticationException, match="HTTP 401"):
        await AsyncSandbox.create(api_key="dcl_wrong")
    with pytest.raises(declaw.NotFoundException, match="HTTP 404"):
        await AsyncSandbox.connect("sbx-notthere")
    with pytest.raises(declaw.InvalidArgumentException, match="HTTP 400: .*template"):
        await AsyncSandbox.create(template="no-such-template")
    box = await create()
    with pytest.raises(declaw.NotEnoughSpaceException, match="HTTP 413"):
        await box.write_file("/tmp/large", "x" * 10 * 1024 * 1024)
    await box.kill(wait=True)
    with pytest.raises(declaw.SandboxException, match="HTTP 410"):
        await box.run_command("true")
    with pytest.raises(declaw.TimeoutException, match="Connection failed after 3 retries"):
        await AsyncSandbox.list(domain="127.0.0.1:1")


@asynchronous
async def test_an_account_is_its_keys_and_nobody_elses(create):
    async with declaw.AsyncAccountClient() as client:
        client.set_owner_id("local")
        account = await client.get_account()
        assert account.owner_id == "local"
        assert (await client.get_wallet()).balance_micros == 0
        used = await create()
        await used.run_command("true")
        overview = await client.get_overview()
        assert (overview.owner_id, overview.active_sandboxes >= 1) == ("local", True)
        assert (await client.get_usage()).total_cost_micros == 0
        assert (await client.get_daily_usage())[-1].total_cost_micros == 0
        assert await client.list_deposits() == {"deposits": [], "total": 0, "has_more": False}
        with pytest.raises(declaw.AuthenticationException, match="HTTP 403"):
            await client.get_account("somebody-else")


@asynchronous
async def test_clients_of_other_things_are_closed(create):
    for kind in (declaw.AsyncAccountClient, declaw.AsyncVaultClient):
        async with kind() as client:
            assert client is not None
        await client.close()
