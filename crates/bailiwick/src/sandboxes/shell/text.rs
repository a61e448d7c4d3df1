//! What is typed, as text.

use std::str;

/// The longest character in UTF-8, in bytes, without its last byte.
const UNFINISHED: usize = 3;

/// Makes text of bytes that come in pieces: a character that is cut waits for its rest.
#[derive(Debug, Default)]
pub(super) struct Characters {
    unfinished: Vec<u8>,
}

impl Characters {
    /// The text up to the last whole character. What is not UTF-8 is replaced, because the API takes text.
    pub(super) fn whole(&mut self, piece: &[u8]) -> String {
        let mut bytes = std::mem::take(&mut self.unfinished);
        bytes.extend_from_slice(piece);
        // Only what can still become a character waits.
        let cut = (1..=UNFINISHED.min(bytes.len())).map(|length| bytes.len() - length).find(|&start| {
            let end = bytes.get(start..).unwrap_or_default();
            str::from_utf8(end).is_err_and(|error| error.error_len().is_none() && error.valid_up_to() == 0)
        });
        if let Some(start) = cut {
            self.unfinished = bytes.split_off(start);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_same_however_it_is_cut_into_pieces() {
        let text = "aä€😀\u{1b}[A\r\u{3}";
        for size in 1..=text.len() {
            let mut characters = Characters::default();
            let read: String = text.as_bytes().chunks(size).map(|piece| characters.whole(piece)).collect();
            assert_eq!((read.as_str(), characters.unfinished.len()), (text, 0), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_not_utf_8_is_replaced_and_holds_nothing_up() {
        let mut characters = Characters::default();
        assert_eq!(characters.whole(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(characters.whole(b"\xe2\x82"), "");
        assert_eq!(characters.whole(b"x"), "\u{fffd}x");
        assert_eq!(characters.whole(b"\x80"), "\u{fffd}");
    }
}
