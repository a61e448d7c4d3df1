//! The server itself.

use std::sync::LazyLock;

use api::Health;
use axum::{Json, body::Body, http::header, response::IntoResponse};
use bytes::Bytes;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::App;

/// The routes that need no key.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(document))
}

/// Says that the server answers.
#[utoipa::path(
    get, path = "/health", tag = "server", security(()),
    responses((status = 200, description = "The server is up", body = Health))
)]
async fn health() -> Json<Health> {
    Json(Health { status: "ok".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() })
}

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "server", security(()),
    responses((status = 200, description = "The OpenAPI document", body = Object))
)]
async fn document() -> impl IntoResponse {
    static DOCUMENT: LazyLock<Bytes> =
        LazyLock::new(|| super::openapi().to_json().expect("a document made of strings is JSON").into());
    ([(header::CONTENT_TYPE, "application/json")], Body::from(DOCUMENT.clone()))
}
