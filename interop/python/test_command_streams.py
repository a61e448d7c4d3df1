"""Output of commands while they run, as the published client and a bare HTTP reader get it."""

from __future__ import annotations

import threading

import conftest
import probes
import streams
from streams import events


def opened(lab, box, command: str, **fields):
    body = {"cmd": command, "stream": True, **fields}
    return streams.opened(lab, "POST", f"/sandboxes/{box.sandbox_id}/commands/stream", body)


def text(found, stream: str) -> str:
    """What a reader that puts the pieces together as they are has of one stream."""
    return "".join(data["data"] for name, data in found if name == "output" and data["type"] == stream)


def until_gone(box, marker: str) -> None:
    """Waits until no process of the sandbox has `marker` in its command line."""
    look = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c '{marker[:-1]}[{marker[-1]}]' || true"
    streams.eventually(f"{marker} is gone", lambda: box.commands.run(look).stdout.strip() == "0")


def test_the_client_gets_lines_in_order_and_the_exit_code(sandbox):
    out, err = [], []
    done = sandbox().commands.run_stream(
        "echo one; echo oh >&2; echo; printf 'a b\\nlast'; exit 3", on_stdout=out.append, on_stderr=err.append
    )
    assert (out, err, done.exit_code) == (["one", "", "a b", "last"], ["oh"], 3)
    assert (done.stdout, done.stderr) == ("one\n\na b\nlast", "oh")


def test_output_arrives_while_the_command_runs(sandbox):
    box = sandbox()
    seen, ended = threading.Event(), []
    run = lambda: ended.append(
        box.commands.run_stream(
            "echo begun; until [ -e /tmp/go ]; do sleep 0.05; done; echo over", on_stdout=lambda line: seen.set()
        )
    )
    reader = threading.Thread(target=run)
    reader.start()
    assert seen.wait(conftest.PATIENCE), "the first line should be there although the command runs"
    assert not ended
    box.files.write("/tmp/go", "")
    reader.join(conftest.PATIENCE)
    assert ended[0].stdout == "begun\nover"


def test_every_reader_can_put_the_output_together(lab, sandbox):
    box = sandbox()
    _, response = opened(lab, box, "printf 'a\\n\\nb'; printf 'c' >&2; printf '\\377\\342\\200\\250x'")
    assert response.headers["content-type"] == "text/event-stream"
    found = list(events(response))
    assert found[-1] == ("exit", {"exit_code": 0})
    assert text(found, "stdout") == "a\n\nb\ufffd\u2028x" and text(found, "stderr") == "c"
    done = box.commands.run_stream("printf 'x\\342\\200\\250y\\302\\205z\\n\\377'")
    assert done.stdout == "x\u2028y\x85z\n\ufffd"


def test_a_mebibyte_of_output_arrives_whole(lab, sandbox):
    box = sandbox()
    command = "seq 1 200000 | head -c 1048576"
    expected = box.commands.run(command).stdout
    assert len(expected) == 1 << 20
    _, response = opened(lab, box, command)
    assert text(list(events(response)), "stdout") == expected
    assert box.commands.run_stream(command).stdout == expected.removesuffix("\n")


def test_a_reader_that_does_not_read_holds_up_its_own_command_and_nothing_else(lab, sandbox):
    box = sandbox()
    connection, response = opened(lab, box, "head -c 40000000 /dev/zero | tr '\\0' x | fold -w 4000; echo done > /tmp/over")
    assert response.readline() == b"event: output\n"
    assert box.commands.run("echo alive").stdout == "alive\n"
    assert not box.files.exists("/tmp/over"), "the command should stand still: nobody takes its 40 MB"
    last = list(events(response))[-1]
    assert last == ("exit", {"exit_code": 0}) and box.files.exists("/tmp/over")
    connection.close()


def test_a_reader_that_leaves_takes_its_command_with_it_and_no_background_command(lab, sandbox):
    box = sandbox()
    streamed, kept = probes.canary(), probes.canary()
    handle = box.commands.run(f"sleep 300; : {kept}", background=True)
    connection, response = opened(lab, box, f"echo begun; sleep 300; : {streamed}")
    assert response.readline() == b"event: output\n"
    connection.close()
    response.close()
    until_gone(box, streamed)
    assert [each.pid for each in box.commands.list()] == [handle.pid]
    assert handle.kill()


def test_a_command_that_is_killed_or_out_of_time_ends_its_stream(lab, sandbox):
    box = sandbox()
    _, response = opened(lab, box, "echo begun; sleep 300")
    incoming = events(response)
    assert next(incoming)[1]["data"] == "begun\n"
    (running,) = box.commands.list()
    assert box.commands.kill(running.pid)
    assert list(incoming) == [("exit", {"exit_code": 137})]
    # The client gives up after as long as the command may take without a word, so something is said meanwhile.
    done = box.commands.run_stream("while echo begun; do sleep 0.3; done", timeout=1)
    assert set(done.stdout.splitlines()) == {"begun"} and (done.stderr, done.exit_code) == ("timeout", 124)


def test_what_cannot_be_streamed_is_refused_with_its_reason(lab, sandbox):
    box = sandbox()
    path = f"/sandboxes/{box.sandbox_id}/commands/stream"
    for body, field in [({}, "cmd"), ({"cmd": "true", "timeout": -1}, "timeout"), ({"cmd": "true", "user": "nobody-here"}, "nobody-here")]:
        status, answer = lab.request("POST", path, body)
        assert status == 400 and field in answer["message"], answer
    assert lab.request("POST", "/sandboxes/sbx-00000000/commands/stream", {"cmd": "true"})[0] == 404
    assert box.commands.run_stream("true").exit_code == 0
