"""The table that docs/compatibility.md is made from says what is so: of the routes, and of the tests it names."""

from __future__ import annotations

import json
import re

import pytest

import compatibility
import test_absent

#: How many points there are on which clients and their documentation say different things: one that is dropped from the
#: table by mistake is missed, too.
CONTRADICTIONS = 33
OPENAPI = compatibility.INTEROP.parent / "docs" / "reference" / "openapi.json"
ABSENT_ROUTES = compatibility.CRATES / "server" / "src" / "absent.rs"


def without_names(requests) -> list[tuple[str, str]]:
    """Requests, whatever the parts of their paths are called that differ each time."""
    return sorted((method, re.sub(r"{\w+}", "{}", path)) for method, path in requests)


def test_tests_are_found_by_their_names_in_three_languages():
    for test in [
        "test_compatibility.py::test_tests_are_found_by_their_names_in_three_languages",
        "test_async.py::test_files_are_what_was_written",
        "absent.test.ts::snapshots are not there",
        "server/tests/access.rs::the_document_has_every_route_and_nothing_else",
        "api/src/security.rs::audit_can_be_switched_off",
    ]:
        assert compatibility.is_there(test), test
    for other in [
        "test_async.py::eventually",
        "test_nowhere.py::test_files_are_what_was_written",
        "absent.test.ts::snapshots are",
        "server/tests/access.rs::with_headers",
        "test_async.py",
    ]:
        assert not compatibility.is_there(other), other


@pytest.mark.parametrize("row", compatibility.rows())
def test_each_row_names_tests_that_there_are(row):
    tests = compatibility.rows()[row]
    assert tests, f"nothing shows {row}"
    missing = [test for test in tests if not compatibility.is_there(test)]
    assert not missing, f"{row}: {missing}"


def test_every_contradiction_is_there_once():
    topics = [row["topic"] for row in compatibility.TABLE["contradiction"]]
    assert len(topics) == len(set(topics)) == CONTRADICTIONS
    listed = [row["topic"] for row in compatibility.TABLE["difference"]]
    assert len(listed) == len(set(listed)) and not set(listed) & set(topics)


def test_the_requests_that_work_are_those_of_the_document():
    paths = json.loads(OPENAPI.read_text())["paths"]
    documented = [(method.upper(), path) for path, item in paths.items() for method in item if method.upper() in compatibility.METHODS]
    assert without_names(compatibility.working()) == without_names(documented)


def test_the_requests_that_are_not_there_are_those_of_which_the_server_says_so():
    routes = re.findall(r'\(([A-Z.or()]+), "([^"]+)", "([^"]+)"\)', ABSENT_ROUTES.read_text())
    served = [(method, path, what) for methods, path, what in routes for method in re.findall(r"[A-Z]+", methods)]
    assert len(served) > 40, "the list of the server is not read"
    table = compatibility.absent()
    assert without_names(each[:2] for each in table) == without_names(each[:2] for each in served)
    names = {without_names([each[:2]])[0]: each[2] for each in served}
    assert {without_names([each[:2]])[0]: each[2] for each in table} == names


def test_the_daemon_says_of_each_request_that_is_not_there_what_is_missing(lab, sandbox):
    box = sandbox()
    for method, path, what in compatibility.absent():
        path = re.sub(r"{\w+}", "x-1", path.replace("{id}", box.sandbox_id))
        status, answer = lab.request(method, path, {} if method in ("POST", "PUT", "PATCH") else None)
        expected = {"message": f"{what}: not implemented by this server", "code": "not_implemented"}
        assert (status, answer) == (501, expected), (method, path)


def test_a_request_that_works_is_not_among_those(lab):
    ours = set(without_names(compatibility.working()))
    assert not ours & set(without_names(each[:2] for each in compatibility.absent()))
    assert lab.request("GET", "/sandboxes")[0] == 200


#: What a field has when it is used.
USED = {"snapshot_id": "snap-1", "vault_refs": {"KEY": "vault://t/prod/key"}, "volumes": [{"volume_id": "vol-1", "mount_path": "/d"}]}


@pytest.mark.parametrize("field", [each for part in compatibility.TABLE["absent"] for each in part.get("fields", [])])
def test_a_sandbox_that_asks_for_what_is_not_there_is_refused_by_field(lab, field):
    section = field.removeprefix("security.")
    if section in USED:
        body = {section: USED[section]}
    else:
        asked = test_absent.INSPECTION[section]
        body = {"security": {section: [{"match": "a", "replace": "b"}] if isinstance(asked, list) else {"enabled": True}}}
    status, answer = lab.request("POST", "/sandboxes", {"template": "python", "timeout": 60, **body})
    assert status == 501 and answer["message"].startswith(f"{field}: "), answer


def test_no_field_that_asks_for_inspection_of_content_is_missing_from_the_table():
    listed = {each for part in compatibility.TABLE["absent"] for each in part.get("fields", [])}
    assert {f"security.{field}" for field in test_absent.INSPECTION} <= listed


def test_what_is_no_part_of_this_server_is_not_found(lab):
    for path in ("/analyze", "/api/v1/scan"):
        status, answer = lab.request("POST", path, {"prompts": ["a"]})
        assert status == 404 and "no such route" in answer["message"], answer
