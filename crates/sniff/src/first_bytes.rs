//! What a client speaks, from the first bytes it sends.

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstBytes {
    /// They may become any of the others.
    NeedMore,
    /// A TLS (or SSL 3) handshake record: for [`crate::ClientHelloReader`].
    Tls,
    /// An HTTP/1 request, perhaps a malformed one: for [`crate::http::RequestReader`].
    Http1,
    /// The preface of HTTP/2 in clear (RFC 9113 section 3.4).
    Http2Preface,
    /// The hello of SSL 2.
    Ssl2,
    /// Something else.
    Unknown,
}

/// Says what the first bytes of a connection are. `first` is everything that has come so far.
///
/// In doubt it is HTTP rather than unknown: what it says of itself is then read strictly, and refused if it is not.
pub fn classify(first: &[u8]) -> FirstBytes {
    match first {
        [] => FirstBytes::NeedMore,
        [0x16, rest @ ..] => match rest.first() {
            None => FirstBytes::NeedMore,
            Some(3) => FirstBytes::Tls,
            Some(_) => FirstBytes::Unknown,
        },
        [length, ..] if length & 0x80 != 0 => classify_ssl2(first),
        [CHANGE_CIPHER_SPEC, ..] => classify_record(first, &[1], &[1]),
        [ALERT, ..] => classify_record(first, &[2], &[1, 2]),
        _ => classify_text(first),
    }
}

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How much of the preface is enough to know it: nothing but HTTP/2 says this.
const HTTP2_ENOUGH: &[u8] = b"PRI * HTTP/2";
/// The methods after which nobody needs to look at the rest of the line.
const METHODS: [&[u8]; 9] =
    [b"GET", b"POST", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"];
/// The longest method that is looked for, in bytes.
const MAX_METHOD: usize = 32;
/// How far the end of a line with another method is looked for, in bytes.
const MAX_LINE: usize = 8 * 1024;
const CLIENT_HELLO: u8 = 1;
const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;

/// A length with its high bit set, the message type, a version.
fn classify_ssl2(first: &[u8]) -> FirstBytes {
    match first {
        [_] | [_, _] | [_, _, CLIENT_HELLO] | [_, _, CLIENT_HELLO, 0 | 3] => FirstBytes::NeedMore,
        [_, _, CLIENT_HELLO, 0, 2, ..] | [_, _, CLIENT_HELLO, 3, 0..=4, ..] => FirstBytes::Ssl2,
        _ => FirstBytes::Unknown,
    }
}

/// A TLS record that no client begins with, but that some servers skip before a ClientHello: for the reader, which
/// refuses it. Told by its length and the first byte of its content, so that no other protocol is taken for it.
fn classify_record(first: &[u8], length: &[u8; 1], content: &[u8]) -> FirstBytes {
    let expected: [&[u8]; 6] = [&[CHANGE_CIPHER_SPEC, ALERT], &[3], &[0, 1, 2, 3, 4], &[0], length, content];
    match first.iter().zip(expected).all(|(byte, expected)| expected.contains(byte)) {
        true if first.len() >= expected.len() => FirstBytes::Tls,
        true => FirstBytes::NeedMore,
        false => FirstBytes::Unknown,
    }
}

fn classify_text(first: &[u8]) -> FirstBytes {
    // Servers skip empty lines before a request (RFC 9112 section 2.2), and some of them blanks.
    let is_skipped = |byte: u8| matches!(byte, b'\r' | b'\n') || is_blank(byte);
    let start = first.iter().take(MAX_LINE).position(|byte| !is_skipped(*byte));
    let Some(text) = start.and_then(|start| first.get(start..)) else {
        return if first.len() < MAX_LINE { FirstBytes::NeedMore } else { FirstBytes::Http1 };
    };
    if text.starts_with(HTTP2_ENOUGH) {
        return FirstBytes::Http2Preface;
    }
    if HTTP2_PREFACE.starts_with(text) {
        return FirstBytes::NeedMore;
    }
    let end = text.iter().take(MAX_METHOD + 1).position(|byte| !is_token_character(*byte));
    let Some((method, after)) = end.and_then(|end| text.split_at_checked(end)) else {
        return if text.len() > MAX_METHOD { FirstBytes::Unknown } else { FirstBytes::NeedMore };
    };
    if method.is_empty() || !after.first().is_some_and(|byte| is_blank(*byte)) {
        return FirstBytes::Unknown;
    }
    if METHODS.contains(&method) {
        return FirstBytes::Http1;
    }
    classify_line(text)
}

/// A line that begins like a request with a method of its own: it is one if it names HTTP at its end. One with a NUL is
/// none to any server (RFC 9110 section 5.5); Git's own protocol begins with one.
fn classify_line(text: &[u8]) -> FirstBytes {
    let head = text.get(..MAX_LINE).unwrap_or(text);
    match head.iter().position(|byte| matches!(byte, b'\n' | 0)) {
        Some(end) if head.get(end) == Some(&0) => FirstBytes::Unknown,
        Some(end) => {
            let line = head.get(..end).unwrap_or(head);
            let names_http = line.windows(6).any(|window| {
                window
                    .split_first()
                    .is_some_and(|(blank, word)| is_blank(*blank) && word.eq_ignore_ascii_case(b"HTTP/"))
            });
            if names_http { FirstBytes::Http1 } else { FirstBytes::Unknown }
        }
        None if text.len() > MAX_LINE => FirstBytes::Http1,
        None => FirstBytes::NeedMore,
    }
}

/// What lenient servers take for the blank between the words of a request line (RFC 9112 section 3).
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c)
}

