//! Taking requests apart: paths, queries and JSON bodies, with errors in JSON that name the field.

use std::{borrow::Cow, str::FromStr, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{StatusCode, header, request::Parts},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use jiff::Timestamp;
use sandbox::SandboxId;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// The longest JSON body, in bytes.
pub(crate) const JSON_LIMIT: usize = 10 * 1024 * 1024;
/// How long a client may take to send a JSON body.
const JSON_DEADLINE: Duration = Duration::from_secs(300);

/// A body as JSON, whatever its content type says; empty counts as `{}`.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let RawJson(body) = RawJson::from_request(request, state).await?;
        Ok(Self(api::from_json(&body)?))
    }
}

/// The bytes of a JSON body, not parsed.
pub(crate) struct RawJson(pub(crate) Bytes);

impl<S: Sync> FromRequest<S> for RawJson {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        let request = refuse_longer_than(JSON_LIMIT, request)?;
        let body = request.into_body();
        let collected =
            tokio::time::timeout(JSON_DEADLINE, Limited::new(body, JSON_LIMIT).collect()).await.map_err(
                |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive in time"),
            )?;
        match collected {
            Ok(body) => Ok(Self(body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(too_long(JSON_LIMIT)),
            Err(error) => Err(ApiError::bad_request(format!("the request body broke off: {error}"))),
        }
    }
}

/// Refuses a request that announces a longer body, before any of it is used.
pub(crate) fn refuse_longer_than(limit: usize, request: Request<Body>) -> Result<Request<Body>, ApiError> {
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    match announced {
        Some(length) if limit < length => Err(too_long(limit)),
        _ => Ok(request),
    }
}

pub(crate) fn too_long(limit: usize) -> ApiError {
    let message = format!("the request body is longer than {} MiB", limit >> 20);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// The sandbox in the path. An id that no sandbox can have is one that is not found.
pub(crate) struct PathSandbox(pub(crate) SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for PathSandbox {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(id) = path::<String, S>(parts, state).await?;
        Ok(Self(sandbox_id(&id)?))
    }
}

/// The sandbox and the command in the path.
pub(crate) struct PathCommand(pub(crate) SandboxId, pub(crate) u32);

impl<S: Send + Sync> FromRequestParts<S> for PathCommand {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((id, pid)) = path::<(String, String), S>(parts, state).await?;
        let pid =
            pid.parse().map_err(|_| ApiError::bad_request(format!("pid: {pid:?} is not a process id")))?;
        Ok(Self(sandbox_id(&id)?, pid))
    }
}

async fn path<T, S>(parts: &mut Parts, state: &S) -> Result<Path<T>, ApiError>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    Path::from_request_parts(parts, state)
        .await
        .map_err(|error| ApiError::bad_request(format!("path: {error}")))
}

pub(crate) fn sandbox_id(text: &str) -> Result<SandboxId, ApiError> {
    text.parse().map_err(|_| sandbox_not_found())
}

pub(crate) fn sandbox_not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "sandbox not found")
}

/// The parameters of a query, decoded. Unknown ones are ignored; of repeated ones the first counts, unless all
/// are asked for.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// A parameter that must be there and not be empty.
    pub(crate) fn required(&self, name: &str) -> Result<&str, ApiError> {
        let value = self.get(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| ApiError::bad_request(format!("{name}: missing query parameter")))
    }

    /// A parameter that is parsed if it is there and not empty.
    pub(crate) fn parsed<T: FromStr<Err: std::fmt::Display>>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        match self.get(name).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => match value.parse() {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(ApiError::bad_request(format!("{name}: {value:?}: {error}"))),
            },
        }
    }

    /// A time in RFC 3339. A `+` that was not escaped, as in `+00:00`, arrives as a space.
    pub(crate) fn time(&self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        let Some(text) = self.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        let time = text.replace(' ', "+").parse();
        time.map(Some).map_err(|error| ApiError::bad_request(format!("{name}: {text:?}: {error}")))
    }

    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| matches!(value, "true" | "1" | "True"))
    }

    pub(crate) fn decode(query: &str) -> Self {
        Self(
            form_urlencoded::parse(query.as_bytes())
                .map(|(k, v)| (Cow::into_owned(k), v.into_owned()))
                .collect(),
        )
    }
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        Ok(Self::decode(parts.uri.query().unwrap_or_default()))
    }
}
