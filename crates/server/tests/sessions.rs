//! Terminals and stdio sessions.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::Lab;
use sandbox::TerminalSize;
use serde_json::json;

#[tokio::test]
async fn a_terminal_has_a_login_shell_a_size_and_a_kind() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/pty", lab.sandbox().await);
    let body = json!({"size": {"cols": 100, "rows": 30}, "user": "user", "timeout": 3600});
    assert_eq!(lab.alice("POST", &path, body).await.expect(200), json!({"pid": 100}));
    let exec = lab.fake.ran.lock().unwrap().pop().unwrap();
    assert!(exec.command.contains("bash -l") && exec.timeout.unwrap().as_secs() == 3600);
    assert_eq!(exec.envs["TERM"], "xterm-256color");
    lab.alice("POST", &path, json!({"envs": {"TERM": "dumb"}})).await.expect(200);
    assert_eq!(lab.fake.ran.lock().unwrap().pop().unwrap().envs["TERM"], "dumb");
    let resize = json!({"size": {"cols": 1, "rows": 4096}});
    lab.alice("PATCH", &format!("{path}/100"), resize).await.expect(200);
    let sizes: Vec<_> =
        [(100, 30), (80, 24), (1, 4096)].map(|(columns, rows)| Some(TerminalSize { columns, rows })).into();
    assert_eq!(*lab.fake.sizes.lock().unwrap(), sizes);
    lab.alice("POST", &format!("{path}/100/stdin"), json!({"data": "ls\n"})).await.expect(200);
    lab.alice("DELETE", &format!("{path}/100"), ()).await.expect(200);
}

#[tokio::test]
async fn whatever_asks_a_sandbox_is_answered_with_documented_statuses_when_it_cannot_be_asked() {
    let lab = Lab::new().await;
    let (paused, killed) = (lab.sandbox().await, lab.sandbox().await);
    lab.alice("POST", &format!("/sandboxes/{paused}/pause"), ()).await.expect(200);
    lab.alice("DELETE", &format!("/sandboxes/{killed}"), ()).await.expect(200);
    let routes = [
        ("POST", "pty", json!({})),
        ("PATCH", "pty/100", json!({"size": {"cols": 1, "rows": 1}})),
        ("DELETE", "pty/100", json!({})),
        ("POST", "pty/100/stdin", json!({"data": "x"})),
        ("GET", "pty/100/stream", json!({})),
        ("POST", "stdio", json!({"cmd": "cat"})),
        ("DELETE", "stdio/100", json!({})),
        ("POST", "stdio/100/stdin", json!({"data": ""})),
        ("POST", "stdio/100/stdin/close", json!({})),
        ("GET", "stdio/100/stream", json!({})),
        ("POST", "files/watch", json!({"path": "/tmp"})),
        ("GET", "commands/100/wait", json!({})),
        ("POST", "commands/stream", json!({"cmd": "true"})),
    ];
    for (method, route, body) in routes {
        // That each of them is documented is checked with every request.
        for (id, status) in [(&paused, 409), (&killed, 410), (&"sbx-0000000000".to_owned(), 404)] {
            let answer = lab.alice(method, &format!("/sandboxes/{id}/{route}"), body.clone()).await;
            assert_eq!(answer.status.as_u16(), status, "{method} {route}");
        }
        let keyless = common::request(method, &format!("/sandboxes/{paused}/{route}"), "none", body);
        lab.send(keyless).await.error(401);
    }
}

#[tokio::test]
async fn a_size_that_no_terminal_has_is_refused_and_named() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/pty", lab.sandbox().await);
    for (size, field) in [
        (json!({"cols": 4097, "rows": 24}), "size.cols"),
        (json!({"cols": 80, "rows": 4097}), "size.rows"),
        (json!({"cols": 70000, "rows": 24}), "size.cols"),
        (json!({"cols": -1, "rows": 24}), "size.cols"),
        (json!({"cols": "x", "rows": 24}), "size.cols"),
        (json!({"cols": 80}), "rows"),
    ] {
        for (method, path) in [("POST", path.clone()), ("PATCH", format!("{path}/100"))] {
            let (message, _) = lab.alice(method, &path, json!({"size": size})).await.error(400);
            assert!(message.contains(field), "{size}: {message}");
        }
    }
    assert!(lab.fake.sizes.lock().unwrap().is_empty());
    let (message, _) = lab.alice("PATCH", &format!("{path}/100"), json!({})).await.error(400);
    assert!(message.contains("size"), "{message}");
}

#[tokio::test]
async fn a_terminal_that_does_not_know_its_size_has_the_usual_one() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/pty", lab.sandbox().await);
    lab.alice("POST", &path, json!({"size": {"cols": 0, "rows": 0}})).await.expect(200);
    lab.alice("PATCH", &format!("{path}/100"), json!({"size": {"cols": 132, "rows": 0}})).await.expect(200);
    let sizes: Vec<_> =
        [(80, 24), (132, 24)].map(|(columns, rows)| Some(TerminalSize { columns, rows })).into();
    assert_eq!(*lab.fake.sizes.lock().unwrap(), sizes);
}

