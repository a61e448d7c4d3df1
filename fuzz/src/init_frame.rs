//! Frames between the daemon and init mean the same however they arrive and whoever wrote them, and what they become
//! in memory is no larger than they are.

use std::fmt::Debug;

use init_protocol::{
    Boot, Bulk, ClientFrame, CodecError, Frame, FrameBuffer, InitFrame, MAX_FRAME, Stream, decode, encode,
    read_frame,
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

fn check_stream<T: Serialize + Frame + Clone + PartialEq + Debug>(bytes: &[u8], size: usize) {
    let whole = read_blocking::<T>(bytes);
    assert_eq!(whole, read_in::<T>(bytes, size));
    assert_eq!(whole, read_in::<T>(bytes, bytes.len().max(1)));
    assert_eq!(whole, read_to_room::<T>(bytes, size));
    assert_eq!(whole, read_to_room::<T>(bytes, usize::MAX));
    for kind in [Bulk::File, Bulk::Stdin, Bulk::Output(Stream::Stdout), Bulk::Output(Stream::Stderr)] {
        check_bulk::<T>(kind, bytes, size);
    }
    for frame in &whole.0 {
        check_frame(frame, bytes.len());
    }
}

/// Any bytes can be a bulk frame, and are then what the frame of CBOR with these bytes is.
fn check_bulk<T: Serialize + Frame + Clone + PartialEq + Debug>(kind: Bulk, bytes: &[u8], size: usize) {
    let Some(frame) = T::from_bulk(kind, bytes.to_vec()) else { return };
    let header = kind.header(bytes.len()).expect("an input is shorter than a frame may be");
    let wire = [header.as_slice(), bytes, &encode(&frame).expect("so is its encoding")].concat();
    let twice = (vec![frame.clone(), frame], End::Closed);
    assert_eq!(twice, read_blocking(&wire));
    assert_eq!(twice, read_to_room(&wire, size));
    let (frames, end) = read_to_room::<T>(&wire[..header.len() + bytes.len() / 2], size);
    assert_eq!((frames.len(), end == End::Truncated), (usize::from(bytes.is_empty()), !bytes.is_empty()));
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

fn read_blocking<T: Frame>(mut bytes: &[u8]) -> (Vec<T>, End) {
    let mut frames = Vec::new();
    loop {
        match read_frame(&mut bytes) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, End::Closed),
            Err(error) => return (frames, end(&error)),
        }
    }
}

fn read_in<T: Frame>(bytes: &[u8], size: usize) -> (Vec<T>, End) {
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

/// As from a socket that gives at most so many bytes at a time.
fn read_to_room<T: Frame>(mut bytes: &[u8], most: usize) -> (Vec<T>, End) {
    let mut buffer = FrameBuffer::default();
    let mut frames = Vec::new();
    loop {
        match buffer.next() {
            Ok(Some(frame)) => {
                frames.push(frame);
                continue;
            }
            Ok(None) if bytes.is_empty() => break,
            Ok(None) => {}
            Err(error) => return (frames, end(&error)),
        }
        let room = buffer.room();
        let free = room.capacity() - room.len();
        assert!(free > 0, "a full room would look like the end of the stream");
        let (piece, rest) = bytes.split_at(bytes.len().min(most).min(free));
        room.extend_from_slice(piece);
        bytes = rest;
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
