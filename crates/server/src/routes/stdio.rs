//! Commands with pipes, whose output is kept in order and can be read later, and again.

use api::{Acknowledged, EncodedData, ErrorBody, Killed, OutputPiece, StartStdio, StdioStarted};
use axum::{Json, extract::State, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sandbox::{Exec, FollowFrom};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    error::ApiError,
    follow::{self, Form},
    request::{JsonBody, PathCommand, PathSandbox, Query},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(kill))
        .routes(routes!(stdin))
        .routes(routes!(close_stdin))
        .routes(routes!(stream))
}

/// Starts a command with pipes.
#[utoipa::path(
    post, path = "/sandboxes/{id}/stdio", tag = "stdio", request_body = StartStdio,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "Its name", body = StdioStarted),
        (status = 400, description = "A field is wrong; the message names it", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 409, description = "The sandbox is paused, or too old", body = ErrorBody),
        (status = 410, description = "The sandbox was killed", body = ErrorBody),
        (status = 502, description = "The sandbox does not answer", body = ErrorBody),
    )
)]
async fn start(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(asked): JsonBody<StartStdio>,
) -> Result<Json<StdioStarted>, ApiError> {
    asked.check()?;
    let exec = Exec {
        command: asked.cmd,
        user: asked.user.filter(|user| !user.is_empty()),
        envs: asked.envs,
        cwd: asked.cwd.filter(|cwd| !cwd.is_empty()),
        stdin: true,
        timeout: None,
    };
    let pid = app.sandboxes.start_session(&caller.account, &id, exec, None).await?;
    Ok(Json(StdioStarted { cmd_id: pid.to_string() }))
}

/// Kills a command, with all it started. What it has put out can still be read.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/stdio/{pid}", tag = "stdio",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = String, Path, description = "The command: its `cmd_id`"),
    ),
    responses(
        (status = 200, description = "Whether it was running", body = Killed),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn kill(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
) -> Result<Json<Killed>, ApiError> {
    Ok(Json(Killed { killed: app.sandboxes.kill_command(&caller.account, &id, pid).await? }))
}

/// Writes to a command's standard input.
#[utoipa::path(
    post, path = "/sandboxes/{id}/stdio/{pid}/stdin", tag = "stdio", request_body = EncodedData,
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = String, Path, description = "The command: its `cmd_id`"),
    ),
    responses(
        (status = 200, description = "Written", body = Acknowledged),
        (status = 400, description = "`data` is not base64", body = ErrorBody),
        (status = 404, description = "No such sandbox, or no such command", body = ErrorBody),
        (status = 409, description = "Its standard input is closed", body = ErrorBody),
    )
)]
async fn stdin(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
    JsonBody(EncodedData { data }): JsonBody<EncodedData>,
) -> Result<Json<Acknowledged>, ApiError> {
    let data =
        STANDARD.decode(data).map_err(|error| ApiError::bad_request(format!("data: not base64: {error}")))?;
    app.sandboxes.send_stdin(&caller.account, &id, pid, data).await?;
    Ok(Json(Acknowledged { ok: true }))
}

/// Closes a command's standard input. Closing it twice, or that of a command that has ended, is no failure.
#[utoipa::path(
    post, path = "/sandboxes/{id}/stdio/{pid}/stdin/close", tag = "stdio",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = String, Path, description = "The command: its `cmd_id`"),
    ),
    responses(
        (status = 200, description = "Closed", body = Acknowledged),
        (status = 404, description = "No such sandbox, or no such command", body = ErrorBody),
    )
)]
async fn close_stdin(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
) -> Result<Json<Acknowledged>, ApiError> {
    app.sandboxes.close_stdin(&caller.account, &id, pid).await?;
    Ok(Json(Acknowledged { ok: true }))
}

/// Gives what a command has put out and puts out.
///
/// Events are `stdout` and `stderr` with the bytes in base64 and a number, then one `exit` with `{"exit_code": n}`, and
/// the answer ends. Output is kept from the start, the last 4 MiB of it, also after the end; `last_entry_id` is the
/// number after which to begin. Several can read at a time; the command waits while none of them takes what it puts
/// out.
#[utoipa::path(
    get, path = "/sandboxes/{id}/stdio/{pid}/stream", tag = "stdio",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = String, Path, description = "The command: its `cmd_id`"),
        ("last_entry_id" = Option<u64>, Query, description = "Begin after this number"),
    ),
    responses(
        (status = 200, description = "The events", body = OutputPiece, content_type = "text/event-stream"),
        (status = 400, description = "`last_entry_id` is no number", body = ErrorBody),
        (status = 404, description = "No such sandbox, or no such command", body = ErrorBody),
    )
)]
async fn stream(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
    query: Query,
) -> Result<Response, ApiError> {
    let after = query.parsed("last_entry_id")?.unwrap_or(0);
    let events = app.sandboxes.follow(&caller.account, &id, pid, FollowFrom::Piece(after)).await?;
    Ok(follow::respond(events, Form::Pipes, after))
}
