//! The head of a request.

use super::head::{
    Framing, HeadLimits, Header, LineScanner, MAX_HEADERS, Version, elements, framing, keep_alive, owned,
    syntax,
};
use crate::{Progress, Refusal, RefusalKind};

/// The head of a request that may be judged and forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// How many bytes of the buffer it is; the body begins there.
    pub consumed: usize,
    /// The method, in the client's case (methods are case-sensitive).
    pub method: String,
    /// What is asked for.
    pub target: Target,
    /// The version.
    pub version: Version,
    /// The host of the `Host` header: a name, an IPv4 address or an IPv6 address in brackets; not yet known to be
    /// a valid one.
    pub host: String,
    /// The port of the `Host` header.
    pub port: Option<u16>,
    /// Every header, `Host` included, in the client's order.
    pub headers: Vec<Header>,
    /// How the body is framed.
    pub body: Body,
    /// Another protocol the client offers to go on with.
    pub upgrade: Option<Upgrade>,
    /// Whether the client wants the connection to stay open.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A path with or without a query: it begins with a slash.
    Origin(String),
    /// The server as a whole: `OPTIONS *`.
    Asterisk,
}

/// How the body of a request is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// So many bytes.
    Length(u64),
    /// In chunks, each with its length.
    Chunked,
}

/// A protocol to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upgrade {
    /// WebSocket (RFC 6455).
    WebSocket,
    /// Anything else but HTTP/2, which is refused.
    Other,
}

/// Reads the head of a request from a growing buffer.
#[derive(Debug)]
pub struct RequestReader {
    scanner: LineScanner,
    headers: usize,
}

impl RequestReader {
    /// A reader for one head.
    pub fn new(limits: HeadLimits) -> Self {
        Self { scanner: LineScanner::new(limits), headers: limits.headers.min(MAX_HEADERS) }
    }

