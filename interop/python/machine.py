"""What tests see of, and do to, the machine behind the API: processes, descriptors, packet filters, the daemon."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import textwrap


def processes_of(box: str) -> list[int]:
    """The processes of a sandbox, as the machine numbers them."""
    found = []
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                text = (process / "cgroup").read_text()
                # A group that is deleted has ended processes at most, which nobody has reaped.
                if box in text and "(deleted)" not in text:
                    found.append(int(process.name))
            except OSError:
                continue  # It ended meanwhile.
    return found


def process_of(box: str, argument: str) -> int:
    """The process of a sandbox that is a Python program started with this argument."""
    for process in processes_of(box):
        words = pathlib.Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        if argument.encode() in words and b"python" in words[0]:
            return process
    raise LookupError(argument)


def root_of(box: str) -> pathlib.Path:
    """The root directory of a sandbox, as its processes see it."""
    return pathlib.Path(f"/proc/{processes_of(box)[0]}/root")


def directories(top: pathlib.Path) -> list[str]:
    """All directories below one. Those that go meanwhile are not there."""
    return [os.path.join(parent, name) for parent, names, _ in os.walk(top) for name in names]


def traces(data: pathlib.Path, boxes: list[str]) -> dict[str, list[str]]:
    """What there is of these sandboxes on the machine: directories, cgroups, mounts, processes."""

    def of_them(text: str) -> bool:
        return any(box in text for box in boxes)

    processes = [str(process) for box in boxes for process in processes_of(box)]
    return {
        "cgroups": [path for path in directories(pathlib.Path("/sys/fs/cgroup")) if of_them(os.path.basename(path))],
        "mounts": [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if of_them(line)],
        "directories": [path for path in directories(data) if of_them(os.path.basename(path))],
        "processes": processes,
    }


def descriptors(process: int) -> set[int]:
    """The numbers of a process's open descriptors."""
    return {int(name) for name in os.listdir(f"/proc/{process}/fd")}


#: Runs in a process of its own, because it changes its network namespace. Deletes every table in the namespace
#: (a request to delete a table that names none), as `nft flush ruleset` does, in one transaction.
_FLUSH = """
import ctypes, os, socket, struct, sys

NEWNET, NETFILTER, SUBSYSTEM, DELTABLE, REQUEST, ACK = 0x40000000, 12, 10, 2, 1, 4

if ctypes.CDLL(None, use_errno=True).setns(os.open(sys.argv[1], os.O_RDONLY), NEWNET) != 0:
    sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")

def message(kind, flags, sequence, family, resource):
    return struct.pack("=IHHII", 20, kind, flags, sequence, 0) + struct.pack(">BBH", family, 0, resource)

netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
netlink.bind((0, 0))
netlink.settimeout(5)
begin, end = message(0x10, REQUEST, 1, 0, SUBSYSTEM), message(0x11, REQUEST, 3, 0, SUBSYSTEM)
netlink.send(begin + message(SUBSYSTEM << 8 | DELTABLE, REQUEST | ACK, 2, 0, 0) + end)
answer = netlink.recv(65536)
code = struct.unpack("=i", answer[16:20])[0]
sys.exit(f"deleting the tables: {os.strerror(-code)}" if code else 0)
"""


def flush_rules(namespace: str) -> None:
    """Deletes all nftables rules in a network namespace, given by its path below /proc."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_FLUSH), namespace], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def flush_rules_of(box: str) -> None:
    """Deletes all nftables rules in the network namespace of a sandbox."""
    flush_rules(f"/proc/{processes_of(box)[0]}/ns/net")


#: Runs in a process of its own, in the network namespace that it is given. Sends requests, each on a connection of its
#: own, and when each is answered has its sockets take in nothing any more, as if the machine were off: no segment is
#: acknowledged, none is answered with a reset. Stays until its standard input ends.
_VANISH = """
import ctypes, json, os, resource, socket, struct, sys

NEWNET, ATTACH_FILTER = 0x40000000, 26
namespace, address, port = sys.argv[1:]
if ctypes.CDLL(None, use_errno=True).setns(os.open(namespace, os.O_RDONLY), NEWNET) != 0:
    sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
clients = []
for request in json.loads(sys.stdin.readline()):
    client = socket.create_connection((address, int(port)), timeout=60)
    client.sendall(request.encode())
    clients.append(client)
    said = client.recv(12)
    if said != b"HTTP/1.1 200":
        sys.exit(f"answered with {said}")
# One instruction: return 0, of which the segment is as long as that.
instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
program = struct.pack("@HP", 1, ctypes.addressof(instruction))
for client in clients:
    client.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, program)
print("vanished", flush=True)
sys.stdin.read()
"""


class Vanished:
    """Clients that have vanished without a word, after the head of the answer to the request of each."""

    def __init__(self, namespace: str, address: str, requests: list[str]):
        command = [sys.executable, "-c", textwrap.dedent(_VANISH), namespace, *address.split(":")]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(json.dumps(requests) + "\n")
        self.child.stdin.flush()
        said = self.child.stdout.readline()
        assert said == "vanished\n", said

    def end(self) -> None:
        """Ends the process that has their sockets."""
        self.child.communicate()
