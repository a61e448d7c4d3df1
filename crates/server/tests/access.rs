//! Who may ask what, and what every answer has in common.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use axum::{body::Body, http::Request};
use common::{Answer, Lab};
use serde_json::json;

/// Every route that does something, with `ID` for a sandbox.
const ROUTES: &[(&str, &str)] = &[
    ("POST", "/sandboxes"),
    ("GET", "/sandboxes"),
    ("GET", "/sandboxes/ID"),
    ("DELETE", "/sandboxes/ID"),
    ("DELETE", "/sandboxes/ID?async=true"),
    ("POST", "/sandboxes/kill-many"),
    ("GET", "/sandboxes/ID/status"),
    ("PATCH", "/sandboxes/ID/timeout"),
    ("POST", "/sandboxes/ID/pause"),
    ("POST", "/sandboxes/ID/resume"),
    ("PUT", "/sandboxes/ID/network"),
    ("POST", "/sandboxes/ID/ratchet"),
    ("DELETE", "/sandboxes/ID/ratchet"),
    ("GET", "/sandboxes/ID/metrics"),
    ("POST", "/sandboxes/ID/commands"),
    ("GET", "/sandboxes/ID/commands"),
    ("POST", "/sandboxes/ID/commands/stream"),
    ("POST", "/sandboxes/ID/stdio"),
    ("DELETE", "/sandboxes/ID/stdio/100"),
    ("POST", "/sandboxes/ID/stdio/100/stdin"),
    ("POST", "/sandboxes/ID/stdio/100/stdin/close"),
    ("GET", "/sandboxes/ID/stdio/100/stream?last_entry_id=3"),
    ("POST", "/sandboxes/ID/pty"),
    ("PATCH", "/sandboxes/ID/pty/100"),
    ("DELETE", "/sandboxes/ID/pty/100"),
    ("POST", "/sandboxes/ID/pty/100/stdin"),
    ("GET", "/sandboxes/ID/pty/100/stream"),
    ("GET", "/sandboxes/ID/commands/100/wait"),
    ("DELETE", "/sandboxes/ID/commands/100"),
    ("POST", "/sandboxes/ID/commands/100/stdin"),
    ("POST", "/sandboxes/ID/commands/100/stdin/close"),
    ("GET", "/sandboxes/ID/files?path=/a"),
    ("POST", "/sandboxes/ID/files"),
    ("PUT", "/sandboxes/ID/files/raw?path=/a"),
    ("GET", "/sandboxes/ID/files/raw?path=/a"),
    ("POST", "/sandboxes/ID/files/batch"),
    ("GET", "/sandboxes/ID/files/list?path=/a"),
    ("GET", "/sandboxes/ID/files/exists?path=/a"),
    ("GET", "/sandboxes/ID/files/info?path=/a"),
    ("DELETE", "/sandboxes/ID/files?path=/a"),
    ("PATCH", "/sandboxes/ID/files"),
    ("POST", "/sandboxes/ID/files/mkdir"),
    ("POST", "/sandboxes/ID/files/watch"),
    ("GET", "/sandboxes/ID/audit"),
    ("GET", "/metrics"),
    ("GET", "/auth/me"),
    ("GET", "/accounts/alice"),
    ("GET", "/accounts/alice/wallet"),
    ("GET", "/accounts/alice/usage"),
    ("GET", "/accounts/alice/usage/daily"),
    ("GET", "/accounts/alice/overview"),
    ("GET", "/accounts/alice/deposits"),
    ("POST", "/accounts/alice/deposits"),
    ("POST", "/accounts/alice/api-keys"),
    ("GET", "/accounts/alice/api-keys"),
    ("DELETE", "/accounts/alice/api-keys/KEY"),
];

/// Routes that pass requests of every method on.
const PORTS: &[(&str, &str)] = &[
    ("GET", "/sandboxes/ID/ports/9"),
    ("PROPFIND", "/sandboxes/ID/ports/9/"),
    ("POST", "/sandboxes/ID/ports/9/a/b?c=d"),
];