    /// Looks at `buffer`: everything from the first byte of the head on, and at least as long as the last time.
    ///
    /// Refused are, besides what is malformed or ambiguous: absolute-form targets, CONNECT, HTTP/2 in clear (by
    /// upgrade or by preface), and anything but exactly one `Host` that has the form of one.
    pub fn read(&mut self, buffer: &[u8]) -> Progress<RequestHead> {
        if buffer.starts_with(H2_PREFACE) {
            return Progress::Refused(H2C_PREFACE);
        }
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

impl RequestHead {
    /// Writes the head for the server: a new one with the same meaning, none of the client's bytes as they were.
    ///
    /// `host` replaces the value of `Host`. Headers that are about the client's connection only, among them those
    /// that `Connection` names (RFC 9110 section 7.6.1), are left out; `keep_upgrade` keeps the offer of another
    /// protocol.
    pub fn write(&self, host: Option<&str>, keep_upgrade: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.consumed + 64);
        let target = match &self.target {
            Target::Origin(target) => target,
            Target::Asterisk => "*",
        };
        let first = [&self.method, " ", target, " ", self.version.as_str(), "\r\n"];
        first.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        match host {
            Some(host) => line(&mut out, "Host", host.as_bytes()),
            None => line(&mut out, "Host", self.authority().as_bytes()),
        }
        let nominated: Vec<&[u8]> = elements(&self.headers, "connection").collect();
        for header in &self.headers {
            let is_nominated = nominated.iter().any(|name| header.name.as_bytes().eq_ignore_ascii_case(name));
            if !is_nominated && !OWN_HEADERS.iter().any(|name| header.is(name)) {
                line(&mut out, &header.name, &header.value);
            }
        }
        match self.body {
            Body::None => {}
            Body::Length(length) => line(&mut out, "Content-Length", length.to_string().as_bytes()),
            Body::Chunked => line(&mut out, "Transfer-Encoding", b"chunked"),
        }
        self.write_connection(&mut out, keep_upgrade);
        out.extend_from_slice(b"\r\n");
        out
    }

    /// The value of `Host`: host and port.
    pub fn authority(&self) -> String {
        match self.port {
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    fn write_connection(&self, out: &mut Vec<u8>, keep_upgrade: bool) {
        let protocols: Vec<&[u8]> = elements(&self.headers, "upgrade").collect();
        if keep_upgrade && self.upgrade.is_some() {
            line(out, "Connection", b"Upgrade");
            line(out, "Upgrade", &protocols.join(&b", "[..]));
        } else if !self.keep_alive {
            line(out, "Connection", b"close");
        } else if self.version == Version::Http10 {
            line(out, "Connection", b"keep-alive");
        }
    }
}

/// Headers that the writer writes itself, or that are about one connection only.
const OWN_HEADERS: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "upgrade",
    "te",
    "trailer",
];
/// How an HTTP/2 client begins; a head cannot (its version is another).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
const H2C_PREFACE: Refusal = Refusal { kind: RefusalKind::HttpH2c, detail: "the preface of HTTP/2 in clear" };
const H2C_UPGRADE: Refusal = Refusal { kind: RefusalKind::HttpH2c, detail: "an upgrade to HTTP/2 in clear" };
/// The longest method, in bytes.
const MAX_METHOD: usize = 32;

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// Parses a head that [`LineScanner`] has found complete.
fn parse(head: &[u8], max_headers: usize) -> Result<RequestHead, Refusal> {
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let room = room.get_mut(..max_headers).unwrap_or_default();
    let mut request = httparse::Request::new(room);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Ok(_) => return Err(Refusal::http("a head that ends elsewhere than at its empty line")),
        Err(error) => return Err(syntax(error)),
    }
    let (Some(method), Some(path), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(Refusal::http("a first line that is none"));
    };
    let version = Version::from_minor(minor);
    let headers = owned(request.headers);
    let target = parse_target(method, path)?;
    let (host, port) = parse_host(&headers)?;
    let expect_continue =
        elements(&headers, "expect").any(|value| value.eq_ignore_ascii_case(b"100-continue"));
    let body = match framing(version, &headers)? {
        None => Body::None,
        Some(Framing::Length(length)) => Body::Length(length),
        Some(Framing::Chunked) => Body::Chunked,
    };
    Ok(RequestHead {
        consumed: head.len(),
        method: method.to_owned(),
        target,
        version,
        host,
        port,
        body,
        upgrade: parse_upgrade(method, version, &headers)?,
        keep_alive: keep_alive(version, &headers),
        expect_continue,
        headers,
    })
}

fn parse_target(method: &str, path: &str) -> Result<Target, Refusal> {
    if method.eq_ignore_ascii_case("CONNECT") {
        return Err(Refusal { kind: RefusalKind::HttpConnect, detail: "a CONNECT request" });
    }
    if method.len() > MAX_METHOD {
        return Err(Refusal::http("a method over 32 bytes"));
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) || path.contains('#') {
        return Err(Refusal::http("a request target with a fragment or a character that none has"));
    }
    if path.starts_with('/') {
        return Ok(Target::Origin(path.to_owned()));
    }
    if path == "*" && method == "OPTIONS" {
        return Ok(Target::Asterisk);
    }
    if path.contains("://") {
        let kind = RefusalKind::HttpAbsoluteForm;
        return Err(Refusal { kind, detail: "a request target in absolute form" });
    }
    Err(Refusal::http("a request target that is no path"))
}

/// The one `Host` (RFC 9112 section 3.2), also in HTTP/1.0, where it is not required but nothing else says who is
/// meant.
fn parse_host(headers: &[Header]) -> Result<(String, Option<u16>), Refusal> {
    let mut hosts = headers.iter().filter(|header| header.is("host"));
    let value = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.value.as_slice(),
        (None, _) => return Err(Refusal::host("there is no Host")),
        (Some(_), Some(_)) => return Err(Refusal::host("there is more than one Host")),
    };
    let text = std::str::from_utf8(value).map_err(|_| BAD_HOST)?;
    let (host, port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (address, after) = inner.split_once(']').ok_or(BAD_HOST)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BAD_HOST)?;
            let host = text.get(..address.len() + 2).ok_or(BAD_HOST)?;
            let port = if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or(BAD_HOST)?) };
            (host, port)
        }
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            if host.is_empty() || !host.bytes().all(is_name) {
                return Err(BAD_HOST);
            }
            (host, port)
        }
    };
    let parse_port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port > 0).ok_or(BAD_HOST)
    };
    Ok((host.to_owned(), port.map(parse_port).transpose()?))
}

const BAD_HOST: Refusal =
    Refusal::host("a Host that is neither a name nor an address, with or without a port");

fn parse_upgrade(method: &str, version: Version, headers: &[Header]) -> Result<Option<Upgrade>, Refusal> {
    let is_h2c = |protocol: &[u8]| {
        let name = protocol.split(|byte| *byte == b'/').next().unwrap_or_default();
        [b"h2c".as_slice(), b"h2", b"http2"].iter().any(|h2| name.eq_ignore_ascii_case(h2))
            || protocol.to_ascii_lowercase().starts_with(b"http/2")
    };
    let protocols: Vec<&[u8]> = elements(headers, "upgrade").collect();
    if protocols.iter().any(|protocol| is_h2c(protocol))
        || headers.iter().any(|header| header.is("http2-settings"))
    {
        return Err(H2C_UPGRADE);
    }
    // Without the connection option, and in HTTP/1.0, the header means nothing (RFC 9110 section 7.8).
    let offered = elements(headers, "connection").any(|option| option.eq_ignore_ascii_case(b"upgrade"));
    if protocols.is_empty() || !offered || version == Version::Http10 {
        return Ok(None);
    }
    let is_web_socket = |protocol: &&[u8]| protocol.eq_ignore_ascii_case(b"websocket");
    let web_socket = method == "GET" && protocols.len() == 1 && protocols.iter().all(is_web_socket);
    Ok(Some(if web_socket { Upgrade::WebSocket } else { Upgrade::Other }))
}

#[cfg(test)]
mod tests;
