//! What happens in a session as a stream of events.

use api::{OutputPiece, StreamExit};
use axum::response::Response;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use sandbox::{OutputStream, SessionEvent};

use crate::{error::ApiError, sandboxes::SessionEvents, sse};

/// What the events of output are called, and whether they have numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `data`, without numbers.
    Terminal,
    /// `stdout` and `stderr`, with numbers.
    Pipes,
}

/// Answers with a session's events: its output, then `exit`. Where pieces were lost a comment says so.
///
/// If the sandbox ends or falls silent, or the server stops, the answer ends without an `exit`: a reader may come again and go on where it
/// was.
pub(crate) fn respond(events: SessionEvents, form: Form, after: u64) -> Response {
    sse::respond_until_stop(stream::unfold(Some((events, after)), move |state| async move {
        let (mut events, last) = state?;
        let mut part = Vec::new();
        let next = match events.next().await? {
            Ok(SessionEvent::Output { id, stream, data }) => {
                let (name, entry_id) = match (form, stream) {
                    (Form::Terminal, _) => ("data", None),
                    (Form::Pipes, OutputStream::Stdout) => ("stdout", Some(id)),
                    (Form::Pipes, OutputStream::Stderr) => ("stderr", Some(id)),
                };
                if form == Form::Pipes && id > last.saturating_add(1) {
                    sse::comment(&mut part, "output was lost, it was too old to be kept");
                }
                sse::event(&mut part, name, &OutputPiece { data: STANDARD.encode(&data), entry_id });
                Some((events, id))
            }
            Ok(SessionEvent::Exit(exit)) => {
                sse::event(&mut part, "exit", &StreamExit { exit_code: exit.exit_code });
                None
            }
            Err(error) => {
                sse::comment(&mut part, &ApiError::from(error).message);
                None
            }
        };
        Some((Bytes::from(part), next))
    }))
}
