"""`bailiwick sandbox shell` in a real terminal: it shows what happens inside, and leaves the terminal as it was."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios

import pytest

from command_line import Program
from streams import eventually


class Shell:
    """The program in a terminal of its own, as a shell would start it."""

    def __init__(self, program: Program, *arguments: str, columns: int = 93, lines: int = 27):
        self.outside, self.inside = os.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.inside)
        self.shown = b""
        self.process = subprocess.Popen(
            [program.path, "sandbox", "shell", *arguments],
            stdin=self.inside,
            stdout=self.inside,
            stderr=self.inside,
            env=program.environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.outside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str | bytes) -> None:
        os.write(self.outside, text.encode() if isinstance(text, str) else text)

    def look(self) -> None:
        while select.select([self.outside], [], [], 0)[0]:
            self.shown += os.read(self.outside, 65536)

    def until(self, wanted: str) -> None:
        def is_shown() -> bool:
            self.look()
            return wanted.encode() in self.shown

        eventually(f"{wanted!r} is shown", is_shown)

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.inside)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def ended(self) -> int:
        def is_over() -> bool:
            self.look()
            return self.process.poll() is not None

        eventually("it has ended", is_over)
        return self.process.returncode

    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.inside) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for end in (self.outside, self.inside):
            try:
                os.close(end)
            except OSError:
                pass


@pytest.fixture
def program(lab) -> Program:
    return Program(lab)


@pytest.fixture
def shell(program):
    """Opens a shell, once its prompt is there."""
    opened = []

    def start(box, *arguments: str, **size: int) -> Shell:
        opened.append(Shell(program, box.sandbox_id, *arguments, **size))
        opened[-1].until("$ " if "root" not in arguments else "# ")
        assert opened[-1].is_raw()
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def is_empty(box) -> None:
    eventually("nothing runs in the sandbox", lambda: box.commands.list() == [])


def test_what_is_typed_goes_inside_and_the_exit_code_comes_out(sandbox, shell):
    box = sandbox()
    inside = shell(box, "--env", "WORD=here", "--cwd", "/tmp")
    inside.type("echo $((40 + 2)) $TERM $WORD $PWD; id -un; tty\n")
    inside.until("42 xterm-256color here /tmp\r\nuser\r\n/dev/pts/")
    inside.type("printf '%s' 'grün €' | od -An -c | head -1; echo do''ne\n")
    inside.until("done\r\n")
    assert re.search(rb"g\s+r\s+303\s+274\s+n\s+342\s+202\s+254", inside.shown), inside.shown
    inside.type("exit 7\n")
    assert inside.ended() == 7
    assert inside.is_as_before()
    is_empty(box)


def test_the_end_of_the_input_ends_the_shell_and_root_is_root(sandbox, shell):
    inside = shell(sandbox(), "--user", "root")
    inside.type("id -u; echo re''ady\n")
    inside.until("0\r\nready\r\n")
    inside.type("\x04")
    assert inside.ended() == 0
    assert inside.is_as_before()


def test_keys_that_interrupt_are_for_what_runs_inside(sandbox, shell):
    inside = shell(sandbox())
    inside.type("echo be''gun; sleep 300; echo not''reached\n")
    inside.until("begun\r\n")
    for key in ("\x1a", "fg\n", "\x03"):
        inside.type(key)
    inside.type("echo status $?\n")
    inside.until("status 130\r\n")
    assert b"notreached" not in inside.shown
    inside.type("exit 0\n")
    assert inside.ended() == 0


def test_the_size_is_that_of_the_terminal_and_follows_it(sandbox, shell):
    inside = shell(sandbox(), columns=101, lines=41)
    inside.type("stty size\n")
    inside.until("41 101\r\n")
    inside.type("sh -c \"trap 'stty size; exit' WINCH; echo set''up; while sleep 0.05; do :; done\"\n")
    inside.until("setup\r\n")
    inside.resize(77, 33)
    inside.until("33 77\r\n")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"])
def test_a_signal_ends_it_with_the_shell_and_leaves_the_terminal_as_it_was(sandbox, shell, name):
    box = sandbox()
    inside = shell(box)
    number = signal.Signals[name]
    inside.process.send_signal(number)
    assert inside.ended() == 128 + number
    assert inside.is_as_before()
    is_empty(box)


def test_the_shell_ends_when_the_terminal_goes_away(sandbox, shell):
    box = sandbox()
    inside = shell(box)
    os.close(inside.inside)
    os.close(inside.outside)
    eventually("it has ended", lambda: inside.process.poll() is not None)
    is_empty(box)


def test_it_goes_on_after_it_was_stopped(sandbox, shell):
    inside = shell(sandbox())
    inside.process.send_signal(signal.SIGSTOP)
    eventually("it stands still", lambda: stands_still(inside.process.pid))
    # As a shell does for its own prompt.
    termios.tcsetattr(inside.inside, termios.TCSANOW, inside.before)
    inside.resize(70, 30)
    inside.process.send_signal(signal.SIGCONT)
    eventually("the terminal is raw again", inside.is_raw)
    inside.type("stty size; exit 3\n")
    inside.until("30 70\r\n")
    assert inside.ended() == 3
    assert inside.is_as_before()


def stands_still(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"


def test_the_end_of_the_sandbox_ends_it_and_is_no_success(sandbox, shell):
    box = sandbox()
    inside = shell(box)
    box.kill(wait=True)
    assert inside.ended() not in (0, None)
    assert inside.is_as_before()


def test_without_a_terminal_or_a_sandbox_it_does_not_begin(lab, sandbox, program, shell):
    box = sandbox()
    refused = program.error("sandbox", "shell", box.sandbox_id, code=2)
    assert "standard input is not a terminal" in refused and "sandbox exec" in refused, refused
    for body, says in [("sbx-nosuchid", "sandbox not found (404)"), ("../x", "is not the id of a sandbox")]:
        wrong = Shell(program, body)
        assert wrong.ended() == 2
        assert says.encode() in wrong.shown and wrong.is_as_before(), wrong.shown
        wrong.close()
    unknown = Shell(program, box.sandbox_id, "--user", "nobody-here")
    assert unknown.ended() == 2
    assert b"nobody-here" in unknown.shown and unknown.is_as_before(), unknown.shown
    unknown.close()
    assert box.commands.list() == []
    # Its twin.
    inside = shell(box)
    inside.type("exit\n")
    assert inside.ended() == 0


def test_output_that_is_no_terminal_is_refused(sandbox, program):
    outside, inside = os.openpty()
    try:
        command = [program.path, "sandbox", "shell", sandbox().sandbox_id]
        done = subprocess.run(command, stdin=inside, capture_output=True, env=program.environment, timeout=60)
        assert done.returncode == 2 and b"standard output is not a terminal" in done.stderr, done
    finally:
        os.close(outside)
        os.close(inside)
