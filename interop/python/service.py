"""A program that listens in a sandbox: HTTP, server-sent events, a WebSocket and an MCP server, with the standard library.

Arguments: the address and the port to listen on. It writes what becomes of its connections to /tmp/service.log.
"""

import base64
import hashlib
import http.server
import json
import socket
import sys
import threading
import urllib.parse

GO = threading.Event()


def note(text):
    with open("/tmp/service.log", "a") as log:
        log.write(text + "\n")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments):
        pass

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def pieces(self):
        """The body of the request, as it comes."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while length := int(self.rfile.readline(), 16):
                yield self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length", 0))
            while left:
                piece = self.rfile.read(min(left, 65536))
                left -= len(piece)
                yield piece

    def any_method(self):
        path, _, query = self.path.partition("?")
        known = {"/events": self.events, "/ws": self.web_socket, "/mcp": self.mcp, "/endless": self.endless}
        if path in known:
            return known[path]()
        if path == "/redirect":
            return self.answer(307, b"", Location=urllib.parse.unquote(query), Set_Cookie="a=b", X_Mine="yes")
        digest, length = hashlib.sha256(), 0
        for piece in self.pieces():
            digest.update(piece)
            length += len(piece)
        if path == "/go":
            GO.set()
        said = {
            "method": self.command, "path": self.path, "headers": [[k.lower(), v] for k, v in self.headers.items()],
            "length": length, "sha256": digest.hexdigest(),
        }
        self.answer(200, json.dumps(said).encode(), Content_Type="application/json")

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_PROPFIND = any_method

    def events(self):
        """One event, and a second after `/go` was asked for."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(b"data: 1\n\n")
        GO.wait()
        self.wfile.write(b"data: 2\n\n")

    def endless(self):
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        note("endless begun")
        try:
            while True:
                self.wfile.write(b"x" * 65536)
        except OSError:
            note("endless ended")

    def web_socket(self):
        """Says back what it is told, message by message; see RFC 6455."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while head := self.rfile.read(2):
            length = head[1] & 127
            if length > 125:
                length = int.from_bytes(self.rfile.read(2 if length == 126 else 8), "big")
            mask = self.rfile.read(4)
            data = bytearray(self.rfile.read(length))
            for index in range(4):
                data[index::4] = bytes(byte ^ mask[index] for byte in data[index::4])
            self.wfile.write(frame(head[0] & 15, bytes(data)))
            if head[0] & 15 == 8:
                break
        note("web socket ended")

    def mcp(self):
        """Streamable HTTP of the Model Context Protocol, with the checks of its SDKs against DNS rebinding."""
        if self.headers["Host"] not in ("localhost:50005", "127.0.0.1:50005"):
            return self.answer(421, b"Invalid Host header")
        if self.command != "POST":
            return self.answer(405, b"")
        asked = json.loads(b"".join(self.pieces()))
        server = {"name": "inside", "version": "1"}
        tool = {"name": "say", "inputSchema": {"type": "object"}}
        result = {
            "initialize": {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": server},
            "tools/list": {"tools": [tool]},
            "tools/call": {"content": [{"type": "text", "text": "done"}]},
        }.get(asked["method"])
        if result is None:
            return self.answer(202, b"")
        said = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result})
        if asked["method"] == "initialize":
            return self.answer(200, said.encode(), Content_Type="application/json", Mcp_Session_Id="one")
        assert self.headers["Mcp-Session-Id"] == "one"
        self.answer(200, f"event: message\ndata: {said}\n\n".encode(), Content_Type="text/event-stream")


def frame(opcode, data):
    if len(data) < 126:
        return bytes([128 | opcode, len(data)]) + data
    if len(data) < 65536:
        return bytes([128 | opcode, 126]) + len(data).to_bytes(2, "big") + data
    return bytes([128 | opcode, 127]) + len(data).to_bytes(8, "big") + data


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    request_queue_size = 512


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
