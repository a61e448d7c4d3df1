//! The routes and their OpenAPI document.

mod accounts;
mod audit;
mod command_stream;
mod commands;
mod events;
mod files;
mod meta;
mod metrics;
mod network;
mod ports;
mod pty;
mod sandboxes;
mod statuses;
mod stdio;
mod usage;
mod watch;

use std::any::Any;

use api::{ErrorBody, StreamExit, StreamFailure};
use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
    response::{IntoResponse, Response},
};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::openapi::{
    ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder,
    security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::router::OpenApiRouter;

use crate::{App, Deps, absent, auth, error::ApiError, refused_body, trace};

/// All routes over `deps`.
pub fn router(deps: Deps) -> Router {
    let app = App::new(deps);
    let (public, private, _) = parts();
    let private = absent::add(private)
        .fallback(no_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(app.clone(), auth::require_key));
    let public = public.method_not_allowed_fallback(wrong_method);
    private
        .merge(public)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(refused_body::discard))
        .layer(middleware::from_fn(trace::log))
        .with_state(app)
}

/// The OpenAPI document.
pub fn openapi() -> OpenApi {
    parts().2
}

/// The routes without a key, those with one, and the document of both.
fn parts() -> (Router<App>, Router<App>, OpenApi) {
    let (public, public_document) =
        OpenApiRouter::with_openapi(document()).merge(meta::routes()).split_for_parts();
    let (private, mut openapi) = OpenApiRouter::with_openapi(document())
        .merge(sandboxes::routes())
        .merge(network::routes())
        .merge(commands::routes())
        .merge(command_stream::routes())
        .merge(pty::routes())
        .merge(ports::routes())
        .merge(stdio::routes())
        .merge(files::routes())
        .merge(watch::routes())
        .merge(audit::routes())
        .merge(metrics::routes())
        .merge(accounts::routes())
        .merge(usage::routes())
        .split_for_parts();
    statuses::complete(&mut openapi);
    events::describe(&mut openapi);
    openapi.merge(public_document);
    (public, private, openapi)
}

fn document() -> OpenApi {
    let info = InfoBuilder::new().title("Bailiwick").version(env!("CARGO_PKG_VERSION")).description(Some(
        "Sandboxes whose network is under a policy. Answers in 4xx and 5xx are `ErrorBody`.",
    ));
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let header = SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key")));
    let components = ComponentsBuilder::new()
        .security_scheme("bearer", bearer)
        .security_scheme("header", header)
        .schema_from::<ErrorBody>()
        .schema_from::<StreamExit>()
        .schema_from::<StreamFailure>()
        .build();
    let none: [&str; 0] = [];
    OpenApiBuilder::new()
        .info(info.build())
        .components(Some(components))
        .security(Some([SecurityRequirement::new("bearer", none), SecurityRequirement::new("header", none)]))
        .build()
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("no such route: {method} {}", uri.path()))
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{method} is not a method of {}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

/// The panic itself has been reported by the panic hook.
fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    ApiError::internal_without_cause().into_response()
}
