//! Who is asking: every route but the public ones needs an API key, in either of two headers. One route takes a
//! ratchet token in its place.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, MatchedPath, Request, State},
    http::{HeaderMap, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sandbox::{ChangedBy, SandboxId};
use secrecy::SecretString;

use crate::{
    App,
    error::ApiError,
    keys::Key,
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
        Ok(PolicyCaller::Ratchet(_)) if !is_policy_change(&request) => only_narrows().into_response(),
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<PolicyCaller, ApiError> {
    let unauthorized = || ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized: missing or invalid API key");
    let secret = key(headers).ok_or_else(unauthorized)?;
    if let Some(Key { id, account }) = app.keys.find(&secret).await? {
        return Ok(PolicyCaller::Key(Caller { account, key: id }));
    }
    ratchets::find(&app.store, &secret).await?.map(PolicyCaller::Ratchet).ok_or_else(unauthorized)
}

/// The key in `Authorization: Bearer …`, else the one in `X-API-Key`.
fn key(headers: &HeaderMap) -> Option<SecretString> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let key = bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())?.trim();
    (!key.is_empty()).then(|| SecretString::from(key))
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
