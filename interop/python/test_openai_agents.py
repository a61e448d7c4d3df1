"""The adapter of the published client for the OpenAI Agents SDK: its sandbox client, driven as that SDK drives it."""

from __future__ import annotations

import asyncio
import functools
import io
import pathlib
import time

import conftest
import declaw
import pytest
from declaw import ALL_TRAFFIC, SandboxNetworkOpts, SandboxState, WriteEntry
from declaw.api.async_client import reset_async_shared_clients
from declaw.openai import DeclawSandboxClient, DeclawSandboxClientOptions
from declaw.openai.sandbox import _unwrap
from agents.sandbox.entries import File
from agents.sandbox.manifest import Environment, Manifest


def adapted(test):
    """Runs a test in an event loop of its own, with `create` for sessions whose sandboxes are killed afterwards."""

    @functools.wraps(test)
    def run(lab):
        async def whole():
            client, made = DeclawSandboxClient(), []

            async def create(manifest=None, **options):
                made.append(await client.create(manifest=manifest, options=DeclawSandboxClientOptions(**options)))
                return made[-1]

            try:
                await test(client, create)
            finally:
                for session in made:
                    await client.delete(session)
                await reset_async_shared_clients()

        asyncio.run(whole())

    del run.__wrapped__  # or pytest would look for fixtures with the names of its arguments
    return run


@adapted
async def test_a_session_runs_commands_and_tells_how_they_ended(client, create):
    manifest = Manifest(environment=Environment(value={"SHAPE": "round"}))
    session = await create(manifest, envs={"COLOUR": "green"})
    await session.start()
    assert await session.running() is True
    done = await session.exec("echo $COLOUR $SHAPE; echo oh >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code) == (b"green round\n", b"oh\n", 3)
    assert (await session.exec("printf", "%s|", "a b", "c")).stdout == b"a b|c|"
    assert (await session.exec("sleep 300", timeout=1)).exit_code == 124
    await session.stop()
    await session.aclose()


@adapted
async def test_a_manifest_is_laid_out_in_the_workspace_and_files_go_both_ways(client, create):
    manifest = Manifest(entries={"notes/plan.txt": File(content=b"first\n")})
    session = await create(manifest)
    await session.start()
    assert (await session.exec("cat /workspace/notes/plan.txt; stat -c %U /workspace")).stdout == b"first\nuser\n"
    everything = bytes(range(256))
    await session.write(pathlib.Path("/workspace/all"), io.BytesIO(everything))
    assert (await session.read(pathlib.Path("/workspace/all"))).read() == everything
    await session.mkdir("/workspace/deep/down", parents=True)
    assert sorted(each.name for each in await session.ls("/workspace")) == ["all", "deep", "notes"]
    await session.rm("/workspace/deep", recursive=True)
    inner = _unwrap(session)
    assert await inner.file_exists("/workspace/deep") is False
    assert (await inner.file_rename("/workspace/all", "/workspace/everything")).name == "everything"
    assert (await inner.file_info("/workspace/everything")).size == 256
    assert [each.size for each in await inner.write_files([WriteEntry("/workspace/x", "12")])] == [2]


@adapted
async def test_the_agents_terminal_runs_what_it_is_given_and_is_fed(client, create):
    session = await create(envs={"COLOUR": "green"})
    await session.start()
    assert session.supports_pty() is True
    begun = await session.pty_exec_start("read", "-p", "'name? '", "name;", "echo", "got", "$name", "$COLOUR", yield_time_s=10)
    assert b"name? " in begun.output and begun.exit_code is None
    shown = begun.output
    more = await session.pty_write_stdin(session_id=begun.process_id, chars="ann\n", yield_time_s=0.1)
    shown += more.output
    deadline = time.monotonic() + conftest.PATIENCE
    while b"got ann green\r\n" not in shown:
        assert time.monotonic() < deadline, shown
        shown += (await session.pty_write_stdin(session_id=begun.process_id, chars="", yield_time_s=0.1)).output
    await session.pty_terminate_all()
    assert await _unwrap(session).list_processes() == []


@adapted
async def test_what_only_this_adapter_has_works_too(client, create):
    session = await create(metadata={"owner": "agent"}, timeout=600)
    inner = _unwrap(session)
    info = await inner.info()
    assert (info.state, info.metadata, info.sandbox_id) == (SandboxState.RUNNING, {"owner": "agent"}, inner.sandbox_id)
    assert inner.underlying_sandbox.sandbox_id == inner.sandbox_id
    await inner.set_timeout(1000)
    assert (await inner.metrics())[0].memory_usage_mb > 0
    lines = []
    await inner.run_stream("printf 'a\\nb\\n'", on_stdout=lines.append)
    assert lines == ["a\n", "b\n"]
    handle = await inner.run_background("read line; echo got $line", cwd="/tmp")
    await inner.send_process_stdin(handle.pid, "this\n")
    assert (await inner.connect_process(handle.pid).wait()).stdout == "got this\n"
    other = await inner.run_background("sleep 300")
    assert [each.pid for each in await inner.list_processes()] == [other.pid]
    assert await inner.kill_process(other.pid) is True
    await inner.pause()
    assert (await inner.info()).state == SandboxState.PAUSED
    await inner.resume_sandbox()
    assert (await session.exec("echo on")).stdout == b"on\n"
    with pytest.raises(declaw.SandboxException, match="HTTP 501: snapshots"):
        await session.persist_workspace()
    with pytest.raises(declaw.SandboxException, match="HTTP 501: snapshots"):
        await inner.list_snapshots()


@adapted
async def test_a_session_is_kept_as_text_and_found_again_by_it(client, create):
    session = await create()
    await session.start()
    await session.exec("echo kept > /workspace/mark")
    text = client.serialize_session_state(session.state)
    again = await client.resume(client.deserialize_session_state(text))
    await again.start()
    assert (await again.exec("cat /workspace/mark")).stdout == b"kept\n"
    assert await client.delete(again) is again
    assert await session.running() is False


@adapted
async def test_an_agent_reaches_what_its_options_permit_and_nothing_else(client, create):
    network = SandboxNetworkOpts(allow_out=["api.openai.com"], deny_out=[ALL_TRAFFIC])
    locked, shut = await create(network=network), await create(allow_internet_access=False)
    connect = "bash -c 'exec 3<>/dev/tcp/{}/80' && echo connected"
    assert (await locked.exec(connect.format("api.openai.com"))).stdout == b"connected\n"
    assert b"efused" in (await locked.exec(connect.format("185.199.108.66"))).stderr
    assert b"efused" in (await shut.exec(connect.format("93.184.216.34"))).stderr
    with pytest.raises(declaw.SandboxException, match="HTTP 501: .*pii"):
        await create(pii=declaw.PIIConfig(enabled=True))
