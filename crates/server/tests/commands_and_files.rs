//! Commands, files and events of a sandbox.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use axum::body::Body;
use common::{Lab, request};
use futures_util::stream;
use serde_json::json;

#[tokio::test]
async fn a_command_runs_to_its_end_and_any_exit_code_is_200() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/commands", lab.sandbox().await);
    for (body, answer) in [
        (json!({"cmd": "echo hi"}), json!({"stdout": "hi\n", "stderr": "", "exit_code": 0})),
        (json!({"cmd": "exit 3", "background": false}), json!({"stdout": "", "stderr": "", "exit_code": 3})),
        (
            json!({"cmd": "timeout", "timeout": 1}),
            json!({"stdout": "some", "stderr": "partial\ntimeout", "exit_code": 124}),
        ),
        (json!({"cmd": "bytes"}), json!({"stdout": "a\u{fffd}b", "stderr": "", "exit_code": 0})),
    ] {
        assert_eq!(lab.alice("POST", &path, &body).await.expect(200), answer, "{body}");
    }
    lab.alice("POST", &path, json!({"cmd": "lost"})).await.error(502);
    for (body, field) in [
        (json!({}), "cmd"),
        (json!({"cmd": 5}), "cmd: "),
        (json!({"cmd": "echo", "timeout": -1}), "timeout: "),
        (json!({"cmd": "echo", "envs": {"A": 1}}), "envs.A: "),
        (json!({"cmd": "echo", "envs": {"A=": "1"}}), "envs: "),
        (json!({"cmd": "echo", "background": "yes"}), "background: "),
        (json!({"cmd": "e\u{0}"}), "cmd: "),
    ] {
        let (message, _) = lab.alice("POST", &path, &body).await.error(400);
        assert!(message.contains(field), "{message}");
    }
}

/// The events of an answer: name and data.
fn events(bytes: &[u8]) -> Vec<(String, serde_json::Value)> {
    let text = std::str::from_utf8(bytes).unwrap();
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data = data.strip_prefix("data: ").unwrap();
        (name.strip_prefix("event: ").unwrap().to_owned(), serde_json::from_str(data).unwrap())
    };
    text.strip_suffix("\n\n").unwrap().split("\n\n").map(event).collect()
}

#[tokio::test]
async fn output_is_streamed_in_order_for_both_kinds_of_readers_and_ends_with_the_exit() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/commands/stream", lab.sandbox().await);
    let output = |stream: &str, data: &str| {
        ("output".to_owned(), json!({"type": stream, "stream": stream, "data": data}))
    };
    let exit = |code: i32| ("exit".to_owned(), json!({"exit_code": code}));
    let mut asked = request("POST", &path, &lab.alice, json!({"cmd": "both", "stream": true}));
    let exact = lab.send(asked).await;
    assert_eq!(
        (exact.status.as_u16(), &exact.headers["content-type"]),
        (200, &"text/event-stream".parse().unwrap())
    );
    assert_eq!(
        events(&exact.bytes),
        [
            output("stdout", "one\n"),
            output("stdout", "tw"),
            output("stderr", "oh\n"),
            output("stdout", "o\n"),
            output("stdout", "\u{fffd}"),
            output("stdout", "\u{fffd}"),
            exit(3)
        ]
    );
    asked = request("POST", &path, &lab.alice, json!({"cmd": "both"}));
    asked.headers_mut().insert("user-agent", "python-httpx/0.28.1".parse().unwrap());
    assert_eq!(
        events(&lab.send(asked).await.bytes),
        [
            output("stdout", "one"),
            output("stderr", "oh"),
            output("stdout", "two"),
            output("stdout", "\u{fffd}\u{fffd}"),
            exit(3)
        ]
    );
    let late = lab.alice("POST", &path, json!({"cmd": "timeout", "timeout": 1})).await;
    assert_eq!(events(&late.bytes), [output("stdout", "some"), output("stderr", "timeout"), exit(124)]);
    let lost = lab.alice("POST", &path, json!({"cmd": "lost"})).await;
    let error = ("error".to_owned(), json!({"error": "the sandbox does not answer"}));
    assert_eq!(events(&lost.bytes), [output("stdout", "some"), error, exit(1)]);
}

