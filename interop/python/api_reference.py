"""What requests made from the API reference are about: things of one account that are really there."""

from __future__ import annotations

import json
import pathlib
import re
import zlib

import conftest
import streams

#: The document, as it is published.
DOCUMENT = json.loads((conftest.REPOSITORY / "docs" / "reference" / "openapi.json").read_text())

#: Paths of files and directories in a sandbox, of which most requests name one.
PATHS = ["/tmp/kept", "/tmp/kept/file", "/tmp", "/tmp/new/deep", "/home/user", "/etc/shadow", "/nowhere", "/dev/full"]
#: The users of a template.
USERS = ["user", "root", "nobody", None]
#: Entries of policies.
ENTRIES = ["allowed.test", "*.allowed.test:443", "203.0.113.0/24", "2001:db8::1"]
#: Lines for the shell. They end by themselves.
LINES = ["true", "echo out; echo err >&2; exit 3", "printf '\\377\\0'", "exec false", "no-such-program"]

#: What may end the sandbox it is about, so that the next request needs another one.
ENDING = re.compile(r"DELETE /sandboxes/\{id\}$|PATCH .*/timeout$|POST .*/kill-many$")


class Things:
    """One account on the daemon, and what it has: a sandbox with files, commands of each kind, a service."""

    def __init__(self, lab):
        self.lab = lab
        status, me = lab.request("GET", "/auth/me")
        assert status == 200, me
        self.account = me["owner_id"]
        self.box: str | None = None
        self.processes: dict[str, str] = {}

    def sandbox(self) -> str:
        """A sandbox that runs."""
        if self.box is None:
            self.box = conftest.create(self.lab, timeout=0)
            conftest.command(self.lab, self.box, "mkdir -p /tmp/kept && echo kept > /tmp/kept/file")
        return self.box

    def service(self) -> int:
        """The port of a program that listens in the sandbox."""
        box, port = self.sandbox(), 3000
        if self.lab.request("GET", f"/sandboxes/{box}/ports/{port}")[0] == 200:
            return port
        service = {"path": "/tmp/service.py", "data": (pathlib.Path(__file__).parent / "service.py").read_text()}
        assert self.lab.request("POST", f"/sandboxes/{box}/files", service)[0] == 200
        conftest.command(self.lab, box, f"python3 -u /tmp/service.py 127.0.0.1 {port}", background=True, timeout=0)
        answers = lambda: self.lab.request("GET", f"/sandboxes/{box}/ports/{port}")[0] == 200
        streams.eventually("the service answers", answers)
        return port

    def process(self, kind: str) -> str:
        """The id of a process for a route, by the end of its path: where an answer takes until the end, one that ends."""
        start, what = f"/sandboxes/{self.sandbox()}/{kind.split('/')[0]}", kind.split("/")[-1]
        if kind not in self.processes:
            ends = what in ("wait", "stream")
            body = {"cmd": LINES[1] if ends else "cat", "background": True, "stdin": not ends}
            status, made = self.lab.request("POST", start, body)
            assert status == 200, (kind, made)
            self.processes[kind] = str(made.get("pid") or made["cmd_id"])
            if kind == "pty/{pid}/stream":
                self.lab.request("POST", f"{start}/{made['pid']}/stdin", {"data": "exit 3\n"})
        return self.processes[kind]

    def key(self) -> str:
        """A key that may be revoked."""
        status, made = self.lab.request("POST", f"/accounts/{self.account}/api-keys", {"name": "to be revoked"})
        assert status == 201, made
        return made["key_id"]

    def place(self, case) -> None:
        """Has a made request be about what is there, except for one of eight, which stays as it was made."""
        choice = zlib.crc32(repr((case.path_parameters, case.query, case.body)).encode())
        if choice % 8 == 0:
            return
        self._place_path(case)
        for name in ("path", "username"):
            if isinstance(case.query, dict) and isinstance(case.query.get(name), str):
                _replace(case.query, name, PATHS if name == "path" else USERS, choice >> 3)
        if isinstance(case.body, dict):
            self._place_body(case.body, choice >> 3)

    def _place_path(self, case) -> None:
        values = case.path_parameters or {}
        path = case.operation.path
        if "id" in values:
            values["id"] = self.sandbox()
        if "pid" in values:
            values["pid"] = self.process(path.removeprefix("/sandboxes/{id}/"))
        if "account" in values:
            values["account"] = self.account
        if "key" in values:
            values["key"] = self.key()
        if "port" in values:
            values["port"] = self.service()

    def _place_body(self, body: dict, choice: int) -> None:
        for name, instead in [
            ("path", PATHS), ("old_path", PATHS), ("new_path", PATHS), ("username", USERS), ("user", USERS),
            ("cwd", ["/tmp", None, "/nowhere"]), ("cmd", LINES), ("template", ["python", "base", None, "nothing"]),
        ]:  # fmt: skip
            if isinstance(body.get(name), str):
                _replace(body, name, instead, choice)
                choice = zlib.crc32(choice.to_bytes(8))
        if "old_path" in body and isinstance(body.get("new_path"), str) and choice % 4:
            self.lab.request("POST", f"/sandboxes/{self.sandbox()}/files", {"path": "/tmp/old", "data": "x"})
            body["old_path"], body["new_path"] = "/tmp/old", "/tmp/renamed"
        for lists in [body, body.get("network")]:
            for name in ("allow_out", "deny_out"):
                if isinstance(lists, dict) and isinstance(lists.get(name), list) and choice % 4:
                    lists[name] = ENTRIES[choice % 3 : choice % 5]
        if isinstance(body.get("sandbox_ids"), list) and body["sandbox_ids"]:
            body["sandbox_ids"][0] = self.sandbox()
        for each in body["files"] if isinstance(body.get("files"), list) else []:
            if isinstance(each, dict):
                self._place_body(each, choice)

    def after(self, case, response) -> None:
        """Tidies up what a request may have left."""
        path, done = case.operation.path, response.status_code in (200, 201)
        asked = f"{case.method} {path}"
        if asked == "POST /sandboxes" and done:
            self.kill(response.json()["sandbox_id"])
        elif asked.startswith("POST") and path.endswith("/api-keys") and done:
            self.lab.request("DELETE", f"{case.formatted_path}/{response.json()['key_id']}")
        elif asked.startswith("POST") and path.endswith(("/pty", "/stdio", "/commands")) and done:
            process = response.json().get("pid") or response.json().get("cmd_id")
            if process:
                self.lab.request("DELETE", f"{case.formatted_path}/{process}")
        elif path.endswith("/pause") and done:
            assert self.lab.request("POST", f"/sandboxes/{self.box}/resume")[0] == 200
        elif ENDING.match(asked) and self.box and not self.is_running():
            self.forget()
        elif asked.startswith("DELETE") and path.endswith("{pid}") or path.endswith("/close"):
            self.processes.clear()

    def is_running(self) -> bool:
        return self.lab.request("GET", f"/sandboxes/{self.box}/status") == (200, {"is_running": True})

    def kill(self, box: str) -> None:
        self.lab.request("DELETE", f"/sandboxes/{box}")

    def forget(self) -> None:
        """The next request gets another sandbox."""
        if self.box is not None:
            self.kill(self.box)
        self.box, self.processes = None, {}


def _replace(values: dict, name: str, instead: list, choice: int) -> None:
    value = instead[choice % len(instead)]
    if value is None:
        values.pop(name)
    else:
        values[name] = value
