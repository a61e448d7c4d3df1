"""Small programs that run inside a sandbox and say what happened, one JSON object on stdout."""

from __future__ import annotations

import json
import secrets
import textwrap

_PRELUDE = textwrap.dedent(
    """
    import json, socket, struct, sys, os, errno, time

    def outcome(do):
        try:
            return {"ok": True, "value": do()}
        except Exception as error:
            return {"ok": False, "error": type(error).__name__, "errno": getattr(error, "errno", None),
                    "text": str(error)}

    def tcp(host, port, family=socket.AF_INET, timeout=8):
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.settimeout(timeout)
        connection.connect((host, port))
        return connection

    def talk(host, port, data, family=socket.AF_INET, timeout=8):
        connection = tcp(host, port, family, timeout)
        connection.sendall(data)
        received = b""
        while True:
            try:
                chunk = connection.recv(65536)
            except (ConnectionResetError, socket.timeout):
                break
            if not chunk:
                break
            received += chunk
            if len(received) > 1 << 20:
                break
        return received.decode("latin-1")

    def say(result):
        print(json.dumps(result))
    """
)


def run(sandbox, body: str, user: str = "user", timeout: int = 60):
    """Runs `body` (Python that ends with `say(...)`) inside the sandbox; gives what it said."""
    path = f"/tmp/probe-{secrets.token_hex(4)}.py"
    sandbox.files.write(path, _PRELUDE + textwrap.dedent(body), user=user)
    done = sandbox.commands.run(f"python3 {path}", timeout=timeout, user=user)
    assert done.exit_code == 0, f"the probe failed: {done.stdout}{done.stderr}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def canary() -> str:
    """A token that cannot be there by accident."""
    return "canary" + secrets.token_hex(16)


def connect(sandbox, host: str, port: int, user: str = "user") -> dict:
    """A bare TCP connect to a name or an address."""
    family = "socket.AF_INET6" if ":" in host else "socket.AF_INET"
    return run(sandbox, f"say(outcome(lambda: bool(tcp({host!r}, {port}, {family}))))", user)


def http(sandbox, address: str, host: str, port: int = 80, path: str = "/", body: str = "") -> dict:
    """One HTTP/1.1 request with this Host header to this address; the raw answer."""
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    )
    family = "socket.AF_INET6" if ":" in address else "socket.AF_INET"
    return run(sandbox, f"say(outcome(lambda: talk({address!r}, {port}, {request.encode()!r}, {family})))")


def tls(sandbox, address: str, name: str | None, port: int = 443, path: str = "/") -> dict:
    """A TLS handshake with this server name to this address, then a request; the certificates are the lab's own."""
    return run(
        sandbox,
        f"""
        import ssl
        def attempt():
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            connection = tcp({address!r}, {port}, socket.AF_INET6 if ":" in {address!r} else socket.AF_INET)
            stream = context.wrap_socket(connection, server_hostname={name!r})
            stream.sendall(b"GET {path} HTTP/1.1\\r\\nHost: {name or address}\\r\\nConnection: close\\r\\n\\r\\n")
            received = b""
            while chunk := stream.recv(65536):
                received += chunk
            return received.decode("latin-1")
        say(outcome(attempt))
        """,
    )


def lookup(sandbox, name: str, kind: int = 1, server: str = "8.8.8.8") -> dict:
    """One DNS query over UDP, hand-made: response code, answer count and the addresses of A records."""
    return run(
        sandbox,
        f"""
        def query():
            labels = b"".join(bytes([len(label)]) + label.encode() for label in {name!r}.split(".") if label)
            message = struct.pack(">HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack(">HH", {kind}, 1)
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.settimeout(8)
            client.connect(({server!r}, 53))
            client.send(message)
            reply = client.recv(4096)
            identity, flags, _, answers, _, _ = struct.unpack(">HHHHHH", reply[:12])
            at = 12 + len(labels) + 1 + 4
            found = []
            for _ in range(answers):
                at += 2 if reply[at] >= 0xC0 else reply.index(b"\\0", at) - at + 1
                rtype, _, _, length = struct.unpack(">HHIH", reply[at:at + 10])
                at += 10
                if rtype == 1 and length == 4:
                    found.append(socket.inet_ntoa(reply[at:at + 4]))
                at += length
            return {{"rcode": flags & 15, "answers": answers, "addresses": found}}
        say(outcome(query))
        """,
    )
