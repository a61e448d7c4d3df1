//! A command whose output is sent while it runs.

use api::{ErrorBody, RunCommand, StreamExit, StreamFailure, StreamedOutput};
use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::Response,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sandbox::{CommandEvent, SandboxError};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::commands;
use crate::{
    App,
    auth::Caller,
    ended::TIMED_OUT,
    error::ApiError,
    request::{JsonBody, PathSandbox},
    sse,
    text::{Joined, Text},
};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(stream))
}

/// Runs a command and sends its output as it is written.
///
/// Events are `output` with [`StreamedOutput`], then one `exit` with `{"exit_code": n}`, and the answer ends. A
/// failure after the headers is an `error` event with `{"error": "…"}` before an `exit` with code 1. Output that is
/// not UTF-8 is replaced. Comments are sent while there is no output.
///
/// The command is killed when its client disconnects. One whose client reads too slowly is held up, as by a pipe,
/// once about 1 MiB is on the way.
#[utoipa::path(
    post, path = "/sandboxes/{id}/commands/stream", tag = "commands", request_body = RunCommand,
    params(("id" = String, Path, description = "The sandbox")),
    responses(
        (status = 200, description = "The events", body = StreamedOutput<'static>, content_type = "text/event-stream"),
        (status = 400, description = "A field is wrong; the message names it", body = ErrorBody),
        (status = 404, description = "No such sandbox in this account", body = ErrorBody),
        (status = 409, description = "The sandbox is paused", body = ErrorBody),
        (status = 410, description = "The sandbox was killed", body = ErrorBody),
        (status = 502, description = "The sandbox does not answer", body = ErrorBody),
    )
)]
async fn stream(
    State(app): State<App>,
    caller: Caller,
    PathSandbox(id): PathSandbox,
    headers: HeaderMap,
    JsonBody(command): JsonBody<RunCommand>,
) -> Result<Response, ApiError> {
    command.check()?;
    if command.background {
        return Err(ApiError::bad_request(
            "background: a command whose output is streamed is in the foreground",
        ));
    }
    let events = app.sandboxes.exec_streaming(&caller.account, &id, commands::exec(command)).await?;
    let writer = Writer::new(joined(&headers));
    Ok(sse::respond(stream::unfold(Some((events, writer)), |state| async {
        let (mut events, mut writer) = state?;
        loop {
            let more = writer.take(events.next().await);
            let part = writer.part();
            if !more {
                return Some((part, None));
            }
            if !part.is_empty() {
                return Some((part, Some((events, writer))));
            }
        }
    })))
}

/// The Python client puts line feeds between the pieces it gets; all others put them together as they are.
fn joined(headers: &HeaderMap) -> Joined {
    let agent = headers.get(header::USER_AGENT).map(|agent| agent.as_bytes());
    if agent.is_some_and(|agent| agent.starts_with(b"python-httpx")) {
        Joined::WithLineFeeds
    } else {
        Joined::Exactly
    }
}

/// Turns what a command does into events.
struct Writer {
    stdout: Text,
    stderr: Text,
    written: Vec<u8>,
}

impl Writer {
    fn new(joined: Joined) -> Self {
        Self { stdout: Text::new(joined), stderr: Text::new(joined), written: Vec::new() }
    }

    /// What has been written since the last call.
    fn part(&mut self) -> Bytes {
        std::mem::take(&mut self.written).into()
    }

    /// Gives whether more can follow.
    fn take(&mut self, event: Option<Result<CommandEvent, SandboxError>>) -> bool {
        let end = match event {
            Some(Ok(CommandEvent::Stdout(data))) => {
                self.make_room(data.len());
                self.stdout.push(&data, |piece| output(&mut self.written, "stdout", piece));
                return true;
            }
            Some(Ok(CommandEvent::Stderr(data))) => {
                self.make_room(data.len());
                self.stderr.push(&data, |piece| output(&mut self.written, "stderr", piece));
                return true;
            }
            Some(Ok(CommandEvent::Exit(exit))) => Ok(exit),
            Some(Err(error)) => Err(ApiError::from(error).message),
            None => Err("the command's output broke off".to_owned()),
        };
        self.stdout.end(|piece| output(&mut self.written, "stdout", piece));
        self.stderr.end(|piece| output(&mut self.written, "stderr", piece));
        let exit_code = match end {
            Ok(exit) if exit.timed_out => {
                output(&mut self.written, "stderr", "timeout");
                TIMED_OUT
            }
            Ok(exit) => exit.exit_code,
            Err(error) => {
                sse::event(&mut self.written, "error", &StreamFailure { error });
                1
            }
        };
        sse::event(&mut self.written, "exit", &StreamExit { exit_code });
        false
    }

    /// For so many bytes of output, in lines of usual length.
    fn make_room(&mut self, length: usize) {
        self.written.reserve(length.saturating_add(length / 8).saturating_add(1 << 10));
    }
}

fn output(to: &mut Vec<u8>, stream: &'static str, data: &str) {
    sse::event(to, "output", &StreamedOutput { kind: stream, stream, data });
}
