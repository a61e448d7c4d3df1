//! Connections that begin with an HTTP/1 request.

#![allow(clippy::unwrap_used, reason = "a test panics on what it does not expect")]

mod support;

use policy::{EventKind, NameSource, PolicySpec};
use support::{EVIL, GOOD, Lab, Server, assert_event, assert_reset, lab, read_exact, read_to_end, write};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

async fn web(lab: &Lab) -> Server {
    lab.permit_good();
    lab.proxy(80);
    Server::listen(GOOD, 80).await
}

/// Reads up to the empty line.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let head = async {
        while !bytes.ends_with(b"\r\n\r\n") {
            bytes.push(stream.read_u8().await.unwrap());
        }
    };
    timeout(support::DEADLINE, head).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// A connection on which one request was answered: the client's end and the server's end.
async fn answered(lab: &Lab, server: &Server) -> (TcpStream, TcpStream) {
    let mut client = lab.connect(GOOD, 80).await;
    write(&mut client, b"GET /first HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
    let mut inside = server.accept().await;
    read_head(&mut inside).await;
    write(&mut inside, OK).await;
    assert_eq!(read_exact(&mut client, OK.len()).await, OK);
    (client, inside)
}

/// Reads a 403 and the end of the stream: its body.
async fn read_refusal(client: &mut TcpStream) -> serde_json::Value {
    let (bytes, end) = read_to_end(client).await;
    end.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 403 "), "{text}");
    assert!(head.contains("content-type: application/json") && head.contains("connection: close"));
    assert!(head.contains(&format!("content-length: {}", body.len())));
    serde_json::from_str(body).unwrap()
}

#[test]
fn a_request_for_a_permitted_host_passes_and_one_for_a_refused_host_gets_a_403() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let evil = Server::listen(EVIL, 80).await;
        answered(&lab, &server).await;

        let mut client = lab.connect(EVIL, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
        let body = read_refusal(&mut client).await;
        assert_eq!(body["error"], "egress_blocked");
        assert_eq!(body["reason"], "default_deny");
        assert_eq!(body["rule"], "default");
        assert_eq!(body["host"], "evil.test");
        let events = lab.wait_events(2).await;
        assert_event(
            &events[0],
            EventKind::EgressAllowed,
            "allow_entry",
            Some("good.test"),
            NameSource::Host,
        );
        assert_event(
            &events[1],
            EventKind::EgressBlocked,
            "default_deny",
            Some("evil.test"),
            NameSource::Host,
        );
        assert!(!evil.was_reached());
    });
}

#[test]
fn a_permitted_host_goes_to_its_own_address_and_not_to_the_one_the_client_chose() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let evil = Server::listen(EVIL, 80).await;
        let mut client = lab.connect(EVIL, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut inside = server.accept().await;
        assert!(read_head(&mut inside).await.starts_with("GET / HTTP/1.1\r\n"));
        assert!(!evil.was_reached());
    });
}

#[test]
fn every_request_of_a_connection_is_judged_and_recorded() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let (mut client, mut inside) = answered(&lab, &server).await;
        write(&mut client, b"GET /second HTTP/1.1\r\nhOsT: GOOD.test.:80\r\n\r\n").await;
        assert!(read_head(&mut inside).await.starts_with("GET /second "));
        write(&mut inside, OK).await;
        assert_eq!(read_exact(&mut client, OK.len()).await, OK);
        let first = lab.wait_finished(0).await;
        assert_eq!(first.bytes_down, OK.len() as u64);

        write(&mut client, b"GET /third HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
        assert_eq!(read_to_end(&mut inside).await.0, b"", "the server sees nothing of it");
        drop(inside);
        assert_eq!(read_refusal(&mut client).await["reason"], "default_deny");
        let kinds: Vec<_> = lab.wait_events(3).await.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::EgressAllowed, EventKind::EgressAllowed, EventKind::EgressBlocked]);
    });
}

#[test]
fn a_connection_is_for_one_host_even_if_another_one_is_permitted_too() {
    lab(|lab| async move {
        let server = web(&lab).await;
        lab.permit(&["good.test", "other.test"]);
        let (mut client, mut inside) = answered(&lab, &server).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        drop(inside);
        let body = read_refusal(&mut client).await;
        assert_eq!((&body["reason"], &body["host"]), (&"http_host_changed".into(), &"other.test".into()));
    });
}

