//! Frames between the daemon and init mean the same however they arrive and whoever wrote them, and what they become
//! in memory is no larger than they are.

use std::fmt::Debug;

use init_protocol::{
    Boot, ClientFrame, CodecError, FrameBuffer, InitFrame, MAX_FRAME, decode, encode, read_frame,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::segments::sized;

pub fn check(input: &[u8]) {
    let Some((size, bytes)) = sized(input) else { return };
    check_stream::<ClientFrame>(bytes, size);
    check_stream::<InitFrame>(bytes, size);
    check_stream::<Boot>(bytes, size);
    check_body::<ClientFrame>(bytes);
    check_body::<InitFrame>(bytes);
    check_body::<Boot>(bytes);
}

/// How a stream ended.
#[derive(Debug, PartialEq)]
enum End {
    Closed,
    Truncated,
    TooLong,
    Malformed,
}

fn check_stream<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8], size: usize) {
    let whole = read_blocking::<T>(bytes);
    assert_eq!(whole, read_in::<T>(bytes, size));
    assert_eq!(whole, read_in::<T>(bytes, bytes.len().max(1)));
    for frame in &whole.0 {
        check_frame(frame, bytes.len());
    }
}

fn check_body<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
    if let Ok(frame) = decode::<T>(body) {
        check_frame(&frame, body.len());
    }
}

/// `length` is that of the bytes it was read from.
fn check_frame<T: Serialize + DeserializeOwned + PartialEq + Debug>(frame: &T, length: usize) {
    let wire = encode(frame).expect("a frame that was read can be written");
    assert_eq!(decode::<T>(&wire[4..]).as_ref().ok(), Some(frame));
    // Names of fields may have been left out, or written as numbers.
    assert!(wire.len() <= length + 256, "{} bytes became {}", length, wire.len());
}

fn read_blocking<T: DeserializeOwned>(mut bytes: &[u8]) -> (Vec<T>, End) {
    let mut frames = Vec::new();
    loop {
        match read_frame(&mut bytes) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, End::Closed),
            Err(error) => return (frames, end(&error)),
        }
    }
}

fn read_in<T: DeserializeOwned>(bytes: &[u8], size: usize) -> (Vec<T>, End) {
    let mut buffer = FrameBuffer::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(size) {
        buffer.extend(piece);
        loop {
            match buffer.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, end(&error)),
            }
        }
    }
    let end = if buffer.is_empty() { End::Closed } else { End::Truncated };
    (frames, end)
}

fn end(error: &CodecError) -> End {
    match error {
        CodecError::Truncated => End::Truncated,
        CodecError::TooLong(length) => {
            assert!(*length > MAX_FRAME);
            End::TooLong
        }
        CodecError::Malformed(_) => End::Malformed,
        CodecError::Io(error) => panic!("reading from memory fails: {error}"),
    }
}
