//! Doing a create request once, however often it is sent.
//!
//! A client that lost the answer sends the same request with the same key again. The work therefore goes on when
//! the connection is gone, and its answer is stored before it is sent. Only successes are stored: a failure had no
//! effect, so a repeat of it is a first.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use api::code;
use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use parking_lot::Mutex;
use serde::Serialize;
use sha2::{Digest, Sha256};
use store::{Begin, Store, StoreError};

use crate::{App, error::ApiError};

/// The longest key accepted, in bytes. Clients send a UUID.
const LONGEST_KEY: usize = 255;

/// How often answers that nobody can ask for any more are forgotten, and those with which an account takes too much.
const PURGE_EVERY: Duration = Duration::from_secs(5 * 60);

/// How many bytes of answers of one account are remembered, the newest ones.
const ACCOUNT_BYTES: u64 = 64 << 20;

/// When answers were last forgotten.
pub(crate) struct LastPurge(Mutex<Instant>);

impl Default for LastPurge {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl LastPurge {
    /// Forgets old answers in the background, if it is time.
    fn if_due(&self, store: &Store) {
        let mut last = self.0.lock();
        if last.elapsed() < PURGE_EVERY {
            return;
        }
        *last = Instant::now();
        let store = store.clone();
        tokio::spawn(async move {
            let purged = match store.idempotency().purge().await {
                Ok(_) => store.idempotency().purge_beyond(ACCOUNT_BYTES).await,
                Err(error) => Err(error),
            };
            if let Err(error) = purged {
                tracing::warn!(%error, "cannot forget old answers");
            }
        });
    }
}

/// The key of a request, if it has one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=LONGEST_KEY).contains(&key.len()) => Ok(Some(key.to_owned())),
        _ => Err(ApiError::bad_request(format!(
            "Idempotency-Key: expected 1 to {LONGEST_KEY} ASCII characters"
        ))),
    }
}

/// Does `work`, or answers with what it gave the first time. A success is 201 with the value as JSON.
///
/// Where the first one was interrupted after it had named its sandbox, `made` says what it has made, if that is there.
pub(crate) async fn once<T: Serialize + Send + 'static>(
    app: &App,
    account: Arc<str>,
    key: Option<String>,
    body: &[u8],
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    made: impl AsyncFnOnce(String) -> Result<Option<T>, ApiError>,
) -> Result<Response, ApiError> {
    let Some(key) = key else { return run(work, None).await };
    app.last_purge.if_due(&app.store);
    let claim = |account, key| Claim { store: app.store.clone(), account, key, held: true };
    match app.store.idempotency().begin(&account, &key, &Sha256::digest(body)).await? {
        Begin::New => run(work, Some(claim(account, key))).await,
        Begin::Interrupted { sandbox } => {
            let claim = claim(account, key);
            match made(sandbox).await? {
                Some(value) => run(std::future::ready(Ok(value)), Some(claim)).await,
                None => run(work, Some(claim)).await,
            }
        }
        Begin::Replay { status, body } => {
            let status = StatusCode::from_u16(status).map_err(|error| ApiError::internal(&error))?;
            Ok(json(status, body))
        }
        Begin::InProgress => {
            let message = "the first request with this Idempotency-Key is still running";
            Err(ApiError::new(StatusCode::CONFLICT, message)
                .with_code(code::IDEMPOTENCY_IN_PROGRESS)
                .retry_after(1))
        }
        Begin::BodyDiffers => {
            let message = "this Idempotency-Key was used for a request with another body";
            Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, message)
                .with_code(code::IDEMPOTENCY_KEY_REUSED))
        }
    }
}

/// Given back when it is dropped. If nothing was recorded before, a repeat finds out what became of the request.
struct Claim {
    store: Store,
    account: Arc<str>,
    key: String,
    /// Not any more once the store is told what became of it, which gives it back.
    held: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        self.store.idempotency().release(&self.account, &self.key);
    }
}

impl Claim {
    async fn finish(mut self, body: &[u8]) -> Result<(), StoreError> {
        self.held = false;
        self.store.idempotency().finish(&self.account, &self.key, StatusCode::CREATED.as_u16(), body).await
    }

    async fn abandon(mut self) -> Result<(), StoreError> {
        self.held = false;
        self.store.idempotency().abandon(&self.account, &self.key).await
    }
}

/// Runs to the end in a task of its own, so that a lost connection does not leave half a sandbox.
async fn run<T: Serialize>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    claim: Option<Claim>,
) -> Result<Response, ApiError> {
    let task = tokio::spawn(async move {
        let answer = match AssertUnwindSafe(work).catch_unwind().await {
            Ok(Ok(value)) => serde_json::to_vec(&value).map_err(|error| ApiError::internal(&error)),
            Ok(Err(error)) => Err(error),
            Err(_panic) => Err(ApiError::internal_without_cause()),
        };
        // The answer is known, and the client may still be there: it gets it even if it cannot be recorded.
        if let Some(Err(error)) = match (claim, &answer) {
            (None, _) => None,
            (Some(claim), Ok(body)) => Some(claim.finish(body).await),
            (Some(claim), Err(_)) => Some(claim.abandon().await),
        } {
            tracing::error!(%error, "cannot record the answer of a request with an idempotency key");
        }
        answer
    });
    let body = task.await.map_err(|error| ApiError::internal(&error))??;
    Ok(json(StatusCode::CREATED, body))
}

fn json(status: StatusCode, body: Vec<u8>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
}