#[test]
fn a_refusal_comes_after_the_responses_that_are_still_due() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(
            &mut client,
            b"GET /1 HTTP/1.1\r\nHost: good.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: good.test\r\n\r\n\
              GET /3 HTTP/1.1\r\nHost: evil.test\r\n\r\n",
        )
        .await;
        let mut inside = server.accept().await;
        assert!(read_head(&mut inside).await.starts_with("GET /1 "));
        assert!(read_head(&mut inside).await.starts_with("GET /2 "));
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        lab.wait_events(3).await;
        write(&mut inside, &[OK, OK].concat()).await;
        drop(inside);
        assert_eq!(read_exact(&mut client, OK.len() * 2).await, [OK, OK].concat());
        assert_eq!(read_refusal(&mut client).await["reason"], "default_deny");
    });
}

#[test]
fn what_does_not_name_one_permitted_host_plainly_is_refused_with_its_reason() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let cases = [
            ("GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n", "http_absolute_form"),
            ("CONNECT evil.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n", "http_connect"),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http_h2c"),
            (
                "GET / HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n",
                "http_h2c",
            ),
            ("GET / HTTP/1.1\r\n\r\n", "invalid_host"),
            ("GET / HTTP/1.0\r\n\r\n", "invalid_host"),
            ("GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n", "invalid_host"),
            ("GET / HTTP/1.1\r\nHost: good.test,evil.test\r\n\r\n", "invalid_host"),
            ("GET / HTTP/1.1\r\nHost: good.test:8080\r\n\r\n", "invalid_host"),
            ("GET / HTTP/1.1\r\nHost: 93.184.216.66\r\n\r\n", "invalid_host"),
            ("GET / HTTP/1.1\r\nHost : good.test\r\n\r\n", "malformed_http"),
            ("GET / HTTP/1.1\nHost: good.test\n\n", "malformed_http"),
            (
                "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
                "malformed_http",
            ),
        ];
        for (i, (request, reason)) in cases.iter().enumerate() {
            let mut client = lab.connect(GOOD, 80).await;
            write(&mut client, request.as_bytes()).await;
            assert_eq!(read_refusal(&mut client).await["reason"], *reason, "{request}");
            let event = &lab.wait_events(i + 1).await[i];
            assert_eq!((event.kind, event.verdict.reason.as_str()), (EventKind::EgressBlocked, *reason));
        }
        // The address itself is no name, and it is not permitted as one.
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: 93.184.216.34\r\n\r\n").await;
        assert_eq!(read_refusal(&mut client).await["reason"], "not_bound");
        // Nor is it where it is bound to a permitted name: another name may share it.
        lab.egress.bind(GOOD, "good.test");
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: 93.184.216.34\r\n\r\n").await;
        assert_eq!(read_refusal(&mut client).await["reason"], "default_deny");
        answered(&lab, &server).await;
    });
}

#[test]
fn a_head_in_pieces_of_one_byte_is_read() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        for byte in b"\r\nPOST /x HTTP/1.1\r\nHost: good.test\r\nContent-Length: 4\r\n\r\nbody" {
            write(&mut client, &[*byte]).await;
            tokio::task::yield_now().await;
        }
        let mut inside = server.accept().await;
        assert!(read_head(&mut inside).await.starts_with("POST /x HTTP/1.1\r\n"));
        assert_eq!(read_exact(&mut inside, 4).await, b"body");
    });
}

#[test]
fn a_few_empty_lines_before_a_request_are_skipped_and_many_are_refused() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let (mut client, mut inside) = answered(&lab, &server).await;
        write(&mut client, &b"\r\n".repeat(8)).await;
        write(&mut client, b"GET /later HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        assert!(read_head(&mut inside).await.starts_with("GET /later "));
        write(&mut client, &b"\r\n".repeat(9)).await;
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        drop(inside);
        assert_eq!(read_refusal(&mut client).await["reason"], "malformed_http");

        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, &b"\r\n".repeat(5000)).await;
        assert_eq!(read_refusal(&mut client).await["reason"], "malformed_http");
    });
}

#[test]
fn a_client_that_sends_nothing_but_empty_lines_does_not_stay_half_open() {
    lab(|lab| async move {
        let _server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"\r\n\r\n").await;
        assert_reset(&mut client).await;
        let events = lab.wait_events(1).await;
        assert_event(&events[0], EventKind::EgressBlocked, "peek_timeout", None, NameSource::None);
        assert_eq!(lab.flows.half_open(), 0);
    });
}

#[test]
fn a_head_that_does_not_come_to_its_end_is_refused_in_time_and_an_idle_connection_is_not() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: good.test\r\nX: ").await;
        assert_eq!(read_refusal(&mut client).await["reason"], "peek_timeout");

        let (mut client, mut inside) = answered(&lab, &server).await;
        tokio::time::sleep(lab.limits.peek_timeout * 2).await;
        write(&mut client, b"GET /later HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        assert!(read_head(&mut inside).await.starts_with("GET /later "));
        write(&mut client, b"GET /never").await;
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        drop(inside);
        assert_eq!(read_refusal(&mut client).await["reason"], "peek_timeout");
    });
}

