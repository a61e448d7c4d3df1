use proptest::prelude::*;

use super::*;

fn read(bytes: &[u8]) -> Progress<RequestHead> {
    RequestReader::new(HeadLimits::default()).read(bytes)
}

/// Reads from a buffer that grows by `size`.
fn read_in(bytes: &[u8], size: usize) -> Progress<RequestHead> {
    let mut reader = RequestReader::new(HeadLimits::default());
    let mut end = 0;
    while end < bytes.len() {
        end = (end + size).min(bytes.len());
        let progress = reader.read(&bytes[..end]);
        if progress != Progress::NeedMore {
            return progress;
        }
    }
    Progress::NeedMore
}

#[track_caller]
fn done(text: &str) -> RequestHead {
    match read(text.as_bytes()) {
        Progress::Done(head) => head,
        other => panic!("{text:?}: {other:?}"),
    }
}

#[track_caller]
fn refused(text: impl AsRef<[u8]>) -> RefusalKind {
    match read(text.as_ref()) {
        Progress::Refused(refusal) => refusal.kind,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(text.as_ref())),
    }
}

/// A request with these headers.
fn with(headers: &str) -> String {
    format!("POST /path HTTP/1.1\r\n{headers}\r\n\r\n")
}

#[track_caller]
fn written(head: &RequestHead, host: Option<&str>, keep_upgrade: bool) -> String {
    String::from_utf8(head.write(host, keep_upgrade)).unwrap()
}

#[test]
fn a_request_says_who_and_what_is_asked() {
    let text = "GET /a?b=c HTTP/1.1\r\nhOsT:\tallowed.test:8080 \r\nAccept: */*\r\n\r\nrest";
    let head = done(text);
    assert_eq!(head.consumed, text.len() - 4);
    assert_eq!((head.method.as_str(), head.version), ("GET", Version::Http11));
    assert_eq!(head.target, Target::Origin("/a?b=c".to_owned()));
    assert_eq!((head.host.as_str(), head.port), ("allowed.test", Some(8080)));
    assert_eq!((head.body, head.upgrade, head.keep_alive), (Body::None, None, true));
    assert!(head.headers.iter().any(|header| header.is("accept") && header.value == b"*/*"));
}

#[test]
fn hosts_are_names_or_addresses_with_or_without_a_port() {
    for (value, host, port) in [
        ("Allowed.Test.", "Allowed.Test.", None),
        ("a_b.test:80", "a_b.test", Some(80)),
        ("1.2.3.4:1", "1.2.3.4", Some(1)),
        ("[::1]", "[::1]", None),
        ("[2001:db8::1]:65535", "[2001:db8::1]", Some(65535)),
    ] {
        let head = done(&with(&format!("Host: {value}")));
        assert_eq!((head.host.as_str(), head.port), (host, port), "{value}");
    }
}

#[test]
fn anything_but_one_valid_host_is_refused() {
    for headers in [
        "Accept: */*",
        "Host:",
        "Host: ",
        "Host: allowed.test,evil.test",
        "Host: allowed.test evil.test",
        "Host: allowed.test\r\nHost: evil.test",
        "Host: allowed.test\r\nhost: allowed.test",
        "Host: user@allowed.test",
        "Host: allowed.test/",
        "Host: http://allowed.test",
        "Host: allowed.test:",
        "Host: allowed.test:0",
        "Host: allowed.test:65536",
        "Host: allowed.test:+80",
        "Host: allowed.test:80:80",
        "Host: ::1",
        "Host: [::1",
        "Host: [allowed.test]",
        "Host: [::1]x",
        "Host: allowed%2etest",
        "Host: \u{430}llowed.test",
    ] {
        assert_eq!(refused(with(headers)), RefusalKind::InvalidHost, "{headers:?}");
    }
    assert_eq!(refused("GET / HTTP/1.0\r\n\r\n"), RefusalKind::InvalidHost);
    assert_eq!(done("GET / HTTP/1.0\r\nHost: allowed.test\r\n\r\n").host, "allowed.test");
}

