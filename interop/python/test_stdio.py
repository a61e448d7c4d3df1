"""Commands with pipes: their output in order, now and later, as the published client gets it."""

from __future__ import annotations

from streams import Collected, decoded, eventually, events, opened


def stream(lab, box, process, after: int | None = None):
    query = "" if after is None else f"?last_entry_id={after}"
    return opened(lab, "GET", f"/sandboxes/{box.sandbox_id}/stdio/{process.cmd_id}/stream{query}")


def test_streams_are_separate_and_in_order_and_bytes_stay_bytes(sandbox):
    process = sandbox().stdio.start("printf '\\377\\000a'; echo oh >&2; cat; exit 3")
    process.send_stdin(b"\x00\xfe\n")
    process.close_stdin()
    out, err = Collected(), Collected()
    assert process.stream(on_stdout=out, on_stderr=err).exit_code == 3
    assert (out.data, err.data) == (b"\xff\x00a\x00\xfe\n", b"oh\n")


def test_a_conversation_goes_both_ways_while_the_command_runs(sandbox):
    out = Collected()
    process = sandbox().stdio.start("while read line; do echo got $line; done", on_stdout=out)
    for word in (b"one", b"two"):
        process.send_stdin(word + b"\n")
        out.until(b"got " + word)
    process.close_stdin()
    assert process.wait(timeout=60).exit_code == 0
    assert out.data == b"got one\ngot two\n"


def test_a_late_reader_gets_everything_and_a_returning_one_what_it_missed(lab, sandbox):
    box = sandbox()
    process = box.stdio.start("echo one; echo two >&2; read line; echo $line; exit 4")
    _, response = stream(lab, box, process)
    incoming = events(response)
    first = [next(incoming), next(incoming)]
    assert sorted(data["entry_id"] for _, data in first) == [1, 2]
    process.send_stdin("three\n")
    assert process.wait().exit_code == 4
    found = list(events(stream(lab, box, process)[1]))
    assert (decoded(found, "stdout"), decoded(found, "stderr")) == (b"one\nthree\n", b"two\n")
    assert [data.get("entry_id") for _, data in found] == [1, 2, 3, None]
    assert found[-1] == ("exit", {"exit_code": 4})
    assert list(events(stream(lab, box, process, after=2)[1])) == found[2:]
    assert list(events(stream(lab, box, process, after=99)[1])) == found[3:]


def test_readers_come_and_go_and_the_command_stays(lab, sandbox):
    box = sandbox()
    process = box.stdio.start("echo begun; read line; echo $line")
    connection, response = stream(lab, box, process)
    assert next(events(response))[0] == "stdout"
    response.close()
    connection.close()
    assert process.cmd_id in [str(each.pid) for each in box.commands.list()]
    process.send_stdin("still here\n")
    out = Collected()
    assert process.stream(on_stdout=out).exit_code == 0
    assert out.data == b"begun\nstill here\n"


def test_a_mebibyte_arrives_whole_for_a_late_reader_and_for_one_that_reads_along(sandbox):
    box = sandbox()
    command = "seq 1 200000 | head -c 1048576"
    expected = box.commands.run(command).stdout.encode()
    process = box.stdio.start(f"{command}; echo over >&2; cat")
    out, err = Collected(), Collected()
    process.close_stdin()
    assert process.stream(on_stdout=out, on_stderr=err).exit_code == 0
    assert out.data == expected and err.data == b"over\n"


def test_output_that_nobody_reads_does_not_stop_the_command_and_what_is_lost_is_told(lab, sandbox):
    box = sandbox()
    process = box.stdio.start("head -c 20000000 /dev/zero; echo over > /tmp/over")
    eventually("the command ends", lambda: box.files.exists("/tmp/over"))
    _, response = stream(lab, box, process)
    body = response.read().decode()
    assert body.startswith(": output was lost") and body.endswith('event: exit\ndata: {"exit_code":0}\n\n')


def test_a_reader_that_does_not_read_stops_neither_the_daemon_nor_other_commands(lab, sandbox):
    box = sandbox()
    process = box.stdio.start("head -c 60000000 /dev/zero; echo over > /tmp/over")
    connection, response = stream(lab, box, process)
    assert box.commands.run("echo alive").stdout == "alive\n"
    response.close()
    connection.close()
    eventually("it goes on without its reader", lambda: box.files.exists("/tmp/over"))


def test_killing_ends_the_stream_and_a_second_kill_says_so(lab, sandbox):
    box = sandbox()
    process = box.stdio.start("echo begun; sleep 300")
    _, response = stream(lab, box, process)
    incoming = events(response)
    assert next(incoming)[0] == "stdout"
    assert process.kill() is True
    assert list(incoming) == [("exit", {"exit_code": 137})]
    assert process.kill() is False


def test_what_is_wrong_is_refused_by_name(lab, sandbox):
    box = sandbox()
    base = f"/sandboxes/{box.sandbox_id}/stdio"
    process = box.stdio.start("cat")
    for path, body, field in [
        (base, {}, "cmd"),
        (base, {"cmd": "true", "user": "nobody-here"}, "nobody-here"),
        (f"{base}/{process.cmd_id}/stdin", {"data": "*"}, "data"),
    ]:
        status, answer = lab.request("POST", path, body)
        assert status == 400 and field in answer["message"], answer
    for method, path in [("GET", "stream"), ("POST", "stdin"), ("POST", "stdin/close")]:
        assert lab.request(method, f"{base}/4194303/{path}", {"data": ""})[0] == 404
    assert lab.request("GET", f"{base}/{process.cmd_id}/stream?last_entry_id=x")[0] == 400
    process.close_stdin()
    assert process.wait().exit_code == 0
    process.close_stdin()
