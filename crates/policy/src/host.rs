//! Host names.

use std::{borrow::Borrow, borrow::Cow, fmt, str::FromStr, sync::Arc};

use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The longest name in its textual form without the trailing dot, in bytes (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 253;
/// The longest label, in bytes (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;
/// The longest text that is worth the work of mapping it to A-labels, in bytes.
const MAX_INPUT: usize = 1024;

/// A host name in canonical form: lower case, no trailing dot, A-labels.
///
/// Two names are the same host exactly when they are equal. It is never an address: texts that a URL parser or
/// a C library would take for an IPv4 address in any notation are not host names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Parses and canonicalises: lower case, one trailing dot removed, U-labels mapped to A-labels (UTS 46,
    /// non-transitional).
    ///
    /// Underscores and hyphens are permitted anywhere in a label, because real hosts have them.
    ///
    /// # Errors
    /// When the text is not a host name; see [`HostNameError`].
    pub fn parse(text: &str) -> Result<Self, HostNameError> {
        let ascii = to_a_labels(text)?;
        let name = ascii.strip_suffix('.').unwrap_or(&ascii);
        check(name)?;
        Ok(Self(Arc::from(name)))
    }

    /// Parses a name as protocols carry it (TLS server name, HTTP Host, DNS): ASCII only, A-labels already.
    ///
    /// # Errors
    /// As [`Self::parse`], and for any byte outside ASCII (RFC 6066 section 3 and RFC 9110 section 7.2 have none).
    pub fn from_wire(bytes: &[u8]) -> Result<Self, HostNameError> {
        match std::str::from_utf8(bytes) {
            Ok(text) if text.is_ascii() => Self::parse(text),
            _ => Err(HostNameError::NotAscii),
        }
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels, the top-level one first.
    pub(crate) fn labels_from_the_root(&self) -> impl Iterator<Item = &str> {
        self.0.rsplit('.')
    }
}

/// Why a text is not a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostNameError {
    /// It has no characters.
    #[error("the name is empty")]
    Empty,
    /// Two dots follow each other, or it begins with one.
    #[error("the name has an empty label")]
    EmptyLabel,
    /// A label is too long.
    #[error("a label of the name is over 63 bytes")]
    LabelTooLong,
    /// The name is too long.
    #[error("the name is over 253 bytes")]
    TooLong,
    /// A character that no host name has.
    #[error("{0:?} cannot be part of a host name")]
    Character(char),
    /// It came from a protocol that carries ASCII only.
    #[error("the name is not ASCII")]
    NotAscii,
    /// It is an IP address, perhaps in an unusual notation.
    #[error("this is an IP address, not a host name")]
    IpLiteral,
    /// It cannot be mapped to A-labels.
    #[error("the name is not valid under IDNA (UTS 46)")]
    Idna,
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// Lower case A-labels; a trailing dot is still there.
fn to_a_labels(text: &str) -> Result<Cow<'_, str>, HostNameError> {
    if text.is_empty() {
        return Err(HostNameError::Empty);
    }
    if text.len() > MAX_INPUT {
        return Err(HostNameError::TooLong);
    }
    if text.starts_with('[') || text.matches(':').count() > 1 {
        // The caller wants to know that an address came, not that a bracket is a wrong character.
        let inner = text.trim_start_matches('[').trim_end_matches(']');
        if inner.parse::<std::net::Ipv6Addr>().is_ok() {
            return Err(HostNameError::IpLiteral);
        }
    }
    if let Some(wrong) = text.chars().find(|c| c.is_ascii() && !is_name_character(*c)) {
        return Err(HostNameError::Character(wrong));
    }
    let has_a_label =
        || text.split('.').any(|label| label.get(..4).is_some_and(|head| head.eq_ignore_ascii_case("xn--")));
    if text.is_ascii() && !has_a_label() {
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Ok(Cow::Owned(text.to_ascii_lowercase()));
        }
        return Ok(Cow::Borrowed(text));
    }
    // A-labels are decoded and checked too: an invalid one has no agreed meaning.
    Uts46::new()
        .to_ascii(text.as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow, DnsLength::Ignore)
        .map_err(|_| HostNameError::Idna)
}