#[tokio::test]
async fn what_fails_before_a_stream_begins_is_an_answer_with_its_status() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    let path = format!("/sandboxes/{id}/commands/stream");
    for (body, field) in [
        (json!({}), "cmd"),
        (json!({"cmd": "e\u{0}"}), "cmd: "),
        (json!({"cmd": "both", "timeout": -1}), "timeout: "),
        (json!({"cmd": "both", "background": true}), "background: "),
    ] {
        let (message, _) = lab.alice("POST", &path, &body).await.error(400);
        assert!(message.contains(field), "{message}");
    }
    lab.bob("POST", &path, json!({"cmd": "both"})).await.error(404);
    lab.alice("POST", &path, json!({"cmd": "nothing"})).await.error(502);
    lab.fake.set_state(&id, "paused");
    lab.alice("POST", &path, json!({"cmd": "both"})).await.error(409);
    lab.fake.set_state(&id, "killed");
    lab.alice("POST", &path, json!({"cmd": "both"})).await.error(410);
}

#[tokio::test]
async fn a_streamed_command_ends_with_its_reader() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/commands/stream", lab.sandbox().await);
    let asked = request("POST", &path, &lab.alice, json!({"cmd": "hang"}));
    let response = tower::ServiceExt::oneshot(lab.router.clone(), asked).await.unwrap();
    assert_eq!(lab.fake.running.load(std::sync::atomic::Ordering::SeqCst), 1);
    drop(response);
    assert_eq!(lab.fake.running.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test]
async fn everything_about_a_command_arrives_with_its_default() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/commands", lab.sandbox().await);
    lab.alice("POST", &path, json!({"cmd": "echo"})).await.expect(200);
    let plain = lab.fake.ran.lock().unwrap().pop().unwrap();
    assert_eq!((plain.user, plain.cwd, plain.stdin, plain.timeout), (None, None, false, None));
    let full = json!({
        "cmd": "echo", "user": "root", "cwd": "/tmp", "stdin": true, "timeout": 1.5, "envs": {"A": "1"}, "stream": 1
    });
    lab.alice("POST", &path, full).await.expect(200);
    let full = lab.fake.ran.lock().unwrap().pop().unwrap();
    assert_eq!((full.user.as_deref(), full.cwd.as_deref(), full.stdin), (Some("root"), Some("/tmp"), true));
    assert_eq!((full.timeout.unwrap().as_millis(), full.envs["A"].as_str()), (1500, "1"));
    for none in [json!({"cmd": "echo", "timeout": 0}), json!({"cmd": "echo", "timeout": null})] {
        lab.alice("POST", &path, none).await.expect(200);
        assert_eq!(lab.fake.ran.lock().unwrap().pop().unwrap().timeout, None);
    }
}

#[tokio::test]
async fn the_input_of_a_command_is_open_in_the_background_unless_the_request_says_otherwise() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/commands", lab.sandbox().await);
    for (body, open) in [
        (json!({"cmd": "server", "background": true}), true),
        (json!({"cmd": "server", "background": true, "stdin": null}), true),
        (json!({"cmd": "server", "background": true, "stdin": false}), false),
        (json!({"cmd": "echo", "background": false}), false),
        (json!({"cmd": "echo"}), false),
        (json!({"cmd": "echo", "stdin": true}), true),
    ] {
        lab.alice("POST", &path, &body).await.expect(200);
        assert_eq!(lab.fake.ran.lock().unwrap().pop().unwrap().stdin, open, "{body}");
    }
}

