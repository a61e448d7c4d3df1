"""Every form of policy entry does what it says, with the published client."""

from __future__ import annotations

import pytest
from declaw import ALL_TRAFFIC, AuditConfig, NetworkPolicy, SecurityPolicy

import probes

GITHUB = "140.82.112.5"
OPENAI = "162.159.140.246"
ANTHROPIC = "160.79.104.11"
EVIL = "185.199.108.66"


def answered(result: dict) -> bool:
    return result["ok"] and "200 OK" in result["value"]


def test_an_exact_entry_is_that_host_and_no_other(lab, sandbox):
    box = sandbox(network={"allow_out": ["api.openai.com"], "deny_out": [ALL_TRAFFIC]})
    assert answered(probes.tls(box, "api.openai.com", "api.openai.com"))
    token = probes.canary()
    refused = probes.tls(box, "files.openai.com", "files.openai.com", path=f"/{token}")
    assert refused["error"] == "ConnectionRefusedError", refused
    assert not lab.seen(token)


def test_a_wildcard_is_every_subdomain_and_not_the_apex(lab, sandbox):
    box = sandbox(
        security=SecurityPolicy(
            network=NetworkPolicy(allow_out=["*.openai.com", "files.example.org"], deny_out=[ALL_TRAFFIC])
        )
    )
    for name in ["files.openai.com", "a.b.openai.com", "files.example.org"]:
        assert answered(probes.tls(box, name, name)), name
    for name in ["openai.com", "www.example.org", "evil.com"]:
        asked = len(lab.queries_for(name))
        assert probes.connect(box, name, 443)["error"] == "ConnectionRefusedError", name
        assert len(lab.queries_for(name)) == asked, name


def test_a_regular_expression_is_anchored(lab, sandbox):
    box = sandbox(network={"allow_out": [r"~.*\.anthropic\.com"], "deny_out": [ALL_TRAFFIC]})
    assert answered(probes.tls(box, "api.anthropic.com", "api.anthropic.com"))
    assert probes.connect(box, "api.anthropic.com.evil.com", 443)["error"] == "ConnectionRefusedError"
    assert not lab.asked("anthropic.com.evil.com")


def test_addresses_and_ranges_are_reached_without_a_name(lab, sandbox):
    box = sandbox(network={"allow_out": ["1.1.1.1", "10.0.0.0/8"], "deny_out": [ALL_TRAFFIC]})
    for address in ["1.1.1.1", "10.9.8.7"]:
        token = probes.canary()
        assert answered(probes.http(box, address, "whatever.example", 8080, path=f"/{token}")), address
        assert lab.seen(token)
    token = probes.canary()
    refused = probes.http(box, "11.0.0.1", "whatever.example", 8080, path=f"/{token}")
    assert refused["error"] == "ConnectionRefusedError", refused
    assert not lab.seen(token)


def test_allow_beats_deny_whatever_the_order(lab, sandbox):
    box = sandbox(network={"deny_out": [ALL_TRAFFIC, "api.github.com"], "allow_out": ["api.github.com"]})
    assert answered(probes.tls(box, "api.github.com", "api.github.com"))


@pytest.mark.parametrize("network", [None, {"allow_out": ["1.1.1.1"], "deny_out": [ALL_TRAFFIC]}])
def test_the_metadata_service_is_dead_under_every_policy(lab, sandbox, network):
    box = sandbox(**({"network": network} if network else {}))
    for address in ["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200"]:
        token = probes.canary()
        assert not probes.http(box, address, "metadata", path=f"/{token}")["ok"], address
        assert not lab.seen(token)


def test_without_a_policy_the_internet_is_open(lab, sandbox):
    box = sandbox()
    token = probes.canary()
    assert answered(probes.http(box, EVIL, "evil.com", path=f"/{token}"))
    assert lab.seen(token)
    assert answered(probes.tls(box, "evil.com", "evil.com"))


def test_a_deny_entry_closes_that_address_only(lab, sandbox):
    box = sandbox(network={"deny_out": [f"{EVIL}/32"]})
    assert probes.connect(box, EVIL, 80)["error"] == "ConnectionRefusedError"
    assert answered(probes.http(box, "93.184.216.34", "example.com"))


def test_names_resolve_without_an_entry_for_the_resolver(lab, sandbox):
    box = sandbox(network={"allow_out": ["api.github.com"], "deny_out": [ALL_TRAFFIC]})
    found = probes.lookup(box, "api.github.com", server="8.8.8.8")
    assert found["value"]["addresses"] == [GITHUB], found


def test_a_blackout_resolves_nothing_and_reaches_nothing(lab, sandbox):
    box = sandbox(allow_internet_access=False)
    token = probes.canary()
    refused = probes.lookup(box, f"{token}.github.com")
    assert refused["value"]["rcode"] == 5, refused
    assert not lab.asked(token)
    assert not probes.connect(box, GITHUB, 443)["ok"]


def test_every_decision_is_an_event_with_name_address_port_and_rule(lab, sandbox):
    box = sandbox(network={"allow_out": ["api.github.com"], "deny_out": [ALL_TRAFFIC]})
    assert answered(probes.tls(box, "api.github.com", "api.github.com"))
    assert not probes.connect(box, "evil.com", 443)["ok"]
    events = lab.wait_for_events(
        box.sandbox_id,
        lambda events: {event["type"] for event in events} >= {"egress_allowed", "egress_blocked"},
    )
    allowed = [event for event in events if event["type"] == "egress_allowed"]
    blocked = [event for event in events if event["type"] == "egress_blocked"]
    assert [(event["host"], event["address"], event["port"]) for event in allowed] == [
        ("api.github.com", GITHUB, 443)
    ]
    assert allowed[0]["rule"]["text"] == "allow_out[0] api.github.com"
    assert [(event["host"], event["port"]) for event in blocked] == [("evil.com", 443)]
    assert blocked[0]["address"].startswith("198.1")


def test_audit_can_be_switched_off_for_a_sandbox(lab, sandbox):
    box = sandbox(security=SecurityPolicy(audit=AuditConfig(enabled=False)))
    probes.connect(box, "169.254.169.254", 80)
    probes.connect(box, EVIL, 80)
    twin = sandbox()
    probes.connect(twin, "169.254.169.254", 80)
    lab.wait_for_events(twin.sandbox_id, lambda events: any(e["type"] == "egress_blocked" for e in events))
    events = lab.events(box.sandbox_id)
    assert events, "life-cycle events are always kept"
    assert not [event for event in events if event["category"] == "network"]
