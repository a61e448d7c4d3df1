"""Corpus section C: HTTP/1 in clear."""

from __future__ import annotations

import pytest

import probes
import world
from world import ALLOWED, EVIL, block, nothing_reaches, request, speak


def test_c54_a_host_header_does_not_open_another_address(lab, p1):
    with nothing_reaches(lab, p1):
        assert speak(p1, [(EVIL, port, request("allowed.test")) for port in (80, 8080, 3000, 8000)]) == ["refused"] * 4


def test_c55_other_ports_are_judged_like_port_80(lab, p1):
    ports = [8080, 3000, 8000]
    assert speak(p1, [(ALLOWED, port, request("allowed.test")) for port in ports]) == ["http 200"] * 3
    with nothing_reaches(lab, p1):
        assert speak(p1, [(ALLOWED, port, request("sib.test")) for port in ports]) == ["http 403"] * 3
    for port in ports:
        assert block(lab, p1, host="sib.test", port=port)["host_source"] == "host"


SMUGGLED = {
    # The first request is a permitted one; what comes with it must not be taken for part of it, or for permitted.
    "second_request": request("allowed.test").replace(b"Connection: close\r\n", b"") + request("sib.test", "/{token}"),
    "absolute_second": request("allowed.test").replace(b"Connection: close\r\n", b"") + request("allowed.test", "http://evil.test/{token}"),
    "connect_second": request("allowed.test").replace(b"Connection: close\r\n", b"") + b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\nX: {token}\r\n\r\n",
    "cl_te": b"POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + request("sib.test", "/{token}"),
    "te_te": b"POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + request("sib.test", "/{token}"),
    "te_obfuscated": b"POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + request("sib.test", "/{token}"),
    "two_lengths": b"POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 0\r\nContent-Length: 60\r\n\r\n" + request("sib.test", "/{token}"),
    "length_with_a_sign": b"POST / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: +0\r\n\r\n" + request("sib.test", "/{token}"),
    "chunk_size_overflow": b"POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n" + request("sib.test", "/{token}"),
    "chunk_extension": b"POST / HTTP/1.1\r\nHost: allowed.test\r\nTransfer-Encoding: chunked\r\n\r\n0;x=\n\r\n\r\n" + request("sib.test", "/{token}"),
    "bare_lf": b"GET / HTTP/1.1\nHost: allowed.test\n\n" + request("sib.test", "/{token}"),
    "bare_cr": b"GET / HTTP/1.1\r\nHost: allowed.test\r\nX: a\rHost: sib.test\r\nY: {token}\r\n\r\n",
    "http_1_0_keep_alive": b"GET / HTTP/1.0\r\nHost: allowed.test\r\nConnection: keep-alive\r\n\r\n" + request("sib.test", "/{token}"),
    "a_body_of_a_get": b"GET / HTTP/1.1\r\nHost: allowed.test\r\nContent-Length: 0\r\n\r\n" + request("sib.test", "/{token}"),
    "websocket_without_101": b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + request("sib.test", "/{token}"),
}


@pytest.mark.parametrize("port", [80, 8080])
def test_c56_c69_no_second_request_rides_on_a_permitted_first(lab, p1, port):
    token = probes.canary()
    attempts = [(ALLOWED, port, data.replace(b"{token}", token.encode())) for data in SMUGGLED.values()]
    results = dict(zip(SMUGGLED, speak(p1, attempts), strict=True))
    world.twin(lab, p1)
    assert not lab.seen(token), results
    assert not [case for case, got in results.items() if got == "hang"], results