#[tokio::test]
async fn a_command_in_the_background_is_listed_fed_waited_for_and_killed() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/commands", lab.sandbox().await);
    assert_eq!(lab.alice("GET", &path, ()).await.expect(200), json!([]));
    let body = json!({"cmd": "server", "background": true, "envs": {"TOKEN": "secret"}, "stdin": true});
    assert_eq!(lab.alice("POST", &path, body).await.expect(200), json!({"pid": 100}));
    let listed = json!([{"pid": 100, "cmd": "server", "is_pty": false, "envs": {"TOKEN": "***"}}]);
    assert_eq!(lab.alice("GET", &path, ()).await.expect(200), listed);

    lab.alice("POST", &format!("{path}/100/stdin"), json!({"data": "ä\n"})).await.expect(200);
    lab.alice("POST", &format!("{path}/100/stdin/close"), ()).await.expect(200);
    let fed = [(100, Some("ä\n".as_bytes().to_vec())), (100, None)];
    assert_eq!(*lab.fake.stdin.lock().unwrap(), fed);
    lab.alice("POST", &format!("{path}/7/stdin"), json!({"data": "x"})).await.error(404);

    let end = json!({"stdout": "done\n", "stderr": "", "exit_code": 3});
    for _ in 0..2 {
        assert_eq!(lab.alice("GET", &format!("{path}/100/wait"), ()).await.expect(200), end);
    }
    let unknown = json!({"stdout": "", "stderr": "process not found", "exit_code": 1});
    assert_eq!(lab.alice("GET", &format!("{path}/7/wait"), ()).await.expect(200), unknown);
    assert_eq!(lab.alice("DELETE", &format!("{path}/100"), ()).await.expect(200), json!({"killed": true}));
    assert_eq!(lab.alice("DELETE", &format!("{path}/7"), ()).await.expect(200), json!({"killed": false}));
    lab.alice("GET", &format!("{path}/x/wait"), ()).await.error(400);
}

#[tokio::test]
async fn files_are_written_read_described_and_removed() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/files", lab.sandbox().await);
    let written = lab.alice("POST", &path, json!({"path": "/d/a.txt", "data": "ä"})).await.expect(200);
    assert_eq!(written, json!({"path": "/d/a.txt", "size": 2}));
    let raw = vec![0, 255, 10];
    let written = lab.alice("PUT", &format!("{path}/raw?path=/d/b%20c&username=root"), raw.clone()).await;
    assert_eq!(written.expect(200), json!({"path": "/d/b c", "size": 3}));

    for read in ["", "/raw"] {
        let answer = lab.alice("GET", &format!("{path}{read}?path=/d/b+c&username=user"), ()).await;
        assert_eq!((answer.status.as_u16(), &answer.bytes), (200, &raw));
        assert_eq!(answer.headers["content-type"], "application/octet-stream");
        assert_eq!(answer.headers["content-length"], "3");
    }
    let entry = json!({"name": "a.txt", "path": "/d/a.txt", "type": "file", "size": 2});
    assert_eq!(lab.alice("GET", &format!("{path}/info?path=/d/a.txt"), ()).await.expect(200), entry);
    let list = lab.alice("GET", &format!("{path}/list?path=/d&username=user&depth=1"), ()).await.expect(200);
    assert_eq!((list.as_array().unwrap().len(), &list[0]), (2, &entry));
    assert_eq!(lab.alice("GET", &format!("{path}/info?path=/d"), ()).await.expect(200)["type"], "dir");

    let rename = json!({"old_path": "/d/a.txt", "new_path": "/d/z.txt", "username": "user"});
    let renamed = json!({"name": "z.txt", "path": "/d/z.txt", "type": "file", "size": 2});
    assert_eq!(lab.alice("PATCH", &path, rename).await.expect(200), renamed);
    for (path_there, exists) in [("/d/z.txt", true), ("/d/a.txt", false)] {
        let answer = lab.alice("GET", &format!("{path}/exists?path={path_there}"), ()).await;
        assert_eq!(answer.expect(200), json!({"exists": exists}));
    }
    for created in [true, false] {
        let answer = lab.alice("POST", &format!("{path}/mkdir"), json!({"path": "/new"})).await.expect(200);
        assert_eq!(answer, json!({"created": created}));
    }
    for removed in [true, false] {
        let answer = lab.alice("DELETE", &format!("{path}?path=/d/z.txt"), ()).await.expect(200);
        assert_eq!(answer, json!({"removed": removed}));
    }
}

