"""Ports inside a sandbox, by the addresses that the published client gives for them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pathlib
import socket
import urllib.parse

import httpx
import httpx2
import mcp
import pytest
import websockets.sync.client
from mcp.client.streamable_http import streamable_http_client

import machine
from streams import eventually

SERVICE = (pathlib.Path(__file__).parent / "service.py").read_text()


@pytest.fixture
def serving(lab, sandbox):
    """Makes a sandbox with the service in it; gives both the sandbox and a client for the service's address."""
    with contextlib.ExitStack() as clients:

        def serve(address: str = "127.0.0.1", port: int = 3000, **arguments):
            box = sandbox(**arguments)
            listen(box, address, port)
            client = httpx.Client(base_url=box.get_host(port), headers={"X-API-Key": lab.key}, timeout=60)
            return box, clients.enter_context(client)

        yield serve


def listen(box, address: str, port: int) -> None:
    box.files.write("/tmp/service.py", SERVICE)
    box.commands.run(f"python3 -u /tmp/service.py {address} {port}", background=True)
    # By its hexadecimal number, in the state of a listener.
    listens = f"grep -q ':{port:04X} 0*:0000 0A' /proc/net/tcp /proc/net/tcp6"
    eventually("it listens", lambda: box.commands.run(listens).exit_code == 0)


def noted(box, text: str) -> bool:
    return text in box.commands.run("cat /tmp/service.log").stdout


def headers_of(said: dict) -> dict[str, str]:
    assert len(said["headers"]) == len(dict(said["headers"])), said
    return dict(said["headers"])


def raw(lab, box, port: int, method: str, below: str = "/", lines: str = "") -> socket.socket:
    """A connection on which the head of a request has been sent."""
    at = urllib.parse.urlsplit(box.get_host(port))
    client = socket.create_connection((at.hostname, at.port), timeout=60)
    head = f"{method} {at.path}{below} HTTP/1.1\r\nHost: {at.netloc}\r\nX-API-Key: {lab.key}\r\n{lines}\r\n"
    client.sendall(head.encode())
    return client


def test_every_method_arrives_with_its_path_its_query_and_its_body(lab, serving):
    box, client = serving()
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"]:
        said = client.request(method, "/a%20b/c?d=e&d=%2F", content=b"body").json()
        assert (said["method"], said["path"], said["length"]) == (method, "/a%20b/c?d=e&d=%2F", 4)
    # As `get_host` gives it, without a slash at the end, and with one.
    for address in [box.get_host(3000), box.get_host(3000) + "/"]:
        assert httpx.get(address, headers={"X-API-Key": lab.key}).json()["path"] == "/"
    head = client.head("/")
    assert head.status_code == 200 and int(head.headers["content-length"]) > 0 and head.content == b""


def test_the_key_stays_outside_and_what_is_for_the_service_goes_in(lab, serving):
    box, client = serving()
    headers = headers_of(client.get("/", headers={"Authorization": "Bearer of-the-service", "Cookie": "a=b"}).json())
    assert headers["authorization"] == "Bearer of-the-service"
    assert "x-api-key" not in headers and "cookie" not in headers and lab.key not in str(headers)
    assert headers["host"] == "localhost:3000"
    assert headers["x-forwarded-prefix"] == f"/sandboxes/{box.sandbox_id}/ports/3000"
    said = httpx.get(box.get_host(3000), headers={"Authorization": f"Bearer {lab.key}"}).json()
    assert "authorization" not in headers_of(said) and lab.key not in str(said)


