//! A chunked body has one meaning, however it arrives; written anew it is the same.

use sniff::{
    Refusal,
    http::{Body, BodyEvent, BodyReader, LAST_CHUNK, chunk_header},
};

use crate::segments::sized;

pub fn check(input: &[u8]) {
    let Some((size, bytes)) = sized(input) else { return };
    let whole = read(bytes, bytes.len().max(1));
    assert_eq!(whole, read(bytes, size));
    let Ok((data, left)) = whole else { return };
    assert!(data.len() + left.unwrap_or(0) <= bytes.len());
    if let Some(left) = left {
        assert_eq!(lax_reading(bytes), Some((data.clone(), left)), "somebody reads another body");
        assert_eq!(read(&written(&data, size), 7), Ok((data, Some(0))));
    }
}

/// The data, and what is left over after the end.
fn read(bytes: &[u8], size: usize) -> Result<(Vec<u8>, Option<usize>), Refusal> {
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

fn written(data: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in data.chunks(size) {
        bytes.extend(chunk_header(part.len()));
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(LAST_CHUNK);
    bytes
}

/// Chunks as a program reads them that takes lines by their LF and a length by its leading digits.
fn lax_reading(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut rest = bytes;
    let mut data = Vec::new();
    loop {
        let line = lax_line(&mut rest)?;
        let digits: String =
            line.iter().map(|byte| char::from(*byte)).take_while(char::is_ascii_hexdigit).collect();
        let length = usize::from_str_radix(&digits, 16).ok()?;
        if length == 0 {
            break;
        }
        data.extend_from_slice(rest.get(..length)?);
        rest = rest.get(length..)?;
        if !lax_line(&mut rest)?.is_empty() {
            return None;
        }
    }
    while !lax_line(&mut rest)?.is_empty() {}
    Some((data, rest.len()))
}

fn lax_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|byte| *byte == b'\n')?;
    let line = &rest[..end];
    *rest = &rest[end + 1..];
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}
