"""The program's command line, as tests run it."""

from __future__ import annotations

import json
import os
import subprocess


class Program:
    """The built program, with the lab's address and key in its environment."""

    def __init__(self, lab):
        self.path = os.readlink(f"/proc/{lab.variables['BAILIWICK_LAB_DAEMON_PID']}/exe")
        self.environment = {
            "PATH": os.environ["PATH"],
            "NO_COLOR": "1",
            "BAILIWICK_API_URL": lab.api,
            "BAILIWICK_API_KEY": lab.key,
        }

    def __call__(self, *arguments, code=0, environment=None, stdin=b""):
        """Runs it; its output as bytes, after checking the exit code."""
        environment = self.environment if environment is None else environment
        done = subprocess.run(
            [self.path, *arguments], input=stdin, capture_output=True, env=environment, timeout=120, check=False
        )
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done

    def json(self, *arguments, code=0, **more):
        return json.loads(self(*arguments, "--json", code=code, **more).stdout)

    def error(self, *arguments, code, **more) -> str:
        done = self(*arguments, code=code, **more)
        assert done.stdout == b""
        return done.stderr.decode()
