//! Errors as responses: a status and a JSON object with `message` and sometimes `code`.
//!
//! Clients repeat a request on every status from 500 up, so those are for failures that a repeat may cure. What
//! fails the same way each time gets a status below 500. 501 is the exception: its meaning is worth the repeats.

use api::{ErrorBody, FieldError, code};
use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use sandbox::SandboxError;

use crate::{convert::invalid_policy, keys::KeyError};

/// A failure as it is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) code: Option<&'static str>,
    /// Seconds to wait before a repeat.
    pub(crate) retry_after: Option<u16>,
}

/// The most characters of a message. It may repeat what the request says, which is answered, and may be recorded.
const MESSAGE: usize = 2000;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: api::shortened(message, MESSAGE), code: None, retry_after: None }
    }

    pub(crate) fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn retry_after(self, seconds: u16) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message).with_code(code::NOT_IMPLEMENTED)
    }

    /// A failure inside the server. The cause goes to the log; clients of several accounts share a server, and a
    /// cause may name paths and processes of the machine.
    pub(crate) fn internal(cause: &(impl std::error::Error + ?Sized)) -> Self {
        tracing::error!(error = chain(cause), "request failed");
        Self::internal_without_cause()
    }

    pub(crate) fn internal_without_cause() -> Self {
        let message = "internal error; the server's log has the cause under this response's x-request-id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message).with_code(code::INTERNAL)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { message: self.message, code: self.code.map(str::to_owned) };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        let message = error.to_string();
        match error {
            FieldError::Invalid { .. } => Self::bad_request(message),
            FieldError::NotImplemented { .. } => Self::not_implemented(message),
            FieldError::Forbidden { .. } => Self::new(StatusCode::FORBIDDEN, message),
        }
    }
}

impl From<store::StoreError> for ApiError {
    fn from(error: store::StoreError) -> Self {
        match error {
            store::StoreError::Cursor { .. } => Self::bad_request(format!("cursor: {error}")),
            error if error.is_unavailable() => store_unavailable(&error),
            _ => Self::internal(&error),
        }
    }
}

impl From<KeyError> for ApiError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::TooMany { .. } => {
                Self::new(StatusCode::CONFLICT, error.to_string()).with_code(code::TOO_MANY_KEYS)
            }
            KeyError::Store { source, .. } => source.into(),
            KeyError::Random(_) => Self::internal(&error),
        }
    }
}

impl From<audit::AuditError> for ApiError {
    fn from(error: audit::AuditError) -> Self {
        match error {
            audit::AuditError::Store(error) if error.is_unavailable() => store_unavailable(&error),
            _ => Self::internal(&error),
        }
    }
}

/// Answered to whatever would have had to be stored: nothing was changed, and a repeat may succeed.
fn store_unavailable(error: &store::StoreError) -> ApiError {
    tracing::error!(error = chain(error), "the store cannot be written to");
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        .with_code(code::STORE_UNAVAILABLE)
        .retry_after(1)
}

impl From<SandboxError> for ApiError {
    fn from(error: SandboxError) -> Self {
        use SandboxError as E;
        let text = error.to_string();
        match error {
            E::NotFound => Self::new(StatusCode::NOT_FOUND, "sandbox not found"),
            E::Paused => Self::new(StatusCode::CONFLICT, text).with_code(code::SANDBOX_PAUSED),
            E::Creating => Self::new(StatusCode::CONFLICT, text).with_code(code::SANDBOX_CREATING),
            E::Killed => Self::new(StatusCode::GONE, text).with_code(code::SANDBOX_KILLED),
            E::CannotPause => Self::not_implemented(text),
            E::UnknownTemplate(_) => Self::bad_request(format!("template: {text}")),
            E::TemplateNotReady(_) => {
                Self::new(StatusCode::CONFLICT, text).with_code(code::TEMPLATE_NOT_READY)
            }
            E::InvalidPolicy(error) => invalid_policy("network", &error),
            E::PolicyWidens(_) => Self::new(StatusCode::FORBIDDEN, text).with_code(code::POLICY_WIDENS),
            E::PolicyKept(_) => {
                tracing::error!(error = chain(&error), "a policy could not be replaced");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, text).with_code(code::POLICY_KEPT)
            }
            E::PolicyNotStored(_) => {
                tracing::error!(error = chain(&error), "a policy could not be stored");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, text).with_code(code::INTERNAL)
            }
            E::FileNotFound(_) | E::NoSuchCommand(_) => Self::new(StatusCode::NOT_FOUND, text),
            E::AlreadyExists(_) | E::StdinClosed(_) => Self::new(StatusCode::CONFLICT, text),
            E::InvalidPath(_)
            | E::UnknownUser(_)
            | E::IsDirectory(_)
            | E::NotDirectory(_)
            | E::PermissionDenied(_)
            | E::Inside(_) => Self::bad_request(text),
            E::InitTooOld => Self::new(StatusCode::CONFLICT, text).with_code(code::SANDBOX_TOO_OLD),
            E::PublicTrafficOff => Self::new(StatusCode::FORBIDDEN, text).with_code(code::PUBLIC_TRAFFIC_OFF),
            E::NothingListens(_) => Self::new(StatusCode::BAD_GATEWAY, text).with_code(code::PORT_CLOSED),
            E::PortSilent(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, text).with_code(code::PORT_SILENT),
            E::PortUnreachable { .. } => {
                tracing::warn!(error = chain(&error), "a port of a sandbox cannot be connected to");
                Self::new(StatusCode::BAD_GATEWAY, text).with_code(code::PORT_CLOSED)
            }
            E::NoSpace(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, text).with_code(code::NO_SPACE),
            E::TooLarge(_) => Self::new(StatusCode::PAYLOAD_TOO_LARGE, text),
            E::Limit(_) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, text).with_code(code::LIMIT).retry_after(1)
            }
            E::Store(error) => error.into(),
            E::ShuttingDown => Self::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(1),
            E::InitUnreachable(_) => {
                tracing::warn!(error = chain(&error), "a sandbox does not answer");
                Self::new(StatusCode::BAD_GATEWAY, "the sandbox does not answer")
            }
            error if error.is_disk_full() => {
                tracing::error!(error = chain(&error), "the disk is full");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "the disk of the daemon's data is full")
                    .with_code(code::STORE_UNAVAILABLE)
                    .retry_after(1)
            }
            error => Self::internal(&error),
        }
    }
}

impl ApiError {
    /// As [`From`], with the entry of a policy named by the field it came in.
    pub(crate) fn from_create(error: SandboxError, source: &'static str) -> Self {
        match error {
            SandboxError::InvalidPolicy(error) => invalid_policy(source, &error),
            error => error.into(),
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &(impl std::error::Error + ?Sized)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
