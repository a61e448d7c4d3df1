//! Text that others chose, made harmless for a terminal.

/// `text` with every control character replaced: a name that code in a sandbox chose, or a stored one that was
/// tampered with, must not move the cursor or rewrite what stands above.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_are_replaced_and_nothing_else() {
        assert_eq!(printable("a\u{1b}[31mb\n\u{9b}2J"), "a\u{fffd}[31mb\u{fffd}\u{fffd}2J");
        assert_eq!(printable("größe 3·ü"), "größe 3·ü");
    }
}