def test_large_bodies_arrive_whole_with_a_length_and_in_chunks(serving):
    _, client = serving()
    body = os.urandom(1 << 20) * 20
    for content in [body, (body[at : at + 70_000] for at in range(0, len(body), 70_000))]:
        said = client.put("/", content=content).json()
        assert (said["length"], said["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_events_arrive_while_the_answer_goes_on(serving):
    _, client = serving()
    with client.stream("GET", "/events") as response:
        lines = (line for line in response.iter_lines() if line)
        assert response.headers["content-type"] == "text/event-stream"
        assert next(lines) == "data: 1"
        assert client.post("/go").status_code == 200
        assert list(lines) == ["data: 2"]


def test_a_client_that_speaks_http_2_is_served_as_well(lab, serving):
    box, _ = serving()
    with httpx.Client(http1=False, http2=True, headers={"X-API-Key": lab.key}, base_url=box.get_host(3000)) as client:
        said = client.put("/x?y", content=(piece for piece in [b"one", b"two"])).json()
        assert (said["method"], said["path"], said["length"]) == ("PUT", "/x?y", 6)
        assert headers_of(said)["host"] == "localhost:3000" and "x-api-key" not in headers_of(said)
        with client.stream("GET", "/events") as response:
            assert response.http_version == "HTTP/2"
            lines = (line for line in response.iter_lines() if line)
            assert next(lines) == "data: 1"
            assert client.post("/go").status_code == 200
            assert list(lines) == ["data: 2"]


def web_socket(lab, box):
    """An open WebSocket of the `websockets` library."""
    url = box.get_host(3000).replace("http", "ws", 1) + "/ws"
    return websockets.sync.client.connect(url, additional_headers={"X-API-Key": lab.key}, max_size=None)


def ended(client) -> None:
    """Waits until a WebSocket is cut."""
    with pytest.raises(websockets.exceptions.ConnectionClosedError):
        client.recv(60)


def test_a_web_socket_carries_messages_both_ways_and_ends_with_its_client(lab, serving):
    box, _ = serving()
    with web_socket(lab, box) as client:
        for message in ["text", os.urandom(300), os.urandom(1 << 20)]:
            client.send(message)
            assert client.recv() == message
        assert client.ping().wait(60)
    assert client.close_code == 1000
    assert noted(box, "web socket ended")
    box.commands.run("rm /tmp/service.log")
    client = web_socket(lab, box)
    client.socket.shutdown(socket.SHUT_RDWR)
    eventually("the service is told", lambda: noted(box, "web socket ended"))


def test_an_mcp_server_is_where_the_client_says(lab, serving):
    box, _ = serving(port=50005)

    async def talk():
        client = httpx2.AsyncClient(headers={"X-API-Key": lab.key}, timeout=60)
        async with streamable_http_client(box.get_mcp_url(), http_client=client) as streams:
            async with mcp.ClientSession(streams[0], streams[1]) as session:
                begun = await session.initialize()
                assert begun.server_info.name == "inside"
                done = await session.call_tool("say", {})
                assert done.content[0].text == "done"

    asyncio.run(talk())


@pytest.mark.parametrize("address", ["0.0.0.0", "::1", "::", "100.64.0.2", "fd62:6169:6c69::2"])
def test_a_service_is_found_on_whatever_address_of_the_sandbox_it_listens(serving, address):
    _, client = serving(address=address)
    assert client.get("/").json()["method"] == "GET"


def test_what_cannot_be_reached_says_why(lab, serving):
    box, client = serving()
    base = f"/sandboxes/{box.sandbox_id}/ports"
    status, answer = lab.request("GET", f"{base}/3001/x")
    assert (status, answer["code"]) == (502, "port_closed") and "port 3001" in answer["message"], answer
    status, answer = lab.request("GET", f"{base}/49983/")
    assert (status, answer["code"]) == (403, "port_reserved"), answer
    for port in ["0", "65536", "http", "-1"]:
        status, answer = lab.request("GET", f"{base}/{port}/")
        assert status == 400 and answer["message"].startswith("port: "), answer
    assert httpx.get(box.get_host(3000)).status_code == 401
    assert lab.request("GET", "/sandboxes/sbx-nosuchid/ports/3000/")[0] == 404
    box.pause()
    assert lab.request("GET", f"{base}/3000/")[1]["code"] == "sandbox_paused"
    box.resume()
    assert client.get("/").status_code == 200
    box.kill(wait=True)
    assert lab.request("GET", f"{base}/3000/")[0] == 410


def test_a_sandbox_that_wakes_when_it_is_used_wakes_for_a_request_to_a_port_that_is_open(lab):
    for permitted, status, state in [(True, 502, "running"), (False, 403, "paused")]:
        network = {"allow_out": ["web.example.test"], "allow_public_traffic": permitted}
        lifecycle = {"on_timeout": "pause", "auto_resume": True}
        made = lab.request("POST", "/sandboxes", {"template": "python", "network": network, "lifecycle": lifecycle})[1]
        path = f"/sandboxes/{made['sandbox_id']}"
        assert lab.request("POST", f"{path}/pause")[0] == 200
        assert lab.request("GET", f"{path}/ports/3000/")[0] == status
        assert lab.request("GET", path)[1]["state"] == state
        lab.request("DELETE", path)


def test_the_daemons_own_ports_in_the_sandbox_are_not_reached(lab, sandbox):
    box = sandbox(network={"allow_out": ["web.example.test"]})
    for port in [4, 6, 53]:
        status, answer = lab.request("GET", f"/sandboxes/{box.sandbox_id}/ports/{port}/")
        assert (status, answer["code"]) == (502, "port_closed"), answer


def test_a_policy_without_public_traffic_closes_ports_at_once_and_one_with_it_opens_them(lab, serving):
    box, client = serving(network={"deny_out": ["0.0.0.0/0"], "allow_public_traffic": False})
    refused = client.get("/")
    assert (refused.status_code, refused.json()["code"]) == (403, "public_traffic_off")

    def permit(permitted: bool):
        policy = {"deny_out": ["0.0.0.0/0"], "allow_public_traffic": permitted}
        status, answer = lab.request("PUT", f"/sandboxes/{box.sandbox_id}/network", policy)
        assert status == 200, answer

    permit(True)
    assert client.get("/").status_code == 200
    tunnel = web_socket(lab, box)
    with client.stream("GET", "/events") as response:
        lines = response.iter_lines()
        assert next(lines) == "data: 1"
        permit(False)
        with pytest.raises(httpx.RemoteProtocolError):
            list(lines)
    ended(tunnel)
    assert client.get("/").status_code == 403
    permit(True)
    assert client.get("/").status_code == 200


def test_a_redirection_is_not_a_way_out_with_the_key(lab, serving):
    box, client = serving(network={"deny_out": ["0.0.0.0/0"]})
    canary = f"canary-{os.urandom(8).hex()}"

    def redirected(location: str):
        return client.get(f"/redirect?{urllib.parse.quote(location)}", follow_redirects=True)

    at = redirected(f"http://web.example.test/{canary}")
    assert at.status_code == 307 and "location" not in at.headers and "set-cookie" not in at.headers
    assert at.headers["x-sandbox-location"].endswith(canary) and at.headers["x-mine"] == "yes"
    # What would be a request to the API itself stays below the address of the port.
    for location in ["/sandboxes", "http://localhost:3000/sandboxes", "/../../../../sandboxes"]:
        said = redirected(location).json()
        assert said["path"] == "/sandboxes" and "x-api-key" not in headers_of(said), said
    assert not lab.seen(canary)


def test_the_end_of_the_sandbox_ends_what_is_under_way(lab, serving):
    box, client = serving()
    tunnel = web_socket(lab, box)
    with client.stream("GET", "/events") as response:
        lines = response.iter_lines()
        assert next(lines) == "data: 1"
        box.kill(wait=True)
        with contextlib.suppress(httpx.RemoteProtocolError):
            assert "data: 2" not in list(lines)
    ended(tunnel)


def test_a_client_that_leaves_ends_what_it_asked_for_and_leaves_nothing_in_the_daemon(lab, serving):
    box, client = serving()
    client.get("/")
    daemon = int(lab.variables["BAILIWICK_LAB_DAEMON_PID"])
    before = len(machine.descriptors(daemon))
    with client.stream("GET", "/endless") as response:
        assert next(response.iter_bytes())
    eventually("the service is told", lambda: noted(box, "endless ended"))
    tunnels = [web_socket(lab, box) for _ in range(20)]
    assert len(machine.descriptors(daemon)) >= before + 20
    for tunnel in tunnels:
        tunnel.socket.shutdown(socket.SHUT_RDWR)
    eventually("the daemon has closed its ends", lambda: len(machine.descriptors(daemon)) <= before + 5)


def test_a_program_that_does_as_it_pleases_harms_only_whoever_asks_it(lab, serving):
    box, client = serving()
    liar = (
        "import socket, sys, threading\n"
        "listener = socket.create_server(('127.0.0.1', 4000), backlog=512)\n"
        "def lie(peer):\n"
        "    head = peer.recv(65536)\n"
        "    answers = {b'/flood': b'HTTP/1.1 100 Continue\\r\\n\\r\\n', b'/head': b'X-A: b\\r\\n',\n"
        "               b'/garbage': bytes(range(256))}\n"
        "    path = head.split(b' ')[1]\n"
        "    try:\n"
        "        if path == b'/head': peer.sendall(b'HTTP/1.1 200 OK\\r\\n')\n"
        "        if path == b'/101': peer.sendall(b'HTTP/1.1 101 X\\r\\nUpgrade: websocket\\r\\nConnection: upgrade\\r\\n\\r\\n')\n"
        "        if path == b'/silent': peer.recv(1)\n"
        "        while path in answers: peer.sendall(answers[path] * 1000)\n"
        "    except OSError: pass\n"
        "    peer.close()\n"
        "while True:\n"
        "    threading.Thread(target=lie, args=listener.accept()[:1]).start()\n"
    )
    box.files.write("/tmp/liar.py", liar)
    box.commands.run("python3 -u /tmp/liar.py", background=True)
    eventually("it listens", lambda: lab.request("GET", f"/sandboxes/{box.sandbox_id}/ports/4000/x")[1]["code"] != "port_closed")
    for path in ["flood", "head", "garbage", "101", "close"]:
        status, answer = lab.request("GET", f"/sandboxes/{box.sandbox_id}/ports/4000/{path}")
        assert (status, answer["code"]) == (502, "port_protocol") and "port 4000" in answer["message"], (path, answer)

    # As many as there may be, all of them waiting; the next is told, and other sandboxes go on.
    waiting = [raw(lab, box, 4000, "GET", "/silent") for _ in range(256)]
    counted = b"\nbailiwick_port_connections 256\n"
    eventually("all places are taken", lambda: counted in lab.request("GET", "/metrics")[1])
    status, answer = lab.request("GET", f"/sandboxes/{box.sandbox_id}/ports/3000/")
    assert status == 429 and "256 connections to the ports of the sandbox" in answer["message"], answer
    _, others_client = serving()
    assert others_client.get("/").status_code == 200
    assert box.commands.run("echo alive").stdout == "alive\n"
    for each in waiting:
        each.close()
    eventually("places are free again", lambda: client.get("/").status_code == 200)


def test_a_daemon_that_is_started_again_knows_whose_ports_are_open(fragile):
    process, lab = fragile
    boxes = []
    for permitted in [True, False]:
        network = {"allow_out": ["web.example.test"], "allow_public_traffic": permitted}
        status, made = lab.request("POST", "/sandboxes", {"template": "python", "network": network})
        assert status == 201, made
        boxes.append(made["sandbox_id"])
        lab.request("PUT", f"/sandboxes/{boxes[-1]}/files/raw?path=/tmp/service.py", raw=SERVICE.encode())
        command = {"cmd": "python3 -u /tmp/service.py 127.0.0.1 3000", "background": True}
        lab.request("POST", f"/sandboxes/{boxes[-1]}/commands", command)
    opened, closed = (f"/sandboxes/{box}/ports/3000/x" for box in boxes)
    eventually("it listens", lambda: lab.request("GET", opened)[0] == 200)
    process.kill_daemon()
    process.restart_daemon()
    assert lab.request("GET", opened)[1]["path"] == "/x"
    status, answer = lab.request("GET", closed)
    assert (status, answer["code"]) == (403, "public_traffic_off")
