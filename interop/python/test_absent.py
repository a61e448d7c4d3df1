"""What the server does not have: both halves of the client are told so by name, and never that something was done."""

from __future__ import annotations

import asyncio
import concurrent.futures

import declaw
import pytest
from declaw.api.async_client import get_shared_async_client, reset_async_shared_clients
from declaw.api.client import get_shared_client

SCOPES = [{"domain_regex": "example.com"}]


def template():
    return declaw.TemplateBase().from_base_image("debian:12").apt_install("curl").run_cmd(["true"])


def next_items(pages):
    assert pages.has_next
    return pages.next_items()


def attempts(api, box, client) -> dict[str, list]:
    """One call of each method, by what it is about. `api` has the classes of one half of the client."""
    volumes, files, locks = api["Volumes"], api["Volumes"].files("vol-1"), api["Volumes"].locks("vol-1")
    vault = api["VaultClient"]()
    templates, packs = api["Template"], api["GovernancePacks"]
    return {
        "snapshots": [
            lambda: box.snapshot(),
            lambda: box.create_snapshot(),
            lambda: box.list_snapshots(),
            lambda: box.delete_snapshot("snap-1"),
            lambda: api["Sandbox"].restore(box.sandbox_id, snapshot_id="snap-1"),
            lambda: next_items(api["SnapshotPaginator"](client, sandbox_id=box.sandbox_id, limit=1)),
        ],
        "building templates over the API": [
            lambda: templates.build(template(), "mine"),
            lambda: templates.build_in_background(template(), "mine"),
            lambda: templates.rebuild("tpl-1"),
            lambda: templates.rebuild_in_background("tpl-1"),
            lambda: templates.get_build_status("build-1"),
        ],
        "volumes": [
            lambda: volumes.create("mine"),
            lambda: volumes.create("mine", b"\x1f\x8b"),
            lambda: volumes.empty("mine"),
            lambda: volumes.ingest("mine", b"\x1f\x8b"),
            lambda: volumes.snapshot(box.sandbox_id, "/tmp"),
            lambda: volumes.commit(box.sandbox_id, "vol-1"),
            lambda: volumes.get("vol-1"),
            lambda: volumes.list(),
            lambda: volumes.download("vol-1"),
            lambda: volumes.delete("vol-1"),
            lambda: files.write("/a", b"x"),
            lambda: files.read("/a"),
            lambda: files.list(),
            lambda: files.info("/a"),
            lambda: files.exists("/a"),
            lambda: files.remove("/a"),
            lambda: files.rename("/a", "/b"),
            lambda: files.mkdir("/d"),
            lambda: locks.acquire("/a"),
            lambda: locks.release("/a", "token"),
            lambda: locks.renew("/a", "token"),
            lambda: locks.status("/a"),
        ],
        "the vault": [
            lambda: vault.create_secret("value", name="mine", scopes=SCOPES),
            lambda: vault.list_secrets(),
            lambda: vault.rotate_secret("mine", "value"),
            lambda: vault.update_scopes("mine", SCOPES),
            lambda: vault.delete_secret("mine"),
            lambda: vault.list_presets(),
        ],
        "governance packs": [lambda: packs.list(), lambda: packs.get("owasp-llm-top10")],
    }


CLASSES = ["GovernancePacks", "Sandbox", "SnapshotPaginator", "Template", "VaultClient", "Volumes"]
SYNCHRONOUS = {name: getattr(declaw, name) for name in CLASSES}
ASYNCHRONOUS = {name: getattr(declaw, f"Async{name}") for name in CLASSES}


def check(results: list[tuple[str, object]]) -> None:
    for what, outcome in results:
        assert type(outcome) is declaw.SandboxException, f"{what}: {outcome!r}"
        assert str(outcome) == f"HTTP 501: {what}: not implemented by this server"
        assert outcome.code == "not_implemented"


def test_what_is_not_there_is_told_by_name(sandbox):
    wanted = attempts(SYNCHRONOUS, sandbox(), get_shared_client(declaw.ConnectionConfig()))
    calls = [(what, call) for what, each in wanted.items() for call in each]

    def outcome(call):
        try:
            return call()
        except Exception as error:
            return error

    # The client tries each of them again and again.
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        check(list(zip((what for what, _ in calls), pool.map(outcome, (call for _, call in calls)))))


def test_the_asynchronous_half_is_told_the_same(lab):
    async def whole():
        box = await declaw.AsyncSandbox.create()
        wanted = attempts(ASYNCHRONOUS, box, await get_shared_async_client(declaw.ConnectionConfig()))
        calls = [(what, call) for what, each in wanted.items() for call in each]
        outcomes = await asyncio.gather(*(call() for _, call in calls), return_exceptions=True)
        await box.kill(wait=True)
        await reset_async_shared_clients()
        return list(zip((what for what, _ in calls), outcomes))

    check(asyncio.run(whole()))


INSPECTION = {
    "pii": declaw.PIIConfig(enabled=True),
    "injection_defense": declaw.InjectionDefenseConfig(enabled=True, domains=["example.com"]),
    "transformations": [declaw.TransformationRule(match="a", replace="b")],
    "toxicity": declaw.ToxicityConfig(enabled=True),
    "code_security": declaw.CodeSecurityConfig(enabled=True),
    "invisible_text": declaw.InvisibleTextConfig(enabled=True),
    "content_gate": declaw.ContentGateConfig(enabled=True, domains=["example.com"]),
    "custom_policy": declaw.CustomPolicyConfig(enabled=True, inline_rego="deny := false"),
}


@pytest.mark.parametrize("field", INSPECTION)
def test_a_sandbox_that_asks_for_inspection_of_content_is_refused_and_not_made_without_it(sandbox, field):
    with pytest.raises(declaw.SandboxException, match=f"HTTP 501: .*{field}"):
        sandbox(security=declaw.SecurityPolicy(**{field: INSPECTION[field]}))
