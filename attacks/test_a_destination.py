"""Corpus section A: who the destination is, by name, server name and address."""

from __future__ import annotations

import pytest

import probes
import world
from world import ALLOWED, ALLOWED_V6, EVIL, EVIL_V6, block, datagrams, hello, nothing_reaches, request, speak

REFUSED_TLS = "alert 49"


@pytest.mark.parametrize("way", ["sni", "hosts_file", "resolve_option"])
def test_a01_a02_a03_a_permitted_name_at_another_address_reaches_only_its_own(lab, p1, way):
    before = len(lab.sink_lines())
    if way == "sni":
        assert speak(p1, [(EVIL, 443, hello(b"allowed.test"))]) == ["refused"]
    elif way == "hosts_file":
        done = p1.commands.run(f"echo '{EVIL} allowed.test' >> /etc/hosts", user="root")
        assert done.exit_code == 0, done.stderr
        assert not probes.tls(p1, "allowed.test", "allowed.test")["ok"]
        p1.commands.run("sed -i '$d' /etc/hosts 2>/dev/null || sed '$d' /etc/hosts > /tmp/h && cat /tmp/h > /etc/hosts", user="root")
    else:
        # What --resolve and --connect-to do: the address of another host, bound or not, is not what is dialled.
        assert speak(p1, [(EVIL, 80, request("allowed.test"))]) == ["refused"]
    world.twin(lab, p1)
    assert not [line for line in lab.sink_lines()[before:] if line["destination"] == EVIL]


def test_a01_a_permitted_name_at_the_address_of_another_permitted_name_goes_to_its_own(lab, sandbox):
    box = sandbox(network={"allow_out": ["allowed.test", "other.test"]})
    world.bind(box, "allowed.test")
    assert world.bind(box, "other.test") == [world.OTHER]
    token = probes.canary()
    assert speak(box, [(world.OTHER, 80, request("allowed.test", f"/{token}"))]) == ["http 200"]
    assert {line["destination"] for line in lab.seen(token)} == {ALLOWED}


NAMES = {
    "a04_another_name": ([b"evil.test"], "deny_entry"),
    "a05_a_name_on_a_shared_address": ([b"sib.test"], "deny_entry"),
    "a06_no_name": ([], "no_sni"),
    "a08_an_address": ([b"104.16.1.1"], "invalid_sni"),
    "a08_an_ipv6_address": ([b"[::1]"], "invalid_sni"),
    "a13_nul_after": ([b"allowed.test\0.evil.test"], "invalid_sni"),
    "a13_nul_before": ([b"evil.test\0.allowed.test"], "invalid_sni"),
    "a15_cyrillic": ("\u0430llowed.test".encode(), "invalid_sni"),
    "a15_homoglyph": ([b"xn--llowed-2fg.test"], "deny_entry"),
    "a17_too_long": ([b"a." * 130 + b"allowed.test"], "invalid_sni"),
    "a17_empty_label": ([b"a..allowed.test"], "invalid_sni"),
    "a17_leading_dot": ([b".allowed.test"], "invalid_sni"),
    "a17_empty": ([b""], "invalid_sni"),
    "a17_two_dots_at_the_end": ([b"allowed.test.."], "invalid_sni"),
    "a20_suffix_of_a_label": ([b"notallowed.test"], "deny_entry"),
    "a20_permitted_name_as_a_prefix": ([b"allowed.test.evil.test"], "deny_entry"),
    "a20_longer_last_label": ([b"allowed.testevil"], "deny_entry"),
    "subdomain": ([b"x.allowed.test"], "deny_entry"),
    "blank": ([b"allowed.test "], "invalid_sni"),
    "two_names": ([b"allowed.test", b"evil.test"], "multiple_sni"),
    "the_same_name_twice": ([b"allowed.test", b"allowed.test"], "multiple_sni"),
}


def test_a04_to_a20_a_server_name_that_is_not_the_permitted_one_is_refused_with_one_event(lab, p1):
    with nothing_reaches(lab, p1):
        attempts, port = [], 9000
        ports = {}
        for case, (names, _) in NAMES.items():
            names = names if isinstance(names, list) else [names]
            ports[case] = port = port + 1
            attempts.append((ALLOWED, port, hello(*names)))
        results = dict(zip(NAMES, speak(p1, attempts), strict=True))
        assert {case: got for case, got in results.items() if got != REFUSED_TLS} == {}
    for case, (_, reason) in NAMES.items():
        event = block(lab, p1, address=ALLOWED, port=ports[case])
        assert event["reason"] == reason, (case, event)
        assert event["protocol"] == "tcp"


