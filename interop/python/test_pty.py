"""Terminals, as the published client uses them."""

from __future__ import annotations

from declaw.sandbox.commands.models import PtySize

from streams import Collected, decoded, eventually, events, opened


def stream(lab, box, pid: int):
    return opened(lab, "GET", f"/sandboxes/{box.sandbox_id}/pty/{pid}/stream")


def test_a_terminal_shows_what_is_typed_and_what_it_does(sandbox):
    shown = Collected()
    handle = sandbox().pty.create(PtySize(cols=93, rows=27), on_data=shown)
    handle.send_stdin("echo $((40 + 2)) $TERM; tty; stty size; id -un\n")
    shown.until(b"\nuser\r\n")
    assert b"echo $((40 + 2)) $TERM" in shown.data, "what is typed is shown"
    assert b"42 xterm-256color\r\n/dev/pts/" in shown.data and b"27 93\r\n" in shown.data
    handle.send_stdin("exit 7\n")
    assert handle.wait(timeout=60).exit_code == 7


def test_programs_are_told_of_a_new_size(sandbox):
    shown = Collected()
    handle = sandbox().pty.create(on_data=shown)
    # A shell of its own: an interactive one is not told while a program of its is in front.
    script = "trap 'echo told; stty size' WINCH; echo set''up; while sleep 0.05; do :; done"
    handle.send_stdin(f'sh -c "{script}"\n')
    shown.until(b"setup")
    handle.resize(PtySize(cols=101, rows=41))
    shown.until(b"told\r\n41 101")
    handle.send_stdin("\x03")
    assert handle.kill() is True and handle.kill() is False


def test_keys_are_signals(sandbox):
    shown = Collected()
    handle = sandbox().pty.create(on_data=shown)
    handle.send_stdin("echo be''gun; sleep 300; echo $? en''ded\n")
    shown.until(b"begun")
    handle.send_stdin("\x03")
    handle.send_stdin("echo ali''ve\n")
    shown.until(b"alive")
    handle.kill()


def test_the_first_output_waits_for_the_first_watcher(lab, sandbox):
    box = sandbox()
    handle = box.pty.create(envs={"PS1": "this is the prompt> "})
    handle.send_stdin("echo ea''rly\n")
    eventually("the shell has answered", lambda: "sleep" not in box.commands.run("ps").stdout)
    _, response = stream(lab, box, handle.pid)
    seen = []
    for event in events(response):
        seen.append(event)
        if b"early\r\n" in decoded(seen, "data"):
            break
    handle.kill()


def test_two_watchers_see_the_same_and_a_terminal_survives_both(lab, sandbox):
    box = sandbox()
    one, two, again = Collected(), Collected(), Collected()
    handle = box.pty.create(on_data=one)
    handle.send_stdin("echo fi''rst\n")
    one.until(b"first\r\n")
    other = box.pty.connect(handle.pid, on_data=two)
    # It is there as soon as it is shown something; until then it is asked again.
    def both() -> bool:
        handle.send_stdin("echo bo''th\n")
        return b"both\r\n" in two.data

    eventually("the second watcher sees what the first does", both)
    one.until(b"both\r\n")
    assert b"first" not in two.data, "no scrollback"
    handle.disconnect()
    other.disconnect()
    # A disconnected watcher leaves when it is shown something.
    handle.send_stdin("echo by''e\n")
    third = box.pty.connect(handle.pid, on_data=again)
    # What is said before it is there goes to those who have not noticed that they are gone.
    def back() -> bool:
        third.send_stdin("echo ba''ck\n")
        return b"back\r\n" in again.data

    eventually("the third watcher sees what it does", back)
    third.send_stdin("exit 0\n")
    assert third.wait(timeout=60).exit_code == 0


def test_a_terminal_is_listed_as_one_and_its_exit_is_kept(lab, sandbox):
    box = sandbox()
    handle = box.pty.create()
    assert [(each.pid, each.is_pty) for each in box.commands.list()] == [(handle.pid, True)]
    assert handle.kill() is True
    assert list(events(stream(lab, box, handle.pid)[1]))[-1] == ("exit", {"exit_code": 137})
    assert box.commands.list() == []


def test_what_is_wrong_is_refused_by_name(lab, sandbox):
    box = sandbox()
    base = f"/sandboxes/{box.sandbox_id}/pty"
    handle = box.pty.create()
    for size, field in [({"cols": 4097, "rows": 24}, "size.cols"), ({"cols": 80, "rows": 5000}, "size.rows"), ({"cols": 80}, "rows")]:
        for method, path in [("POST", base), ("PATCH", f"{base}/{handle.pid}")]:
            status, answer = lab.request(method, path, {"size": size})
            assert status == 400 and field in answer["message"], answer
    right = {"size": {"cols": 80, "rows": 24}, "data": "x"}
    for method, path in [("GET", "/stream"), ("PATCH", ""), ("POST", "/stdin")]:
        assert lab.request(method, f"{base}/4194303{path}", right)[0] == 404, (method, path)
    assert lab.request("DELETE", f"{base}/4194303")[1] == {"killed": False}
    assert lab.request("PATCH", f"{base}/{handle.pid}", right)[0] == 200
    assert handle.kill() is True
