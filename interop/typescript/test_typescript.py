"""The published TypeScript client against the daemon: its suite beside this file, test by test."""

from __future__ import annotations

import subprocess

import pytest

from conftest import HERE, NODE, cases


@pytest.mark.parametrize(("file", "name"), cases(), ids=lambda part: part)
def test_client(run, file, name):
    wrong = run.results.get(name, f"{file} gave no result for it: {run.results.get(file)}\n{run.output}")
    if wrong:
        pytest.fail(wrong, pytrace=False)


def test_what_is_run_is_what_is_reported(run):
    names = [name for _, name in cases()]
    assert len(names) == len(set(names)), "two tests have one name"
    assert set(run.results) == set(names), run.output


def test_every_method_of_the_client_is_called(run):
    assert len(run.methods) > 100, "the methods are not seen"
    assert {method for method in run.methods - run.called if "._" not in method} == set()


def test_the_suite_agrees_with_the_published_types(client):
    command = [NODE, "node_modules/typescript/bin/tsc", "--project", "."]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
