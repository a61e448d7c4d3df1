//! Requests to ports inside sandboxes, over real connections, with programs inside that do as they please.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::{net::SocketAddr, time::Duration};

use axum::{body::Body, http::Request};
use common::Lab;
use server::{ServeConfig, Server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// A server with a sandbox, and a program that listens in it.
struct Running {
    lab: Lab,
    address: SocketAddr,
    inside: TcpListener,
    sandbox: String,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl Running {
    async fn new() -> Self {
        let lab = Lab::new().await;
        let config = ServeConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], ..ServeConfig::default() };
        let server = Server::bind(&config).await.unwrap();
        let address = server.addresses()[0];
        let stop = CancellationToken::new();
        let server = tokio::spawn(server.run(lab.router.clone(), stop.clone()));
        let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let sandbox = lab.sandbox().await;
        Self { lab, address, inside, sandbox, stop, server }
    }

    fn port(&self) -> u16 {
        self.inside.local_addr().unwrap().port()
    }

    fn path(&self, below: &str) -> String {
        format!("/sandboxes/{}/ports/{}{below}", self.sandbox, self.port())
    }

    /// Sends the head of a request, with these lines besides the ones that every request has.
    async fn ask(&self, method: &str, below: &str, lines: &str) -> TcpStream {
        let mut client = TcpStream::connect(self.address).await.unwrap();
        let (path, key) = (self.path(below), &self.lab.alice);
        let head = format!("{method} {path} HTTP/1.1\r\nHost: api.test\r\nX-API-Key: {key}\r\n{lines}\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client
    }

    async fn accept(&self) -> TcpStream {
        within(self.inside.accept()).await.unwrap().0
    }

    /// What a client gets of a program that reads a request's head and says this.
    async fn answer_to(&self, says: &[u8]) -> String {
        let mut client = self.ask("GET", "/", "Connection: close\r\n").await;
        let mut program = self.accept().await;
        head_of(&mut program).await;
        // It may have been hung up on.
        let _ = program.write_all(says).await;
        let _ = program.shutdown().await;
        all_of(&mut client).await
    }
}

/// Nothing here takes long.
async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(60), future).await.expect("within a minute")
}

async fn all_of(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let _reset = within(stream.read_to_end(&mut all)).await;
    String::from_utf8_lossy(&all).into_owned()
}

/// Reads until the text ends like this.
async fn until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        let byte = within(stream.read_u8()).await;
        text.push(byte.unwrap_or_else(|_| panic!("ended after {:?}", String::from_utf8_lossy(&text))));
    }
    String::from_utf8(text).unwrap()
}

async fn head_of(stream: &mut TcpStream) -> String {
    until(stream, "\r\n\r\n").await
}