def test_a05_a_shared_address_is_refused_for_its_other_name_on_the_web_port(lab, p1):
    with nothing_reaches(lab, p1):
        assert speak(p1, [(ALLOWED, 443, hello(b"sib.test"))]) == [REFUSED_TLS]
        assert speak(p1, [(ALLOWED, 80, request("sib.test"))]) == ["http 403"]
    event = block(lab, p1, host="sib.test", port=443)
    assert event["rule"]["text"].startswith("deny_out[0]") and event["host_source"] == "sni"
    assert block(lab, p1, host="sib.test", port=80)["host_source"] == "host"


def test_a07_a_raw_connection_to_an_unlisted_address_is_one_event(lab, p1):
    with nothing_reaches(lab, p1):
        assert speak(p1, [(EVIL, 4441, hello()), (EVIL_V6, 4441, hello()), (world.OTHER, 4441, b"x")]) == ["refused"] * 3
    for address in (EVIL, EVIL_V6, world.OTHER):
        event = block(lab, p1, address=address, port=4441)
        assert event["reason"] == "deny_entry" and event["rule"]["text"].startswith("deny_out[0]")


def test_a11_a12_other_spellings_of_the_permitted_name_pass(lab, p1):
    spellings = [b"allowed.test", b"ALLOWED.Test", b"allowed.test."]
    assert speak(p1, [(ALLOWED, 443, hello(name)) for name in spellings[:2]]) == ["server hello"] * 2
    # A name with the final dot is none for many servers; it is judged as the same name and never goes elsewhere.
    before = len(lab.sink_lines())
    assert speak(p1, [(ALLOWED, 443, hello(spellings[2]))])[0] != "hang"
    world.twin(lab, p1)
    assert {line["destination"] for line in lab.sink_lines()[before:]} == {ALLOWED}


def test_a11_the_spellings_of_a_host_header_are_one_name(lab, p1):
    spellings = ["allowed.test", "ALLOWED.Test", "allowed.test.", "allowed.test:80"]
    assert speak(p1, [(ALLOWED, 80, request(host)) for host in spellings]) == ["http 200"] * len(spellings)


def test_a15_an_international_name_is_the_same_in_both_forms(lab, sandbox):
    box = sandbox(network={"allow_out": ["b\u00fccher.test"]})
    assert world.bind(box, "xn--bcher-kva.test") == ["104.16.6.6"]
    assert speak(box, [("104.16.6.6", 443, hello(b"xn--bcher-kva.test"))]) == ["server hello"]
    assert speak(box, [("104.16.6.6", 443, hello(b"bucher.test"))]) == [REFUSED_TLS]


def test_a18_a19_a_wildcard_takes_in_every_depth_and_not_its_apex(lab, p2):
    assert world.bind(p2, "x.allowed.test") == ["104.16.1.9"]
    assert world.bind(p2, "a.b.allowed.test") == ["104.16.1.9"]
    names = [b"x.allowed.test", b"a.b.allowed.test", b"allowed.test", b"notallowed.test", b"x.allowed.test.evil.test"]
    results = speak(p2, [("104.16.1.9", 443, hello(name)) for name in names])
    assert results == ["server hello", "server hello", REFUSED_TLS, REFUSED_TLS, REFUSED_TLS]
    assert world.bind(p2, "allowed.test") != [ALLOWED]


@pytest.mark.parametrize("entry", ["*.com", "*.co.uk", "*.*.x.test", "a*.x.test", "x.*", "**", "*.test"])
def test_a21_a_dangerous_wildcard_is_refused_by_the_api(lab, entry):
    status, body = lab.request("POST", "/sandboxes", {"template": "python", "network": {"allow_out": ["ok.example.com", entry]}})
    assert status == 400 and "allow_out[1]" in body["message"], body


def test_a22_a23_a25_an_expression_matches_whole_names_in_any_case(lab, shared):
    box = shared("P6")
    cases = {
        "allowed.test": True,
        "ALLOWED.TEST": True,
        "x.allowed.test": True,
        "allowed.test.evil.test": False,
        "x-allowed.test": False,
        "allowedxtest": False,
        "api.anthropic.com": True,
        "anthropic.com.evil.com": False,
    }
    for name, permitted in cases.items():
        found = [address for address in world.bind(box, name) if not address.startswith("198.18.")]
        assert bool(found) == permitted, (name, found)


