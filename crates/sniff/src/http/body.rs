//! Message bodies.

use super::{request::Body, response::ResponseBody};
use crate::Refusal;

/// What ends a chunked body: the last chunk, and no trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// The line before the data of a chunk of `length` bytes. After the data comes CRLF. `length` must not be 0, which
/// is the last chunk.
pub fn chunk_header(length: usize) -> Vec<u8> {
    format!("{length:x}\r\n").into_bytes()
}

/// Reads a body piece by piece. Keeps nothing of it.
#[derive(Clone, Debug)]
pub struct BodyReader {
    state: State,
    /// Bytes of trailers so far.
    trailers: usize,
}

/// What comes next in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEvent<'a> {
    /// Some of its data, without any framing; never empty.
    Data(&'a [u8]),
    /// It is over. What is left of the input belongs to the next message.
    End,
    /// The input is used up.
    NeedMore,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// So many bytes of the whole body are missing.
    Length(u64),
    /// Until the connection closes.
    Unending,
    /// In the digits of a chunk's length, of which there are so many.
    Size {
        value: u64,
        digits: u8,
    },
    /// After the CR of the line with the length.
    SizeEnd {
        value: u64,
    },
    /// So many bytes of the chunk are missing.
    Chunk {
        missing: u64,
    },
    /// After the data of a chunk.
    ChunkCr,
    ChunkLf,
    /// In a line of the trailers, of which there is so much.
    Trailer {
        line: usize,
    },
    /// After the CR of a line of the trailers.
    TrailerEnd {
        line: usize,
    },
    Done,
    Refused(Refusal),
}

/// The most digits of a chunk's length: more than that fit into no number.
const MAX_DIGITS: u8 = 16;
/// The most bytes of trailers.
const MAX_TRAILERS: usize = 8 * 1024;

impl BodyReader {
    /// A reader of a request's body.
    pub fn new(body: Body) -> Self {
        Self::with(match body {
            Body::None => State::Done,
            Body::Length(length) => State::Length(length),
            Body::Chunked => FIRST_DIGIT,
        })
    }

    /// A reader of a response's body. What follows a switch of protocols never ends.
    pub fn of_response(body: ResponseBody) -> Self {
        Self::with(match body {
            ResponseBody::None => State::Done,
            ResponseBody::Length(length) => State::Length(length),
            ResponseBody::Chunked => FIRST_DIGIT,
            ResponseBody::UntilClose | ResponseBody::Switched => State::Unending,
        })
    }

    /// Takes what comes next off the front of `input`.
    ///
    /// Trailers are read and dropped.
    ///
    /// # Errors
    /// When the chunks are malformed, or have extensions. The reader stays refused.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<BodyEvent<'a>, Refusal> {
        loop {
            match self.state {
                State::Refused(refusal) => return Err(refusal),
                State::Done | State::Length(0) => return Ok(BodyEvent::End),
                _ if input.is_empty() => return Ok(BodyEvent::NeedMore),
                State::Unending => return Ok(BodyEvent::Data(std::mem::take(input))),
                State::Length(missing) => {
                    let (data, missing) = take(input, missing);
                    self.state = State::Length(missing);
                    return Ok(BodyEvent::Data(data));
                }
                State::Chunk { missing } => {
                    let (data, missing) = take(input, missing);
                    self.state = if missing == 0 { State::ChunkCr } else { State::Chunk { missing } };
                    return Ok(BodyEvent::Data(data));
                }
                framing => {
                    let (byte, rest) = input.split_first().expect("an empty input was answered above");
                    *input = rest;
                    match self.after(framing, *byte) {
                        Ok(state) => self.state = state,
                        Err(refusal) => {
                            self.state = State::Refused(refusal);
                            return Err(refusal);
                        }
                    }
                }
            }
        }
    }

    /// Whether the body is over.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done | State::Length(0))
    }

    fn with(state: State) -> Self {
        Self { state, trailers: 0 }
    }

    /// The state after a byte of framing.
    fn after(&mut self, state: State, byte: u8) -> Result<State, Refusal> {
        match (state, byte) {
            (State::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err(Refusal::http("the length of a chunk is too large"));
                }
                let digit = char::from(byte).to_digit(16).map(u64::from).unwrap_or_default();
                Ok(State::Size { value: (value << 4) | digit, digits: digits + 1 })
            }
            (State::Size { value, digits: 1.. }, b'\r') => Ok(State::SizeEnd { value }),
            (State::Size { digits: 1.., .. }, b';' | b' ' | b'\t') => {
                Err(Refusal::http("a chunk with extensions"))
            }
            (State::SizeEnd { value: 0 }, b'\n') => Ok(State::Trailer { line: 0 }),
            (State::SizeEnd { value }, b'\n') => Ok(State::Chunk { missing: value }),
            (State::ChunkCr, b'\r') => Ok(State::ChunkLf),
            (State::ChunkLf, b'\n') => Ok(FIRST_DIGIT),
            (State::Trailer { .. } | State::TrailerEnd { .. }, _) => self.after_trailer(state, byte),
            _ => Err(Refusal::http("a chunk that is none")),
        }
    }

    fn after_trailer(&mut self, state: State, byte: u8) -> Result<State, Refusal> {
        self.trailers += 1;
        if self.trailers > MAX_TRAILERS {
            return Err(Refusal::http("the trailers are over the limit"));
        }
        match (state, byte) {
            (State::TrailerEnd { line: 0 }, b'\n') => Ok(State::Done),
            (State::TrailerEnd { .. }, b'\n') => Ok(State::Trailer { line: 0 }),
            (State::Trailer { line }, b'\r') => Ok(State::TrailerEnd { line }),
            (State::Trailer { line: 0 }, b' ' | b'\t') => Err(Refusal::http("a trailer that is folded")),
            (State::Trailer { line }, b'\t' | b' '..=b'~' | 0x80..) => Ok(State::Trailer { line: line + 1 }),
            _ => Err(Refusal::http("a control character in the trailers")),
        }
    }
}