/// The methods that the document can name for them.
const PORT_METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Routes of the published API that answer 501.
const ABSENT: &[(&str, &str)] = &[
    ("POST", "/sandboxes/ID/snapshot"),
    ("POST", "/sandboxes/ID/snapshots"),
    ("GET", "/sandboxes/ID/snapshots"),
    ("DELETE", "/sandboxes/ID/snapshots/snap-1"),
    ("POST", "/sandboxes/ID/restore?snapshot_id=snap-1"),
    ("GET", "/snapshots"),
    ("POST", "/templates/build"),
    ("GET", "/templates/builds/b1"),
    ("POST", "/templates/t1/rebuild"),
    ("GET", "/templates"),
    ("GET", "/templates/t1"),
    ("DELETE", "/templates/t1"),
    ("POST", "/volumes?name=v"),
    ("POST", "/volumes/empty"),
    ("POST", "/volumes/ingest"),
    ("GET", "/volumes"),
    ("GET", "/volumes/v1"),
    ("DELETE", "/volumes/v1"),
    ("GET", "/volumes/v1/download"),
    ("POST", "/sandboxes/ID/volumes/snapshot"),
    ("POST", "/sandboxes/ID/volumes/v1/commit"),
    ("PUT", "/volumes/v1/files/raw"),
    ("GET", "/volumes/v1/files/raw"),
    ("GET", "/volumes/v1/files/list"),
    ("GET", "/volumes/v1/files/info"),
    ("GET", "/volumes/v1/files/exists"),
    ("DELETE", "/volumes/v1/files"),
    ("PATCH", "/volumes/v1/files"),
    ("POST", "/volumes/v1/files/mkdir"),
    ("POST", "/volumes/v1/locks"),
    ("DELETE", "/volumes/v1/locks"),
    ("POST", "/volumes/v1/locks/renew"),
    ("GET", "/volumes/v1/locks"),
    ("GET", "/teams"),
    ("POST", "/teams"),
    ("GET", "/teams/t/environments"),
    ("POST", "/teams/t/environments"),
    ("POST", "/teams/t/vault/secrets"),
    ("GET", "/teams/t/vault/secrets"),
    ("POST", "/teams/t/vault/secrets/s/rotate"),
    ("POST", "/teams/t/vault/secrets/s/scopes"),
    ("DELETE", "/teams/t/vault/secrets/s"),
    ("GET", "/vault/presets"),
    ("GET", "/governance/packs"),
    ("GET", "/governance/packs/p"),
];

/// A body that suits every route that takes one.
fn body() -> serde_json::Value {
    json!({
        "cmd": "echo hi", "timeout": 60, "data": "text", "path": "/a", "old_path": "/a", "new_path": "/b",
        "name": "test", "files": [], "sandbox_ids": [], "allow_out": ["a.example.com"],
        "size": {"cols": 80, "rows": 24}
    })
}

async fn with_headers(lab: &Lab, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::get("/sandboxes");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    lab.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn no_route_answers_without_a_key() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    for (method, path) in
        ROUTES.iter().chain(PORTS).chain(ABSENT).chain(&[("GET", "/nowhere"), ("PUT", "/sandboxes")])
    {
        let path = path.replace("ID", &id);
        for key in ["", "dcl_wrong"] {
            let answer = lab.send(common::request(method, &path, key, body())).await;
            assert_eq!(answer.error(401).0, "unauthorized: missing or invalid API key", "{method} {path}");
        }
    }
    assert_eq!(lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200)["state"], "running");
}

#[tokio::test]
async fn a_key_is_taken_from_either_header() {
    let lab = Lab::new().await;
    let (alice, bearer) = (lab.alice.as_str(), format!("Bearer {}", lab.alice));
    for headers in [
        &[("authorization", bearer.as_str())][..],
        &[("authorization", &bearer.replace("Bearer", "bearer"))],
        &[("x-api-key", alice)],
        &[("authorization", "Basic abc"), ("x-api-key", alice)],
        &[("authorization", &bearer), ("x-api-key", "wrong")],
        // It may be for a service inside a sandbox.
        &[("authorization", "Bearer wrong"), ("x-api-key", alice)],
    ] {
        with_headers(&lab, headers).await.expect(200);
    }
    for headers in [
        &[][..],
        &[("authorization", alice)],
        &[("authorization", "Bearer ")],
        &[("x-api-key", &bearer)],
        &[("x-api-key", "")],
    ] {
        with_headers(&lab, headers).await.error(401);
    }
}

#[tokio::test]
async fn health_and_the_document_need_no_key() {
    let lab = Lab::new().await;
    for path in ["/health", "/openapi.json"] {
        let answer = lab.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert!(answer.expect(200).is_object());
        lab.send(Request::post(path).body(Body::empty()).unwrap()).await.error(405);
    }
}