/// RFC 9110 section 5.6.2.
pub(crate) fn is_token_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn protocols_are_told_apart() {
        use FirstBytes::*;
        let long_line = [b"FOO /".as_slice(), &[b'a'; 9000]].concat();
        let cases: &[(&[u8], FirstBytes)] = &[
            (&[0x16, 3], Tls),
            (&[0x16, 3, 1, 2, 0], Tls),
            (&[0x16, 2], Unknown),
            (&[0x17, 3, 3], Unknown),
            (&[0x80, 0x2e, 1, 0, 2], Ssl2),
            (&[0x80, 0x2e, 1, 3, 3], Ssl2),
            (&[0x80, 0x2e, 2], Unknown),
            (b"GET /", Http1),
            (b"GET ", Http1),
            (b"CONNECT evil.test:443 HTTP/1.1", Http1),
            (b"\r\n\r\nGET / HTTP/1.1", Http1),
            (b"PROPFIND / HTTP/1.1\r\n", Http1),
            (b"get / http/1.1\r\n", Http1),
            (b"PRI * HTTP/1.1\r\n", Http1),
            (&long_line, Http1),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2Preface),
            (b"SSH-2.0-OpenSSH_9.6\r\n", Unknown),
            (b"EHLO client.test\r\n", Unknown),
            (b"PING\r\n", Unknown),
            (b"*1\r\n$4\r\nPING\r\n", Unknown),
            (b"SET key value\r\n", Unknown),
            (b"0032git-upload-pack /project.git\0host=git.test\0", Unknown),
            (b"GET /\0 HTTP/1.1\r\n", Http1),
            (&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f], Unknown),
            (&[5, 1, 0], Unknown),
            (b" GET / HTTP/1.1\r\n", Http1),
            (b"GET\t/ HTTP/1.1\r\n", Http1),
            (b"\t frob /\x0bhttp/1.1\r\n", Http1),
            (b" SET key value\r\n", Unknown),
            (b" \t", NeedMore),
            (&[20], NeedMore),
            (&[20, 3, 1, 0, 1, 1], Tls),
            (&[21, 3, 0, 0, 2, 1], Tls),
            (&[21, 3, 3, 0, 2], NeedMore),
            (&[20, 3, 0, 0, 7, 0], Unknown),
            (&[21, 3, 3, 0, 2, 90], Unknown),
        ];
        for (bytes, expected) in cases {
            assert_eq!(classify(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn beginnings_need_more() {
        let whole: [&[u8]; 6] = [
            &[0x16, 3],
            &[0x80, 0x2e, 1, 3, 3],
            b"GET ",
            b"PRI * HTTP/2",
            b"PROPFIND / HTTP/1.1\r\n",
            b"\r\nGET ",
        ];
        for bytes in whole {
            for end in 0..bytes.len() {
                assert_eq!(classify(&bytes[..end]), FirstBytes::NeedMore, "{:?}", &bytes[..end]);
            }
        }
    }

    #[test]
    fn waiting_is_bounded() {
        assert_eq!(classify(&[b'a'; 33]), FirstBytes::Unknown);
        assert_eq!(classify(&[b'\n'; 8192]), FirstBytes::Http1);
    }

    proptest! {
        #[test]
        fn an_answer_stays_the_same_when_more_comes(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut answer = FirstBytes::NeedMore;
            for end in 0..=bytes.len() {
                let next = classify(&bytes[..end]);
                prop_assert!(answer == FirstBytes::NeedMore || answer == next);
                answer = next;
            }
        }

        #[test]
        fn an_answer_about_text_stays_the_same_when_more_comes(text in "(PRI|GET|FOO|\r\n| |\0|/|\\*|HTTP/[12].[01]|x){0,12}") {
            let mut answer = FirstBytes::NeedMore;
            for end in 0..=text.len() {
                let next = classify(&text.as_bytes()[..end]);
                prop_assert!(answer == FirstBytes::NeedMore || answer == next);
                answer = next;
            }
        }
    }
}
