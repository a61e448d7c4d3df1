//! What requests and responses have in common: lines, headers, framing, the connection.

use crate::{Progress, Refusal};

/// Bounds of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// The most bytes, from the first line to the empty one.
    pub bytes: usize,
    /// The most headers; more than 100 are never read.
    pub headers: usize,
}

impl Default for HeadLimits {
    /// 64 KiB and 100 headers.
    fn default() -> Self {
        Self { bytes: 64 * 1024, headers: MAX_HEADERS }
    }
}

/// The room there is for parsed headers.
pub(super) const MAX_HEADERS: usize = 100;

/// A version of HTTP/1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

impl Version {
    /// The text in a first line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
        }
    }

    pub(super) fn from_minor(minor: u8) -> Self {
        if minor == 0 { Self::Http10 } else { Self::Http11 }
    }
}

/// A header line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The name as it was written.
    pub name: String,
    /// The value without the white space around it: visible ASCII, spaces, tabs, and bytes over 127.
    pub value: Vec<u8>,
}

impl Header {
    /// Whether this is the header `name`, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// Copies the headers that were parsed.
pub(super) fn owned(headers: &[httparse::Header<'_>]) -> Vec<Header> {
    let owned = |header: &httparse::Header<'_>| Header {
        name: header.name.to_owned(),
        value: header.value.trim_ascii().to_vec(),
    };
    headers.iter().map(owned).collect()
}

/// The elements of all headers `name`, which are lists separated by commas.
pub(super) fn elements<'a>(headers: &'a [Header], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |header| header.is(name))
        .flat_map(|header| header.value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Whether the connection is to stay open after the message (RFC 9112 section 9.3).
pub(super) fn keep_alive(version: Version, headers: &[Header]) -> bool {
    let has =
        |option: &[u8]| elements(headers, "connection").any(|element| element.eq_ignore_ascii_case(option));
    match version {
        Version::Http11 => !has(b"close"),
        Version::Http10 => has(b"keep-alive") && !has(b"close"),
    }
}

/// How a message says where its body ends, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// Reads the framing. Whatever two programs could read in two ways is refused.
pub(super) fn framing(version: Version, headers: &[Header]) -> Result<Option<Framing>, Refusal> {
    let mut lengths = headers.iter().filter(|header| header.is("content-length"));
    let mut codings = headers.iter().filter(|header| header.is("transfer-encoding"));
    match (lengths.next(), codings.next()) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(Refusal::http("both Content-Length and Transfer-Encoding")),
        (Some(length), None) => {
            if lengths.next().is_some() {
                return Err(Refusal::http("more than one Content-Length"));
            }
            parse_length(&length.value).map(|length| Some(Framing::Length(length)))
        }
        (None, Some(coding)) => {
            if codings.next().is_some() {
                return Err(Refusal::http("more than one Transfer-Encoding"));
            }
            if version == Version::Http10 {
                return Err(Refusal::http("Transfer-Encoding in HTTP/1.0"));
            }
            if !coding.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Refusal::http("a Transfer-Encoding other than chunked"));
            }
            Ok(Some(Framing::Chunked))
        }
    }
}

fn parse_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|_| digits).ok_or(Refusal::http("a Content-Length that is no number"))
}

/// Looks for the end of a head and for bytes that no head has.
#[derive(Debug)]
pub(super) struct LineScanner {
    limits: HeadLimits,
    /// How much of the buffer was looked at.
    scanned: usize,
    /// Complete lines so far.
    lines: usize,
    /// Where the current line begins.
    line_start: usize,
    /// The last byte was a CR.
    after_cr: bool,
    refused: Option<Refusal>,
}

impl LineScanner {
    pub(super) fn new(limits: HeadLimits) -> Self {
        Self { limits, scanned: 0, lines: 0, line_start: 0, after_cr: false, refused: None }
    }

    /// Looks at what the buffer has got since the last call. Done gives the length of the head.
    pub(super) fn scan(&mut self, buffer: &[u8]) -> Progress<usize> {
        if let Some(refusal) = self.refused {
            return Progress::Refused(refusal);
        }
        for byte in buffer.get(self.scanned..).unwrap_or_default() {
            match self.step(*byte) {
                Ok(false) => {}
                Ok(true) => return Progress::Done(self.scanned),
                Err(refusal) => {
                    self.refused = Some(refusal);
                    return Progress::Refused(refusal);
                }
            }
        }
        Progress::NeedMore
    }

    /// Takes one byte; true at the end of the head.
    fn step(&mut self, byte: u8) -> Result<bool, Refusal> {
        let at = self.scanned;
        self.scanned += 1;
        if self.scanned > self.limits.bytes {
            return Err(Refusal::http("the head is over the limit"));
        }
        if self.after_cr {
            self.after_cr = false;
            return if byte == b'\n' { self.end_line(at) } else { Err(Refusal::http("a CR without LF")) };
        }
        match byte {
            b'\r' => self.after_cr = true,
            b'\n' => return Err(Refusal::http("an LF without CR")),
            b' ' | b'\t' if at == self.line_start => {
                return Err(Refusal::http("a line that begins with white space"));
            }
            b'\t' => {}
            0..0x20 | 0x7f => return Err(Refusal::http("a control character")),
            _ => {}
        }
        Ok(false)
    }

    /// Ends the line whose LF is at `at`.
    fn end_line(&mut self, at: usize) -> Result<bool, Refusal> {
        let is_empty = at == self.line_start + 1;
        self.line_start = at + 1;
        if is_empty && self.lines == 0 {
            return Err(Refusal::http("an empty line before the first"));
        }
        // The first line is no header.
        if !is_empty && self.lines > self.limits.headers.min(MAX_HEADERS) {
            return Err(TOO_MANY_HEADERS);
        }
        self.lines += 1;
        Ok(is_empty)
    }
}

const TOO_MANY_HEADERS: Refusal = Refusal::http("there are too many headers");

/// What the parser of a complete head has against it.
pub(super) fn syntax(error: httparse::Error) -> Refusal {
    Refusal::http(match error {
        httparse::Error::HeaderName => "a header name that is none",
        httparse::Error::HeaderValue => "a header value that is none",
        httparse::Error::NewLine => "a line that does not end where it should",
        httparse::Error::Status => "a status that is none",
        httparse::Error::Token => "a first line that is none",
        httparse::Error::TooManyHeaders => TOO_MANY_HEADERS.detail,
        httparse::Error::Version => "another version than HTTP/1.0 or HTTP/1.1",
    })
}