#[tokio::test]
async fn the_numbers_of_the_service_are_in_the_format_of_prometheus() {
    let lab = Lab::new().await;
    lab.sandbox().await;
    let operator = lab.operator().await;
    let answer = lab.send(common::request("GET", "/metrics", &operator, ())).await;
    assert_eq!(answer.status, 200);
    let kind = answer.headers["content-type"].to_str().unwrap();
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = String::from_utf8(answer.bytes.to_vec()).unwrap();
    assert!(text.contains("\nbailiwick_sandboxes_created_total 1\n"), "{text}");
    assert!(text.contains("\nbailiwick_decisions_total{kind=\"egress_blocked\"} 0\n"), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let (message, _) = lab.alice("GET", "/metrics", ()).await.error(403);
    assert!(message.contains("numbers of all accounts"), "{message}");
}

#[tokio::test]
async fn what_belongs_to_another_account_is_not_found() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    lab.alice("POST", &format!("/sandboxes/{id}/files"), json!({"path": "/a", "data": "x"}))
        .await
        .expect(200);
    for (method, path) in ROUTES.iter().filter(|(_, path)| path.contains("ID")) {
        let path = path.replace("ID", &id);
        assert_eq!(lab.bob(method, &path, body()).await.error(404).0, "sandbox not found", "{method} {path}");
        let unknown = path.replace(&id, "sbx-99999999");
        assert_eq!(lab.alice(method, &unknown, body()).await.error(404).0, "sandbox not found");
        let no_id = path.replace(&id, "..%2F..");
        assert_eq!(lab.alice(method, &no_id, body()).await.error(404).0, "sandbox not found");
    }
    assert_eq!(lab.bob("GET", "/sandboxes?state=all", ()).await.expect(200)["sandboxes"], json!([]));
    let results = lab.bob("POST", "/sandboxes/kill-many", json!({"sandbox_ids": [id]})).await.expect(200);
    assert_eq!(results, json!({"results": {&id: {"error": "sandbox not found"}}}));
    assert_eq!(lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200)["state"], "running");
}

#[tokio::test]
async fn a_ratchet_token_opens_one_route_of_one_sandbox() {
    let lab = Lab::new().await;
    let (id, other) = (lab.sandbox().await, lab.sandbox().await);
    let made = lab.alice("POST", &format!("/sandboxes/{id}/ratchet"), ()).await.expect(201);
    let token = made["token"].as_str().unwrap();
    let more = [
        ("GET", "/sandboxes/ID/network"),
        ("POST", "/sandboxes/ID/network"),
        ("PUT", "/sandboxes/ID/network/"),
        ("PUT", "/sandboxes/ID/network/x"),
        ("GET", "/nowhere"),
        ("PUT", "/sandboxes"),
    ];
    for (method, path) in ROUTES.iter().chain(ABSENT).chain(&more) {
        for sandbox in [&id, &other] {
            let answer = lab.send(common::request(method, &path.replace("ID", sandbox), token, body())).await;
            if (*method, *path) != ("PUT", "/sandboxes/ID/network") {
                assert_eq!(answer.error(403).1.as_deref(), Some("ratchet_only"), "{method} {path}");
            } else if *sandbox == other {
                assert_eq!(answer.error(404), ("sandbox not found".to_owned(), None));
            } else {
                answer.expect(200);
            }
        }
    }
    let other_header = Request::put(format!("/sandboxes/{id}/network")).header("x-api-key", token);
    lab.send(other_header.body(Body::from(body().to_string())).unwrap()).await.expect(200);
    assert_eq!(lab.fake.policies.lock().unwrap().len(), 2);
    assert_eq!(lab.alice("GET", "/sandboxes", ()).await.expect(200)["total"], 2);
}

#[tokio::test]
async fn every_route_that_is_not_there_yet_says_so() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    for (method, path) in ABSENT {
        let (message, code) = lab.alice(method, &path.replace("ID", &id), ()).await.error(501);
        assert!(message.ends_with("not implemented by this server"), "{method} {path}: {message}");
        assert_eq!(code.as_deref(), Some("not_implemented"));
    }
}

#[tokio::test]
async fn unknown_routes_and_wrong_methods_are_errors_in_json_and_nothing_is_redirected() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    for path in
        ["/", "/nowhere", "/v1/sandboxes", "/sandboxes/", "/sandboxes/ID/", "/sandboxes/ID/nothing", "//"]
    {
        lab.alice("GET", &path.replace("ID", &id), ()).await.error(404);
    }
    for (method, path) in [
        ("PUT", "/sandboxes"),
        ("PATCH", "/sandboxes/ID"),
        ("GET", "/sandboxes/kill-many"),
        ("POST", "/sandboxes/ID/status"),
        ("PUT", "/sandboxes/ID/files"),
        ("GET", "/sandboxes/ID/pause"),
        ("TRACE", "/sandboxes"),
    ] {
        let answer = lab.alice(method, &path.replace("ID", &id), ()).await;
        answer.error(405);
        assert!(answer.headers.contains_key("allow"), "{method} {path}");
    }
}

