"""A terminal in a sandbox, in this one: `terminal.py SANDBOX`."""

import os
import signal
import sys
import termios
import threading
import tty

from declaw import PtySize, Sandbox


def size() -> PtySize:
    columns, lines = os.get_terminal_size(0)
    return PtySize(cols=columns, rows=lines)


def feed() -> None:
    while data := os.read(0, 4096):
        terminal.send_stdin(data)


before = termios.tcgetattr(0)
tty.setraw(0)
try:
    terminal = Sandbox.connect(sys.argv[1]).pty.create(size(), on_data=lambda data: os.write(1, data))
    signal.signal(signal.SIGWINCH, lambda *_: terminal.resize(size()))
    threading.Thread(target=feed, daemon=True).start()
    code = terminal.wait().exit_code
finally:
    termios.tcsetattr(0, termios.TCSADRAIN, before)
sys.exit(code)
