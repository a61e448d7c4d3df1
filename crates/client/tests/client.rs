//! What the client sends, and what it makes of answers.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use api::PtySize;
use bytes::Bytes;
use client::{Client, ClientError, Endpoint, EventFilter, NewCommand, NewSandbox, NewTerminal, SessionEvent};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A server that gives prepared answers and remembers what it was asked.
#[derive(Clone, Default)]
struct Script(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answers: VecDeque<(u16, String)>,
    asked: Vec<Asked>,
}

#[derive(Clone, Debug)]
struct Asked {
    line: String,
    authorization: Option<String>,
    body: Vec<u8>,
}

impl Script {
    async fn start(answers: &[(u16, &str)]) -> (Self, Client) {
        let script = Self::default();
        script.0.lock().unwrap().answers =
            answers.iter().map(|(status, body)| (*status, (*body).to_owned())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let serving = script.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = serving.clone();
                let service = service_fn(move |request| script.clone().answer(request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        (script, Client::new(endpoint, Some(SecretString::from("dcl_key")), None).unwrap())
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        let authorization = head.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let mut state = self.0.lock().unwrap();
        state.asked.push(Asked { line: format!("{} {}", head.method, head.uri), authorization, body });
        let (status, body) = state.answers.pop_front().expect("an answer");
        Ok(Response::builder().status(status).body(Full::new(Bytes::from(body))).unwrap())
    }

    fn asked(&self) -> Vec<Asked> {
        self.0.lock().unwrap().asked.clone()
    }
}

fn sandbox() -> Value {
    json!({
        "sandbox_id": "sbx-1", "template_id": "base", "name": "", "state": "running", "timeout": 300,
        "metadata": {}, "envs": {}, "network": null, "security": null,
        "lifecycle": {"on_timeout": "kill", "auto_resume": false},
        "created_at": "2026-03-01T12:00:00.000000+00:00", "started_at": null, "end_at": null
    })
}

#[tokio::test]
async fn a_call_carries_the_key_and_what_was_given_and_nothing_else() {
    let (script, client) = Script::start(&[
        (201, &sandbox().to_string()),
        (200, &sandbox().to_string()),
        (200, r#"{"stdout":"out","stderr":"","exit_code":7}"#),
        (200, r#"{"killed":true}"#),
        (200, r#"{"events":[],"next_cursor":null}"#),
    ])
    .await;
    let created = client.create(&NewSandbox::default()).await.unwrap();
    assert_eq!(created.sandbox_id, "sbx-1");
    let network = serde_json::from_value(json!({"allow_out": ["a.test"], "ech": "permit"})).unwrap();
    client.set_network("sbx-1", &network).await.unwrap();
    let command = NewCommand { cmd: "exit 7".to_owned(), timeout: Some(0.5), ..NewCommand::default() };
    assert_eq!(client.run("sbx-1", &command).await.unwrap().exit_code, 7);
    assert!(client.kill("sbx-1").await.unwrap());
    let filter = EventFilter {
        kinds: vec!["a".to_owned(), "b c".to_owned()],
        limit: Some(5),
        ..EventFilter::default()
    };
    client.events("sbx-1", &filter).await.unwrap();

    let asked = script.asked();
    assert!(asked.iter().all(|asked| asked.authorization.as_deref() == Some("Bearer dcl_key")));
    let lines: Vec<_> = asked.iter().map(|asked| asked.line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "POST /sandboxes",
            "PUT /sandboxes/sbx-1/network",
            "POST /sandboxes/sbx-1/commands",
            "DELETE /sandboxes/sbx-1",
            "GET /sandboxes/sbx-1/audit?type=a&type=b+c&limit=5",
        ]
    );
    let bodies: Vec<Value> =
        asked[..3].iter().map(|asked| serde_json::from_slice(&asked.body).unwrap()).collect();
    assert_eq!(bodies[0], json!({}));
    assert_eq!(bodies[1], json!({"allow_out": ["a.test"], "deny_out": [], "ech": "permit"}));
    assert_eq!(bodies[2], json!({"cmd": "exit 7", "timeout": 0.5}));
    assert!(asked[3].body.is_empty());
}

#[tokio::test]
async fn an_error_carries_status_code_and_message() {
    let (_, client) = Script::start(&[
        (403, r#"{"message":"allow_out[1] widens","code":"policy_widens"}"#),
        (404, r#"{"message":"sandbox not found"}"#),
        (502, "<html>"),
        (200, "not json"),
    ])
    .await;
    let error = client.get("sbx-1").await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(403), Some("policy_widens")));
    assert_eq!(error.to_string(), "allow_out[1] widens (403 policy_widens)");
    let error = client.get("sbx-1").await.unwrap_err();
    assert_eq!(
        (error.status(), error.code(), error.to_string().as_str()),
        (Some(404), None, "sandbox not found (404)")
    );
    let error = client.get("sbx-1").await.unwrap_err();
    assert_eq!((error.status(), error.to_string().as_str()), (Some(502), "Bad Gateway (502)"));
    assert!(matches!(client.get("sbx-1").await, Err(ClientError::Answer { .. })));
}

#[tokio::test]
async fn an_id_that_would_lead_elsewhere_is_refused_before_anything_is_sent() {
    let (script, client) = Script::start(&[(200, &sandbox().to_string())]).await;
    for id in ["", ".", "..", "a/b", "a?b", "a%2fb", "a b", "../keys"] {
        assert!(matches!(client.get(id).await, Err(ClientError::Id(_))), "{id}");
    }
    assert!(script.asked().is_empty());
    client.get("sbx-1").await.unwrap();
    let wrong = Client::new(client.endpoint().clone(), Some(SecretString::from("a\nb")), None);
    assert!(matches!(wrong, Err(ClientError::Key)));
}

#[tokio::test]
async fn a_terminal_is_opened_watched_used_and_killed() {
    let shown = "event: data\ndata: {\"data\":\"JCA=\"}\n\nevent: exit\ndata: {\"exit_code\":7}\n\n";
    let (script, client) = Script::start(&[
        (200, r#"{"pid":12}"#),
        (200, shown),
        (200, r#"{"ok":true}"#),
        (200, r#"{"ok":true}"#),
        (200, r#"{"killed":false}"#),
    ])
    .await;
    let size = PtySize { cols: 100, rows: 40 };
    let wanted = NewTerminal { size: Some(size), user: Some("root".to_owned()), ..NewTerminal::default() };
    let number = client.open_terminal("sbx-1", &wanted).await.unwrap();
    let mut events = client.watch_terminal("sbx-1", number).await.unwrap();
    assert_eq!(events.next().await.unwrap(), Some(SessionEvent::Stdout(b"$ ".to_vec())));
    assert_eq!(events.next().await.unwrap(), Some(SessionEvent::Exit(7)));
    assert_eq!(events.next().await.unwrap(), None);
    client.type_into_terminal("sbx-1", number, "ü\u{3}").await.unwrap();
    client.resize_terminal("sbx-1", number, size).await.unwrap();
    assert!(!client.kill_terminal("sbx-1", number).await.unwrap());
    assert!(matches!(client.kill_terminal("../x", number).await, Err(ClientError::Id(_))));

    let asked = script.asked();
    let lines: Vec<_> = asked.iter().map(|asked| asked.line.as_str()).collect();
    assert_eq!(
        lines,
        [
            "POST /sandboxes/sbx-1/pty",
            "GET /sandboxes/sbx-1/pty/12/stream",
            "POST /sandboxes/sbx-1/pty/12/stdin",
            "PATCH /sandboxes/sbx-1/pty/12",
            "DELETE /sandboxes/sbx-1/pty/12",
        ]
    );
    let body = |index: usize| serde_json::from_slice::<Value>(&asked[index].body).unwrap();
    assert_eq!(body(0), json!({"size": {"cols": 100, "rows": 40}, "user": "root"}));
    assert_eq!(body(2), json!({"data": "ü\u{3}"}));
    assert_eq!(body(3), json!({"size": {"cols": 100, "rows": 40}}));
}

#[tokio::test]
async fn all_pages_of_a_list_are_read() {
    let page = |next: Value| json!({"sandboxes": [sandbox()], "next_token": next, "total": 2}).to_string();
    let (script, client) = Script::start(&[(200, &page(json!("1"))), (200, &page(Value::Null))]).await;
    let labels = [("a&b".to_owned(), "c d".to_owned())].into();
    assert_eq!(client.list(&["paused".to_owned()], &labels).await.unwrap().len(), 2);
    let lines: Vec<_> = script.asked().into_iter().map(|asked| asked.line).collect();
    let first = "GET /sandboxes?limit=1000&state=paused&metadata%5Ba%26b%5D=c+d";
    assert_eq!(lines, [first.to_owned(), format!("{first}&next_token=1")]);
}

#[tokio::test]
async fn files_are_streamed_both_ways_as_they_are() {
    let content: Vec<u8> = (0..300_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let text = "x".repeat(200_000);
    let (script, client) = Script::start(&[
        (200, r#"{"path":"/a b&c","size":300000}"#),
        (200, &text),
        (404, r#"{"message":"no such file"}"#),
    ])
    .await;
    let written =
        client.write_file("sbx-1", "/a b&c", Some("root"), std::io::Cursor::new(content.clone())).await;
    assert_eq!(written.unwrap().size, 300_000);
    let mut read = Vec::new();
    assert_eq!(client.read_file("sbx-1", "/x", None, &mut read).await.unwrap(), 200_000);
    assert_eq!(read, text.as_bytes());
    assert_eq!(client.read_file("sbx-1", "/y", None, &mut read).await.unwrap_err().status(), Some(404));
    let asked = script.asked();
    assert_eq!(asked[0].line, "PUT /sandboxes/sbx-1/files/raw?path=%2Fa+b%26c&username=root");
    assert!(asked[0].body == content);
    assert_eq!(asked[1].line, "GET /sandboxes/sbx-1/files/raw?path=%2Fx");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoint = Endpoint::parse(&format!("http://{unused}")).unwrap();
    let error = Client::new(endpoint, None, None).unwrap().get("sbx-1").await.unwrap_err();
    assert!(
        matches!(error, ClientError::Connect { .. }) && error.to_string().contains(&unused.to_string()),
        "{error}"
    );
}
