//! How a command ended, as JSON that is written while it is sent.
//!
//! Output may be long, and JSON six times as long. It is made into text and JSON piece by piece, so that a command that
//! has ended takes no more memory than what it printed.

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use sandbox::{Kept, Output};

/// The exit code of a command whose time was over, as `timeout(1)` has it.
pub(crate) const TIMED_OUT: i32 = 124;

/// How many bytes of output become JSON at a time. An answer with less than that is sent at once.
const PIECE: usize = 64 << 10;

/// How a command ended. The form is that of [`api::CommandExit`].
#[derive(Debug, Default)]
pub(crate) struct Ended {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    stdout_truncated: bool,
    stderr_truncated: bool,
    exit_code: i32,
    /// The room that both take until they are sent.
    _kept: Kept,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let Output { stdout, mut stderr, stdout_truncated, stderr_truncated, mut exit_code, timed_out, kept } =
            output;
        if timed_out {
            exit_code = TIMED_OUT;
            if !stderr.is_empty() && !stderr.ends_with(b"\n") {
                stderr.push(b'\n');
            }
            stderr.extend_from_slice(b"timeout");
        }
        Self { stdout, stderr, stdout_truncated, stderr_truncated, exit_code, _kept: kept }
    }
}

impl Ended {
    /// One that did not come to an end of its own: the reason, and exit code 1.
    pub(crate) fn failed(why: String) -> Self {
        Self { stderr: why.into_bytes(), exit_code: 1, ..Self::default() }
    }

    /// The JSON, in pieces.
    pub(crate) fn into_json(self) -> Json {
        Json { ended: self, part: Part::Begin, sent: 0 }
    }
}

impl IntoResponse for Ended {
    fn into_response(self) -> Response {
        let is_short = self.stdout.len() + self.stderr.len() < PIECE;
        let mut json = self.into_json();
        let body = if is_short {
            Body::from(json.by_ref().fold(Vec::new(), |mut whole, piece| {
                whole.extend_from_slice(&piece);
                whole
            }))
        } else {
            Body::from_stream(stream::iter(json.map(Ok::<_, std::convert::Infallible>)))
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// The pieces of the JSON.
#[derive(Debug)]
pub(crate) struct Json {
    ended: Ended,
    part: Part,
    /// How much of the present stream is done.
    sent: usize,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Begin,
    Stdout,
    Between,
    Stderr,
    Rest,
    Done,
}

impl Iterator for Json {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            let (stream, next) = match self.part {
                Part::Begin => return self.go_on(Part::Stdout, Bytes::from_static(b"{\"stdout\":\"")),
                Part::Stdout => (&self.ended.stdout, Part::Between),
                Part::Between => return self.go_on(Part::Stderr, Bytes::from_static(b"\",\"stderr\":\"")),
                Part::Stderr => (&self.ended.stderr, Part::Rest),
                Part::Rest => {
                    let rest = self.ended.rest();
                    return self.go_on(Part::Done, rest);
                }
                Part::Done => return None,
            };
            let left = stream.get(self.sent..).unwrap_or_default();
            if !left.is_empty() {
                let piece = whole_characters(left);
                self.sent += piece.len();
                return Some(escaped(&String::from_utf8_lossy(piece)));
            }
            (self.part, self.sent) = (next, 0);
        }
    }
}

impl Json {
    fn go_on(&mut self, part: Part, piece: Bytes) -> Option<Bytes> {
        self.part = part;
        Some(piece)
    }
}

impl Ended {
    /// What follows the streams. Flags that are not set are not there.
    fn rest(&self) -> Bytes {
        let flag =
            |is_set: bool, name: &str| if is_set { format!("\"{name}\":true,") } else { String::new() };
        let stdout = flag(self.stdout_truncated, "stdout_truncated");
        let stderr = flag(self.stderr_truncated, "stderr_truncated");
        format!("\",{stdout}{stderr}\"exit_code\":{}}}", self.exit_code).into()
    }
}

/// A piece that does not end within a character, unless nothing follows that could complete it.
fn whole_characters(bytes: &[u8]) -> &[u8] {
    let Some((piece, _)) = bytes.split_at_checked(PIECE) else { return bytes };
    let unfinished = match piece.utf8_chunks().last().map(|chunk| chunk.invalid()) {
        Some(last) if std::str::from_utf8(last).is_err_and(|error| error.error_len().is_none()) => last.len(),
        _ => 0,
    };
    piece.get(..piece.len() - unfinished).unwrap_or(piece)
}

/// The inside of a JSON string.
fn escaped(text: &str) -> Bytes {
    let mut json = Vec::with_capacity(text.len() + 2);
    serde_json::to_writer(&mut json, text).expect("text is always JSON");
    let inside = 1..json.len() - 1;
    Bytes::from(json).slice(inside)
}

#[cfg(test)]
impl From<api::CommandExit> for Ended {
    fn from(exit: api::CommandExit) -> Self {
        let api::CommandExit { stdout, stderr, stdout_truncated, stderr_truncated, exit_code } = exit;
        let (stdout, stderr) = (stdout.into_bytes(), stderr.into_bytes());
        Self { stdout, stderr, stdout_truncated, stderr_truncated, exit_code, _kept: Kept::default() }
    }
}

#[cfg(test)]
mod tests {
    use api::CommandExit;

    use super::*;

    fn json(ended: Ended) -> String {
        let pieces: Vec<Bytes> = ended.into_json().collect();
        assert!(pieces.iter().all(|piece| piece.len() <= 6 * PIECE), "no piece is long");
        String::from_utf8(pieces.concat()).unwrap()
    }

    #[test]
    fn the_json_is_that_of_the_published_type() {
        for (stdout, stderr) in [("", ""), ("a\n\"\\\u{1b}\u{7f}ä\u{2028}", "b"), ("", "\u{0}")] {
            for truncated in [false, true] {
                let exit = CommandExit {
                    stdout: stdout.to_owned(),
                    stderr: stderr.to_owned(),
                    stdout_truncated: truncated,
                    stderr_truncated: !truncated,
                    exit_code: -3,
                };
                assert_eq!(json(exit.clone().into()), serde_json::to_string(&exit).unwrap());
            }
        }
    }

    #[test]
    fn long_output_is_written_in_pieces_and_is_whole() {
        // Characters of all lengths, and bytes that are none, in every position of a piece's end.
        for shift in 0..5 {
            let mut stdout = vec![b'x'; shift];
            while stdout.len() < 3 * PIECE {
                stdout.extend_from_slice("aä€😀\u{1}".as_bytes());
                stdout.extend_from_slice(b"\xff\xe2\x82(\xf0\x9f");
            }
            let expected = String::from_utf8_lossy(&stdout).into_owned();
            let ended = Ended { stdout, ..Ended::default() };
            let exit: CommandExit = serde_json::from_str(&json(ended)).unwrap();
            assert!(exit.stdout == expected, "shifted by {shift}");
        }
    }

    #[test]
    fn a_command_whose_time_was_over_says_so() {
        for (stderr, expected) in
            [("", "timeout"), ("partial", "partial\ntimeout"), ("line\n", "line\ntimeout")]
        {
            let output =
                Output { stderr: stderr.into(), timed_out: true, exit_code: -1, ..Output::default() };
            let exit: CommandExit = serde_json::from_str(&json(output.into())).unwrap();
            assert_eq!((exit.stderr.as_str(), exit.exit_code), (expected, TIMED_OUT));
        }
    }
}