#[tokio::test]
async fn a_stdio_session_takes_bytes_and_refuses_what_is_not_base64() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/stdio", lab.sandbox().await);
    let answer = lab.alice("POST", &path, json!({"cmd": "cat", "user": "user"})).await;
    assert_eq!(answer.expect(200), json!({"cmd_id": "100"}));
    assert_eq!(*lab.fake.sizes.lock().unwrap(), [None]);
    lab.alice("POST", &format!("{path}/100/stdin"), json!({"data": "AP8="})).await.expect(200);
    lab.alice("POST", &format!("{path}/100/stdin/close"), ()).await.expect(200);
    assert_eq!(*lab.fake.stdin.lock().unwrap(), [(100, Some(vec![0, 255])), (100, None)]);
    for body in [json!({"data": "*"}), json!({"data": 5}), json!({})] {
        let (message, _) = lab.alice("POST", &format!("{path}/100/stdin"), body).await.error(400);
        assert!(message.contains("data"), "{message}");
    }
    for body in [json!({}), json!({"cmd": "a\u{0}"})] {
        let (message, _) = lab.alice("POST", &path, body).await.error(400);
        assert!(message.contains("cmd"), "{message}");
    }
}

#[tokio::test]
async fn streams_have_the_form_that_the_strictest_reader_wants() {
    let lab = Lab::new().await;
    let base = format!("/sandboxes/{}", lab.sandbox().await);
    let stdio = lab.alice("GET", &format!("{base}/stdio/100/stream"), ()).await;
    assert_eq!(stdio.headers["content-type"], "text/event-stream");
    assert_eq!(
        String::from_utf8(stdio.bytes).unwrap(),
        "event: stdout\ndata: {\"data\":\"Yf8=\",\"entry_id\":1}\n\n\
         event: stderr\ndata: {\"data\":\"Yg==\",\"entry_id\":2}\n\n\
         : output was lost, it was too old to be kept\n\n\
         event: stdout\ndata: {\"data\":\"ZA==\",\"entry_id\":4}\n\n\
         event: exit\ndata: {\"exit_code\":7}\n\n"
    );
    let later = lab.alice("GET", &format!("{base}/stdio/100/stream?last_entry_id=3"), ()).await;
    assert!(later.bytes.starts_with(b"event: stdout\ndata: {\"data\":\"ZA==\",\"entry_id\":4}\n\n"));
    let pty = lab.alice("GET", &format!("{base}/pty/100/stream"), ()).await;
    assert_eq!(
        String::from_utf8(pty.bytes).unwrap(),
        "event: data\ndata: {\"data\":\"Yf8=\"}\n\nevent: data\ndata: {\"data\":\"Yg==\"}\n\n\
         event: data\ndata: {\"data\":\"ZA==\"}\n\nevent: exit\ndata: {\"exit_code\":7}\n\n"
    );
}

#[tokio::test]
async fn what_is_not_there_is_not_found_and_what_is_too_old_is_a_conflict() {
    let lab = Lab::new().await;
    let base = format!("/sandboxes/{}", lab.sandbox().await);
    let size = json!({"size": {"cols": 80, "rows": 24}});
    lab.alice("GET", &format!("{base}/stdio/7/stream"), ()).await.error(404);
    lab.alice("GET", &format!("{base}/pty/7/stream"), ()).await.error(404);
    lab.alice("PATCH", &format!("{base}/pty/7"), &size).await.error(404);
    lab.alice("POST", &format!("{base}/pty/7/stdin"), json!({"data": "x"})).await.error(404);
    lab.alice("POST", &format!("{base}/stdio/7/stdin"), json!({"data": ""})).await.error(404);
    lab.bob("GET", &format!("{base}/pty/100/stream"), ()).await.error(404);
    lab.alice("GET", &format!("{base}/stdio/100/stream?last_entry_id=x"), ()).await.error(400);
    let (_, code) = lab.alice("POST", &format!("{base}/stdio"), json!({"cmd": "old"})).await.error(409);
    assert_eq!(code.as_deref(), Some("sandbox_too_old"));
}

#[tokio::test]
async fn a_watch_is_a_stream_only_for_those_who_ask_for_one() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/files/watch", lab.sandbox().await);
    let body = json!({"path": "/a", "username": "user", "recursive": true});
    assert_eq!(lab.alice("POST", &path, &body).await.expect(200), json!({"ok": true}));
    let mut asked = common::request("POST", &path, &lab.alice, &body);
    asked.headers_mut().insert("accept", "text/event-stream".parse().unwrap());
    let stream = lab.send(asked).await;
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    assert_eq!(
        String::from_utf8(stream.bytes).unwrap(),
        "event: change\ndata: {\"type\":\"write\",\"path\":\"/a/f\",\"is_dir\":true}\n\n\
         event: change\ndata: {\"type\":\"lost\",\"is_dir\":true}\n\n"
    );
    lab.alice("POST", &path, json!({})).await.error(400);
    lab.bob("POST", &path, body).await.error(404);
}