#[test]
fn the_host_header_is_replaced_where_the_policy_says_so() {
    lab(|lab| async move {
        let server = web(&lab).await;
        lab.set_policy(&PolicySpec {
            allow_out: vec!["good.test".to_owned()],
            mask_request_host: Some("masked.example".to_owned()),
            ..PolicySpec::default()
        });
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut inside = server.accept().await;
        let head = read_head(&mut inside).await;
        assert!(head.contains("Host: masked.example\r\n") && !head.contains("good.test"), "{head}");
    });
}

#[test]
fn bodies_of_a_length_and_in_chunks_arrive_unchanged() {
    const LENGTH: usize = 3 << 20;
    lab(|lab| async move {
        let server = web(&lab).await;
        let (mut client, mut inside) = answered(&lab, &server).await;
        let body: Vec<u8> = (0..LENGTH).map(|i| (i % 251) as u8).collect();
        let send = async {
            let head = format!("PUT /a HTTP/1.1\r\nHost: good.test\r\nContent-Length: {LENGTH}\r\n\r\n");
            write(&mut client, head.as_bytes()).await;
            write(&mut client, &body).await;
            write(&mut client, b"PUT /b HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n")
                .await;
            for piece in body.chunks(70_001) {
                write(&mut client, format!("{:X}\r\n", piece.len()).as_bytes()).await;
                write(&mut client, piece).await;
                write(&mut client, b"\r\n").await;
            }
            write(&mut client, b"0\r\nTrailer: dropped\r\n\r\nGET /c HTTP/1.1\r\nHost: good.test\r\n\r\n")
                .await;
        };
        let receive = async {
            assert!(read_head(&mut inside).await.starts_with("PUT /a "));
            assert!(read_exact(&mut inside, LENGTH).await == body);
            assert!(read_head(&mut inside).await.contains("Transfer-Encoding: chunked\r\n"));
            let mut received = Vec::new();
            loop {
                let line = read_line(&mut inside).await;
                let length = usize::from_str_radix(line.trim(), 16).unwrap();
                let data = read_exact(&mut inside, length + 2).await;
                if length == 0 {
                    break;
                }
                received.extend_from_slice(&data[..length]);
            }
            assert!(received == body);
            assert!(read_head(&mut inside).await.starts_with("GET /c "));
        };
        tokio::join!(send, receive);
    });
}

async fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn a_malformed_chunk_ends_the_connection_with_a_refusal() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let (mut client, mut inside) = answered(&lab, &server).await;
        write(&mut client, b"PUT /a HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        read_head(&mut inside).await;
        write(&mut client, b"5;x=y\r\nhello\r\n0\r\n\r\n").await;
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        drop(inside);
        assert_eq!(read_refusal(&mut client).await["reason"], "malformed_http");
    });
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(
            &mut client,
            b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n",
        )
        .await;
        let mut inside = server.accept().await;
        assert!(read_head(&mut inside).await.to_ascii_lowercase().contains("expect: 100-continue\r\n"));
        write(&mut inside, b"HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(read_head(&mut client).await, "HTTP/1.1 100 Continue\r\n\r\n");
        write(&mut client, b"body").await;
        assert_eq!(read_exact(&mut inside, 4).await, b"body");
        write(&mut inside, OK).await;
        assert_eq!(read_exact(&mut client, OK.len()).await, OK);
    });
}

#[test]
fn a_server_that_answers_before_the_body_is_complete_and_closes_is_heard() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 1000000\r\n\r\nsome")
            .await;
        let mut inside = server.accept().await;
        read_head(&mut inside).await;
        read_exact(&mut inside, 4).await;
        write(&mut inside, b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        drop(inside);
        let (answer, end) = read_to_end(&mut client).await;
        assert!(answer.starts_with(b"HTTP/1.1 413 "));
        end.unwrap();
    });
}

#[test]
fn a_client_that_only_reads_after_its_request_gets_the_whole_response() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"GET / HTTP/1.0\r\nHost: good.test\r\n\r\n").await;
        client.shutdown().await.unwrap();
        let mut inside = server.accept().await;
        read_head(&mut inside).await;
        write(&mut inside, b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await;
        drop(inside);
        let (answer, end) = read_to_end(&mut client).await;
        assert!(answer.ends_with(b"until the end"));
        end.unwrap();
    });
}

