"""A terminal in a sandbox as a person has it: in a real one outside, with keys, sizes and signals."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import uuid

import pytest

import conftest
from streams import eventually

PROGRAM = pathlib.Path(__file__).parent / "programs" / "terminal.py"


class Terminal:
    """A terminal of tmux, with a server of its own."""

    def __init__(self, command: str, columns: int, lines: int):
        self.tmux = ["tmux", "-L", f"interop-{uuid.uuid4().hex}", "-f", "/dev/null"]
        self.run("new-session", "-d", "-x", str(columns), "-y", str(lines), command)

    def run(self, *arguments: str) -> str:
        done = subprocess.run([*self.tmux, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, text: str) -> None:
        self.run("send-keys", "-l", text)
        self.key("Enter")

    def key(self, name: str) -> None:
        self.run("send-keys", name)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.run("capture-pane", "-p").splitlines()]

    def until(self, line: str) -> None:
        eventually(f"{line!r} is shown on a line of its own", lambda: line in self.lines())

    def resize(self, columns: int, lines: int) -> None:
        self.run("resize-window", "-x", str(columns), "-y", str(lines))

    def end(self) -> None:
        subprocess.run([*self.tmux, "kill-server"], capture_output=True, timeout=60)


@pytest.fixture
def terminal(sandbox):
    """Opens a terminal in a sandbox; afterwards the shell outside says how it ended, and what it finds."""
    if shutil.which("tmux") is None:
        conftest.cannot_be_had("tmux", "it is not installed")
    opened = []

    def open_in(box, columns: int = 93, lines: int = 27) -> Terminal:
        after = 'echo "ended with $?"; stty -a | tr ";" "\\n" | grep -qw -e -echo || echo "echo is on"; exec cat'
        opened.append(Terminal(f"{sys.executable} {PROGRAM} {box.sandbox_id}; {after}", columns, lines))
        # What is typed before is lost: the program outside takes the terminal as it finds it.
        eventually("the prompt is shown", lambda: any(line.endswith("$") for line in opened[-1].lines()))
        return opened[-1]

    yield open_in
    for each in opened:
        each.end()


def test_keys_arrive_and_what_they_do_is_shown(sandbox, terminal):
    inside = terminal(sandbox())
    inside.type("echo $((40 + 2)) $TERM; id -un; tty")
    inside.until("42 xterm-256color")
    inside.until("user")
    inside.type("printf 'gr\\303\\274n\\n'")
    inside.until("grün")
    inside.type("read -p 'name? ' name; echo hello $name")
    inside.until("name?")
    inside.type("Zoë")
    inside.until("hello Zoë")


def test_the_size_is_that_of_the_window_and_follows_it(sandbox, terminal):
    inside = terminal(sandbox(), columns=93, lines=27)
    inside.type("stty size")
    inside.until("27 93")
    inside.type("sh -c \"trap 'stty size; exit' WINCH; echo set''up; while sleep 0.05; do :; done\"")
    inside.until("setup")
    inside.resize(101, 41)
    inside.until("41 101")


def test_a_key_interrupts_what_runs_and_leaves_the_shell(sandbox, terminal):
    box = sandbox()
    inside = terminal(box)
    inside.type("sleep 300; echo not''reached")
    eventually("it sleeps", lambda: "sleep 300" in box.commands.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout)
    inside.key("C-c")
    inside.type("echo status $?")
    inside.until("status 130")
    assert "notreached" not in inside.lines()


def test_a_program_that_takes_the_whole_screen_gives_it_back(sandbox, terminal):
    inside = terminal(sandbox())
    inside.type("echo be''fore")
    inside.until("before")
    # The other screen, cleared, with something in the fifth line; until a key comes.
    inside.type("printf '\\033[?1049h\\033[2J\\033[5;1Hwhole screen\\n'; read -n 1 -s; printf '\\033[?1049l'; echo af''ter")
    inside.until("whole screen")
    assert inside.lines()[4] == "whole screen" and "before" not in inside.lines()
    inside.key("q")
    inside.until("after")
    assert "before" in inside.lines() and "whole screen" not in inside.lines()


def test_leaving_gives_back_the_exit_code_and_the_terminal_outside(sandbox, terminal):
    box = sandbox()
    inside = terminal(box)
    inside.type("echo re''ady")
    inside.until("ready")
    inside.key("C-d")
    inside.until("ended with 0")
    inside.until("echo is on")
    other = terminal(box)
    other.type("exit 7")
    other.until("ended with 7")
    assert box.commands.list() == []
