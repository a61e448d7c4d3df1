//! Bytes of a frame.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

use crate::{MAX_CHUNK, MAX_FRAME};

/// Length of the length.
const HEADER: usize = 4;

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

/// The length of a body from its header.
///
/// # Errors
/// [`CodecError::TooLong`].
pub fn body_length(header: [u8; HEADER]) -> Result<usize, CodecError> {
    let length = u32::from_le_bytes(header) as usize;
    if length <= MAX_FRAME { Ok(length) } else { Err(CodecError::TooLong(length)) }
}

/// Reads one frame; `None` when the stream has ended before it.
///
/// # Errors
/// Any [`CodecError`].
pub fn read_frame<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, CodecError> {
    let mut header = Vec::with_capacity(HEADER);
    read_up_to(from, HEADER, &mut header)?;
    if header.is_empty() {
        return Ok(None);
    }
    let header = <[u8; HEADER]>::try_from(header).map_err(|_| CodecError::Truncated)?;
    let length = body_length(header)?;
    let mut body = Vec::new();
    read_up_to(from, length, &mut body)?;
    if body.len() < length { Err(CodecError::Truncated) } else { decode(&body).map(Some) }
}

/// Writes one frame, in one piece.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::Io`].
pub fn write_frame<T: Serialize>(to: &mut impl Write, frame: &T) -> Result<(), CodecError> {
    Ok(to.write_all(&encode(frame)?)?)
}

/// Frames out of bytes that arrive in any portions, for non-blocking readers.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    /// Bytes at the front that were handed out already.
    taken: usize,
}

impl FrameBuffer {
    /// Adds what arrived. At most one incomplete frame stays inside if [`Self::next`] is called until it gives
    /// `None` before more is added.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next complete frame.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] (known from the header alone), [`CodecError::Malformed`]. The stream cannot be
    /// used any further.
    #[expect(clippy::should_implement_trait, reason = "generic over the frame, and it can fail")]
    pub fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, CodecError> {
        let waiting = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((header, rest)) = waiting.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = body_length(*header)?;
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let frame = decode(body)?;
        self.taken += HEADER + length;
        Ok(Some(frame))
    }

    /// Whether no byte waits, so that the stream may end here.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.taken
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
