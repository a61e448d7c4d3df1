//! Watching a directory.

use api::{Acknowledged, DirectoryChange, ErrorBody, WatchDirectory};
use axum::{
    Json,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sandbox::{Change, ChangeKind};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    error::ApiError,
    request::{JsonBody, PathSandbox},
    sandboxes::Changes,
    sse,
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(watch))
}

/// Watches a directory.
///
/// With `Accept: text/event-stream` the answer is a stream of `change` events with [`DirectoryChange`], until the
/// directory is gone or the client leaves. Without it the answer only tells that the directory can be watched: the
/// published clients ask that way, read the answer to its end, and take no events.
#[utoipa::path(
    post, path = "/sandboxes/{id}/files/watch", tag = "files", request_body = WatchDirectory,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "The events, or that it can be watched", content(
            (DirectoryChange = "text/event-stream"),
            (Acknowledged = "application/json"),
        )),
        (status = 400, description = "No directory, or a field is wrong", body = ErrorBody),
        (status = 404, description = "No such sandbox, or nothing there", body = ErrorBody),
        (status = 413, description = "More than 4096 directories", body = ErrorBody),
    )
)]
async fn watch(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    headers: HeaderMap,
    JsonBody(WatchDirectory { path, username, recursive }): JsonBody<WatchDirectory>,
) -> Result<Response, ApiError> {
    let files = app.sandboxes.files(&caller.account, &id).await?;
    let user = username.as_deref().filter(|user| !user.is_empty());
    let changes = files.watch(&path, user, recursive).await?;
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    if !accepted.into_iter().any(|accept| accept.contains("text/event-stream")) {
        return Ok(Json(Acknowledged { ok: true }).into_response());
    }
    Ok(sse::respond_until_stop(stream::unfold(Some(changes), next)))
}

/// The next part of the answer. An error ends it with a comment: it has no event that readers know.
async fn next(changes: Option<Changes>) -> Option<(Bytes, Option<Changes>)> {
    let mut changes = changes?;
    let mut part = Vec::new();
    let next = match changes.next().await? {
        Ok(Change { kind, path, directory }) => {
            let change = DirectoryChange { kind: name(kind), path, is_dir: directory };
            sse::event(&mut part, "change", &change);
            Some(changes)
        }
        Err(error) => {
            sse::comment(&mut part, &ApiError::from(error).message);
            None
        }
    };
    Some((part.into(), next))
}

fn name(kind: ChangeKind) -> &'static str {
    match kind {
        ChangeKind::Create => "create",
        ChangeKind::Write => "write",
        ChangeKind::Remove => "remove",
        ChangeKind::Rename => "rename",
        ChangeKind::Chmod => "chmod",
        ChangeKind::Lost => "lost",
    }
}
