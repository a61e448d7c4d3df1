//! Text that others chose, made harmless for a terminal.

use std::{io, mem};

/// `text` with every control character replaced: a name that code in a sandbox chose, or a stored one that was
/// tampered with, must not move the cursor or rewrite what stands above.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Longest sequence for colours that is passed on, in bytes.
const LONGEST_COLOUR: usize = 64;

const ESCAPE: char = '\u{1b}';

/// What a program in a sandbox prints, on its way to where the user has it.
///
/// To a file or a pipe it goes as it is: what reads it may be a program. To a terminal go text, line feeds, returns, tabs
/// and colours (`ESC [ … m`); every other control character is replaced, so that what was printed cannot put anything
/// into the clipboard, answer in the user's place, or rewrite what stands above.
#[derive(Debug, Default)]
pub(crate) struct Output {
    is_terminal: bool,
    /// The beginning of a character or of a colour that is not complete yet.
    held: Vec<u8>,
}

impl Output {
    /// Output to this stream.
    pub(crate) fn to(stream: &impl io::IsTerminal) -> Self {
        Self { is_terminal: stream.is_terminal(), held: Vec::new() }
    }

    /// What is to be written of what was printed next.
    pub(crate) fn next(&mut self, printed: &[u8]) -> Vec<u8> {
        if !self.is_terminal {
            return printed.to_vec();
        }
        self.held.extend_from_slice(printed);
        let held = mem::take(&mut self.held);
        let complete = complete(&held);
        let (now, later) = held.split_at(complete);
        self.held = later.to_vec();
        harmless(&String::from_utf8_lossy(now)).into_bytes()
    }

    /// What is left to be written at the end.
    pub(crate) fn end(&mut self) -> Vec<u8> {
        harmless(&String::from_utf8_lossy(&mem::take(&mut self.held))).into_bytes()
    }
}

/// How much of it does not end within a character or a colour.
fn complete(printed: &[u8]) -> usize {
    let characters = match printed.utf8_chunks().last() {
        // Bytes that could become a character with those that follow: at most three.
        Some(chunk)
            if std::str::from_utf8(chunk.invalid()).is_err_and(|error| error.error_len().is_none()) =>
        {
            printed.len() - chunk.invalid().len()
        }
        _ => printed.len(),
    };
    let last = printed.get(..characters).and_then(|whole| whole.iter().rposition(|byte| *byte == 0x1b));
    let is_begun = |from: &usize| {
        let begun = printed.get(*from..).unwrap_or_default();
        begun.len() < LONGEST_COLOUR
            && matches!(begun, [_] | [_, b'[', ..])
            && begun.iter().skip(2).all(|byte| is_parameter(char::from(*byte)))
    };
    last.filter(is_begun).unwrap_or(characters)
}

fn is_parameter(c: char) -> bool {
    matches!(c, '0'..='9' | ';' | ':')
}

fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = if next == ESCAPE { colour(rest).unwrap_or(1) } else { next.len_utf8() };
        let (part, after) = rest.split_at(length);
        match next {
            '\n' | '\r' | '\t' => out.push(next),
            ESCAPE if length > 1 => out.push_str(part),
            _ if next.is_control() => out.push(char::REPLACEMENT_CHARACTER),
            _ => out.push(next),
        }
        rest = after;
    }
    out
}

/// How long the sequence for colours is that `text` begins with (SGR: ECMA-48, section 8.3.117), or that to erase the rest of
/// the line (EL: section 8.3.41), which programs write after each colour.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c| !is_parameter(c))?;
    let (parameters, command) = parameters.split_at_checked(end)?;
    let is_harmless = command.starts_with('m') || command.starts_with('K') && matches!(parameters, "" | "0");
    (end + 3 <= LONGEST_COLOUR && is_harmless).then_some(end + 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_replaced_and_nothing_else() {
        assert_eq!(printable("a\u{1b}[31mb\n\u{9b}2J"), "a\u{fffd}[31mb\u{fffd}\u{fffd}2J");
        assert_eq!(printable("größe 3·ü"), "größe 3·ü");
    }

    /// What a terminal, or something else, gets of what was printed in these pieces.
    fn got<'a>(is_terminal: bool, pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut output = Output { is_terminal, held: Vec::new() };
        let mut all: Vec<u8> = pieces.into_iter().flat_map(|piece| output.next(piece)).collect();
        all.extend(output.end());
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn what_a_sandbox_prints_does_nothing_to_a_terminal_but_print_in_colour() {
        for (printed, shown) in [
            ("größe\t1\r\n", "größe\t1\r\n"),
            ("\u{1b}[1;38:5:9mred\u{1b}[m", "\u{1b}[1;38:5:9mred\u{1b}[m"),
            ("\u{1b}[01;31m\u{1b}[Kmatch\u{1b}[m\u{1b}[0K", "\u{1b}[01;31m\u{1b}[Kmatch\u{1b}[m\u{1b}[0K"),
            ("\u{1b}[1K\u{1b}[2K", "\u{fffd}[1K\u{fffd}[2K"),
            // The clipboard, a title, the cursor, a question, a device's string, a reset.
            ("\u{1b}]52;c;eA==\u{7}", "\u{fffd}]52;c;eA==\u{fffd}"),
            ("\u{1b}]0;title\u{1b}\\", "\u{fffd}]0;title\u{fffd}\\"),
            ("a\u{1b}[2J\u{1b}[1Ab", "a\u{fffd}[2J\u{fffd}[1Ab"),
            ("\u{1b}[6n\u{1b}[?1049h\u{1b}[>4;1m", "\u{fffd}[6n\u{fffd}[?1049h\u{fffd}[>4;1m"),
            ("\u{1b}P$q\u{9c}\u{9b}31m\u{1b}c", "\u{fffd}P$q\u{fffd}\u{fffd}31m\u{fffd}c"),
            ("a\u{8}\u{7f}\u{0}b", "a\u{fffd}\u{fffd}\u{fffd}b"),
            ("\u{1b}\u{1b}[31m", "\u{fffd}\u{1b}[31m"),
            ("\u{1b}[3", "\u{fffd}[3"),
        ] {
            assert_eq!(got(true, [printed.as_bytes()]), shown, "{printed:?}");
            // However it is cut.
            assert_eq!(got(true, printed.as_bytes().chunks(1)), shown, "{printed:?}");
            assert_eq!(got(false, printed.as_bytes().chunks(2)), printed, "as it is elsewhere");
        }
        let long = format!("\u{1b}[{}m", "1;".repeat(LONGEST_COLOUR));
        assert_eq!(got(true, long.as_bytes().chunks(1)), long.replace('\u{1b}', "\u{fffd}"));
        assert_eq!(got(true, [b"a\xff".as_slice(), b"\xc3", b"("]), "a\u{fffd}\u{fffd}(");
    }
}