#[tokio::test]
async fn paused_is_409_and_killed_is_410() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    let using = ROUTES.iter().filter(|(_, path)| path.contains("/commands") || path.contains("/files"));
    for (state, status, code) in [("paused", 409, "sandbox_paused"), ("killed", 410, "sandbox_killed")] {
        lab.fake.set_state(&id, state);
        for (method, path) in using.clone() {
            let answer = lab.alice(method, &path.replace("ID", &id), body()).await;
            assert_eq!(answer.error(status).1.as_deref(), Some(code), "{method} {path}");
        }
        let described = lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200);
        assert_eq!(described["state"], state);
        let status = lab.alice("GET", &format!("/sandboxes/{id}/status"), ()).await.expect(200);
        assert_eq!(status, json!({"is_running": false}));
    }
}

#[tokio::test]
async fn a_panic_is_500_in_json_and_the_server_goes_on() {
    let lab = Lab::new().await;
    let (_, code) = lab.alice("POST", "/sandboxes", json!({"template": "panic"})).await.error(500);
    assert_eq!(code.as_deref(), Some("internal"));
    let id = lab.sandbox().await;
    let command = json!({"cmd": "panic"});
    lab.alice("POST", &format!("/sandboxes/{id}/commands"), command).await.error(500);
    lab.sandbox().await;
}

#[tokio::test]
async fn a_failure_inside_tells_nothing_of_the_machine_and_has_an_id() {
    let lab = Lab::new().await;
    let answer = lab.alice("POST", "/sandboxes", json!({"template": "disk"})).await;
    let (message, code) = answer.error(500);
    assert!(!message.contains("secret"), "{message}");
    assert_eq!(code.as_deref(), Some("internal"));
    assert_eq!(answer.headers["x-request-id"].len(), 32);
    let other = lab.alice("GET", "/sandboxes", ()).await;
    assert_ne!(other.headers["x-request-id"], answer.headers["x-request-id"]);
}

#[tokio::test]
async fn the_document_has_every_route_and_nothing_else() {
    let lab = Lab::new().await;
    let document = serde_json::to_value(server::openapi()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let paths = document["paths"].as_object().unwrap();
    let documented: std::collections::BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect();
    let mut served: std::collections::BTreeSet<_> = ROUTES
        .iter()
        .map(|(method, path)| {
            let path = path.split('?').next().unwrap().replace("ID", "{id}").replace("100", "{pid}");
            let path = path.replace("alice", "{account}").replace("KEY", "{key}");
            ((*method).to_owned(), path)
        })
        .collect();
    served.extend([("GET".to_owned(), "/health".to_owned()), ("GET".to_owned(), "/openapi.json".to_owned())]);
    for path in ["/sandboxes/{id}/ports/{port}", "/sandboxes/{id}/ports/{port}/{path}"] {
        served.extend(PORT_METHODS.map(|method| (method.to_owned(), path.to_owned())));
    }
    assert_eq!(documented, served);

    let id = lab.sandbox().await;
    for (method, path) in documented {
        // Nothing listens on that port.
        let path = path.replace("{id}", &id).replace("{pid}", "100").replace("{account}", "alice");
        let path = path.replace("{port}", "9").replace("{path}", "a");
        let answer = lab.alice(&method, &format!("{path}?path=/a"), body()).await;
        let known = !String::from_utf8_lossy(&answer.bytes).contains("no such route");
        assert!(known && ![405, 501].contains(&answer.status.as_u16()), "{method} {path}: {}", answer.status);
        lab.fake.set_state(&id, "running");
    }
}

#[tokio::test]
async fn every_operation_in_the_document_has_a_name_of_its_own() {
    let document = serde_json::to_value(server::openapi()).unwrap();
    let items = document["paths"].as_object().unwrap().values();
    let mut names: Vec<_> = items
        .flat_map(|item| item.as_object().unwrap().values())
        .map(|operation| operation["operationId"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "{names:?}");
    let is_plain = |name: &&str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    assert!(names.iter().all(is_plain), "{names:?}");
}

#[tokio::test]
async fn the_document_has_the_events_of_every_stream() {
    let document = serde_json::to_value(server::openapi()).unwrap();
    let mut streams = 0;
    for operation in
        document["paths"].as_object().unwrap().values().flat_map(|item| item.as_object().unwrap().values())
    {
        let Some(stream) = operation["responses"]["200"]["content"].get("text/event-stream") else {
            continue;
        };
        for event in stream["schema"]["oneOf"].as_array().unwrap() {
            assert_eq!(event["required"], json!(["event", "data"]));
            assert_eq!(event["properties"]["data"]["contentMediaType"], "application/json");
            assert!(event["properties"]["data"]["contentSchema"]["$ref"].is_string(), "{event}");
        }
        streams += 1;
    }
    assert_eq!(streams, 4);
}

#[tokio::test]
async fn every_reference_in_the_document_leads_somewhere() {
    let text = server::openapi().to_json().unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let references: Vec<_> = text.split("\"#/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(references.len() > 20);
    for reference in references {
        assert!(document.pointer(&format!("/{reference}")).is_some(), "{reference}");
    }
}
