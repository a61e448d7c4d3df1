"""The world of the attacks, what is sent into it, and what counts as an answer."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import pathlib
import struct
import subprocess
import sys
import textwrap
import time

import probes

ALLOWED = "104.16.1.1"
ALLOWED_V6 = "2606:4700:1::1"
OTHER = "104.16.2.2"
EVIL = "185.199.109.66"
EVIL_V6 = "2a0a:66::67"
#: Names beside those of the lab's own zone. Their answers are what a hostile zone would give.
HOSTS = [
    ("a.b.allowed.test", "104.16.1.9"),
    ("node.test", "198.51.100.2"),
    ("wire.test", "100.80.0.1"),
    ("gate.test", "100.64.0.1"),
    ("cgnat.test", "100.127.0.1"),
    ("zero.test", "0.0.0.0"),
    ("broadcast.test", "255.255.255.255"),
    ("reserved.test", "240.0.0.1"),
    ("sink.test", "198.18.0.9"),
    ("ietf.test", "192.0.0.8"),
    ("rfc1918a.test", "172.16.0.1"),
    ("rfc1918b.test", "192.168.0.1"),
    ("six-mapped.test", "::ffff:169.254.169.254"),
    ("six-local.test", "fe80::1"),
    ("six-nat64.test", "64:ff9b::a9fe:a9fe"),
    ("six-6to4.test", "2002:a9fe:a9fe::1"),
    ("six-ula.test", "fd00::1"),
    ("xn--bcher-kva.test", "104.16.6.6"),
    ("regex.allowed.test", "104.16.1.9"),
]
_NOTHING_ELSE = ["0.0.0.0/0"]
POLICIES = {
    "P0": None,
    "P1": {"allow_out": ["allowed.test"], "deny_out": _NOTHING_ELSE},
    "P2": {"allow_out": ["*.allowed.test"], "deny_out": _NOTHING_ELSE},
    "P3": {"allow_out": [f"{ALLOWED}/32"], "deny_out": _NOTHING_ELSE},
    "P4": {"deny_out": _NOTHING_ELSE},
    "P5": {"deny_out": [f"{EVIL}/32"]},
    "P6": {"allow_out": [r"~allowed\.test", r"~.*anthropic.com", r"~[a-z]+\.allowed\.test"], "deny_out": _NOTHING_ELSE},
    "NAMED": {"deny_out": ["evil.test"]},
}

# ---- What is sent


def extension(number: int, body: bytes) -> bytes:
    return struct.pack(">HH", number, len(body)) + body


def server_names(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(struct.pack(">BH", kind, len(name)) + name for name in names)
    return extension(0, struct.pack(">H", len(entries)) + entries)


def hello_message(*extensions: bytes, legacy: int = 0x0303) -> bytes:
    """A ClientHello handshake message that a TLS 1.3 server can answer, with these extensions besides."""
    always = [
        extension(43, b"\x04\x03\x04\x03\x03"),
        extension(10, b"\x00\x02\x00\x1d"),
        extension(13, b"\x00\x06\x04\x03\x08\x04\x04\x01"),
        extension(51, b"\x00\x24\x00\x1d\x00\x20" + os.urandom(31) + b"\x01"),
    ]
    body = struct.pack(">H", legacy) + os.urandom(32) + b"\x20" + os.urandom(32)
    body += b"\x00\x06\x13\x01\x13\x02\x13\x03" + b"\x01\x00"
    joined = b"".join([*extensions, *always])
    body += struct.pack(">H", len(joined)) + joined
    return b"\x01" + len(body).to_bytes(3, "big") + body


def record(message: bytes, version: int = 0x0301, kind: int = 22) -> bytes:
    return struct.pack(">BHH", kind, version, len(message)) + message


def hello(*names: bytes, more: bytes = b"", **options) -> bytes:
    """A whole ClientHello in one record, with these server names."""
    return record(hello_message(*([server_names(*names)] if names else []), more, **options))


def padding(size: int) -> bytes:
    return extension(21, bytes(size))


def request(host: str | None, target: str = "/", method: str = "GET", more: str = "", body: str = "") -> bytes:
    line = "" if host is None else f"Host: {host}\r\n"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    return f"{method} {target} HTTP/1.1\r\n{line}{more}{length}Connection: close\r\n\r\n{body}".encode()


# ---- How it is sent

_SPEAK = """
def speak(attempt):
    host, port, pieces, wait, source = attempt
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(wait)
        if source:
            connection.bind((source, 0))
        connection.connect((host, port))
    except ConnectionRefusedError:
        return "refused"
    except socket.gaierror:
        return "no address"
    except socket.timeout:
        return "hang"
    except OSError as error:
        return "refused" if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EPERM, errno.EINVAL) else repr(error)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    try:
        for piece in pieces:
            connection.sendall(bytes.fromhex(piece))
        while chunk := connection.recv(65536):
            received += chunk
            # HTTP ends by itself; of anything else the beginning is enough.
            if len(received) >= 7 and not received.startswith(b"HTTP/"):
                break
    except socket.timeout:
        if not received:
            return "hang"
    except OSError:
        if not received:
            return "reset"
    if received[:1] == b"\\x16":
        return "server hello"
    if received[:1] == b"\\x15":
        return "alert %d" % received[6] if len(received) > 6 else "alert"
    if received.startswith(b"HTTP/1.1 "):
        return "http " + " ".join(line[9:12].decode() for line in received.split(b"\\r\\n") if line.startswith(b"HTTP/1.1 "))
    return "closed" if not received else "data " + received[:60].decode("latin-1")