const OFFER: &[u8] = b"GET /ws HTTP/1.1\r\nHost: good.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn after_a_101_a_web_socket_goes_both_ways_as_it_is() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, &[OFFER, b"\x81\x02hi"].concat()).await;
        let mut inside = server.accept().await;
        let head = read_head(&mut inside).await.to_ascii_lowercase();
        assert!(
            head.contains("connection: upgrade\r\n") && head.contains("upgrade: websocket\r\n"),
            "{head}"
        );
        assert!(head.contains("sec-websocket-key: "));
        write(&mut inside, b"HTTP/1.1 103 Early Hints\r\n\r\n").await;
        write(&mut inside, &[SWITCH, b"\x81\x01!"].concat()).await;
        let expected = [b"HTTP/1.1 103 Early Hints\r\n\r\n", SWITCH, b"\x81\x01!"].concat();
        assert_eq!(read_exact(&mut client, expected.len()).await, expected);
        assert_eq!(read_exact(&mut inside, 4).await, b"\x81\x02hi", "what came ahead of the answer");
        for i in 0..3u8 {
            write(&mut client, &[0x82, 1, i]).await;
            assert_eq!(read_exact(&mut inside, 3).await, [0x82, 1, i]);
            write(&mut inside, &[0x82, 1, i]).await;
            assert_eq!(read_exact(&mut client, 3).await, [0x82, 1, i]);
        }
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        drop(inside);
        read_to_end(&mut client).await.1.unwrap();
        assert_eq!(lab.wait_events(1).await.len(), 1);
    });
}

#[test]
fn what_follows_an_offer_that_was_declined_is_judged() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, OFFER).await;
        let mut inside = server.accept().await;
        read_head(&mut inside).await;
        write(&mut inside, OK).await;
        assert_eq!(read_exact(&mut client, OK.len()).await, OK);
        write(&mut client, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        drop(inside);
        assert_eq!(read_refusal(&mut client).await["reason"], "default_deny");
    });
}

#[test]
fn a_101_that_nobody_offered_and_an_offer_on_a_later_request_open_nothing() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let mut client = lab.connect(GOOD, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: good.test\r\n\r\n").await;
        let mut inside = server.accept().await;
        read_head(&mut inside).await;
        write(&mut inside, SWITCH).await;
        read_exact(&mut client, SWITCH.len()).await;
        write(&mut client, OFFER).await;
        let head = read_head(&mut inside).await.to_ascii_lowercase();
        assert!(!head.contains("upgrade"), "{head}");
        write(&mut inside, SWITCH).await;
        read_exact(&mut client, SWITCH.len()).await;
        write(&mut client, b"\x81\x02hi, no HTTP\r\n\r\n").await;
        assert_eq!(read_to_end(&mut inside).await.0, b"");
        drop(inside);
        assert_eq!(read_refusal(&mut client).await["reason"], "malformed_http");
    });
}

#[test]
fn an_open_policy_with_a_refused_name_judges_names_and_lets_addresses_pass() {
    lab(|lab| async move {
        lab.set_policy(&PolicySpec { deny_out: vec!["evil.test".to_owned()], ..PolicySpec::default() });
        lab.egress.resolve("good.test", &[GOOD]);
        lab.egress.resolve("evil.test", &[EVIL]);
        lab.proxy(80);
        let (good, evil) = (Server::listen(GOOD, 80).await, Server::listen(EVIL, 80).await);
        for host in ["good.test", GOOD] {
            let mut client = lab.connect(GOOD, 80).await;
            write(&mut client, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await;
            let mut inside = good.accept().await;
            assert!(read_head(&mut inside).await.contains(host));
        }
        let mut client = lab.connect(EVIL, 80).await;
        write(&mut client, b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
        let body = read_refusal(&mut client).await;
        assert_eq!((&body["reason"], &body["rule"]), (&"deny_entry".into(), &"deny_out[0] evil.test".into()));
        assert!(!evil.was_reached());
    });
}

#[test]
fn a_server_that_resets_resets_the_client() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let (mut client, inside) = answered(&lab, &server).await;
        inside.set_zero_linger().unwrap();
        drop(inside);
        assert_reset(&mut client).await;
    });
}

#[test]
fn a_policy_that_no_longer_permits_the_host_cuts_the_connection() {
    lab(|lab| async move {
        let server = web(&lab).await;
        let (mut client, mut inside) = answered(&lab, &server).await;
        lab.set_policy(&PolicySpec { allow_out: vec!["x.test".to_owned()], ..PolicySpec::default() });
        assert_reset(&mut client).await;
        assert_reset(&mut inside).await;
        let events = lab.wait_events(2).await;
        assert_event(
            &events[1],
            EventKind::EgressRevoked,
            "default_deny",
            Some("good.test"),
            NameSource::Host,
        );
    });
}
