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

/// The most bytes of an event of a terminal. The Go client of the first versions reads the stream of a terminal line by
/// line and holds lines of up to 64 KiB; it takes a longer one for the end.
const TERMINAL_PIECE: usize = 40 << 10;

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
                output(&mut part, form, last, id, stream, &data);
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

/// Appends the events of a piece of output.
fn output(part: &mut Vec<u8>, form: Form, last: u64, id: u64, stream: OutputStream, data: &[u8]) {
    let name = match (form, stream) {
        (Form::Terminal, _) => {
            for data in data.chunks(TERMINAL_PIECE) {
                sse::event(part, "data", &OutputPiece { data: STANDARD.encode(data), entry_id: None });
            }
            return;
        }
        (Form::Pipes, OutputStream::Stdout) => "stdout",
        (Form::Pipes, OutputStream::Stderr) => "stderr",
    };
    if id > last.saturating_add(1) {
        sse::comment(part, "output was lost, it was too old to be kept");
    }
    // One piece is one event: a reader that comes again names the last whole one it had.
    sse::event(part, name, &OutputPiece { data: STANDARD.encode(data), entry_id: Some(id) });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of the events of one piece, and what they hold together.
    fn lines(form: Form, data: &[u8]) -> (Vec<usize>, Vec<u8>) {
        let mut part = Vec::new();
        output(&mut part, form, 0, 1, OutputStream::Stdout, data);
        let text = std::str::from_utf8(&part).expect("text");
        let pieces = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let held = pieces.flat_map(|json| {
            let piece: OutputPiece = serde_json::from_str(json).expect("a piece");
            STANDARD.decode(piece.data).expect("base64")
        });
        (text.lines().map(str::len).collect(), held.collect())
    }

    #[test]
    fn no_line_of_a_terminal_is_longer_than_the_oldest_go_client_can_hold() {
        for length in [1, TERMINAL_PIECE, TERMINAL_PIECE + 1, 64 << 10, 1 << 20] {
            let data: Vec<u8> = (0..=255).cycle().take(length).collect();
            let (lines, held) = lines(Form::Terminal, &data);
            assert!(lines.iter().all(|line| line + 1 < 64 << 10), "{lines:?}");
            assert_eq!(held, data);
        }
    }

    #[test]
    fn a_piece_of_pipes_is_one_event_so_that_its_number_stands_for_all_of_it() {
        let data = vec![b'x'; 64 << 10];
        let (lines, held) = lines(Form::Pipes, &data);
        assert_eq!((lines.len(), held), (3, data));
    }
}