say([speak(attempt) for attempt in ATTEMPTS])
"""


def speak(box, attempts, wait: float = 8, user: str = "user", source: str = "") -> list[str]:
    """Sends to each (host, port, bytes or pieces) over TCP, one after the other; gives what came of each:
    refused, reset, closed, hang, "alert 49", "server hello", "http 200", "http 403", or the data."""
    listed = []
    for host, port, data in attempts:
        pieces = [data] if isinstance(data, bytes) else list(data)
        listed.append((host, port, [piece.hex() for piece in pieces], wait, source))
    return probes.run(box, f"ATTEMPTS = json.loads({json.dumps(listed)!r})\n" + _SPEAK, user=user, timeout=120)


_SEND = """
def send(attempt):
    host, port, data, wait = attempt
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.settimeout(wait)
        client.connect((host, port))
        client.send(bytes.fromhex(data))
        return "answer " + client.recv(65536)[:600].hex()
    except socket.timeout:
        return "hang"
    except OSError as error:
        return "refused"
say([send(attempt) for attempt in ATTEMPTS])
"""


def datagrams(box, attempts, wait: float = 3, user: str = "user") -> list[str]:
    """Sends to each (host, port, bytes) over UDP; gives refused, hang or the answer in hexadecimal."""
    listed = [(host, port, data.hex(), wait) for host, port, data in attempts]
    return probes.run(box, f"ATTEMPTS = json.loads({json.dumps(listed)!r})\n" + _SEND, user=user, timeout=120)


def question(name: bytes | str, kind: int = 1, edns: bytes = b"", count: int = 1, identity: int = 4711) -> bytes:
    """A DNS query; labels of a `bytes` name are given in wire form."""
    if isinstance(name, str):
        name = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    head = struct.pack(">HHHHHH", identity, 0x0100, count, 0, 0, 1 if edns else 0)
    return head + (name + struct.pack(">HH", kind, 1)) * count + edns


def lookups(box, asked, server: str = "8.8.8.8") -> list[dict | None]:
    """Asks for each (name, type), all in one program: response code, number of answers and addresses; None for
    those that nobody replied to."""
    found: list[dict | None] = []
    for answer in datagrams(box, [(server, 53, question(name, kind)) for name, kind in asked]):
        if not answer.startswith("answer "):
            found.append(None)
            continue
        reply = bytes.fromhex(answer[7:])
        _, flags, _, answers, _, _ = struct.unpack(">HHHHHH", reply[:12])
        at = 12 + reply[12:].index(b"\0") + 5
        addresses = []
        for _ in range(answers):
            at += 2 if reply[at] >= 0xC0 else reply[at:].index(b"\0") + 1
            kind, _, _, length = struct.unpack(">HHIH", reply[at : at + 10])
            at += 10
            if kind in (1, 28):
                addresses.append(str(ipaddress.ip_address(reply[at : at + length])))
            at += length
        found.append({"rcode": flags & 15, "answers": answers, "addresses": addresses})
    return found


def bind(box, name: str) -> list[str]:
    """Looks a name up inside the sandbox; its addresses are bound then for at least a minute."""
    return lookups(box, [(name, 1)])[0]["addresses"]


# ---- What came of it


@contextlib.contextmanager
def nothing_reaches(lab, box, *, to=None, host: str = "allowed.test", address: str = ALLOWED, but=lambda line: False):
    """Nothing reaches the world meanwhile (or only lines that `but` is true of). Around it a permitted request
    passes, so that it is not for want of a way; its canary also shows that the log has caught up."""
    twin(lab, box, host, address)
    before = len(lab.sink_lines())
    yield
    token = twin(lab, box, host, address)
    leaked = [
        line
        for line in lab.sink_lines()[before:]
        if token not in json.dumps(line) and not but(line) and not _is_of_twin(line, address)
    ]
    assert not leaked, leaked


TWIN_PORT = 8081


def _is_of_twin(line: dict, address: str) -> bool:
    return line["kind"] == "connect" and line["destination"] == address and line.get("port") == TWIN_PORT


def twin(lab, box, host: str = "allowed.test", address: str = ALLOWED) -> str:
    """A permitted request, by name and by address (a policy of addresses resolves no name, and a binding of an
    earlier lookup may have ended); gives its canary."""
    token = probes.canary()
    data = request(host, f"/{token}")
    assert "http 200" in speak(box, [(host, TWIN_PORT, data), (address, TWIN_PORT, data)])
    wait_for(lambda: [line for line in lab.seen(token) if line["kind"] == "http"])
    return token


def wait_for(condition, patience: float = 10):
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + patience
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.01)


def block(lab, box, count: int = 1, kind: str = "egress_blocked", **expected) -> dict:
    """Exactly one event of a refusal matches, and stands for `count` of them; gives it."""

    def matches(event):
        return event["type"] == kind and all(event.get(key) == value for key, value in expected.items())

    events = lab.wait_for_events(
        box.sandbox_id, lambda events: sum(e["count"] for e in events if matches(e)) >= count
    )
    found = [event for event in events if matches(event)]
    assert len(found) == 1 and found[0]["count"] == count, found
    assert found[0]["decision"] == "deny"
    return found[0]


# ---- From outside


def namespace(box) -> str:
    """The network namespace of a sandbox, as a path. Only root on the machine can use it."""
    for process in pathlib.Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if box.sandbox_id in (process / "cgroup").read_text():
                    path = process / "ns" / "net"
                    if os.readlink(path) != os.readlink("/proc/self/ns/net"):
                        return str(path)
    raise AssertionError(f"there is no process of {box.sandbox_id}")


def held_namespaces(process: str) -> list[str]:
    """The network namespaces that a process (as a path below /proc) holds open: of the daemon, the uplink's too."""
    found = {}
    for path in pathlib.Path(process, "fd").iterdir():
        with contextlib.suppress(OSError):
            if (link := os.readlink(path)).startswith("net:["):
                found[link] = str(path)
    return list(found.values())


