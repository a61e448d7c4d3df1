//! Terminals.

use api::{
    Acknowledged, CommandStarted, ErrorBody, Killed, OpenPty, OutputPiece, PtySize, ResizePty, StdinData,
};
use axum::{Json, extract::State, response::Response};
use sandbox::{Exec, FollowFrom, TerminalSize};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    error::ApiError,
    follow::{self, Form},
    request::{JsonBody, PathCommand, PathSandbox},
};

/// The shell of a terminal: the one people expect, and in templates that lack it the one that is always there.
const SHELL: &str = "command -v bash >/dev/null 2>&1 && exec bash -l; exec sh -l";

/// What the terminal is, unless the request says otherwise.
const TERM: &str = "xterm-256color";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(open))
        .routes(routes!(resize, kill))
        .routes(routes!(stdin))
        .routes(routes!(stream))
}

/// Opens a terminal with a login shell in it.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pty", tag = "terminals", request_body = OpenPty,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "The shell's process id", body = CommandStarted),
        (status = 400, description = "A field is wrong; the message names it", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 409, description = "The sandbox is paused, or too old", body = ErrorBody),
        (status = 410, description = "The sandbox was killed", body = ErrorBody),
        (status = 502, description = "The sandbox does not answer", body = ErrorBody),
    )
)]
async fn open(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(asked): JsonBody<OpenPty>,
) -> Result<Json<CommandStarted>, ApiError> {
    asked.check()?;
    let mut envs = asked.envs;
    envs.entry("TERM".to_owned()).or_insert_with(|| TERM.to_owned());
    let exec = Exec {
        command: SHELL.to_owned(),
        user: asked.user.filter(|user| !user.is_empty()),
        envs,
        cwd: asked.cwd.filter(|cwd| !cwd.is_empty()),
        stdin: true,
        timeout: asked.timeout.map(|timeout| timeout.0).filter(|timeout| !timeout.is_zero()),
    };
    let size = size(asked.size.unwrap_or(PtySize::DEFAULT));
    let pid = app.sandboxes.start_session(&caller.account, &id, exec, Some(size)).await?;
    Ok(Json(CommandStarted { pid }))
}

/// Sets the size of a terminal. Its programs are told (SIGWINCH).
#[utoipa::path(
    patch, path = "/sandboxes/{id}/pty/{pid}", tag = "terminals", request_body = ResizePty,
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The terminal"),
    ),
    responses(
        (status = 200, description = "Set", body = Acknowledged),
        (status = 400, description = "The size is wrong; the message names the field", body = ErrorBody),
        (status = 404, description = "No such sandbox, or no such terminal", body = ErrorBody),
    )
)]
async fn resize(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
    JsonBody(asked): JsonBody<ResizePty>,
) -> Result<Json<Acknowledged>, ApiError> {
    asked.size.check()?;
    app.sandboxes.resize(&caller.account, &id, pid, size(asked.size)).await?;
    Ok(Json(Acknowledged { ok: true }))
}

/// Kills a terminal's shell, with all it started.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/pty/{pid}", tag = "terminals",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The terminal"),
    ),
    responses(
        (status = 200, description = "Whether it was there", body = Killed),
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

/// Types into a terminal.
#[utoipa::path(
    post, path = "/sandboxes/{id}/pty/{pid}/stdin", tag = "terminals", request_body = StdinData,
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The terminal"),
    ),
    responses(
        (status = 200, description = "Typed", body = Acknowledged),
        (status = 404, description = "No such sandbox, or no such terminal", body = ErrorBody),
    )
)]
async fn stdin(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
    JsonBody(StdinData { data }): JsonBody<StdinData>,
) -> Result<Json<Acknowledged>, ApiError> {
    app.sandboxes.send_stdin(&caller.account, &id, pid, data.into_bytes()).await?;
    Ok(Json(Acknowledged { ok: true }))
}

/// Shows what a terminal shows, from now on.
///
/// Events are `data` with the bytes in base64, then one `exit` with `{"exit_code": n}`, and the answer ends. Several
/// can watch at a time. What was shown while nobody watched goes to the first who comes, the last 256 KiB of it. A
/// terminal waits while none of those who watch takes what it shows.
#[utoipa::path(
    get, path = "/sandboxes/{id}/pty/{pid}/stream", tag = "terminals",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The terminal"),
    ),
    responses(
        (status = 200, description = "The events", body = OutputPiece, content_type = "text/event-stream"),
        (status = 404, description = "No such sandbox, or no such terminal", body = ErrorBody),
    )
)]
async fn stream(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
) -> Result<Response, ApiError> {
    let events = app.sandboxes.follow(&caller.account, &id, pid, FollowFrom::Now).await?;
    Ok(follow::respond(events, Form::Terminal, 0))
}

fn size(asked: PtySize) -> TerminalSize {
    let PtySize { cols, rows } = asked.or_usual();
    TerminalSize { columns: cols, rows }
}