@pytest.mark.parametrize("pattern", ["~" + "|".join(["abcdef"] * 10_000), "~((a{99}){99}){99}", "~(a", "~"])
def test_a26_an_expression_that_would_cost_too_much_is_refused(lab, pattern):
    status, body = lab.request("POST", "/sandboxes", {"template": "python", "network": {"allow_out": [pattern]}})
    assert status == 400 and "allow_out[0]" in body["message"], body


def test_a26_nested_repetition_is_linear(lab, sandbox):
    box = sandbox(network={"allow_out": ["~(a+)+$", "allowed.test"]})
    assert world.bind(box, "a" * 60 + "." + "a" * 60 + "b")[0].startswith("198.18.")
    assert world.bind(box, "allowed.test") == [ALLOWED]


def test_a27_b49_a_name_with_a_port_is_permitted_on_that_port_only(lab, sandbox):
    box = sandbox(network={"allow_out": ["allowed.test:443"]})
    world.bind(box, "allowed.test")
    ports = [443, 80, 8443, 22, 25, 53, 444]
    results = speak(box, [(ALLOWED, port, hello(b"allowed.test")) for port in ports])
    assert results == ["server hello"] + ["refused"] * 6
    for port in ports[1:]:
        event = block(lab, box, address=ALLOWED, port=port)
        assert event["host"] == "allowed.test", event


def test_a27_a_name_without_a_port_is_permitted_on_every_port(lab, p1):
    assert speak(p1, [(ALLOWED, port, hello(b"allowed.test")) for port in (8443, 5432, 9999)]) == ["server hello"] * 3


def test_a28_an_address_entry_passes_whatever_name_is_said_and_is_recorded(lab, p3):
    token = probes.canary()
    assert speak(p3, [(ALLOWED, 8082, request("evil.test", f"/{token}")), (EVIL, 8082, request("evil.test"))]) == ["http 200", "refused"]
    assert {line["destination"] for line in lab.seen(token)} == {ALLOWED}
    events = lab.wait_for_events(p3.sandbox_id, lambda events: any(e["type"] == "egress_allowed" and e.get("port") == 8082 for e in events))
    allowed = [event for event in events if event["type"] == "egress_allowed" and event.get("port") == 8082]
    assert len(allowed) == 1 and allowed[0]["address"] == ALLOWED and allowed[0]["rule"]["text"].startswith("allow_out[0]")
    block(lab, p3, address=EVIL, port=8082)


def test_a30_no_notation_of_a_denied_address_gets_past(lab, p5):
    targets = [EVIL, f"::ffff:{EVIL}", "64:ff9b::b9c7:6d42", "2002:b9c7:6d42::1", f"::{EVIL}"]
    with nothing_reaches(lab, p5):
        assert set(speak(p5, [(target, 4442, b"x") for target in targets])) == {"refused"}
        assert set(datagrams(p5, [(target, 4442, b"x") for target in targets])) == {"refused"}
    assert block(lab, p5, address=EVIL, port=4442, protocol="tcp", count=2)["rule"]["text"].startswith("deny_out[0]")


def test_a31_long_lists_duplicates_and_overlaps_mean_what_they_say(lab, sandbox):
    many = [f"104.{17 + number // 65536}.{number // 256 % 256}.{number % 256}" for number in range(4500)]
    box = sandbox(network={"allow_out": [*many, "104.16.0.0/16", "104.16.1.0/24", ALLOWED, ALLOWED, "8.8.8.0/25"]})
    results = speak(box, [(ALLOWED, 80, request("x")), (many[-1], 80, request("x")), ("104.16.255.255", 80, request("x")), ("8.8.8.127", 80, request("x")), ("8.8.8.128", 80, request("x")), ("104.15.255.255", 80, request("x")), (EVIL, 80, request("x"))])
    assert results == ["http 200"] * 4 + ["refused"] * 3


def test_a32_an_empty_allow_list_beside_deny_all_is_a_blackout(lab, sandbox):
    box = sandbox(network={"allow_out": [], "deny_out": ["0.0.0.0/0"]})
    before = len(lab.sink_lines())
    assert speak(box, [(ALLOWED, 443, b"x"), (EVIL, 80, b"x"), ("8.8.8.8", 53, b"x"), (ALLOWED_V6, 443, b"x")]) == ["refused"] * 4
    token = probes.canary()
    assert probes.lookup(box, f"{token}.test")["value"]["rcode"] == 5
    assert not lab.asked(token) and lab.sink_lines()[before:] == []
