//! Texts of a request as they are repeated in answers and events: no longer than they help.

/// The most characters of a field's name in an error, and of what is wrong with it.
pub(crate) const FIELD: usize = 200;
pub(crate) const PROBLEM: usize = 1000;

/// The beginning of a text, of at most `most` characters; an ellipsis says that there was more.
pub fn shortened(text: impl Into<String>, most: usize) -> String {
    let mut text = text.into();
    if let Some((end, _)) = text.char_indices().nth(most) {
        text.truncate(end);
        text.push('\u{2026}');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shortened_between_characters_and_only_if_it_is_longer() {
        for (text, expected) in [("", ""), ("a\u{e4}b", "a\u{e4}b"), ("a\u{e4}bc", "a\u{e4}b\u{2026}")] {
            assert_eq!(shortened(text, 3), expected);
        }
    }
}
