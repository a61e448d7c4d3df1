//! The numbers of the service.

use api::AccountName;
use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    error::ApiError,
    metrics::{CONTENT_TYPE, Snapshot},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Tells the numbers of the service, of all accounts together, in the text format that Prometheus reads. Only for keys
/// of the account `local`, that of whoever runs the server.
#[utoipa::path(
    get, path = "/metrics", tag = "server",
    responses(
        (status = 200, description = "The numbers", body = String, content_type = CONTENT_TYPE),
        (status = 401, description = "No API key, or none that is valid", body = api::ErrorBody),
        (status = 403, description = "The key is of another account", body = api::ErrorBody),
    )
)]
async fn metrics(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    if !caller.is_operator() {
        let message = format!(
            "forbidden: these are numbers of all accounts, for keys of the account {}",
            AccountName::operator()
        );
        return Err(ApiError::new(StatusCode::FORBIDDEN, message));
    }
    let snapshot = Snapshot { sandboxes: app.sandboxes.stats(), audit: app.audit.stats() };
    let text = snapshot.encode().map_err(|error| ApiError::internal(&error))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
