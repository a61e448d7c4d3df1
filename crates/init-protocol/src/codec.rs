//! Bytes of a frame.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Frame, MAX_BULK, MAX_CHUNK, MAX_FRAME,
    bulk::{Bulk, HEADER, Header},
};

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A frame is longer than [`MAX_FRAME`].
    #[error("frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    /// The body of a frame is not what was expected.
    #[error("frame is malformed: {0}")]
    Malformed(String),
    /// The stream ended inside a frame.
    #[error("stream ended inside a frame")]
    Truncated,
    /// The stream failed.
    #[error("frame stream: {0}")]
    Io(#[from] io::Error),
}

/// A frame as it goes over the wire: header and body.
///
/// # Errors
/// [`CodecError::TooLong`].
pub fn encode<T: Serialize>(frame: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![0; HEADER];
    ciborium::into_writer(frame, &mut bytes).map_err(|error| CodecError::Malformed(error.to_string()))?;
    let length = bytes.len().saturating_sub(HEADER);
    let header = u32::try_from(length).ok().filter(|_| length <= MAX_FRAME);
    let header = header.ok_or(CodecError::TooLong(length))?.to_le_bytes();
    if let Some(place) = bytes.first_chunk_mut::<HEADER>() {
        *place = header;
    }
    Ok(bytes)
}

/// A frame from its body (without the header).
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::Malformed`]; also when bytes are left over.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    if body.len() > MAX_FRAME {
        return Err(CodecError::TooLong(body.len()));
    }
    let mut rest = body;
    let frame = ciborium::de::from_reader_with_recursion_limit(&mut rest, NESTING)
        .map_err(|error| CodecError::Malformed(error.to_string()))?;
    if rest.is_empty() { Ok(frame) } else { Err(CodecError::Malformed("bytes after the frame".into())) }
}

/// Deepest nesting of a body: the frames need five, and init decodes on small stacks.
const NESTING: usize = 16;

/// The frame that the bytes of a bulk frame are.
fn from_bulk<T: Frame>(kind: Bulk, data: Vec<u8>) -> Result<T, CodecError> {
    T::from_bulk(kind, data).ok_or_else(|| CodecError::Malformed(format!("{kind:?} has no place here")))
}

/// Reads one frame; `None` when the stream has ended before it.
///
/// # Errors
/// Any [`CodecError`].
pub fn read_frame<T: Frame>(from: &mut impl Read) -> Result<Option<T>, CodecError> {
    let mut header = Vec::with_capacity(HEADER);
    read_up_to(from, HEADER, &mut header)?;
    if header.is_empty() {
        return Ok(None);
    }
    let header = Header::parse(header.try_into().map_err(|_| CodecError::Truncated)?)?;
    let (Header::Encoded(length) | Header::Bulk(_, length)) = header;
    let mut body = Vec::new();
    read_up_to(from, length, &mut body)?;
    match header {
        _ if body.len() < length => Err(CodecError::Truncated),
        Header::Encoded(_) => decode(&body).map(Some),
        Header::Bulk(kind, _) => from_bulk(kind, body).map(Some),
    }
}

/// Writes one frame, in one piece.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::Io`].
pub fn write_frame<T: Serialize>(to: &mut impl Write, frame: &T) -> Result<(), CodecError> {
    Ok(to.write_all(&encode(frame)?)?)
}

/// Frames out of bytes that arrive in any portions, for readers that know no boundaries.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that were handed out already.
    taken: usize,
    /// The bulk frame of which a part is missing; no byte waits in `bytes` then.
    arriving: Option<Arriving>,
    /// Whether the last frame was a bulk frame.
    after_bulk: bool,
}

/// A bulk frame whose header has been read.
#[derive(Debug)]
struct Arriving {
    kind: Bulk,
    length: usize,
    /// What is there of it. Once it is complete, what was read beyond it may follow.
    data: Vec<u8>,
}

impl Arriving {
    fn missing(&self) -> usize {
        self.length.saturating_sub(self.data.len())
    }
}

/// How much is read at once when no bulk frame is expected.
const READ: usize = MAX_CHUNK;

