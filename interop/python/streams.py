"""Streams of events as they come over HTTP, for tests that want to see more than the published client shows."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.parse

import conftest


def opened(lab, method: str, path: str, body=None, accept: str = "*/*"):
    """A stream: (connection, response). Closing both is what a reader that leaves does."""
    at = urllib.parse.urlsplit(lab.api)
    connection = http.client.HTTPConnection(at.hostname, at.port, timeout=60)
    headers = {"X-API-Key": lab.key, "Content-Type": "application/json", "Accept": accept}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    return connection, connection.getresponse()


def events(response):
    """The events of a stream, one by one, under the strictest reading of the format."""
    name = None
    for line in response:
        line = line.decode().removesuffix("\n")
        assert not line.endswith("\r"), line
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
        else:
            assert line == "" or line.startswith(": "), line


def decoded(found, name: str) -> bytes:
    """All bytes of the events of one name."""
    return b"".join(base64.b64decode(data["data"]) for kind, data in found if kind == name)


def eventually(what: str, happened) -> None:
    """Waits until `happened()` holds."""
    deadline = time.monotonic() + conftest.PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.02)


class Collected:
    """What a callback was given, for waiting until something is there."""

    def __init__(self):
        self.data = b""

    def __call__(self, chunk: bytes) -> None:
        self.data += chunk

    def until(self, text: bytes) -> None:
        eventually(f"{text!r} is shown", lambda: text in self.data)