@contextlib.contextmanager
def nested_network(outer: str):
    """A namespace that is connected to another one by a bridge's worth of forwarding and address translation, like a
    container's to its machine's; gives its path."""

    def inside(place: str, *command: str) -> str:
        done = subprocess.run(["nsenter", f"--net={place}", *command], check=True, timeout=30, capture_output=True, text=True)
        return done.stdout

    holder = subprocess.Popen(["unshare", "--net", "sleep", "120"])
    inner = f"/proc/{holder.pid}/ns/net"
    try:
        wait_for(lambda: os.readlink(inner) != os.readlink("/proc/self/ns/net"))
        inside(outer, "ip", "link", "add", "nested0", "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        inside(outer, "ip", "address", "add", "172.18.0.1/16", "dev", "nested0")
        inside(outer, "ip", "link", "set", "nested0", "up")
        inside(outer, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        # Not masquerading: the wire's address has the scope of the link, which that would not choose.
        own = inside(outer, "ip", "-4", "route", "get", ALLOWED).split(" src ")[1].split()[0]
        inside(outer, "nft", "add table ip nested; add chain ip nested out { type nat hook postrouting priority 100; }; "
                             f"add rule ip nested out ip saddr 172.18.0.0/16 snat to {own}")
        inside(inner, "ip", "link", "set", "lo", "up")
        inside(inner, "ip", "address", "add", "172.18.0.2/16", "dev", "eth0")
        inside(inner, "ip", "link", "set", "eth0", "up")
        inside(inner, "ip", "route", "add", "default", "via", "172.18.0.1")
        yield inner
    finally:
        holder.kill()
        holder.wait()


def privileged(namespace: str, body: str):
    """Runs `body` (Python that ends with `say(...)`) inside a network namespace as root on the machine, with none of
    a sandbox's confinement: for packets whose sockets a sandbox may not open. Gives what it said."""
    program = probes._PRELUDE + textwrap.dedent(body)
    done = subprocess.run(
        ["nsenter", f"--net={namespace}", sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