/// How much is read at once after a bulk frame: where one follows, that is its header, and only so much of it has to
/// be moved.
const READ_AFTER_BULK: usize = 64;

impl FrameBuffer {
    /// Adds what arrived. At most one incomplete frame stays inside if [`Self::next`] is called until it gives
    /// `None` before more is added.
    pub fn extend(&mut self, bytes: &[u8]) {
        let missing = self.arriving.as_ref().map_or(0, Arriving::missing);
        let (first, rest) = bytes.split_at(missing.min(bytes.len()));
        if let Some(arriving) = &mut self.arriving {
            arriving.data.extend_from_slice(first);
        }
        self.forget_taken();
        self.bytes.extend_from_slice(rest);
    }

    /// Where to read to: what is appended arrives as if by [`Self::extend`], and there is room for at least a byte.
    /// The bytes of a bulk frame are read to where they stay. Call it when [`Self::next`] has given `None`.
    pub fn room(&mut self) -> &mut Vec<u8> {
        self.forget_taken();
        match &mut self.arriving {
            Some(arriving) => {
                arriving.data.reserve_exact(arriving.missing().min(MAX_BULK) + HEADER);
                &mut arriving.data
            }
            None => {
                self.bytes.reserve_exact(if self.after_bulk { READ_AFTER_BULK } else { READ });
                &mut self.bytes
            }
        }
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] (known from the header alone), [`CodecError::Malformed`]. The stream cannot be
    /// used any further.
    #[expect(clippy::should_implement_trait, reason = "generic over the frame, and it can fail")]
    pub fn next<T: Frame>(&mut self) -> Result<Option<T>, CodecError> {
        if self.arriving.is_none() {
            let waiting = self.bytes.get(self.taken..).unwrap_or_default();
            let Some((header, rest)) = waiting.split_first_chunk::<HEADER>() else { return Ok(None) };
            match Header::parse(*header)? {
                Header::Encoded(length) => {
                    let Some(body) = rest.get(..length) else { return Ok(None) };
                    let frame = decode(body)?;
                    self.taken += HEADER + length;
                    self.after_bulk = false;
                    return Ok(Some(frame));
                }
                Header::Bulk(kind, length) => {
                    let there = rest.get(..length).unwrap_or(rest);
                    let data = there.to_vec();
                    self.taken += HEADER + there.len();
                    self.arriving = Some(Arriving { kind, length, data });
                }
            }
        }
        match self.arriving.take_if(|arriving| arriving.missing() == 0) {
            None => Ok(None),
            Some(Arriving { kind, length, mut data }) => {
                self.end_bulk();
                self.bytes.extend_from_slice(data.get(length..).unwrap_or_default());
                data.truncate(length);
                from_bulk(kind, data).map(Some)
            }
        }
    }

    /// Takes out a bulk frame of which a part is missing, for a caller who then reads the rest from the stream
    /// itself: its kind, what is there of it, and how many bytes follow.
    pub fn take_incomplete(&mut self) -> Option<(Bulk, Vec<u8>, usize)> {
        let arriving = self.arriving.take_if(|arriving| arriving.missing() > 0)?;
        self.end_bulk();
        let missing = arriving.missing();
        Some((arriving.kind, arriving.data, missing))
    }

    fn end_bulk(&mut self) {
        self.after_bulk = true;
        if self.is_empty() {
            // What is kept for smaller frames would be read to in one go.
            (self.bytes, self.taken) = (Vec::new(), 0);
        }
    }

    /// Whether no byte waits, so that the stream may end here.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.taken && self.arriving.is_none()
    }

    fn forget_taken(&mut self) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
    }
}

/// How much memory there is for what was announced; for more it grows with what arrives.
const AT_ONCE: usize = MAX_CHUNK + 64;

/// Reads until `length` bytes are there or the stream ends.
fn read_up_to(from: &mut impl Read, length: usize, into: &mut Vec<u8>) -> io::Result<()> {
    into.reserve_exact(length.min(AT_ONCE));
    from.take(length as u64).read_to_end(into).map(|_| ())
}

#[cfg(test)]
mod tests;
