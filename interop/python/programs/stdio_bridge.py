"""Joins this program's pipes to those of a command in a sandbox: `stdio_bridge.py SANDBOX COMMAND`.

For programs that start a server and talk to its pipes, as MCP clients do.
"""

import os
import sys

from declaw import Sandbox


def write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


sandbox, command = sys.argv[1:]
process = Sandbox.connect(sandbox).stdio.start(
    command, on_stdout=lambda data: write(1, data), on_stderr=lambda data: write(2, data)
)
while data := os.read(0, 65536):
    process.send_stdin(data)
process.close_stdin()
sys.exit(process.wait().exit_code)
