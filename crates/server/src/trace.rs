//! One id and one line of log for each request.

use std::time::Instant;

use axum::{
    extract::{MatchedPath, Request},
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;
use uuid::Uuid;

/// The header that carries a response's id.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Gives the request an id, under which everything that happens in it is logged, and logs how it ended.
///
/// Neither query nor headers nor bodies are logged: they hold paths, commands and keys.
pub(crate) async fn log(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = Uuid::now_v7().simple().to_string();
    let method = request.method().clone();
    let route = request
        .extensions()
        .get()
        .map_or_else(|| "no route".to_owned(), |path: &MatchedPath| path.as_str().to_owned());
    let span = tracing::info_span!("request", %id, %method, route);
    let mut response = next.run(request).instrument(span.clone()).await;
    let (status, elapsed) = (response.status(), begun.elapsed());
    let _in = span.enter();
    if status.is_server_error() && status.as_u16() != 501 {
        tracing::warn!(status = status.as_u16(), ?elapsed, "answered");
    } else {
        tracing::debug!(status = status.as_u16(), ?elapsed, "answered");
    }
    // An id of hexadecimal digits is always a valid header value.
    if let Ok(id) = HeaderValue::try_from(id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
