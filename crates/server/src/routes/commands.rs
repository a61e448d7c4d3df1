//! Commands in a sandbox.

use api::{
    Acknowledged, Command, CommandExit, CommandRun, CommandStarted, ErrorBody, Killed, RunCommand, StdinData,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use sandbox::{Exec, SandboxError};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    App,
    auth::Caller,
    convert,
    ended::Ended,
    error::ApiError,
    late,
    request::{JsonBody, PathCommand, PathSandbox},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(run, list))
        .routes(routes!(wait))
        .routes(routes!(kill))
        .routes(routes!(stdin))
        .routes(routes!(close_stdin))
}

/// Runs a command: to its end, or in the background.
///
/// An exit code other than 0 is still 200. A command in the foreground is killed when its client disconnects. One
/// that runs for long has its headers sent early, with status 200, and spaces before the JSON; a failure after
/// that is told in `stderr`, with exit code 1.
///
/// Of each output stream the first 64 MiB are kept, or less while the daemon holds much output of other commands;
/// `stdout_truncated` and `stderr_truncated` say that there was more. Streamed output has no such limit.
#[utoipa::path(
    post, path = "/sandboxes/{id}/commands", tag = "commands", request_body = RunCommand,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "How it ended, or that it was started in the background", body = CommandRun),
        (status = 400, description = "A field is wrong; the message names it", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 409, description = "The sandbox is paused", body = ErrorBody),
        (status = 410, description = "The sandbox was killed", body = ErrorBody),
        (status = 502, description = "The sandbox does not answer", body = ErrorBody),
    )
)]
async fn run(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    JsonBody(command): JsonBody<RunCommand>,
) -> Result<Response, ApiError> {
    command.check()?;
    let background = command.background;
    let exec = exec(command);
    if background {
        let pid = app.sandboxes.spawn(&caller.account, &id, exec).await?;
        return Ok(Json(CommandRun::Started(CommandStarted { pid })).into_response());
    }
    late::respond(async move { Ok(Ended::from(app.sandboxes.exec(&caller.account, &id, exec).await?)) }).await
}

/// Lists the commands that are running.
#[utoipa::path(
    get, path = "/sandboxes/{id}/commands", tag = "commands",
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "The commands", body = Vec<Command>),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 413, description = "More than 10 000, or than 16 MiB with their variables", body = ErrorBody),
    )
)]
async fn list(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
) -> Result<Json<Vec<Command>>, ApiError> {
    let commands = app.sandboxes.commands(&caller.account, &id).await?;
    let shown = commands.into_iter().map(|command| Command {
        pid: command.pid,
        cmd: command.command,
        is_pty: command.terminal,
        envs: convert::masked(command.envs),
    });
    Ok(Json(shown.collect()))
}

/// Waits for a command in the background. Its end is kept, so this can be asked again.
///
/// A process id that is unknown is an end too: exit code 1 and `process not found`.
#[utoipa::path(
    get, path = "/sandboxes/{id}/commands/{pid}/wait", tag = "commands",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The command"),
    ),
    responses(
        (status = 200, description = "How it ended", body = CommandExit),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
    )
)]
async fn wait(
    State(app): State<App>,
    caller: Caller,
    PathCommand(id, pid): PathCommand,
) -> Result<Response, ApiError> {
    late::respond(async move {
        match app.sandboxes.wait(&caller.account, &id, pid).await {
            Ok(output) => Ok(output.into()),
            Err(SandboxError::NoSuchCommand(_)) => Ok(Ended::failed("process not found".to_owned())),
            Err(error) => Err(error.into()),
        }
    })
    .await
}

/// Kills a command, with all it started.
#[utoipa::path(
    delete, path = "/sandboxes/{id}/commands/{pid}", tag = "commands",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The command"),
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
    post, path = "/sandboxes/{id}/commands/{pid}/stdin", tag = "commands", request_body = StdinData,
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The command"),
    ),
    responses(
        (status = 200, description = "Written", body = Acknowledged),
        (status = 404, description = "No such sandbox, or no such command", body = ErrorBody),
        (status = 409, description = "Its standard input is closed, or never was open", body = ErrorBody),
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

/// Closes a command's standard input.
#[utoipa::path(
    post, path = "/sandboxes/{id}/commands/{pid}/stdin/close", tag = "commands",
    params(
        ("id" = String, Path, description = "The sandbox"),
        ("pid" = u32, Path, description = "The command"),
    ),
    responses(
        (status = 200, description = "Closed", body = Acknowledged),
        (status = 404, description = "No such sandbox, or no such command", body = ErrorBody),
        (status = 409, description = "Its standard input is closed, or never was open", body = ErrorBody),
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

/// The command that a request asks for.
pub(super) fn exec(command: RunCommand) -> Exec {
    Exec {
        command: command.cmd,
        user: command.user.filter(|user| !user.is_empty()),
        envs: command.envs,
        cwd: command.cwd.filter(|cwd| !cwd.is_empty()),
        stdin: command.stdin.unwrap_or(command.background),
        timeout: command.timeout.map(|timeout| timeout.0).filter(|timeout| !timeout.is_zero()),
    }
}