/// Waits until the other side has gone.
async fn gone(stream: &mut TcpStream) {
    let _rest = within(stream.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn a_request_arrives_as_it_was_sent_but_for_the_key() {
    let running = Running::new().await;
    for (method, below, arrives) in [
        ("GET", "", "/"),
        ("GET", "?a=1", "/?a=1"),
        ("PUT", "/", "/"),
        ("DELETE", "/a%2Fb/../c//d?q=%20&r", "/a%2Fb/../c//d?q=%20&r"),
        ("PROPFIND", "/dav", "/dav"),
    ] {
        let lines = format!(
            "Content-Length: 4\r\nX-Mine: yes\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\nbody",
            running.lab.alice
        );
        let mut client = running.ask(method, below, &lines).await;
        let mut program = running.accept().await;
        let head = head_of(&mut program).await;
        let port = running.port();
        assert!(head.starts_with(&format!("{method} {arrives} HTTP/1.1\r\n")), "{head}");
        for line in [
            "x-mine: yes",
            "content-length: 4",
            &format!("host: localhost:{port}"),
            "x-forwarded-host: api.test",
        ] {
            assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
        }
        assert!(!head.contains("dcl_") && !head.contains("authorization"), "{head}");
        assert_eq!(until(&mut program, "body").await, "body");
        program
            .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nX-Theirs: yes\r\n\r\nok")
            .await
            .unwrap();
        let answer = all_of(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 201 Created\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
        assert!(answer.contains("content-length: 2\r\n") && answer.contains("x-theirs: yes\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_key_never_goes_inside_and_what_is_for_the_service_does() {
    let running = Running::new().await;
    let revoked = "dcl_0000000000000000000000000000000000000000";
    for (authorization, passes) in [
        ("Bearer token-of-the-service", true),
        ("Basic dXNlcjpwYXNz", true),
        (&format!("Bearer {}", running.lab.alice), false),
        (&format!("bearer  {}", running.lab.alice), false),
        (&format!("Bearer {revoked}"), false),
        ("Bearer rat_0000000000000000000000000000000000000000", false),
    ] {
        let _client = running.ask("GET", "/", &format!("Authorization: {authorization}\r\n")).await;
        let head = head_of(&mut running.accept().await).await;
        assert_eq!(head.contains(&format!("authorization: {authorization}\r\n")), passes, "{head}");
        assert!(!head.contains("x-api-key") && !head.contains("dcl_") && !head.contains("rat_"), "{head}");
    }
    let twice = format!("Authorization: Bearer x\r\nAuthorization: Bearer {}\r\n", running.lab.alice);
    let _client = running.ask("GET", "/", &twice).await;
    let head = head_of(&mut running.accept().await).await;
    assert!(!head.contains("authorization"), "{head}");
}

#[tokio::test]
async fn both_bodies_are_passed_on_as_they_come() {
    let running = Running::new().await;
    let mut client = running.ask("POST", "/", "Transfer-Encoding: chunked\r\n").await;
    let mut program = running.accept().await;
    let head = head_of(&mut program).await;
    assert!(head.contains("transfer-encoding: chunked\r\n"), "{head}");
    client.write_all(b"3\r\none\r\n").await.unwrap();
    until(&mut program, "one\r\n").await;
    program.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfour\r\n").await.unwrap();
    until(&mut client, "four\r\n").await;
    client.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
    assert!(until(&mut program, "0\r\n\r\n").await.contains("two"));
    program.write_all(b"5\r\nfives\r\n0\r\n\r\n").await.unwrap();
    assert!(until(&mut client, "0\r\n\r\n").await.contains("fives"));
    // The client's connection is good for more.
    let again = "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    client.write_all(again.as_bytes()).await.unwrap();
    assert!(all_of(&mut client).await.starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_its_connection() {
    let running = Running::new().await;
    let answer =
        running.answer_to(b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n").await;
    assert!(answer.contains("content-type: text/event-stream\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n9\r\ndata: 1\n\n\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_web_socket_passes_bytes_both_ways_and_ends_with_either_side() {
    let running = Running::new().await;
    let upgrade = "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: a2V5\r\n";
    for client_leaves in [true, false] {
        let mut client = running.ask("GET", "/ws", upgrade).await;
        let mut program = running.accept().await;
        let head = head_of(&mut program).await;
        for line in ["connection: upgrade", "upgrade: websocket", "sec-websocket-key: a2V5"] {
            assert!(head.contains(&format!("{line}\r\n")), "{line} in {head}");
        }
        let switch = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
            Sec-WebSocket-Accept: YWNjZXB0\r\nSet-Cookie: a=b\r\n\r\nfirst";
        program.write_all(switch.as_bytes()).await.unwrap();
        let head = head_of(&mut client).await;
        assert!(
            head.starts_with("HTTP/1.1 101 ") && head.contains("sec-websocket-accept: YWNjZXB0\r\n"),
            "{head}"
        );
        assert!(head.contains("upgrade: websocket\r\n") && !head.contains("set-cookie"), "{head}");
        until(&mut client, "first").await;
        client.write_all(b"\x00\xffping").await.unwrap();
        let mut six = [0; 6];
        within(program.read_exact(&mut six)).await.unwrap();
        assert_eq!(&six, b"\x00\xffping");
        let (leaves, stays) = if client_leaves { (client, &mut program) } else { (program, &mut client) };
        drop(leaves);
        gone(stays).await;
    }
}

#[tokio::test]
async fn a_refused_web_socket_is_an_answer_like_any_other() {
    let running = Running::new().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    let mut client = running.ask("GET", "/ws", upgrade).await;
    let mut program = running.accept().await;
    head_of(&mut program).await;
    program.write_all(b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno").await.unwrap();
    let answer = until(&mut client, "no").await;
    assert!(answer.starts_with("HTTP/1.1 426 "), "{answer}");
    gone(&mut program).await;
}

#[tokio::test]
async fn nothing_but_a_web_socket_is_switched_to_and_only_when_asked_for() {
    let running = Running::new().await;
    // A client that speaks HTTP/2 from here on would send its next requests, with its key, into the sandbox.
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    let post = "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n";
    for (method, lines) in [("GET", h2c), ("POST", post), ("GET", "")] {
        let mut client = running.ask(method, "/", lines).await;
        let mut program = running.accept().await;
        let head = head_of(&mut program).await;
        assert!(!head.contains("upgrade") && !head.contains("http2-settings"), "{head}");
        program
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")
            .await
            .unwrap();
        let answer = until(&mut client, "}").await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("port_protocol"), "{answer}");
        gone(&mut program).await;
    }
    let mut client = running.ask("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    let mut program = running.accept().await;
    head_of(&mut program).await;
    program
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n")
        .await
        .unwrap();
    let answer = until(&mut client, "}").await;
    assert!(answer.contains("switched to a protocol that it was not asked for"), "{answer}");
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_connection_inside() {
    let running = Running::new().await;
    // Before there is an answer, in the middle of one, and in the middle of what it sends itself.
    let client = running.ask("GET", "/", "").await;
    let mut program = running.accept().await;
    head_of(&mut program).await;
    drop(client);
    gone(&mut program).await;

    let mut client = running.ask("GET", "/", "").await;
    let mut program = running.accept().await;
    head_of(&mut program).await;
    program.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata").await.unwrap();
    until(&mut client, "data\r\n").await;
    drop(client);
    gone(&mut program).await;

    let mut client = running.ask("POST", "/", "Content-Length: 1000\r\n").await;
    client.write_all(b"only this").await.unwrap();
    let mut program = running.accept().await;
    until(&mut program, "only this").await;
    drop(client);
    gone(&mut program).await;
    assert_eq!(running.lab.fake.ports_open.0.available_permits(), 4, "places are free again");
}

#[tokio::test]
async fn an_answer_that_comes_before_the_request_was_sent_arrives_whole() {
    let running = Running::new().await;
    for (says, arrives) in [
        ("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 5\r\n\r\nlarge", "5\r\nlarge\r\n0\r\n\r\n"),
        ("HTTP/1.1 204 No Content\r\n\r\n", "\r\n\r\n"),
    ] {
        let length = 8 << 20;
        let lines = format!("Connection: close\r\nContent-Length: {length}\r\n");
        let mut client = running.ask("POST", "/", &lines).await;
        let mut program = running.accept().await;
        head_of(&mut program).await;
        program.write_all(says.as_bytes()).await.unwrap();
        drop(program);
        within(client.write_all(&vec![b'x'; length])).await.unwrap();
        let answer = all_of(&mut client).await;
        assert!(
            answer.ends_with(arrives) && answer.starts_with(says.split("\r\n").next().unwrap()),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn what_is_no_answer_is_a_502_that_says_so_and_harms_nobody() {
    let running = Running::new().await;
    let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 400 << 10]].concat();
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(40_000);
    let many = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"X-A: b\r\n".repeat(4000), b"\r\n".to_vec()].concat();
    for (says, told) in [
        (&b""[..], "closed the connection and has not answered"),
        (b"HTTP/1.1 200 OK\r\nContent-", "closed the connection and has not answered"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP/1.1"),
        (b"\x16\x03\x01\x00\x00", "does not speak HTTP/1.1"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", "does not speak HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n", "does not speak HTTP/1.1"),
        (&endless, "before its answer was complete"),
        (&interim, "before its answer was complete"),
        (&many, "before its answer was complete"),
    ] {
        let answer = running.answer_to(says).await;
        let start = String::from_utf8_lossy(&says[..says.len().min(60)]);
        assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{start:?}: {answer}");
        let port = format!("port {} in the sandbox", running.port());
        for part in [told, &port, "port_protocol"] {
            assert!(answer.contains(part), "{start:?}: {part}: {answer}");
        }
    }
    let answer = running.answer_to(b"HTTP/1.1 200 OK\r\n\r\nalive").await;
    assert!(answer.ends_with("5\r\nalive\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn an_answer_is_framed_anew_and_nothing_after_it_is_taken_for_another() {
    let running = Running::new().await;
    let second = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond";
    for (says, arrives) in [
        ("Content-Length: 5\r\n\r\nfirst", "first"),
        (
            "Content-Length: 500\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n0\r\n\r\n",
            "5\r\nfirst\r\n0\r\n\r\n",
        ),
        (
            "Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n5\r\nfirst\r\n0\r\nSet-Cookie: a=b\r\n\r\n",
            "5\r\nfirst\r\n0\r\n\r\n",
        ),
    ] {
        let answer = running.answer_to(format!("HTTP/1.1 200 OK\r\n{says}{second}").as_bytes()).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{arrives}")), "{answer}");
        assert!(!answer.contains("content-length: 500") && !answer.contains("second"), "{answer}");
    }
    // What breaks off is not made to look whole.
    let answer =
        running.answer_to(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await;
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_long_answer_waits_for_its_reader_and_not_in_the_memory_of_the_server() {
    let running = Running::new().await;
    let _client = running.ask("GET", "/", "").await;
    let mut program = running.accept().await;
    head_of(&mut program).await;
    program.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let mut sent = 0;
    let piece = vec![b'x'; 1 << 20];
    while let Ok(written) = timeout(Duration::from_secs(2), program.write(&piece)).await {
        sent += written.unwrap();
        // What the kernel keeps on both connections, at most.
        assert!(sent < 64 << 20, "somebody reads, and it is not the client");
    }
    assert!(sent > 0);
}

#[tokio::test]
async fn what_cannot_be_reached_says_why() {
    let running = Running::new().await;
    let id = running.sandbox.clone();
    let get = async |path: &str| running.lab.alice("GET", path, ()).await;
    let port = {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        other.local_addr().unwrap().port()
    };
    let answer = get(&format!("/sandboxes/{id}/ports/{port}/a")).await.error(502);
    assert_eq!(
        answer,
        (format!("nothing listens on port {port} in the sandbox"), Some("port_closed".to_owned()))
    );
    assert_eq!(get(&format!("/sandboxes/{id}/ports/49983/a")).await.error(403).1.unwrap(), "port_reserved");
    for port in ["0", "65536", "-1", "+80", "http", "080800", "%38%30", "8 0"] {
        let path = format!("/sandboxes/{id}/ports/{}/", port.replace(' ', "%20"));
        let (message, _) = get(&path).await.error(400);
        assert!(message.starts_with("port: "), "{message}");
    }
    for path in
        [format!("/sandboxes/sbx-nosuchid/ports/{}", running.port()), "/sandboxes/x/ports/80".to_owned()]
    {
        get(&path).await.error(404);
    }
    running.lab.bob("GET", &running.path("/"), ()).await.error(404);
    for (state, status) in [("paused", 409), ("killed", 410)] {
        running.lab.fake.set_state(&id, state);
        get(&running.path("/")).await.error(status);
    }
    running.lab.fake.set_state(&id, "running");
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push((running.ask("GET", "/", "").await, running.accept().await));
    }
    let (message, code) = get(&running.path("/")).await.error(429);
    assert_eq!((message.as_str(), code.as_deref()), ("limit reached: places", Some("limit_reached")));
}

#[tokio::test]
async fn a_ratchet_token_opens_no_port() {
    let running = Running::new().await;
    let path = format!("/sandboxes/{}/ratchet", running.sandbox);
    let token = running.lab.alice("POST", &path, ()).await.json()["token"].as_str().unwrap().to_owned();
    let request = Request::get(running.path("/")).header("authorization", format!("Bearer {token}"));
    running.lab.send(request.body(Body::empty()).unwrap()).await.error(403);
}

#[tokio::test]
async fn what_is_under_way_ends_when_the_port_is_closed_to_everybody() {
    let running = Running::new().await;
    let mut waiting = running.ask("GET", "/", "").await;
    let mut program = running.accept().await;
    head_of(&mut program).await;

    let mut reading = running.ask("GET", "/", "").await;
    let mut streams = running.accept().await;
    head_of(&mut streams).await;
    streams.write_all(b"HTTP/1.1 200 OK\r\n\r\ndata").await.unwrap();
    until(&mut reading, "data\r\n").await;

    let mut socket = running.ask("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    let mut switched = running.accept().await;
    head_of(&mut switched).await;
    switched
        .write_all(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhi")
        .await
        .unwrap();
    until(&mut socket, "hi").await;

    running.lab.fake.port_cut.closing.cancel();
    let answer = until(&mut waiting, "}").await;
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("public_traffic_off"), "{answer}");
    assert!(!all_of(&mut reading).await.contains("0\r\n"), "it did not end by itself");
    gone(&mut socket).await;
    for mut program in [program, streams, switched] {
        gone(&mut program).await;
    }
}

#[tokio::test]
async fn a_daemon_that_ends_waits_for_answers_and_not_for_web_sockets() {
    let running = Running::new().await;
    let mut socket = running.ask("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    let mut switched = running.accept().await;
    head_of(&mut switched).await;
    switched
        .write_all(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhi")
        .await
        .unwrap();
    until(&mut socket, "hi").await;
    let mut waiting = running.ask("GET", "/", "").await;
    let mut program = running.accept().await;
    head_of(&mut program).await;

    let mut reading = running.ask("GET", "/", "").await;
    let mut streams = running.accept().await;
    head_of(&mut streams).await;
    streams.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/Event-stream; a=b\r\n\r\ndata").await.unwrap();
    until(&mut reading, "data\r\n").await;

    running.stop.cancel();
    assert_eq!(all_of(&mut reading).await, "", "broken off, and not at its end");
    gone(&mut streams).await;
    while TcpStream::connect(running.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    program.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await.unwrap();
    assert!(all_of(&mut waiting).await.ends_with("done"));
    within(running.server).await.unwrap();
    // What the manager does next.
    running.lab.fake.port_cut.stop.cancel();
    gone(&mut socket).await;
    gone(&mut switched).await;
}

#[tokio::test]
async fn what_is_under_way_ends_when_its_key_is_revoked() {
    let running = Running::new().await;
    let mut socket = running.ask("GET", "/", "Connection: Upgrade\r\nUpgrade: websocket\r\n").await;
    let mut switched = running.accept().await;
    head_of(&mut switched).await;
    switched
        .write_all(b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhi")
        .await
        .unwrap();
    until(&mut socket, "hi").await;
    let mut reading = running.ask("GET", "/", "").await;
    let mut streams = running.accept().await;
    head_of(&mut streams).await;
    streams.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\ndata").await.unwrap();
    until(&mut reading, "data").await;

    for key in running.lab.store.keys().list(Some("alice")).await.unwrap() {
        running.lab.store.keys().revoke(Some("alice"), &key.id).await.unwrap();
    }
    gone(&mut socket).await;
    gone(&mut reading).await;
    gone(&mut switched).await;
    gone(&mut streams).await;
}
