"""`bailiwick mcp`: sandboxes for an agent, by the Model Context Protocol over standard input and output."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import signal
import subprocess

import mcp
import pytest
from mcp.client.stdio import stdio_client

from streams import eventually
from test_cli import Program


class Agent:
    """A client of the protocol, message by message."""

    def __init__(self, program: Program, *arguments: str):
        self.child = subprocess.Popen(
            [program.path, "mcp", "--template", "python", *arguments],
            env=program.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.ids = itertools.count(1)
        self.answers: dict[object, dict] = {}

    def send(self, message) -> None:
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        self.child.stdin.write(text + b"\n")
        self.child.stdin.flush()

    def read(self) -> dict:
        line = self.child.stdout.readline()
        assert line.endswith(b"\n"), (line, self.child.stderr.read())
        return json.loads(line)

    def ask(self, method: str, **params) -> int:
        number = next(self.ids)
        self.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        return number

    def answer(self, number) -> dict:
        while number not in self.answers:
            read = self.read()
            assert read["jsonrpc"] == "2.0"
            self.answers[read["id"]] = read
        return self.answers.pop(number)

    def request(self, method: str, **params) -> dict:
        return self.answer(self.ask(method, **params))

    def call(self, name: str, **arguments):
        """What a tool tells."""
        result = self.request("tools/call", name=name, arguments=arguments)["result"]
        text = result["content"][0]["text"]
        assert not result.get("isError"), text
        if "structuredContent" in result:
            assert json.loads(text) == result["structuredContent"]
            return result["structuredContent"]
        return text

    def failure(self, name: str, **arguments) -> str:
        """What a tool tells that has failed."""
        result = self.request("tools/call", name=name, arguments=arguments)["result"]
        assert result["isError"] is True, result
        return result["content"][0]["text"]

    def error(self, method: str, **params) -> tuple[int, str]:
        error = self.request(method, **params)["error"]
        return error["code"], error["message"]

    def end(self) -> int:
        self.child.stdin.close()
        return self.child.wait(timeout=60)


@pytest.fixture
def agent(lab):
    with contextlib.ExitStack() as children:

        def start(*arguments: str) -> Agent:
            made = Agent(Program(lab), *arguments)
            children.callback(made.child.kill)
            return made

        yield start


def test_a_conversation_begins_and_tells_the_tools(agent):
    client = agent()
    begun = client.request("initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "t"})
    assert begun["result"]["protocolVersion"] == "2025-06-18"
    assert begun["result"]["serverInfo"]["name"] == "bailiwick"
    client.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
    assert client.request("ping")["result"] == {}
    tools = {tool["name"]: tool for tool in client.request("tools/list")["result"]["tools"]}
    assert set(tools) == {
        "create_sandbox", "run_command", "read_file", "write_file", "list_files", "list_sandboxes", "kill_sandbox",
    }
    assert all(tool["inputSchema"]["type"] == "object" for tool in tools.values())
    assert client.end() == 0


def test_the_client_of_the_protocols_own_sdk_works_with_it(lab):
    program = Program(lab)
    parameters = mcp.StdioServerParameters(
        command=program.path, args=["mcp", "--template", "python"], env=program.environment
    )

    async def talk() -> str:
        async with stdio_client(parameters) as streams:
            async with mcp.ClientSession(*streams) as session:
                assert (await session.initialize()).server_info.name == "bailiwick"
                assert len((await session.list_tools()).tools) == 7
                box = (await session.call_tool("create_sandbox", {})).structured_content["sandbox_id"]
                done = await session.call_tool("run_command", {"sandbox_id": box, "command": "echo hi; exit 2"})
                assert done.structured_content == {"exit_code": 2, "stdout": "hi\n", "stderr": ""}
                failed = await session.call_tool("read_file", {"sandbox_id": box, "path": "/no/such"})
                assert failed.is_error and "/no/such" in failed.content[0].text
                return box

    box = asyncio.run(talk())
    assert lab.request("GET", f"/sandboxes/{box}")[1]["state"] == "killed"


def test_an_agent_works_in_its_sandbox_and_takes_it_along(lab, agent):
    client = agent()
    box = client.call("create_sandbox")["sandbox_id"]
    assert client.call("run_command", sandbox_id=box, command="echo out; echo err >&2; exit 3") == {
        "exit_code": 3, "stdout": "out\n", "stderr": "err\n",
    }
    assert client.call("run_command", sandbox_id=box, command="id -un; pwd", user="root", cwd="/tmp")["stdout"] == "root\n/tmp\n"
    assert client.call("run_command", sandbox_id=box, command="sleep 60", timeout_seconds=0.5)["exit_code"] == 124
    long = client.call("run_command", sandbox_id=box, command="seq 100000")["stdout"]
    assert long.startswith("1\n2\n") and long.endswith("99999\n100000\n") and "are left out" in long

    written = client.call("write_file", sandbox_id=box, path="dir/größe.txt", content="text ü\n")
    assert written == {"path": "/home/user/dir/größe.txt", "size": 8}
    assert client.call("read_file", sandbox_id=box, path="dir/größe.txt") == "text ü\n"
    raw = base64.b64encode(b"\x00\xff").decode()
    client.call("write_file", sandbox_id=box, path="/tmp/raw", content=raw, encoding="base64")
    assert client.call("read_file", sandbox_id=box, path="/tmp/raw", encoding="base64") == raw
    assert "not text" in client.failure("read_file", sandbox_id=box, path="/tmp/raw")
    listed = client.call("list_files", sandbox_id=box, path="dir")
    assert listed == {"entries": [{"path": "/home/user/dir/größe.txt", "type": "file", "size": 8}], "left_out": 0}
    client.call("run_command", sandbox_id=box, command="head -c 2000000 /dev/zero > /tmp/big")
    assert "longer than 1 MiB" in client.failure("read_file", sandbox_id=box, path="/tmp/big")
    assert "/no/such" in client.failure("read_file", sandbox_id=box, path="/no/such")

    assert client.call("list_sandboxes") == {"sandboxes": [{"sandbox_id": box, "state": "running"}]}
    other = client.call("create_sandbox")["sandbox_id"]
    assert client.call("kill_sandbox", sandbox_id=other) == {"killed": True}
    assert "not a sandbox of this session" in client.failure("run_command", sandbox_id=other, command="true")
    assert client.end() == 0
    assert lab.request("GET", f"/sandboxes/{box}")[1]["state"] == "killed"


def test_sandboxes_reach_nothing_unless_it_was_said_and_no_agent_can_ask_for_more(lab, agent):
    reach = "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://{}/\", timeout=20).status)'"

    def reached(client, box: str, host: str) -> bool:
        return client.call("run_command", sandbox_id=box, command=reach.format(host))["exit_code"] == 0

    closed = agent()
    box = closed.call("create_sandbox")["sandbox_id"]
    assert not reached(closed, box, "api.github.com")
    assert "does not permit" in closed.failure("create_sandbox", allow_out=["api.github.com"])

    client = agent("--allow-out", "api.github.com", "--allow-out", "*.openai.com")
    everything = client.call("create_sandbox")
    assert everything["allow_out"] == ["api.github.com", "*.openai.com"]
    assert reached(client, everything["sandbox_id"], "api.github.com")
    less = client.call("create_sandbox", allow_out=["api.openai.com"])["sandbox_id"]
    assert not reached(client, less, "api.github.com") and reached(client, less, "api.openai.com")
    nothing = client.call("create_sandbox", allow_out=[])["sandbox_id"]
    assert not reached(client, nothing, "api.github.com")
    for wider in ["*", "0.0.0.0/0", "*.com", "openai.com", "10.0.0.1", "not a host"]:
        assert wider in client.failure("create_sandbox", allow_out=[wider])
    assert len(client.call("list_sandboxes")["sandboxes"]) == 3


def test_other_sandboxes_of_the_account_are_not_the_agents(lab, agent, sandbox):
    given, foreign = sandbox(), sandbox()
    client = agent("--sandbox", given.sandbox_id, "--max-sandboxes", "1")
    assert client.call("run_command", sandbox_id=given.sandbox_id, command="echo here")["stdout"] == "here\n"
    for name, more in [
        ("run_command", {"command": "true"}), ("read_file", {"path": "/etc/hostname"}), ("list_files", {"path": "/"}),
        ("write_file", {"path": "/tmp/a", "content": ""}), ("kill_sandbox", {}),
    ]:
        for box in [foreign.sandbox_id, f"../sandboxes/{foreign.sandbox_id}", ""]:
            assert "not a sandbox of this session" in client.failure(name, sandbox_id=box, **more)
    client.call("create_sandbox")
    assert "no more" in client.failure("create_sandbox")
    assert client.end() == 0
    assert given.commands.run("echo alive").stdout == "alive\n"


def test_calls_run_beside_each_other_and_one_that_is_given_up_ends(agent):
    client = agent()
    box = client.call("create_sandbox")["sandbox_id"]
    slow = client.ask("tools/call", name="run_command", arguments={"sandbox_id": box, "command": "sleep 4242"})
    counting = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[s]leep 4242'"
    count = lambda: client.call("run_command", sandbox_id=box, command=counting)["stdout"]
    eventually("it runs", lambda: count() == "1\n")
    client.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": slow}})
    eventually("it is killed", lambda: count() == "0\n")
    assert slow not in client.answers


def test_signals_end_it_with_its_sandboxes_and_keep_keeps_them(lab, agent):
    for keep, state in [((), "killed"), (("--keep",), "running")]:
        client = agent(*keep)
        box = client.call("create_sandbox")["sandbox_id"]
        client.ask("tools/call", name="run_command", arguments={"sandbox_id": box, "command": "sleep 4242"})
        client.child.send_signal(signal.SIGTERM)
        assert client.child.wait(timeout=60) == 0
        assert lab.request("GET", f"/sandboxes/{box}")[1]["state"] == state
        lab.request("DELETE", f"/sandboxes/{box}")


def test_what_is_wrong_is_said_and_the_conversation_goes_on(agent):
    client = agent()
    for line, code in [
        (b"{", -32700), (b"\xff\xfe", -32700), (b"[]", -32600), (b'{"id": 1}', -32600), (b"x" * (9 << 20), -32600),
    ]:
        client.send(line)
        error = client.read()
        assert (error["id"], error["error"]["code"]) == (None, code), (line[:20], error)
    client.send(b"")
    assert client.error("resources/list")[0] == -32601
    assert client.error("tools/call", name="no_such_tool") == (-32602, 'there is no tool "no_such_tool"')
    for name, arguments, named in [
        ("run_command", {"command": "true"}, "sandbox_id"),
        ("run_command", {"sandbox_id": "x", "command": 5}, "invalid type"),
        ("create_sandbox", {"allow_out": "api.github.com"}, "invalid type"),
        ("create_sandbox", {"allowed": []}, "allowed"),
        ("kill_sandbox", {}, "sandbox_id"),
    ]:
        code, message = client.error("tools/call", name=name, arguments=arguments)
        assert code == -32602 and named in message, message
    assert client.request("ping")["result"] == {}
    assert client.end() == 0


def test_it_does_not_begin_with_bad_options(lab):
    bailiwick = Program(lab)
    assert "allow_out[0]" in bailiwick.error("mcp", "--allow-out", "not a host", code=2)
    assert "sbx-nosuchid" in bailiwick.error("mcp", "--sandbox", "sbx-nosuchid", code=2)
    without_key = {name: value for name, value in bailiwick.environment.items() if name != "BAILIWICK_API_KEY"}
    assert "no API key" in bailiwick.error("mcp", code=2, environment=without_key)


#: A server of the protocol with the standard library, which tells what it can reach.
SERVER = """
import json, os, sys, urllib.request
print("begun", file=sys.stderr, flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    if asked["method"] == "initialize":
        server = {"name": "wrapped", "version": "1"}
        said = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server}
    elif asked["method"] == "tools/list":
        said = {"tools": [{"name": "fetch", "inputSchema": {"type": "object"}}]}
    else:
        try:
            said = urllib.request.urlopen(asked["params"]["arguments"]["url"], timeout=20).status
        except OSError as error:
            said = type(error).__name__
        text = json.dumps({"said": said, "uid": os.getuid(), "env": os.environ.get("GIVEN")})
        said = {"content": [{"type": "text", "text": text}]}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": said}), flush=True)
