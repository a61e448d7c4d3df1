"""What Go's standard library makes of requests and answers, where the Go client and the CLI rely on it.

Both leave their JSON to `encoding/json` and their streams to `bufio.Scanner`. These are strict: a number where a text is
expected is an error and the call has failed, and a line that is longer than the scanner's buffer is the end of a stream.
"""

from __future__ import annotations

import base64
import datetime
import gzip
import http.client
import json
import re
import urllib.parse
from typing import NamedTuple

import conftest

#: The most bytes of a line, its end included: by default, which is what terminals have up to version 0.2, and as the
#: client sets it for both kinds of streams since.
DEFAULT_LINE, LINE = 64 << 10, 1 << 20

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})")


class CannotDecode(Exception):
    """`json.Unmarshal` has failed, with the path of the field."""


class Time:
    """`time.Time`, and a pointer to one: RFC 3339."""


class Map(NamedTuple):
    """`map[string]T`."""

    of: object


class _Number(str):
    """A number as it is written, so that 1 and 1.0 differ."""


def decoded(data: bytes, shape):
    """JSON as a value of `shape`: a type, a list of one shape, a `Map`, or a dictionary for a struct."""

    def no_constant(text):
        raise CannotDecode(f"{text} is not JSON")

    value = json.loads(data, parse_int=_Number, parse_float=_Number, parse_constant=no_constant)
    return _fit(value, shape, "answer")


def _fit(value, shape, at: str):
    if value is None:
        return _zero(shape)
    if isinstance(shape, dict):
        found = {name: _zero(field) for name, field in shape.items()}
        for key, each in _expect(value, dict, at).items():
            # The name as it is, or else whatever its case. Others are not looked at.
            name = key if key in shape else next((name for name in shape if name.lower() == key.lower()), None)
            if name is not None:
                found[name] = _fit(each, shape[name], f"{at}.{name}")
        return found
    if isinstance(shape, list):
        return [_fit(each, shape[0], f"{at}[{index}]") for index, each in enumerate(_expect(value, list, at))]
    if isinstance(shape, Map):
        return {key: _fit(each, shape.of, f"{at}.{key}") for key, each in _expect(value, dict, at).items()}
    if shape is Time:
        if isinstance(value, _Number) or not isinstance(value, str) or not _TIME.fullmatch(value):
            raise CannotDecode(f"{at}: {value!r} is no time")
        return datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    if shape is int:
        if not isinstance(value, _Number) or not re.fullmatch(r"-?\d+", value) or not -(2**63) <= int(value) < 2**63:
            raise CannotDecode(f"{at}: {value!r} does not fit an int")
        return int(value)
    if shape is float:
        return float(_expect(value, _Number, at))
    if shape is str and isinstance(value, _Number):
        raise CannotDecode(f"{at}: a number is no text")
    return _expect(value, shape, at)


def _expect(value, kind, at: str):
    if not isinstance(value, kind):
        raise CannotDecode(f"{at}: {value!r} is no {kind.__name__}")
    return value


def _zero(shape):
    """What a field holds that was absent or null."""
    if isinstance(shape, dict):
        return {name: _zero(field) for name, field in shape.items()}
    return {int: 0, float: 0.0, str: "", bool: False}.get(shape if isinstance(shape, type) else None)


def encoded(body) -> bytes:
    """JSON as `json.Encoder` writes it: nothing that HTML has a meaning for, and a line feed at the end."""
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode() + b"\n"


class Refused(Exception):
    """An answer that is no success, as the client tells it."""

    KINDS = {
        400: "InvalidArgumentError", 401: "AuthenticationError", 402: "InsufficientBalanceError", 403: "AuthenticationError",
        404: "NotFoundError", 408: "TimeoutError", 409: "ConflictError", 413: "NotEnoughSpaceError",
        422: "InvalidArgumentError", 429: "RateLimitError", 507: "NotEnoughSpaceError",
    }

    def __init__(self, status: int, headers, data: bytes):
        body = decoded(data, {"message": str, "code": str})
        assert body["message"], "without a message the client shows the JSON"
        super().__init__(f"{status}: {body['message']}")
        self.status, self.message, self.code = status, body["message"], body["code"]
        self.kind = self.KINDS.get(status, "SandboxError")
        # What is no whole number is taken for nothing.
        self.retry_after = int(headers["Retry-After"]) if headers["Retry-After"] else None


