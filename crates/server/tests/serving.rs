//! Listening, speaking and stopping, over real connections.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::{net::SocketAddr, sync::atomic::Ordering, time::Duration};

use axum::{body::Body, http::Request};
use common::{ENDLESS, Lab};
use http_body_util::BodyExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use server::{ServeConfig, ServeError, Server, TlsFiles};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);

struct Running {
    lab: Lab,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

async fn start(change: impl FnOnce(&mut ServeConfig)) -> Running {
    let lab = Lab::new().await;
    let mut config = ServeConfig { listen: vec!["127.0.0.1:0".parse().unwrap()], ..ServeConfig::default() };
    change(&mut config);
    let server = Server::bind(&config).await.unwrap();
    let (address, stop) = (server.addresses()[0], CancellationToken::new());
    let server = tokio::spawn(server.run(lab.router.clone(), stop.clone()));
    Running { lab, address, stop, server }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The head and body of a POST, as text.
    fn post(&self, path: &str, body: &str) -> String {
        let (key, length) = (&self.lab.alice, body.len());
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {key}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    }

    /// Waits until so many commands run.
    async fn commands(&self, count: usize) {
        let reached = async {
            while self.lab.fake.running.load(Ordering::SeqCst) != count {
                self.lab.fake.changed.notified().await;
            }
        };
        timeout(DEADLINE, reached).await.expect("the number of commands is reached");
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut text)).await.expect("the server closes").unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn a_command_in_the_foreground_is_killed_when_its_client_disconnects() {
    let running = start(|_| {}).await;
    let path = format!("/sandboxes/{}/commands", running.lab.sandbox().await);
    let mut client = running.connect().await;
    client.write_all(running.post(&path, r#"{"cmd":"hang"}"#).as_bytes()).await.unwrap();
    running.commands(1).await;
    drop(client);
    running.commands(0).await;
}

#[tokio::test]
async fn http1_and_http2_are_spoken_on_the_same_port() {
    let running = start(|_| {}).await;
    let mut client = running.connect().await;
    client.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let answer = read_all(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(r#""status":"ok""#), "{answer}");

    let io = TokioIo::new(running.connect().await);
    let (mut send, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let url = format!("http://{}/health", running.address);
    let response = send.send_request(Request::get(url).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, hyper::Version::HTTP_2));
    assert!(!response.into_body().collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn a_stop_lets_running_requests_finish_and_accepts_no_more() {
    let running = start(|_| {}).await;
    let path = format!("/sandboxes/{}/commands", running.lab.sandbox().await);
    let (mut busy, mut idle) = (running.connect().await, running.connect().await);
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 8];
    timeout(DEADLINE, idle.read_exact(&mut first)).await.unwrap().unwrap();
    busy.write_all(running.post(&path, r#"{"cmd":"sleep 1"}"#).as_bytes()).await.unwrap();
    running.commands(1).await;

    running.stop.cancel();
    read_all(&mut idle).await;
    assert_eq!(running.lab.fake.running.load(Ordering::SeqCst), 1, "the idle connection closes first");
    let answer = read_all(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains(r#""exit_code":0"#), "{answer}");
    timeout(DEADLINE, running.server).await.expect("the server ends").unwrap();
    assert!(TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn a_stop_ends_what_would_go_on_for_ever_at_once_and_in_order() {
    let running = start(|config| config.drain = DEADLINE * 100).await;
    let base = format!("/sandboxes/{}", running.lab.sandbox().await);
    let get = |path: String| {
        format!("GET {base}/{path} HTTP/1.1\r\nhost: x\r\nx-api-key: {}\r\n\r\n", running.lab.alice)
    };
    let watch = running.post(&format!("{base}/files/watch"), r#"{"path":"/endless"}"#);
    let watch =
        watch.replacen("\r\n", "\r\naccept: text/event-stream\r\ncontent-type: application/json\r\n", 1);
    let requests = [
        (get(format!("stdio/{ENDLESS}/stream")), "stdout"),
        (get(format!("pty/{ENDLESS}/stream")), "data"),
        (watch, "change"),
    ];
    let mut open = Vec::new();
    for (request, event) in requests {
        let mut client = running.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut begun = String::new();
        while !begun.contains(&format!("event: {event}\ndata: ")) {
            let mut part = [0; 4096];
            let count = timeout(DEADLINE, client.read(&mut part)).await.unwrap().unwrap();
            assert!(count > 0, "{begun}");
            begun.push_str(&String::from_utf8_lossy(&part[..count]));
        }
        assert!(begun.starts_with("HTTP/1.1 200 OK\r\n"), "{begun}");
        open.push(client);
    }
    // One that ends by itself is told to the end.
    let path = format!("{base}/commands");
    let mut busy = running.connect().await;
    busy.write_all(running.post(&path, r#"{"cmd":"sleep 1"}"#).as_bytes()).await.unwrap();
    running.commands(1).await;

    running.stop.cancel();
    for mut client in open {
        let rest = read_all(&mut client).await;
        assert!(rest.ends_with(": the server stops; ask again\n\n\r\n0\r\n\r\n"), "the last chunk: {rest:?}");
    }
    assert!(read_all(&mut busy).await.contains(r#""exit_code":0"#));
    timeout(DEADLINE, running.server).await.expect("the server ends").unwrap();
}

#[tokio::test]
async fn what_runs_longer_than_the_drain_time_is_dropped() {
    let running = start(|config| config.drain = Duration::from_millis(100)).await;
    let path = format!("/sandboxes/{}/commands", running.lab.sandbox().await);
    let mut client = running.connect().await;
    client.write_all(running.post(&path, r#"{"cmd":"hang"}"#).as_bytes()).await.unwrap();
    running.commands(1).await;
    running.stop.cancel();
    running.commands(0).await;
    read_all(&mut client).await;
    timeout(DEADLINE, running.server).await.expect("the server ends").unwrap();
}

const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn connections_on_which_nothing_is_asked_keep_nobody_out() {
    let running = start(|config| config.connections = 2).await;
    // One that has asked once and holds on, and one that begins as HTTP/2 and says no more.
    let mut oldest = running.connect().await;
    oldest.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    timeout(DEADLINE, oldest.read_exact(&mut [0; 8])).await.unwrap().unwrap();
    let mut other = running.connect().await;
    other.write_all(b"PRI * HTTP/2.0").await.unwrap();
    for _ in 0..4 {
        let mut next = running.connect().await;
        next.write_all(HEALTH).await.unwrap();
        assert!(read_all(&mut next).await.contains("200 OK"));
    }
    // In the place of the first there was room for all of them, one after the other.
    let _first = read_all(&mut oldest).await;
    assert!(
        timeout(Duration::from_millis(200), other.read(&mut [0])).await.is_err(),
        "the other is still open"
    );
}

#[tokio::test]
async fn connections_over_the_limit_wait_while_all_others_have_requests_in_work() {
    let running = start(|config| config.connections = 2).await;
    let path = format!("/sandboxes/{}/commands", running.lab.sandbox().await);
    let (mut first, mut second) = (running.connect().await, running.connect().await);
    first.write_all(running.post(&path, r#"{"cmd":"hang"}"#).as_bytes()).await.unwrap();
    second.write_all(running.post(&path, r#"{"cmd":"hang"}"#).as_bytes()).await.unwrap();
    running.commands(2).await;
    let mut third = running.connect().await;
    third.write_all(HEALTH).await.unwrap();
    assert!(timeout(Duration::from_millis(200), third.read(&mut [0])).await.is_err(), "no answer yet");
    running.commands(2).await;
    drop(first);
    assert!(read_all(&mut third).await.contains("200 OK"));
    running.commands(1).await;
}

/// Has a client take in nothing any more, not even what would reset it: to the server it is as if its machine were off.
fn vanish(client: &TcpStream) {
    const RETURN: u16 = 6;
    let nothing = socket2::SockFilter::new(RETURN, 0, 0, 0);
    socket2::SockRef::from(client).attach_filter(&[nothing]).unwrap();
}

#[tokio::test]
async fn clients_that_vanish_without_a_word_are_let_go_and_no_others() {
    // Longer than the kernel waits between two questions to a client that is there, with so little under way.
    let running = start(|config| config.silence = Duration::from_secs(6)).await;
    let base = format!("/sandboxes/{}", running.lab.sandbox().await);
    let command = running.post(&format!("{base}/commands"), r#"{"cmd":"hang"}"#);
    let (mut there, mut gone) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let mut client = running.connect().await;
        client.write_all(command.as_bytes()).await.unwrap();
        if number % 2 == 0 { there.push(client) } else { gone.push(client) }
    }
    running.commands(20).await;
    gone.iter().for_each(vanish);
    // Whoever of them waits is answered by nobody; with its connection its command ends.
    running.commands(10).await;
    drop(there);
    running.commands(0).await;
}

#[tokio::test]
async fn malformed_http_closes_the_connection_and_no_other() {
    let running = start(|_| {}).await;
    let mut bad = running.connect().await;
    bad.write_all(b"\x16\x03\x01\x02\x00 not HTTP\r\n\r\n").await.unwrap();
    read_all(&mut bad).await;
    let mut good = running.connect().await;
    good.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(read_all(&mut good).await.contains("200 OK"));
}

#[tokio::test]
async fn a_server_that_cannot_listen_says_where() {
    let running = start(|_| {}).await;
    let taken = ServeConfig { listen: vec![running.address], ..ServeConfig::default() };
    let error = Server::bind(&taken).await.unwrap_err().to_string();
    assert!(error.contains(&running.address.to_string()), "{error}");
    let nowhere = ServeConfig { listen: Vec::new(), ..ServeConfig::default() };
    assert!(matches!(Server::bind(&nowhere).await, Err(ServeError::NoAddress)));
    let files = TlsFiles { certificate: "/no/such/cert.pem".into(), key: "/no/such/key.pem".into() };
    let no_files = ServeConfig { tls: Some(files), ..ServeConfig::default() };
    assert!(Server::bind(&no_files).await.unwrap_err().to_string().contains("/no/such/cert.pem"));
}

#[tokio::test]
async fn a_file_that_grows_or_shrinks_while_it_is_read_is_as_long_as_announced_or_breaks_off() {
    let running = start(|_| {}).await;
    let base = format!("/sandboxes/{}/files/raw?path=", running.lab.sandbox().await);
    let request = |method: &str, path: &str, body: Body| {
        let url = format!("http://{}{base}{path}", running.address);
        Request::builder().method(method).uri(url).header("x-api-key", &running.lab.alice).body(body).unwrap()
    };
    let io = || async { TokioIo::new(running.connect().await) };
    let (mut http2, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), io().await).await.unwrap();
    tokio::spawn(connection);
    for (path, length, got) in [
        ("/steady", "5", Some(b"12345".as_slice())),
        ("/growing", "4", Some(b"1234".as_slice())),
        ("/shrinking", "6", None),
    ] {
        let written = http2.send_request(request("PUT", path, Body::from("12345"))).await.unwrap();
        assert_eq!(written.status(), 200, "{path}");
        let (mut http1, connection) = hyper::client::conn::http1::handshake(io().await).await.unwrap();
        tokio::spawn(connection);
        let over_2 = http2.send_request(request("GET", path, Body::empty())).await;
        let mut asked = request("GET", path, Body::empty());
        asked.headers_mut().insert("host", "x".parse().unwrap());
        let over_1 = http1.send_request(asked).await;
        for (version, answer) in [(1, over_1), (2, over_2)] {
            let whole = async {
                // An answer that breaks off may do so before its head has arrived.
                let answer = answer?;
                let head = (answer.status().as_u16(), answer.headers()["content-length"] == length);
                assert_eq!(head, (200, true), "{path} over HTTP/{version}");
                answer.into_body().collect().await
            };
            let whole = timeout(DEADLINE, whole).await.expect("an end").ok().map(|body| body.to_bytes());
            assert_eq!(whole.as_deref(), got, "{path} over HTTP/{version}");
        }
    }
}
