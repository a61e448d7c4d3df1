//! Output of a program as text, in pieces: what arrives is cut anywhere, a character may not be.

use memchr::{memchr, memrchr};

/// How readers put the pieces together again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// One after the other: pieces have their line feeds, and a line that is not complete is passed on.
    Exactly,
    /// With a line feed between each two: a piece is a line without its line feed, passed on when it is complete.
    WithLineFeeds,
}

/// Longest line that is waited for, in bytes; a longer one becomes several pieces.
const LONGEST_LINE: usize = 256 << 10;

/// How many lines of what arrives at once are pieces of their own: what is sent for each piece is many times an empty
/// line. The others are one piece.
const MOST_LINES: usize = 256;

/// One output stream of a program, on its way to a reader.
#[derive(Debug)]
pub(crate) struct Text {
    joined: Joined,
    held: Vec<u8>,
}

impl Text {
    pub(crate) fn new(joined: Joined) -> Self {
        Self { joined, held: Vec::new() }
    }

    /// Takes what arrived, and gives the pieces that are complete. What is not UTF-8 is replaced.
    pub(crate) fn push(&mut self, data: &[u8], mut give: impl FnMut(&str)) {
        let mut held = std::mem::take(&mut self.held);
        let mut rest = if held.is_empty() {
            data
        } else {
            held.extend_from_slice(data);
            &held
        };
        let mut pieces = 0;
        while let Some(end) = memchr(b'\n', rest) {
            let end = if pieces < MOST_LINES { end } else { memrchr(b'\n', rest).unwrap_or(end) };
            let (lines, after) = rest.split_at(end + 1);
            self.piece(lines, &mut give);
            pieces += 1;
            rest = after;
        }
        if self.joined == Joined::Exactly || rest.len() > LONGEST_LINE {
            let (whole, part) = rest.split_at(rest.len() - unfinished(rest));
            if !whole.is_empty() {
                self.piece(whole, &mut give);
            }
            rest = part;
        }
        self.held = rest.to_vec();
    }

    /// Gives what is left when the program has ended.
    pub(crate) fn end(&mut self, mut give: impl FnMut(&str)) {
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            self.piece(&held, &mut give);
        }
    }

    fn piece(&self, bytes: &[u8], give: &mut impl FnMut(&str)) {
        let bytes = match self.joined {
            Joined::Exactly => bytes,
            Joined::WithLineFeeds => bytes.strip_suffix(b"\n").unwrap_or(bytes),
        };
        give(&String::from_utf8_lossy(bytes));
    }
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    let begins = |tail: &&[u8]| matches!(std::str::from_utf8(tail), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none());
    let tails = (1..=3).filter_map(|length| bytes.get(bytes.len().checked_sub(length)?..));
    tails.filter(begins).map(<[u8]>::len).next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(joined: Joined, parts: &[&[u8]]) -> Vec<String> {
        let (mut text, mut all) = (Text::new(joined), Vec::new());
        for part in parts {
            text.push(part, |piece| all.push(piece.to_owned()));
        }
        text.end(|piece| all.push(piece.to_owned()));
        all
    }

    #[test]
    fn lines_are_pieces_and_an_unfinished_one_waits_only_where_it_must() {
        let parts: [&[u8]; 4] = [b"a\n\nb", b"c", b"\nd", b"e"];
        assert_eq!(pieces(Joined::Exactly, &parts), ["a\n", "\n", "b", "c", "\n", "d", "e"]);
        assert_eq!(pieces(Joined::WithLineFeeds, &parts), ["a", "", "bc", "de"]);
    }

    #[test]
    fn no_cut_changes_the_text() {
        let text = "ä€\u{1f600}\nx\u{2028}y\n".as_bytes();
        let invalid = b"\xff\xc3(\xe2\x82\n\xf0\x9f";
        for whole in [text, invalid] {
            let expected = String::from_utf8_lossy(whole);
            for first in 0..=whole.len() {
                for second in first..=whole.len() {
                    let parts = [&whole[..first], &whole[first..second], &whole[second..]];
                    assert_eq!(pieces(Joined::Exactly, &parts).concat(), expected, "{first} {second}");
                    let lines = pieces(Joined::WithLineFeeds, &parts).join("\n");
                    assert_eq!(lines, expected.strip_suffix('\n').unwrap_or(&expected), "{first} {second}");
                }
            }
        }
    }

    #[test]
    fn many_lines_at_once_are_few_pieces_and_the_same_text() {
        let lines = "\n".repeat(64 << 10) + "end";
        for joined in [Joined::Exactly, Joined::WithLineFeeds] {
            let pieces = pieces(joined, &[lines.as_bytes()]);
            assert_eq!(pieces.len(), MOST_LINES + 2);
            let separator = if joined == Joined::Exactly { "" } else { "\n" };
            assert_eq!(pieces.join(separator), lines);
        }
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let mut text = Text::new(Joined::WithLineFeeds);
        let mut given = 0;
        for _ in 0..100 {
            text.push(&[b'x'; 64 << 10], |piece| given += piece.len());
            assert!(text.held.len() <= LONGEST_LINE);
        }
        text.end(|piece| given += piece.len());
        assert_eq!(given, 100 * (64 << 10));
    }
}
