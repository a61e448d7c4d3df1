//! Who is asking: every route but the public ones needs an API key, in either of two headers.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use secrecy::SecretString;

use crate::{App, error::ApiError};

/// The account of the key that a request carries.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) account: Arc<str>,
}

/// Lets requests with a good key through, with their [`Caller`].
pub(crate) async fn require_key(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match authenticate(&app, request.headers()).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let account = match key(headers) {
        Some(key) => app.keys.account(&key).await?,
        None => None,
    };
    let account = account
        .ok_or_else(|| ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized: missing or invalid API key"))?;
    Ok(Caller { account })
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

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        // Absent only if a route that needs a key was put outside of `require_key`.
        parts.extensions.get().cloned().ok_or_else(ApiError::internal_without_cause)
    }
}