#[test]
fn other_ways_to_name_a_destination_are_refused_by_name() {
    for (first_line, kind) in [
        ("GET http://evil.test/ HTTP/1.1", RefusalKind::HttpAbsoluteForm),
        ("GET https://allowed.test/ HTTP/1.1", RefusalKind::HttpAbsoluteForm),
        ("CONNECT evil.test:443 HTTP/1.1", RefusalKind::HttpConnect),
        ("connect allowed.test:443 HTTP/1.1", RefusalKind::HttpConnect),
        ("GET evil.test HTTP/1.1", RefusalKind::MalformedHttp),
        ("GET * HTTP/1.1", RefusalKind::MalformedHttp),
        ("GET /#fragment HTTP/1.1", RefusalKind::MalformedHttp),
    ] {
        assert_eq!(refused(format!("{first_line}\r\nHost: allowed.test\r\n\r\n")), kind, "{first_line}");
    }
    assert_eq!(done("OPTIONS * HTTP/1.1\r\nHost: allowed.test\r\n\r\n").target, Target::Asterisk);
    assert_eq!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), RefusalKind::HttpH2c);
}

#[test]
fn upgrades_to_http2_are_refused_and_web_sockets_are_seen() {
    for headers in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
        "Connection: upgrade\r\nUpgrade: websocket, H2C",
        "Upgrade: h2c",
        "Connection: upgrade\r\nUpgrade: HTTP/2.0",
        "HTTP2-Settings: AAMAAABk",
        "Upgrade: websocket\r\nHTTP2-Settings: AAMAAABk",
    ] {
        assert_eq!(refused(with(&format!("Host: a.test\r\n{headers}"))), RefusalKind::HttpH2c, "{headers}");
    }
    let upgrade = |method: &str, headers: &str| {
        done(&format!("{method} / HTTP/1.1\r\nHost: a.test\r\n{headers}\r\n\r\n")).upgrade
    };
    assert_eq!(
        upgrade("GET", "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket"),
        Some(Upgrade::WebSocket)
    );
    assert_eq!(upgrade("POST", "Connection: Upgrade\r\nUpgrade: websocket"), Some(Upgrade::Other));
    assert_eq!(upgrade("GET", "Connection: Upgrade\r\nUpgrade: TLS/1.0"), Some(Upgrade::Other));
    assert_eq!(upgrade("GET", "Upgrade: websocket"), None);
    assert_eq!(upgrade("GET", "Connection: Upgrade"), None);
}

#[test]
fn framing_is_read_when_there_is_one_way_to_read_it() {
    let body = |headers: &str| done(&with(&format!("Host: a.test\r\n{headers}"))).body;
    assert_eq!(body("Content-Length: 5"), Body::Length(5));
    assert_eq!(body("Content-Length: 18446744073709551615"), Body::Length(u64::MAX));
    assert_eq!(body("Transfer-Encoding: chunked"), Body::Chunked);
    assert_eq!(body("transfer-encoding: CHUNKED"), Body::Chunked);
    assert_eq!(body("X: y"), Body::None);
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding:",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer\u{b}-Encoding: chunked",
    ] {
        assert_eq!(
            refused(with(&format!("Host: a.test\r\n{headers}"))),
            RefusalKind::MalformedHttp,
            "{headers:?}"
        );
    }
    let http10 = "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(refused(http10), RefusalKind::MalformedHttp);
}

#[test]
fn malformed_heads_are_refused() {
    for bytes in [
        &b"GET / HTTP/1.1\nHost: a.test\n\n"[..],
        b"GET / HTTP/1.1\r\nHost: a.test\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\nX: a\0b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\nX: a\x7fb\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a.test\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\t: a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\n: a.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHo st: a.test\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET /  HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET / b HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"GET /\r\nHost: a.test\r\n\r\n",
        b"GET / HTTP/1.2\r\nHost: a.test\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a.test\r\n\r\n",
        b"GET / http/1.1\r\nHost: a.test\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b" GET / HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ] {
        assert_eq!(refused(bytes), RefusalKind::MalformedHttp);
    }
}

#[test]
fn what_is_wrong_is_said_before_the_head_is_complete() {
    for bytes in [&b"GET / HTTP/1.1\nHost"[..], b"GET / HTTP/1.1\r\nX: y\r\n z", b"\0", b"PRI * HTTP/2.0\r\n"]
    {
        assert!(matches!(read(bytes), Progress::Refused(_)), "{bytes:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let fits = with(&format!("Host: a.test\r\nX: {}", "a".repeat(65_000)));
    assert!(matches!(read(fits.as_bytes()), Progress::Done(_)));
    let over = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(66_000));
    assert_eq!(refused(&over), RefusalKind::MalformedHttp);
    let headers = |count: usize| with(&format!("Host: a.test{}", "\r\nX: y".repeat(count)));
    assert_eq!(done(&headers(99)).headers.len(), 100);
    assert_eq!(refused(headers(100)), RefusalKind::MalformedHttp);
    let endless = format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(101));
    assert_eq!(refused(&endless), RefusalKind::MalformedHttp, "before the end");
    let mut few = RequestReader::new(HeadLimits { headers: 1, ..HeadLimits::default() });
    assert!(matches!(few.read(headers(1).as_bytes()), Progress::Refused(_)));
    let method = format!("{} / HTTP/1.1\r\nHost: a.test\r\n\r\n", "M".repeat(33));
    assert_eq!(refused(&method), RefusalKind::MalformedHttp);
}

