"""Requests made from the API reference: whatever they ask, the answer is one that the reference has.

Schemathesis makes them from the document: for each operation the edges of what each field may be, and beyond, then
values by chance under a fixed seed. Most are about things that are there, see `api_reference.py`.
"""

from __future__ import annotations

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.config import GenerationConfig
from schemathesis.core.failures import FailureGroup
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

import conftest
from api_reference import DOCUMENT, Things
from test_accounts import Keys

#: Where chance begins.
SEED = 20_261_121
#: Requests by chance for each operation: so many that should be right, and as many that should not.
BY_CHANCE = 12
#: Edges of one operation, at most.
EDGES = 120
#: How long an answer may take, in seconds.
DEADLINE = 60
#: How long a stream is read that does not end, in seconds, and which of the requests for it ask for it.
READING, EVERY = 2, 16

#: Of what a program inside does not answer, and of what is not there, it is said that it is not the server that fails.
TOLD = {"not_implemented", "port_closed", "port_protocol", "port_silent"}


@schemathesis.check
def no_failure_but_what_is_told(ctx, response, case) -> None:
    """No status from 500 on, but one that the operation has, with the code that says why."""
    if response.status_code < 500:
        return
    known = str(response.status_code) in case.operation.definition.raw["responses"]
    code = response.json().get("code")
    assert known and code in TOLD, f"{response.status_code} with code {code}: {response.text}"


SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [operation.ok() for operation in SCHEMA.get_all_operations()]

#: What this account may not have done, or nobody.
NEVER_DONE = {"GET /metrics", "POST /accounts/{account}/deposits"}

CHECKS = [
    no_failure_but_what_is_told,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.unsupported_method,
    checks.allow_header_conformance,
]


@pytest.fixture(scope="module")
def things(lab):
    account = conftest.Lab(lab.variables)
    account.key = Keys(lab).create("reference")["api_key"]
    made = Things(account)
    yield made
    status, left = account.request("GET", "/sandboxes?limit=1000")
    assert status == 200
    for each in left["sandboxes"]:
        made.kill(each["sandbox_id"])


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        # Nothing of the environment: neither a proxy nor credentials.
        session.trust_env = False
        yield session


def test_the_reference_is_what_the_daemon_serves(lab):
    assert lab.request("GET", "/openapi.json") == (200, DOCUMENT)


class Asked:
    """Sends what is made for one operation, and keeps what is wrong with the answers."""

    def __init__(self, things: Things, session):
        self.things = things
        self.session = session
        self.statuses: list[int] = []
        self.wrong: dict[str, str] = {}

    def __call__(self, case) -> None:
        self.things.place(case)
        if case.method != case.operation.method.upper() and "{port}" in case.operation.path:
            return  # The program inside knows which methods there are.
        headers, deadline = {"X-API-Key": self.things.lab.key}, DEADLINE
        if case.operation.path.endswith("/watch") and len(self.statuses) % EVERY == 0:
            headers["Accept"], deadline = "text/event-stream", READING
        response = case.call(
            base_url=self.things.lab.api, session=self.session, headers=headers, timeout=deadline, allow_redirects=False
        )
        self.statuses.append(response.status_code)
        try:
            case.validate_response(response, checks=CHECKS, headers=headers)
        except FailureGroup as failures:
            for failure in failures.exceptions:
                self.wrong.setdefault(f"{type(failure).__name__} {response.status_code}", str(failures))
        self.things.after(case, response)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_request_gets_an_answer_that_the_reference_does_not_have(things, session, operation):
    asked = Asked(things, session)
    edges = SCHEMA.iter_coverage_cases(
        operation, generation_modes=list(GenerationMode), generation_config=GenerationConfig(deterministic=True)
    )
    for _, case in zip(range(EDGES), edges):
        asked(case)
    for mode in GenerationMode:

        @seed(SEED)
        @settings(
            max_examples=BY_CHANCE, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(mode))
        def by_chance(case):
            asked(case)

        try:
            by_chance()
        except Unsatisfiable:
            pass  # Nothing can be wrong about a request without parameters.
    assert not asked.wrong, f"seed {SEED}\n\n" + "\n\n".join(asked.wrong.values())
    done = [status for status in asked.statuses if status < 300]
    assert done or operation.label in NEVER_DONE, f"nothing was asked that can be done: {asked.statuses}"
