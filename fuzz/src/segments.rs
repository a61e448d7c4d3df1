//! Cutting bytes into the pieces in which a connection may deliver them.

/// What an input of a stream parser is: the bytes, and the size of the pieces in which they arrive.
pub(crate) fn sized(input: &[u8]) -> Option<(usize, &[u8])> {
    let (size, bytes) = input.split_first()?;
    Some((usize::from(*size).max(1), bytes))
}

/// The lengths of the prefixes that a growing buffer has, one after the other.
pub(crate) fn ends(bytes: &[u8], size: usize) -> impl Iterator<Item = usize> {
    let length = bytes.len();
    (1..=length.div_ceil(size)).map(move |piece| (piece * size).min(length))
}