#[tokio::test]
async fn an_empty_file_is_read_without_a_length_of_zero() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/files", lab.sandbox().await);
    lab.alice("POST", &path, json!({"path": "/empty", "data": ""})).await.expect(200);
    let answer = lab.alice("GET", &format!("{path}?path=/empty"), ()).await;
    assert_eq!((answer.status.as_u16(), answer.bytes.len()), (200, 0));
    assert!(!answer.headers.contains_key("content-length"));
}

#[tokio::test]
async fn files_are_written_in_bulk_in_the_order_given() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/files/batch", lab.sandbox().await);
    let python =
        json!({"files": [{"path": "/b", "data": "1"}, {"path": "/a", "data": "22"}], "username": "user"});
    let sizes = json!([{"path": "/b", "size": 1}, {"path": "/a", "size": 2}]);
    assert_eq!(lab.alice("POST", &path, python).await.expect(200), sizes);
    let go = json!({"files": [{"path": "/c", "data": "", "username": "root"}]});
    assert_eq!(lab.alice("POST", &path, go).await.expect(200), json!([{"path": "/c", "size": 0}]));
    let (message, _) = lab.alice("POST", &path, json!({"files": [{"path": "/c"}]})).await.error(400);
    assert!(message.starts_with("files[0]: "), "{message}");
}

#[tokio::test]
async fn errors_of_files_have_their_status() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/files", lab.sandbox().await);
    lab.alice("POST", &path, json!({"path": "/d/a", "data": "x"})).await.expect(200);
    for (method, query, body, status) in [
        ("GET", "?path=/nothing", json!({}), 404),
        ("GET", "/info?path=/nothing", json!({}), 404),
        ("GET", "/list?path=/nothing", json!({}), 404),
        ("GET", "?path=/d", json!({}), 400),
        ("GET", "/list?path=/d/a", json!({}), 400),
        ("GET", "?path=relative", json!({}), 400),
        ("GET", "?path=", json!({}), 400),
        ("GET", "", json!({}), 400),
        ("GET", "?path=/d/a&username=nobody", json!({}), 400),
        ("GET", "/list?path=/d&depth=x", json!({}), 400),
        ("DELETE", "", json!({}), 400),
        ("POST", "", json!({"path": "/full/x", "data": "x"}), 413),
        ("POST", "", json!({"path": "/x"}), 400),
        ("PATCH", "", json!({"old_path": "/nothing", "new_path": "/x"}), 404),
    ] {
        lab.alice(method, &format!("{path}{query}"), &body).await.error(status);
    }
}

#[tokio::test]
async fn a_raw_body_over_its_limit_is_413_and_one_that_breaks_off_is_400() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/files/raw?path=/count/a", lab.sandbox().await);
    let chunk = bytes::Bytes::from(vec![0; 1 << 20]);
    let body = |chunks| {
        Body::from_stream(stream::iter(
            (0..chunks).map(|_| Ok::<_, std::io::Error>(chunk.clone())).collect::<Vec<_>>(),
        ))
    };
    let written = lab.alice("PUT", &path, body(500)).await.expect(200);
    assert_eq!(written["size"], 500 << 20);
    lab.alice("PUT", &path, body(501)).await.error(413);
    let mut announced = request("PUT", &path, &lab.alice, body(0));
    announced.headers_mut().insert("content-length", (501 << 20).into());
    lab.send(announced).await.error(413);
    let broken = [Ok(chunk.clone()), Err(std::io::Error::other("gone"))];
    lab.alice("PUT", &path, Body::from_stream(stream::iter(broken))).await.error(400);
}

