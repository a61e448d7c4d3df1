"""The corpus has a test for each of its rows."""

from __future__ import annotations

import ast
import pathlib
import re
import tomllib

import pytest

HERE = pathlib.Path(__file__).parent
SECTIONS = tomllib.loads((HERE / "corpus.toml").read_text())
#: How many rows there are: one that is dropped from the list by mistake is missed, too.
ROWS = 142


def in_name(name: str) -> tuple[set[str], set[str]]:
    """The rows that a test's name has: each by itself (`a05`, `e95_e96`), and as a range (`a04_to_a20`)."""
    single, ranges = set(), set()
    for section, first, last in re.findall(r"(?<=_)([a-h])(\d+)(?:_to_\1(\d+))?(?=_)", name):
        if last:
            ranges |= {f"{section}{number}" for number in range(int(first), int(last) + 1)}
        else:
            single.add(f"{section}{int(first)}")
    return single, ranges


def functions() -> dict[str, str]:
    """The names of all test functions, with their files."""
    files = [*HERE.glob("test_*.py"), *(HERE.parent / "interop" / "python").glob("test_*.py")]
    return {
        node.name: str(file.relative_to(HERE.parent))
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def rows(policies) -> list[str]:
    return [
        f"{letter.lower()}{number}"
        for letter, section in SECTIONS.items()
        for policy, numbers in section.items()
        if policy != "about" and policies(policy)
        for number in numbers
    ]


@pytest.fixture(scope="module")
def covered() -> set[str]:
    return set().union(*(set().union(*in_name(name)) for name in functions()))


def test_names_are_read_right():
    assert in_name("test_a04_to_a06_x_b7") == (set(), {"a4", "a5", "a6"})
    assert in_name("test_e95_e96_e97_x") == ({"e95", "e96", "e97"}, set())
    assert in_name("test_p8_h159_x") == ({"h159"}, set())
    assert in_name("test_an_a1b_x_2") == (set(), set())


def test_each_row_is_listed_once_under_a_policy_there_is():
    listed = rows(lambda policy: True)
    assert len(listed) == len({int(row[1:]) for row in listed}) == ROWS
    assert {policy for section in SECTIONS.values() for policy in section} <= {f"P{n}" for n in range(9)} - {"P7"} | {"interception", "about"}


@pytest.mark.parametrize("row", rows(lambda policy: policy != "interception"))
def test_each_row_has_a_test_with_its_number(row, covered):
    assert row in covered, f"no test_{row}_… in attacks/ or interop/python/"


def test_no_test_has_the_number_of_a_row_there_is_not():
    listed = set(rows(lambda policy: True))
    strangers = {f"{file}::{name}": sorted(in_name(name)[0] - listed) for name, file in functions().items() if in_name(name)[0] - listed}
    assert strangers == {}