class GoClient:
    """Requests with the headers of the Go client, and answers with its strictness."""

    def __init__(self, lab, key: str | None = None):
        self.lab, self.key = lab, key or lab.key

    def _sent(self, method: str, path: str, data: bytes | None, headers) -> http.client.HTTPResponse:
        at = urllib.parse.urlsplit(self.lab.api)
        connection = http.client.HTTPConnection(at.hostname, at.port, timeout=max(60, conftest.PATIENCE))
        fixed = {"User-Agent": "Go-http-client/1.1", "Authorization": f"Bearer {self.key}", "Accept-Encoding": "gzip"}
        sent = {name: value for name, value in {**fixed, **headers}.items() if value is not None}
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in sent.items():
            connection.putheader(name, value)
        if data is not None or method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(data or b"")))
        connection.endheaders(data)
        return connection.getresponse()

    def bytes(self, method: str, path: str, data: bytes | None = None, **headers) -> bytes:
        """The body of an answer that is a success; `Refused` if it is none. What is compressed is unpacked unasked."""
        response = self._sent(method, path, data, headers)
        body = response.read()
        if response.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        if not 200 <= response.status < 300:
            raise Refused(response.status, response.headers, body)
        return body

    def get(self, path: str, shape):
        """A GET whose answer is decoded."""
        return decoded(self.bytes("GET", path), shape)

    def send(self, method: str, path: str, body=None, shape=None, **headers):
        """A request with a JSON body, or with none at all; its answer is only decoded if somebody looks at it."""
        form = {} if body is None else {"Content-Type": "application/json"}
        data = self.bytes(method, path, None if body is None else encoded(body), **form, **headers)
        return None if shape is None else decoded(data, shape)

    def stream(self, path: str) -> http.client.HTTPResponse:
        """A stream of events, as it begins."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache", "Connection": "keep-alive"}
        response = self._sent("GET", path, None, {**headers, "Accept-Encoding": None})
        if not 200 <= response.status < 300:
            raise Refused(response.status, response.headers, response.read())
        return response


def lines(response, most: int):
    """The lines of a stream as `bufio.Scanner` gives them."""
    while line := response.readline(most + 1):
        if len(line) > most or (len(line) == most and not line.endswith(b"\n")):
            raise CannotDecode("bufio.Scanner: token too long")
        yield line.removesuffix(b"\n").removesuffix(b"\r")


def terminal(response, most: int = LINE):
    """The pieces that a terminal shows, up to its `exit`; `EOFError` if there is none."""
    event = b""
    for line in lines(response, most):
        if line.startswith(b"event: "):
            event = line.removeprefix(b"event: ")
        elif line.startswith(b"data: "):
            if event == b"exit":
                return
            assert event == b"data", event
            yield _piece(line.removeprefix(b"data: "))
        elif line == b"":
            event = b""
    raise EOFError("the stream ended without an exit")


def pipes(response):
    """`(name, piece)` of a command with pipes, and `("exit", code)` at the end; `EOFError` if there is none."""
    event = b""
    for line in lines(response, LINE):
        if line == b"":
            event = b""
        elif line.startswith(b"event:"):
            event = line[6:].strip()
        elif line.startswith(b"data:"):
            data = line[5:].strip()
            if event == b"exit":
                yield "exit", decoded(data, {"exit_code": int})["exit_code"]
                return
            assert event in (b"stdout", b"stderr"), event
            yield event.decode(), _piece(data)
    raise EOFError("the stream ended without an exit")


def _piece(data: bytes) -> bytes:
    """A piece of output. The client leaves out those that it cannot read, without a word."""
    return base64.b64decode(decoded(data, {"data": str})["data"], validate=True)
