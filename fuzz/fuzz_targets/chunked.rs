//! A chunked body is read alike however it arrives.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sniff::{
    Refusal,
    http::{Body, BodyEvent, BodyReader},
};

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let whole = read_in(bytes, bytes.len().max(1));
    assert_eq!(whole, read_in(bytes, usize::from(*size).max(1)));
    if let Ok((data, left)) = whole {
        assert!(data.len() + left.unwrap_or(0) <= bytes.len());
    }
});

/// The data, and what is left over after the end.
fn read_in(bytes: &[u8], size: usize) -> Result<(Vec<u8>, Option<usize>), Refusal> {
    let mut reader = BodyReader::new(Body::Chunked);
    let mut data = Vec::new();
    let mut given = 0;
    for piece in bytes.chunks(size) {
        given += piece.len();
        let mut input = piece;
        loop {
            match reader.next(&mut input)? {
                BodyEvent::Data(part) => {
                    assert!(!part.is_empty());
                    data.extend_from_slice(part);
                }
                BodyEvent::NeedMore => break,
                BodyEvent::End => return Ok((data, Some(bytes.len() - given + input.len()))),
            }
        }
    }
    Ok((data, reader.is_done().then_some(0)))
}
