//! The head of a response.

use super::head::{
    Framing, HeadLimits, Header, LineScanner, MAX_HEADERS, Version, framing, keep_alive, owned, syntax,
};
use crate::{Progress, Refusal};

/// The head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// How many bytes of the buffer it is; the body begins there.
    pub consumed: usize,
    /// The version.
    pub version: Version,
    /// The status code, from 100 to 999.
    pub status: u16,
    /// Every header, in the server's order.
    pub headers: Vec<Header>,
    /// Whether the server wants the connection to stay open.
    pub keep_alive: bool,
}

/// How the body of a response is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// There is none; after a status below 200 another head follows.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks, each with its length.
    Chunked,
    /// Until the server closes.
    UntilClose,
    /// What follows is another protocol.
    Switched,
}

/// Reads the head of a response from a growing buffer.
#[derive(Debug)]
pub struct ResponseReader {
    scanner: LineScanner,
    headers: usize,
}

impl ResponseReader {
    /// A reader for one head.
    pub fn new(limits: HeadLimits) -> Self {
        Self { scanner: LineScanner::new(limits), headers: limits.headers.min(MAX_HEADERS) }
    }

    /// Looks at `buffer`: everything from the first byte of the head on, and at least as long as the last time.
    pub fn read(&mut self, buffer: &[u8]) -> Progress<ResponseHead> {
        let length = match self.scanner.scan(buffer) {
            Progress::Done(length) => length,
            Progress::NeedMore => return Progress::NeedMore,
            Progress::Refused(refusal) => return Progress::Refused(refusal),
        };
        let head = buffer.get(..length).unwrap_or(buffer);
        match parse(head, self.headers) {
            Ok(head) => Progress::Done(head),
            Err(refusal) => Progress::Refused(refusal),
        }
    }
}

impl ResponseHead {
    /// How the body is framed, as the answer to a request with this method (RFC 9112 section 6.3).
    ///
    /// # Errors
    /// When the framing can be read in two ways.
    pub fn body(&self, request_method: &str) -> Result<ResponseBody, Refusal> {
        // A client that sees no body and a relay that sees one would disagree, so this is read in every case.
        let framing = framing(self.version, &self.headers)?;
        Ok(match self.status {
            101 => ResponseBody::Switched,
            ..200 | 204 | 304 => ResponseBody::None,
            _ if request_method == "HEAD" => ResponseBody::None,
            _ => match framing {
                Some(Framing::Length(length)) => ResponseBody::Length(length),
                Some(Framing::Chunked) => ResponseBody::Chunked,
                None => ResponseBody::UntilClose,
            },
        })
    }
}

fn parse(head: &[u8], max_headers: usize) -> Result<ResponseHead, Refusal> {
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let room = room.get_mut(..max_headers).unwrap_or_default();
    let mut response = httparse::Response::new(room);
    match response.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Refusal::http("a head that ends elsewhere than at its empty line")),
        Err(error) => return Err(syntax(error)),
    }
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err(Refusal::http("a first line that is none"));
    };
    if status < 100 {
        return Err(Refusal::http("a status that is none"));
    }
    let version = Version::from_minor(minor);
    let headers = owned(response.headers);
    let keep_alive = keep_alive(version, &headers);
    Ok(ResponseHead { consumed: head.len(), version, status, headers, keep_alive })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Progress<ResponseHead> {
        ResponseReader::new(HeadLimits::default()).read(bytes)
    }

    #[track_caller]
    fn body(head: &str, method: &str) -> Result<ResponseBody, Refusal> {
        match read(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()) {
            Progress::Done(head) => head.body(method),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_response_says_its_status_and_where_its_body_begins() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        let Progress::Done(head) = read(bytes) else { panic!() };
        assert_eq!((head.status, head.consumed, head.keep_alive), (200, bytes.len() - 2, true));
        let Progress::Done(head) = read(b"HTTP/1.0 101\r\n\r\n") else { panic!() };
        assert_eq!((head.status, head.keep_alive), (101, false));
    }

    #[test]
    fn the_body_of_a_response_depends_on_status_and_method() {
        assert_eq!(body("200 OK\r\nContent-Length: 5", "GET"), Ok(ResponseBody::Length(5)));
        assert_eq!(body("200 OK\r\nContent-Length: 5", "HEAD"), Ok(ResponseBody::None));
        assert_eq!(body("200 OK\r\nTransfer-Encoding: Chunked", "GET"), Ok(ResponseBody::Chunked));
        assert_eq!(body("200 OK", "GET"), Ok(ResponseBody::UntilClose));
        assert_eq!(body("204 No Content", "GET"), Ok(ResponseBody::None));
        assert_eq!(body("304 Not Modified\r\nContent-Length: 5", "GET"), Ok(ResponseBody::None));
        assert_eq!(body("100 Continue", "POST"), Ok(ResponseBody::None));
        assert_eq!(body("101 Switching Protocols\r\nUpgrade: websocket", "GET"), Ok(ResponseBody::Switched));
    }

    #[test]
    fn ambiguous_framing_of_a_response_is_refused() {
        for headers in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Transfer-Encoding: gzip, chunked",
        ] {
            assert!(body(&format!("200 OK\r\n{headers}"), "GET").is_err(), "{headers}");
        }
    }

    #[test]
    fn what_is_no_response_is_refused() {
        for bytes in [
            &b"HTTP/2 200 OK\r\n\r\n"[..],
            b"HTTP/1.1 20 OK\r\n\r\n",
            b"HTTP/1.1 099 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\n\n",
            b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
            b"SSH-2.0-OpenSSH\r\n\r\n",
        ] {
            assert!(matches!(read(bytes), Progress::Refused(_)), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(read(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Progress::NeedMore);
    }
}