REFUSED = {
    "c58_absolute_form": (b"GET http://evil.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "http_absolute_form"),
    "c59_absolute_form_of_the_same_host": (b"GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "http_absolute_form"),
    "c59_userinfo": (b"GET http://allowed.test@evil.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "http_absolute_form"),
    "c60_connect": (b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n", "http_connect"),
    "c60_connect_to_the_permitted": (b"CONNECT allowed.test:443 HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n", "http_connect"),
    "c62_h2_preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), "http_h2c"),
    "c63_h2c": (b"GET / HTTP/1.1\r\nHost: allowed.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", "http_h2c"),
    "c65_blank_before_the_colon": (b"GET / HTTP/1.1\r\nHost : allowed.test\r\n\r\n", None),
    "c65_folded": (b"GET / HTTP/1.1\r\nHost: allowed.test\r\n evil.test\r\n\r\n", None),
    "c65_two_hosts": (b"GET / HTTP/1.1\r\nHost: allowed.test\r\nHost: evil.test\r\n\r\n", None),
    "c65_two_hosts_of_other_case": (b"GET / HTTP/1.1\r\nHost: allowed.test\r\nhOsT: allowed.test\r\n\r\n", None),
    "c66_no_host_1_0": (b"GET / HTTP/1.0\r\n\r\n", None),
    "c66_no_host": (b"GET / HTTP/1.1\r\n\r\n", None),
    "c66_empty_host": (b"GET / HTTP/1.1\r\nHost: \r\n\r\n", None),
    "c66_list_of_hosts": (b"GET / HTTP/1.1\r\nHost: allowed.test,evil.test\r\n\r\n", None),
    "host_with_a_path": (b"GET / HTTP/1.1\r\nHost: allowed.test/evil.test\r\n\r\n", None),
    "host_with_userinfo": (b"GET / HTTP/1.1\r\nHost: allowed.test@evil.test\r\n\r\n", None),
    "host_with_nul": (b"GET / HTTP/1.1\r\nHost: allowed.test\0.evil.test\r\n\r\n", None),
    "host_with_another_port": (b"GET / HTTP/1.1\r\nHost: allowed.test:22\r\n\r\n", None),
    "host_with_two_dots": (b"GET / HTTP/1.1\r\nHost: allowed.test..\r\n\r\n", None),
    "host_is_the_address": (b"GET / HTTP/1.1\r\nHost: 104.16.1.1\r\n\r\n", None),
    "host_is_another_address": (b"GET / HTTP/1.1\r\nHost: 185.199.109.66\r\n\r\n", None),
    "host_is_an_odd_address": (b"GET / HTTP/1.1\r\nHost: 0x68100101\r\n\r\n", None),
    "no_path": (b"GET evil.test HTTP/1.1\r\nHost: allowed.test\r\n\r\n", None),
    "double_slash_authority": (b"GET @evil.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n", None),
    "http_0_9": (b"GET /\r\n", None),
    "http_1_2_digits": (b"GET / HTTP/11\r\nHost: allowed.test\r\n\r\n", None),
    "tab_between": (b"GET\t/\tHTTP/1.1\r\nHost: sib.test\r\n\r\n", None),
    "blank_first": (b" GET / HTTP/1.1\r\nHost: sib.test\r\n\r\n", None),
    "empty_line_first": (b"\r\nGET / HTTP/1.1\r\nHost: sib.test\r\n\r\n", None),
    "lower_case": (b"get / http/1.1\r\nhost: sib.test\r\n\r\n", None),
    "unknown_method": (b"FROB / HTTP/1.1\r\nHost: sib.test\r\n\r\n", None),
    "header_without_end": (b"GET / HTTP/1.1\r\nHost: allowed.test\r\nX: " + b"a" * 70_000, None),
    "too_many_headers": (b"GET / HTTP/1.1\r\nHost: allowed.test\r\n" + b"a: b\r\n" * 5000 + b"\r\n", None),
}


@pytest.mark.parametrize("first_port", [80, 9200])
def test_c58_to_c66_requests_that_may_mean_another_host_are_refused_with_one_event(lab, p1, first_port):
    with nothing_reaches(lab, p1):
        # On the port of the web all share one port, elsewhere each has its own.
        ports = {case: first_port if first_port == 80 else first_port + index for index, case in enumerate(REFUSED)}
        results = speak(p1, [(ALLOWED, ports[case], data) for case, (data, _) in REFUSED.items()])
        outcomes = dict(zip(REFUSED, results, strict=True))
        assert {case: got for case, got in outcomes.items() if got not in ("http 403", "reset")} == {}
    if first_port != 80:
        for case, (_, reason) in REFUSED.items():
            event = block(lab, p1, port=ports[case], address=ALLOWED)
            assert reason in (None, event["reason"]), (case, event)


def test_c62_asterisk_form_is_for_the_permitted_host_only(lab, p1):
    results = speak(p1, [(ALLOWED, 80, request("allowed.test", "*", "OPTIONS")), (ALLOWED, 80, request("sib.test", "*", "OPTIONS"))])
    assert results == ["http 200", "http 403"]


def test_c65_c68_the_host_header_alone_counts_and_its_case_does_not(lab, p1):
    odd = b"GET / HTTP/1.1\r\nhOsT:\tallowed.test\t\r\nConnection: close\r\n\r\n"
    forwarded = request("allowed.test", more="X-Forwarded-Host: evil.test\r\nForwarded: host=evil.test\r\nX-Original-URL: http://evil.test/\r\nX-Host: evil.test\r\n")
    claimed = request("sib.test", more="X-Forwarded-Host: allowed.test\r\n")
    assert speak(p1, [(ALLOWED, 80, odd), (ALLOWED, 80, forwarded), (ALLOWED, 80, claimed)]) == ["http 200", "http 200", "http 403"]


def test_c78_what_waits_for_the_server_on_a_web_port_is_given_up_on(lab, p1):
    with nothing_reaches(lab, p1):
        assert speak(p1, [(ALLOWED, 80, b"\0\1\2\3"), (ALLOWED, 443, b"SSH-2.0-x\r\n"), (ALLOWED, 80, [])], wait=15) == ["reset"] * 3


def test_names_that_are_denied_under_an_open_policy_are_refused_wherever_they_are_said(lab, named):
    results = speak(named, [
        (EVIL, 443, world.hello(b"evil.test")), (ALLOWED, 443, world.hello(b"evil.test")), (ALLOWED, 443, world.hello(b"allowed.test")),
        (EVIL, 80, request("evil.test")), (ALLOWED, 80, request("evil.test")), (ALLOWED, 80, request("allowed.test")),
        (EVIL, 443, world.hello()), (EVIL, 80, b"\0\1\2"),
    ])
    assert results == ["alert 49", "alert 49", "server hello", "http 403", "http 403", "http 200", "alert 49", "reset"]
    assert world.bind(named, "evil.test")[0].startswith("198.18.")
    assert world.datagrams(named, [(EVIL, 443, b"q"), (EVIL, 9, b"q")]) == ["refused"] * 2
