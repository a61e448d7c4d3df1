//! What the tests of the routes share: the real router, store and audit over a manager that keeps everything in
//! memory.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod documented;
mod fake;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, Response, StatusCode},
};
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::Value;
use store::Store;
use tower::ServiceExt;

#[allow(unused_imports, reason = "not every test file needs it")]
pub(crate) use fake::{ENDLESS, Fake};

/// A server with two accounts.
pub(crate) struct Lab {
    pub(crate) router: Router,
    pub(crate) fake: Arc<Fake>,
    pub(crate) store: Store,
    pub(crate) audit: audit::Audit,
    pub(crate) alice: String,
    pub(crate) bob: String,
    _dir: tempfile::TempDir,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("data")).await.unwrap();
        let audit = audit::Audit::start(store.clone(), audit::AuditConfig::default()).await.unwrap();
        let fake = Arc::new(Fake::default());
        fake.store.set(store.clone()).unwrap();
        let deps = server::Deps {
            sandboxes: Arc::clone(&fake) as Arc<dyn server::Sandboxes>,
            store: store.clone(),
            audit: audit.clone(),
        };
        let (alice, bob) = (key(&store, "alice").await, key(&store, "bob").await);
        Self { router: server::router(deps), fake, store, audit, alice, bob, _dir: dir }
    }

    /// A key of whoever runs the server.
    pub(crate) async fn operator(&self) -> String {
        key(&self.store, "local").await
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let asked = (request.method().clone(), request.uri().path().to_owned());
        let answer = Answer::of(self.router.clone().oneshot(request).await.unwrap()).await;
        documented::check(&asked.0, &asked.1, answer.status);
        answer
    }

    /// Sends a request with alice's key.
    pub(crate) async fn alice(&self, method: &str, path: &str, body: impl IntoBody) -> Answer {
        self.send(request(method, path, &self.alice, body)).await
    }

    /// Sends a request with bob's key.
    pub(crate) async fn bob(&self, method: &str, path: &str, body: impl IntoBody) -> Answer {
        self.send(request(method, path, &self.bob, body)).await
    }

    /// Creates a sandbox of alice's and gives its id.
    pub(crate) async fn sandbox(&self) -> String {
        let answer = self.alice("POST", "/sandboxes", serde_json::json!({})).await;
        answer.expect(201)["sandbox_id"].as_str().unwrap().to_owned()
    }
}

async fn key(store: &Store, account: &str) -> String {
    let made = server::keys::create(store, &account.parse().unwrap(), &"test".parse().unwrap()).await;
    made.unwrap().secret.expose_secret().to_owned()
}

/// A request with a key, and the content type that one client declares always.
pub(crate) fn request(method: &str, path: &str, key: &str, body: impl IntoBody) -> Request<Body> {
    Request::builder()
        .method(Method::from_bytes(method.as_bytes()).unwrap())
        .uri(path)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json")
        .body(body.into_body())
        .unwrap()
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    async fn of(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes().to_vec();
        Self { status: head.status, headers: head.headers, bytes }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.bytes)))
    }

    /// The body, once the status is as expected.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.bytes));
        self.json()
    }

    /// Checks that this is an error of the contract's form, and gives its message and code.
    #[track_caller]
    pub(crate) fn error(&self, status: u16) -> (String, Option<String>) {
        let body = self.expect(status);
        assert_eq!(self.headers["content-type"], "application/json");
        let body = body.as_object().expect("an error is an object");
        assert!(body.keys().all(|key| key == "message" || key == "code"), "{body:?}");
        let message = body["message"].as_str().expect("an error has a message").to_owned();
        assert!(!message.is_empty());
        (message, body.get("code").map(|code| code.as_str().expect("a code is a string").to_owned()))
    }
}

/// What can be sent as a body.
pub(crate) trait IntoBody {
    fn into_body(self) -> Body;
}

impl IntoBody for () {
    fn into_body(self) -> Body {
        Body::empty()
    }
}

impl IntoBody for Value {
    fn into_body(self) -> Body {
        Body::from(self.to_string())
    }
}

impl IntoBody for &Value {
    fn into_body(self) -> Body {
        Body::from(self.to_string())
    }
}

impl IntoBody for &str {
    fn into_body(self) -> Body {
        Body::from(self.to_owned())
    }
}

impl IntoBody for Vec<u8> {
    fn into_body(self) -> Body {
        Body::from(self)
    }
}

impl IntoBody for Body {
    fn into_body(self) -> Body {
        self
    }
}
