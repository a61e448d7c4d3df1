"""The table of what the published clients find, and what it names."""

from __future__ import annotations

import ast
import functools
import pathlib
import re
import tomllib

INTEROP = pathlib.Path(__file__).resolve().parents[1]
CRATES = INTEROP.parent / "crates"
TABLE = tomllib.loads((INTEROP / "compatibility.toml").read_text())
#: What `ANY` stands for.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def requests(listed) -> list[tuple[str, str]]:
    """Method and path of each."""
    split = [request.split(" ", 1) for request in listed]
    return [(each, path) for method, path in split for each in (METHODS if method == "ANY" else (method,))]


def working() -> list[tuple[str, str]]:
    return [each for area in TABLE["area"] for each in requests(area.get("endpoints", {}))]


def absent() -> list[tuple[str, str, str]]:
    """Method, path, and what would be there."""
    return [(*each, part["name"]) for part in TABLE["absent"] for each in requests(part.get("endpoints", []))]


def rows() -> dict[str, list[str]]:
    """Everything that the table says, with the tests that show it."""
    found = {}
    for area in TABLE["area"]:
        endpoints = area.get("endpoints", {})
        found |= {request: endpoint["tests"] for request, endpoint in endpoints.items()}
        if not endpoints:
            found[area["title"]] = area["tests"]
    for kind, title in (("absent", "name"), ("contradiction", "topic"), ("difference", "topic")):
        found |= {f"{kind}: {row[title]}": row["tests"] for row in TABLE[kind]}
    return found


@functools.cache
def tests_in(file: str) -> set[str]:
    """The names of the tests in a file as the table names it: by its name here, or by its path below crates."""
    if file.endswith(".rs"):
        return set(re.findall(r"#\[(?:tokio::)?test[^]]*\]\s*(?:#\[[^]]*\]\s*)*(?:async )?fn (\w+)", (CRATES / file).read_text()))
    if file.endswith(".ts"):
        return set(re.findall(r'^test\("([^"]+)"', (INTEROP / "typescript" / file).read_text(), re.MULTILINE))
    tree = ast.parse((INTEROP / "python" / file).read_text())
    functions = (node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))
    return {node.name for node in functions if node.name.startswith("test_")}


def is_there(test: str) -> bool:
    file, _, name = test.partition("::")
    try:
        return name in tests_in(file)
    except OSError:
        return False
