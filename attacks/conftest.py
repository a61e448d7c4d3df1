"""The lab of the interoperability tests, with more hosts in its world, and one sandbox for each policy of the corpus."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
import time

import pytest

_INTEROP = pathlib.Path(__file__).resolve().parents[1] / "interop" / "python"
sys.path.insert(0, str(_INTEROP))
_spec = importlib.util.spec_from_file_location("interop_conftest", _INTEROP / "conftest.py")
interop = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(interop)

import world  # noqa: E402  (found beside this file; it imports from the directory put on the path above)


@pytest.fixture(scope="session")
def lab():
    """The lab, up for the session."""
    hosts = [argument for name, address in world.HOSTS for argument in ("--policy-host", f"{name}={address}")]
    process = interop.Process(*hosts)
    os.environ.update({name: value for name, value in process.variables.items() if name.startswith("DECLAW_")})
    try:
        yield interop.Lab(process.variables)
    finally:
        process.end()


@pytest.fixture
def labs():
    """For tests that need a lab of their own: the module with `Process` and `Lab`."""
    return interop


@pytest.fixture
def sandbox(lab):
    """Makes sandboxes with the published client, and kills them afterwards."""
    yield from _factory()


@pytest.fixture(scope="session")
def shared(lab):
    """One sandbox for each policy, made when it is first asked for and shared by the tests of the session."""
    made: dict[str, object] = {}
    bound_until = 0.0
    for create in _factory():

        def get(policy: str):
            nonlocal bound_until
            if policy not in made:
                network = world.POLICIES[policy]
                made[policy] = create(network=network) if network is not None else create()
            if policy == "P1" and time.monotonic() > bound_until:
                # A binding lives for a minute at least, which may be shorter than the session.
                world.bind(made[policy], "allowed.test")
                bound_until = time.monotonic() + 20
            return made[policy]

        yield get


def _factory():
    from declaw import Sandbox

    made = []

    def create(**arguments):
        arguments.setdefault("template", "python")
        arguments.setdefault("timeout", 600)
        made.append(Sandbox.create(**arguments))
        return made[-1]

    yield create
    for each in made:
        each.kill(wait=True)


@pytest.fixture
def p1(shared):
    """allowed.test and nothing else; no wire."""
    return shared("P1")


@pytest.fixture
def p2(shared):
    """What is below allowed.test and nothing else; no wire."""
    return shared("P2")


@pytest.fixture
def p3(shared):
    """The address of allowed.test and nothing else; a wire."""
    return shared("P3")


@pytest.fixture
def p4(shared):
    """Nothing."""
    return shared("P4")


@pytest.fixture
def p0(shared):
    """The public internet; a wire."""
    return shared("P0")


@pytest.fixture
def p5(shared):
    """The public internet but the address of evil.test; a wire."""
    return shared("P5")


@pytest.fixture
def named(shared):
    """The public internet but the name evil.test: a wire, and all TCP through the proxy."""
    return shared("NAMED")
