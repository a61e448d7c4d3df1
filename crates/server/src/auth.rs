//! Who is asking: every route but the public ones needs an API key, in either of two headers. One route takes a
//! ratchet token in its place. The key goes no further than here: no handler sees it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use api::AccountName;
use axum::{
    body::{Body, HttpBody},
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use sandbox::{ChangedBy, SandboxId};
use secrecy::SecretString;

use crate::{
    App,
    error::ApiError,
    keys::{self, Key},
    ratchets::{self, Ratchet},
    request::sandbox_not_found,
};

/// The route that a ratchet token opens, with `PUT`.
pub(crate) const NETWORK: &str = "/sandboxes/{id}/network";

/// The account of the API key that a request carries.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) account: Arc<str>,
    /// The id of the key.
    pub(crate) key: Arc<str>,
}

impl Caller {
    /// Whether the key is one of whoever runs the daemon.
    pub(crate) fn is_operator(&self) -> bool {
        *self.account == *AccountName::operator().as_str()
    }
}

/// Who may replace the policy of a sandbox: who has an API key, or a ratchet token.
#[derive(Clone, Debug)]
pub(crate) enum PolicyCaller {
    Key(Caller),
    Ratchet(Ratchet),
}

impl PolicyCaller {
    /// The account in which this caller may replace the policy of a sandbox.
    ///
    /// For a ratchet token, any other sandbox than its own is one that is not found.
    pub(crate) fn account_for(&self, sandbox: &SandboxId) -> Result<&Arc<str>, ApiError> {
        match self {
            Self::Key(caller) => Ok(&caller.account),
            Self::Ratchet(ratchet) if ratchet.sandbox == *sandbox => Ok(&ratchet.account),
            Self::Ratchet(_) => Err(sandbox_not_found()),
        }
    }

    /// Whether the policy may only become narrower.
    pub(crate) fn only_narrows(&self) -> bool {
        matches!(self, Self::Ratchet(_))
    }

    /// Who it is, for the record.
    pub(crate) fn by(&self) -> ChangedBy {
        match self {
            Self::Key(caller) => ChangedBy::Key(caller.key.to_string()),
            Self::Ratchet(ratchet) => ChangedBy::Ratchet(ratchet.id.clone()),
        }
    }
}

/// Lets requests with a good key through, and those with a good ratchet token to the one route that takes it.
pub(crate) async fn require_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match authenticate(&app, request.headers()).await {
        Ok((Proved::Key(key), from)) => {
            take_away(request.headers_mut(), &from);
            let caller = Caller { account: Arc::clone(&key.account), key: Arc::clone(&key.id) };
            request.extensions_mut().insert(PolicyCaller::Key(caller));
            request.extensions_mut().insert(key.clone());
            while_in_force(Arc::clone(&app.keys).revoked(key), next.run(request)).await
        }
        Ok((Proved::Ratchet(ratchet), from)) if is_policy_change(&request) => {
            take_away(request.headers_mut(), &from);
            request.extensions_mut().insert(PolicyCaller::Ratchet(ratchet));
            next.run(request).await
        }
        Ok((Proved::Ratchet(_), _)) => only_narrows().into_response(),
        Err(error) => error.into_response(),
    }
}

/// What a request has shown.
enum Proved {
    Key(Key),
    Ratchet(Ratchet),
}

/// What the request has shown, and the header that has. With `X-API-Key`, `Authorization` may be for a service inside a
/// sandbox.
async fn authenticate(app: &App, headers: &HeaderMap) -> Result<(Proved, HeaderName), ApiError> {
    for (from, secret) in [(header::AUTHORIZATION, bearer(headers)), (API_KEY, api_key(headers))] {
        let Some(secret) = secret.map(str::trim).filter(|secret| !secret.is_empty()) else { continue };
        let secret = SecretString::from(secret);
        if let Some(key) = app.keys.find(&secret).await? {
            return Ok((Proved::Key(key), from));
        }
        if let Some(ratchet) = ratchets::find(&app.store, &secret).await? {
            return Ok((Proved::Ratchet(ratchet), from));
        }
    }
    Err(unauthorized())
}

pub(crate) fn unauthorized() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized: missing or invalid API key")
}

/// The answer, as long as the key is in force: what is still being worked on when it is revoked is refused, and an answer
/// that is still being sent breaks off. For the work it is as if the client had disconnected.
async fn while_in_force(
    revoked: impl Future<Output = ()> + Send + 'static,
    answer: impl Future<Output = Response>,
) -> Response {
    let mut revoked = Box::pin(revoked);
    let response = tokio::select! {
        // The answer first: one that is ready is given, also that of the request that revokes its own key.
        biased;
        response = answer => response,
        () = &mut revoked => return unauthorized().into_response(),
    };
    if response.body().size_hint().exact().is_some() {
        return response;
    }
    response.map(|body| Body::new(Revocable { body, revoked: Some(revoked) }))
}

/// A body that breaks off when the key that asked for it is revoked.
struct Revocable<R> {
    body: Body,
    /// `None` when that has happened.
    revoked: Option<Pin<Box<R>>>,
}

impl<R: Future<Output = ()>> HttpBody for Revocable<R> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(revoked) = &mut self.revoked else { return Poll::Ready(None) };
        if revoked.as_mut().poll(context).is_ready() {
            self.revoked = None;
            return Poll::Ready(Some(Err(axum::Error::new("the API key was revoked"))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// The token in `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    bearer_of(headers.get(header::AUTHORIZATION)?)
}

fn bearer_of(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

fn api_key(headers: &HeaderMap) -> Option<&str> {
    headers.get(API_KEY)?.to_str().ok()
}

/// Removes what is for this server from the headers: the key, and whatever else looks like one.
fn take_away(headers: &mut HeaderMap, from: &HeaderName) {
    headers.remove(API_KEY);
    let is_ours = |token: &str| {
        let token = token.trim();
        token.starts_with(keys::PREFIX) || token.starts_with(ratchets::PREFIX)
    };
    let has_ours = || headers.get_all(header::AUTHORIZATION).iter().filter_map(bearer_of).any(is_ours);
    if *from == header::AUTHORIZATION || has_ours() {
        headers.remove(header::AUTHORIZATION);
    }
}

fn is_policy_change(request: &Request) -> bool {
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    request.method() == Method::PUT && route == Some(NETWORK)
}

fn only_narrows() -> ApiError {
    let message = "forbidden: a ratchet token opens nothing but PUT /sandboxes/{id}/network of its sandbox";
    ApiError::new(StatusCode::FORBIDDEN, message).with_code(api::code::RATCHET_ONLY)
}

impl<S: Sync> FromRequestParts<S> for PolicyCaller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        // Absent only if a route that needs a key was put outside of `require_key`.
        parts.extensions.get().cloned().ok_or_else(ApiError::internal_without_cause)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match PolicyCaller::from_request_parts(parts, state).await? {
            PolicyCaller::Key(caller) => Ok(caller),
            PolicyCaller::Ratchet(_) => Err(only_narrows()),
        }
    }
}