const FIRST_DIGIT: State = State::Size { value: 0, digits: 0 };

/// Takes at most `missing` bytes off the front of `input`, and says how many are missing then.
fn take<'a>(input: &mut &'a [u8], missing: u64) -> (&'a [u8], u64) {
    let count = usize::try_from(missing).unwrap_or(usize::MAX).min(input.len());
    let (data, rest) = input.split_at_checked(count).unwrap_or((input, &[]));
    *input = rest;
    let taken = u64::try_from(data.len()).unwrap_or(u64::MAX);
    (data, missing.saturating_sub(taken))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a body in pieces of `size`: its data, what was left over after its end, or the refusal.
    fn read_in(body: Body, bytes: &[u8], size: usize) -> Result<(Vec<u8>, Option<usize>), Refusal> {
        let mut reader = BodyReader::new(body);
        let mut data = Vec::new();
        let mut given = 0;
        for piece in bytes.chunks(size) {
            given += piece.len();
            let mut input = piece;
            loop {
                match reader.next(&mut input)? {
                    BodyEvent::Data(part) => data.extend_from_slice(part),
                    BodyEvent::NeedMore => break,
                    BodyEvent::End => return Ok((data, Some(bytes.len() - given + input.len()))),
                }
            }
        }
        let ended = reader.is_done().then_some(0);
        Ok((data, ended))
    }

    fn chunked(bytes: &[u8]) -> Result<(Vec<u8>, Option<usize>), Refusal> {
        read_in(Body::Chunked, bytes, bytes.len().max(1))
    }

    #[test]
    fn a_body_of_a_length_ends_after_it() {
        assert_eq!(read_in(Body::Length(5), b"helloGET", 3), Ok((b"hello".to_vec(), Some(3))));
        assert_eq!(read_in(Body::Length(5), b"hel", 3), Ok((b"hel".to_vec(), None)));
        assert_eq!(read_in(Body::None, b"GET", 3), Ok((vec![], Some(3))));
        assert_eq!(read_in(Body::Length(0), b"", 1), Ok((vec![], Some(0))));
    }

    #[test]
    fn chunks_are_joined_and_trailers_dropped() {
        let body = b"5\r\nhello\r\n00A\r\n, world...\r\n0\r\nX-Trailer: 1\r\nY: 2\r\n\r\nGET";
        assert_eq!(chunked(body), Ok((b"hello, world...".to_vec(), Some(3))));
        assert_eq!(chunked(b"0\r\n\r\n"), Ok((vec![], Some(0))));
        assert_eq!(chunked(b"1\r\na\r\n"), Ok((b"a".to_vec(), None)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for body in [
            "5;name=value\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "-1\r\n",
            "\r\n",
            "g\r\n",
            "5\nhello\r\n0\r\n\r\n",
            "5\r\rhello",
            "5\r\nhelloX\r\n",
            "5\r\nhello\n",
            "5\r\nhello\rX",
            "0\r\nX: 1\n\r\n",
            "0\r\nX: 1\r\n folded\r\n\r\n",
            "0\r\nX: \0\r\n\r\n",
            "00000000000000005\r\nhello\r\n",
            "10000000000000000\r\n",
        ] {
            assert!(chunked(body.as_bytes()).is_err(), "{body:?}");
        }
        assert!(chunked(b"ffffffffffffffff\r\nabc").is_ok(), "a large chunk is only a long one");
    }

    #[test]
    fn trailers_are_bounded() {
        let long = format!("0\r\nX: {}\r\n\r\n", "a".repeat(9000));
        assert!(chunked(long.as_bytes()).is_err());
        let many = format!("0\r\n{}\r\n", "X: 1\r\n".repeat(2000));
        assert!(chunked(many.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_alike_in_any_segmentation(
            text in "([0-9a-fA-F]|\r\n|\r|\n|;|x|hello|0\r\n\r\n){0,40}",
            size in 1usize..8,
        ) {
            prop_assert_eq!(read_in(Body::Chunked, text.as_bytes(), size), chunked(text.as_bytes()));
        }

        #[test]
        fn what_is_written_in_chunks_is_read_back(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..5),
            size in 1usize..500,
        ) {
            let mut bytes = Vec::new();
            for chunk in &chunks {
                bytes.extend(chunk_header(chunk.len()));
                bytes.extend_from_slice(chunk);
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(LAST_CHUNK);
            prop_assert_eq!(read_in(Body::Chunked, &bytes, size), Ok((chunks.concat(), Some(0))));
        }
    }
}