print("over", file=sys.stderr, flush=True)
sys.exit(7)
"""


def running(lab) -> set[str]:
    return {box["sandbox_id"] for box in lab.request("GET", "/sandboxes?limit=1000")[1]["sandboxes"]}


def test_a_server_in_a_sandbox_of_its_own_reaches_what_the_policy_permits(lab, tmp_path):
    program, before = Program(lab), running(lab)
    (tmp_path / "server.py").write_text(SERVER)
    parameters = mcp.StdioServerParameters(
        command=program.path, env={**program.environment, "GIVEN": "yes"},
        args=["mcp", "--template", "python", "--allow-out", "api.github.com", "--env", "GIVEN",
              "--file", f"{tmp_path}/server.py:/home/user/server.py", "--", "python3", "-u", "server.py"],
    )

    async def talk():
        async with stdio_client(parameters) as streams:
            async with mcp.ClientSession(*streams) as session:
                assert (await session.initialize()).server_info.name == "wrapped"
                said = []
                for host in ["api.github.com", "evil.example.test"]:
                    done = await session.call_tool("fetch", {"url": f"http://{host}/"})
                    said.append(json.loads(done.content[0].text))
                assert len(running(lab) - before) == 1
                return said

    first, second = asyncio.run(talk())
    assert first == {"said": 200, "uid": 1000, "env": "yes"}
    assert second["said"] in ("URLError", "ConnectionRefusedError")
    assert running(lab) == before


def test_a_program_in_a_sandbox_gets_its_input_and_gives_its_output_and_its_exit_code(lab):
    bailiwick, before = Program(lab), running(lab)
    run = lambda *command, **more: bailiwick("mcp", "--template", "python", "--", *command, **more)
    data = bytes(range(256)) * 4096
    assert run("cat", stdin=data).stdout == data
    done = run("cat >&2; echo out; exit 7", stdin=b"err\n", code=7)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    # One that ends before its input does, and one that does not end with it.
    assert run("exit 3", stdin=data, code=3).stdout == b""
    assert run("trap '' TERM; echo begun; sleep 4242").stdout == b"begun\n"
    assert run("no-such-program", code=127).stdout == b""
    assert running(lab) == before
    for arguments, named in [
        (["--file", "nothing", "--", "cat"], "--file"),
        (["--sandbox", "sbx-a", "--", "cat"], "--sandbox"),
        (["--file", "a:/b"], "CMD"),
    ]:
        assert named in bailiwick.error("mcp", *arguments, code=2)
    assert "/no/such" in bailiwick.error("mcp", "--template", "python", "--file", "/no/such:/tmp/a", "--", "cat", code=1)
    assert running(lab) == before


def test_a_server_in_a_sandbox_is_spoken_to_again_after_the_daemon_was_away(fragile):
    process, lab = fragile
    client = Agent(Program(lab), "--", "while read line; do echo \"$line\"; done")
    client.send(b'"one"')
    assert client.child.stdout.readline() == b'"one"\n'
    process.kill_daemon()
    process.restart_daemon()
    client.send(b'"two"')
    assert client.child.stdout.readline() == b'"two"\n'
    assert client.end() == 0