/// Checks a name that is lower case and has no trailing dot any more.
fn check(name: &str) -> Result<(), HostNameError> {
    if name.is_empty() {
        return Err(HostNameError::EmptyLabel);
    }
    // Mapping may have produced characters that were not in the input (full-width forms of them, for example).
    if let Some(wrong) = name.chars().find(|c| !is_name_character(*c)) {
        return Err(HostNameError::Character(wrong));
    }
    for label in name.split('.') {
        if label.is_empty() {
            return Err(HostNameError::EmptyLabel);
        }
        if label.len() > MAX_LABEL {
            return Err(HostNameError::LabelTooLong);
        }
    }
    if name.len() > MAX_NAME {
        return Err(HostNameError::TooLong);
    }
    if ends_in_a_number(name) { Err(HostNameError::IpLiteral) } else { Ok(()) }
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Whether parsers of IPv4 notations would take the name for one: its last label is a number. This is the rule
/// of the URL standard (section 3.5), and covers `127.1`, `0x7f.1` and `2130706433`.
fn ends_in_a_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let hex_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    digits(last) || last.strip_prefix("0x").is_some_and(hex_digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn canonical(text: &str) -> String {
        HostName::parse(text).unwrap().to_string()
    }

    #[test]
    fn case_one_trailing_dot_and_unicode_do_not_make_another_host() {
        for text in
            ["bücher.test", "BÜCHER.test.", "xn--bcher-kva.test", "XN--bcher-KVA.Test", "bücher。test"]
        {
            assert_eq!(canonical(text), "xn--bcher-kva.test", "{text}");
        }
        assert_eq!(canonical("API.Example.COM."), "api.example.com");
        assert_eq!(canonical("_dmarc.a_b.-x-.example.com"), "_dmarc.a_b.-x-.example.com");
        assert_eq!(canonical("localhost"), "localhost");
    }

    #[test]
    fn a_homoglyph_is_another_host() {
        let cyrillic = canonical("аllowed.test");
        assert!(cyrillic.starts_with("xn--"));
        assert_ne!(cyrillic, "allowed.test");
    }

    #[test]
    fn what_is_not_a_host_name_is_refused_with_the_cause() {
        use HostNameError::*;
        let label = "a".repeat(64);
        let long = format!("{}.test", ["abcdefgh"; 28].join("."));
        let cases: &[(&str, HostNameError)] = &[
            ("", Empty),
            (".", EmptyLabel),
            ("a..test", EmptyLabel),
            (".allowed.test", EmptyLabel),
            ("allowed.test..", EmptyLabel),
            (&label, LabelTooLong),
            (&long, TooLong),
            ("allowed.test\0.evil.test", Character('\0')),
            ("user@allowed.test", Character('@')),
            ("allowed.test/x", Character('/')),
            ("allowed.test:443", Character(':')),
            ("allowed test", Character(' ')),
            (" allowed.test", Character(' ')),
            ("allowed.test\n", Character('\n')),
            ("*.allowed.test", Character('*')),
            ("a%2eb.test", Character('%')),
            ("a／b.test", Character('/')),
            ("1.2.3.4", IpLiteral),
            ("1.2.3.4.", IpLiteral),
            ("１２７.0.0.1", IpLiteral),
            ("127.1", IpLiteral),
            ("0x7f.1", IpLiteral),
            ("0x7F000001", IpLiteral),
            ("2130706433", IpLiteral),
            ("010.0.0.1", IpLiteral),
            ("a.0x", IpLiteral),
            ("::1", IpLiteral),
            ("[::1]", IpLiteral),
            ("xn--a", Idna),
        ];
        for (text, error) in cases {
            assert_eq!(HostName::parse(text).as_ref(), Err(error), "{text:?}");
        }
        assert_eq!(HostName::from_wire("bücher.test".as_bytes()), Err(NotAscii));
        assert_eq!(HostName::from_wire(b"\xff.test"), Err(NotAscii));
    }

    #[test]
    fn names_at_the_limits_are_accepted() {
        let name = [["a"; 63].join(""), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
        assert_eq!(name.len(), 253);
        assert_eq!(canonical(&format!("{name}.")), name);
        assert_eq!(HostName::parse(&format!("{name}d")), Err(HostNameError::TooLong));
    }

    #[test]
    fn json_carries_the_text_and_refuses_what_is_no_name() {
        let name: HostName = serde_json::from_str(r#""Allowed.TEST.""#).unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), r#""allowed.test""#);
        assert!(serde_json::from_str::<HostName>(r#""a..b""#).is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(text in "\\PC{0,80}") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert_eq!(HostName::parse(name.as_str()), Ok(name.clone()));
                prop_assert_eq!(HostName::from_wire(name.as_str().as_bytes()), Ok(name));
            }
        }

        #[test]
        fn a_canonical_name_has_only_canonical_characters(text in "[a-zA-Z0-9_.\u{e0}-\u{ff}-]{1,300}") {
            if let Ok(name) = HostName::parse(&text) {
                prop_assert!(name.as_str().len() <= 253);
                prop_assert!(name.as_str().bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')));
                prop_assert!(!name.as_str().ends_with('.'));
            }
        }
    }
}
