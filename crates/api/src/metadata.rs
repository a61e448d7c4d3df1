//! The `metadata` filter of a list request, which no two clients spell alike.

use std::{collections::BTreeMap, iter::Peekable, str::Chars};

/// Reads a filter: a JSON object, the same as a Python literal (`{'a': 'b'}`, what one client's HTTP library makes
/// of a dictionary), or `key=value`.
///
/// # Errors
/// What was expected, in words.
pub fn parse_metadata_filter(text: &str) -> Result<BTreeMap<String, String>, String> {
    let text = text.trim();
    if let Ok(filter) = serde_json::from_str(text) {
        return Ok(filter);
    }
    if text.starts_with('{') {
        return python_dict(text).ok_or_else(|| "expected an object of strings".to_owned());
    }
    let (key, value) = text.split_once('=').ok_or("expected an object of strings, or key=value")?;
    Ok(BTreeMap::from([(key.to_owned(), value.to_owned())]))
}

fn python_dict(text: &str) -> Option<BTreeMap<String, String>> {
    let mut rest = text.strip_prefix('{')?.strip_suffix('}')?.trim().chars().peekable();
    let mut dict = BTreeMap::new();
    while rest.peek().is_some() {
        let key = python_string(&mut rest)?;
        separator(&mut rest, ':').then_some(())?;
        let value = python_string(&mut rest)?;
        dict.insert(key, value);
        if rest.peek().is_some() && !separator(&mut rest, ',') {
            return None;
        }
    }
    Some(dict)
}

/// Skips spaces, one `wanted` and spaces again.
fn separator(rest: &mut Peekable<Chars<'_>>, wanted: char) -> bool {
    while rest.next_if_eq(&' ').is_some() {}
    let found = rest.next_if_eq(&wanted).is_some();
    while rest.next_if_eq(&' ').is_some() {}
    found
}

/// A string as Python's `repr` writes it.
fn python_string(rest: &mut Peekable<Chars<'_>>) -> Option<String> {
    let quote = rest.next_if(|c| matches!(c, '\'' | '"'))?;
    let mut text = String::new();
    loop {
        match rest.next()? {
            c if c == quote => return Some(text),
            '\\' => text.push(match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'x' => code_point(rest, 2)?,
                'u' => code_point(rest, 4)?,
                'U' => code_point(rest, 8)?,
                c @ ('\\' | '\'' | '"') => c,
                _ => return None,
            }),
            c => text.push(c),
        }
    }
}

fn code_point(rest: &mut Peekable<Chars<'_>>, digits: usize) -> Option<char> {
    let mut code = 0_u32;
    for _ in 0..digits {
        code = code.checked_mul(16)?.checked_add(rest.next()?.to_digit(16)?)?;
    }
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_of_a_filter_is_read() {
        for (text, pairs) in [
            (r#"{"a":"b"}"#, &[("a", "b")][..]),
            ("{'a': 'b'}", &[("a", "b")]),
            ("{'a': 'b', 'c': \"it's\"}", &[("a", "b"), ("c", "it's")]),
            (r"{'a\n': '\x41\u00e4\\'}", &[("a\n", "A\u{e4}\\")]),
            ("{}", &[]),
            ("{ }", &[]),
            ("a=b", &[("a", "b")]),
            ("a=b=c", &[("a", "b=c")]),
        ] {
            let expected = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(parse_metadata_filter(text), Ok(expected), "{text}");
        }
        for text in
            ["", "a", "{", "{'a'}", "{'a': 1}", "{'a': 'b' 'c': 'd'}", r"{'a': '\q'}", "[1]", r#"{"a":1}"#]
        {
            assert!(parse_metadata_filter(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}") {
            let _ = parse_metadata_filter(&text);
        }

        #[test]
        fn quoted_strings_come_back(key in "[^\\\\'\\p{C}]{1,10}", value in "[^\\\\'\\p{C}]{0,10}") {
            let text = format!("{{'{key}': '{value}'}}");
            prop_assert_eq!(parse_metadata_filter(&text), Ok(BTreeMap::from([(key, value)])));
        }
    }
}