#[test]
fn connections_stay_open_as_the_client_says() {
    let keep_alive = |version: &str, header: &str| {
        done(&format!("GET / HTTP/{version}\r\nHost: a.test\r\n{header}\r\n\r\n")).keep_alive
    };
    assert!(keep_alive("1.1", "X: y"));
    assert!(!keep_alive("1.1", "Connection: x, Close"));
    assert!(!keep_alive("1.0", "X: y"));
    assert!(keep_alive("1.0", "Connection: Keep-Alive"));
}

#[test]
fn a_written_head_means_the_same_and_has_nothing_of_the_connection() {
    let head = done(
        "POST /p?q HTTP/1.1\r\nAccept:   a  \r\nhost: Allowed.test:80\r\nConnection: X-Secret, close\r\n\
         X-Secret: s\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: trailers\r\nTrailer: T\r\n\
         Content-Length: 005\r\nX-Forwarded-Host: evil.test\r\n\r\n",
    );
    let expected = "POST /p?q HTTP/1.1\r\nHost: Allowed.test:80\r\nAccept: a\r\nX-Forwarded-Host: evil.test\r\n\
                    Content-Length: 5\r\nConnection: close\r\n\r\n";
    assert_eq!(written(&head, None, true), expected);
    assert!(written(&head, Some("mask.test"), true).contains("\r\nHost: mask.test\r\nAccept"));
}

#[test]
fn nominating_host_or_framing_does_not_remove_them() {
    let head = done(&with(
        "Host: a.test\r\nConnection: host, content-length, accept\r\nContent-Length: 5\r\nAccept: x",
    ));
    let text = written(&head, None, false);
    assert_eq!(text, "POST /path HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\n");
}

#[test]
fn an_upgrade_is_written_only_when_it_is_kept() {
    let head = done(
        "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n",
    );
    let kept = written(&head, None, true);
    assert!(
        kept.ends_with("Sec-WebSocket-Key: k\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        "{kept}"
    );
    let dropped = written(&head, None, false);
    assert!(!dropped.to_lowercase().contains("upgrade"), "{dropped}");
}

fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "GET / HTTP/1.1\r\n",
        "POST /a HTTP/1.0\r\n",
        "Host: a.test\r\n",
        "Host: [::1]:80\r\n",
        "X: y\r\n",
        "Connection: close, x\r\n",
        "Connection: upgrade\r\n",
        "Upgrade: websocket\r\n",
        "Content-Length: 12\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Expect: 100-continue\r\n",
        "\r\n",
        "\r",
        "\n",
        " ",
        ":",
        "\0",
        "x",
        "é",
    ]);
    prop::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic_and_alike_in_any_segmentation(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        size in 1usize..20,
    ) {
        prop_assert_eq!(read_in(&bytes, size), read_in(&bytes, 1));
        prop_assert_eq!(read_in(&bytes, size), read(&bytes));
    }

    #[test]
    fn near_requests_are_read_alike_in_any_segmentation(text in pieces(), size in 1usize..40) {
        prop_assert_eq!(read_in(text.as_bytes(), size), read(text.as_bytes()));
    }

    #[test]
    fn a_written_head_is_read_back_with_the_same_meaning(text in pieces()) {
        if let Progress::Done(head) = read(format!("GET / HTTP/1.1\r\nHost: b.test\r\n{text}\r\n").as_bytes()) {
            let bytes = head.write(None, true);
            let again = match read(&bytes) {
                Progress::Done(again) => again,
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(again.consumed, bytes.len());
            prop_assert_eq!(
                (&again.method, &again.target, &again.host, again.port, again.body, again.upgrade),
                (&head.method, &head.target, &head.host, head.port, head.body, head.upgrade)
            );
            prop_assert!(again.upgrade.is_some() || again.keep_alive == head.keep_alive);
            prop_assert_eq!(again.write(None, true), bytes);
        }
    }
}