#[tokio::test]
async fn a_body_that_is_announced_as_empty_is_not_waited_for() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/files/raw?path=/count/a", lab.sandbox().await);
    for (path, status) in [(path.as_str(), 200), ("/sandboxes/sbx-unknown1/files/raw?path=/count/a", 404)] {
        let endless = Body::from_stream(stream::pending::<Result<bytes::Bytes, std::io::Error>>());
        let mut empty = request("PUT", path, &lab.alice, endless);
        empty.headers_mut().insert("content-length", 0.into());
        let answer = tokio::time::timeout(std::time::Duration::from_secs(5), lab.send(empty)).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{path}");
    }
    // Twin: one that is announced with a length is.
    let endless = Body::from_stream(stream::pending::<Result<bytes::Bytes, std::io::Error>>());
    let mut some = request("PUT", &path, &lab.alice, endless);
    some.headers_mut().insert("content-length", 1.into());
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(200), lab.send(some));
    assert!(waiting.await.is_err());
}

#[tokio::test]
async fn the_body_of_a_refused_upload_is_read_within_bounds_so_that_its_sender_sees_why() {
    let lab = Lab::new().await;
    let read = Arc::new(AtomicUsize::new(0));
    let body = |chunks: usize| {
        read.store(0, Ordering::Relaxed);
        let (read, chunk) = (Arc::clone(&read), bytes::Bytes::from(vec![0; 1 << 20]));
        Body::from_stream(stream::iter((0..chunks).map(move |_| {
            read.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(chunk.clone())
        })))
    };
    let absent = "/sandboxes/sbx-00000000/files/raw?path=/a";
    lab.alice("PUT", absent, body(64)).await.error(404);
    assert_eq!(read.load(Ordering::Relaxed), 64);
    lab.alice("PUT", absent, body(100)).await.error(404);
    assert_eq!(read.load(Ordering::Relaxed), 65);
    let path = format!("/sandboxes/{}/files/raw?path=/count/a", lab.sandbox().await);
    assert_eq!(lab.alice("PUT", &path, body(3)).await.expect(200)["size"], 3 << 20);
}

#[tokio::test]
async fn events_are_listed_by_sandbox_with_filters_and_pages() {
    let lab = Lab::new().await;
    let (id, other) = (lab.sandbox().await, lab.sandbox().await);
    let recorder = lab.audit.recorder(&id, true);
    for n in 0..3 {
        recorder.lifecycle("sandbox_created", json!({"n": n}));
    }
    lab.audit.recorder(&other, true).lifecycle("sandbox_created", json!({}));
    let path = format!("/sandboxes/{id}/audit");
    let all = lab.alice("GET", &path, ()).await.expect(200);
    assert_eq!((all["events"].as_array().unwrap().len(), &all["next_cursor"]), (3, &json!(null)));
    assert_eq!(all["events"][0]["type"], "sandbox_created");
    assert_eq!(all["events"][0]["sandbox_id"], json!(id));

    let first = lab.alice("GET", &format!("{path}?limit=2"), ()).await.expect(200);
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = lab.alice("GET", &format!("{path}?limit=2&cursor={cursor}"), ()).await.expect(200);
    assert_eq!((&second["events"][0], &second["next_cursor"]), (&all["events"][2], &json!(null)));

    for (query, count) in [
        ("type=sandbox_created", 3),
        ("type=egress_blocked,sandbox_created", 3),
        ("type=egress_blocked", 0),
        ("decision=deny", 0),
        ("host=a.example", 0),
        ("since=2020-01-01T00:00:00Z&until=2999-01-01T00:00:00%2B00:00", 3),
        ("since=2999-01-01T00:00:00Z", 0),
        ("until=2020-01-01T00:00:00Z", 0),
    ] {
        let page = lab.alice("GET", &format!("{path}?{query}"), ()).await.expect(200);
        assert_eq!(page["events"].as_array().unwrap().len(), count, "{query}");
    }
    for (query, field) in [
        ("since=yesterday", "since"),
        ("until=5", "until"),
        ("decision=maybe", "decision"),
        ("limit=x", "limit"),
        ("cursor=x", "cursor"),
    ] {
        let (message, _) = lab.alice("GET", &format!("{path}?{query}"), ()).await.error(400);
        assert!(message.starts_with(&format!("{field}: ")), "{message}");
    }
}
