//! Which headers go into a sandbox and come out of one.
//!
//! Into it go those of the request that are for the service inside: none that are between this server and its client, none
//! that say who the client is to this server. Out of it come those of the answer, but none that would have an effect beyond
//! the address of the port: browsers and HTTP libraries take all sandboxes, and the API itself, for one site, and a web
//! server before this one takes what it gets for the words of a program that it trusts.

use std::num::NonZeroU16;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use url::{Host, Url};

/// What is between two neighbours only (RFC 9110, section 7.6.1), and what frames a message, which is framed anew.
const BETWEEN_NEIGHBOURS: [&str; 12] = [
    "connection",
    "content-length",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// What a client says to this server, or another proxy before it has said, and is nobody's business inside.
const FOR_THIS_SERVER: [&str; 6] = [
    // Of the site that all sandboxes and the API are to a browser; none of it has come from inside (see below).
    "cookie",
    "cookie2",
    "forwarded",
    "host",
    "x-api-key",
    "x-real-ip",
];

/// How the names of such headers begin: all of `X-Forwarded-*`, so that what is told inside is from this server alone.
const FAMILY_FOR_THIS_SERVER: &str = "x-forwarded-";

/// What an answer would do to the whole site, with the reason.
const FOR_THE_SITE: [(&str, &str); 13] = [
    ("alt-svc", "sends the client's next requests, with their keys, to another server"),
    ("clear-site-data", "clears what other sandboxes and the API keep in a browser"),
    ("nel", "has a browser report every request to the site"),
    ("origin-agent-cluster", "applies to the site"),
    ("public-key-pins", "applies to the site"),
    ("refresh", "leads a browser elsewhere; see Location"),
    ("report-to", "has a browser report to an address of the sandbox's choice"),
    ("reporting-endpoints", "the same"),
    ("service-worker-allowed", "lets a script of one sandbox answer for others"),
    ("set-cookie", "is sent to other sandboxes and to the API"),
    ("set-cookie2", "the same"),
    ("strict-transport-security", "makes the API unreachable where it speaks HTTP"),
    ("surrogate-control", "has a cache before this server run ESI, which fetches what the answer names"),
];

/// How the names of headers begin that are orders to a web server before this one, with who obeys: it would send a file of
/// its own or what another address answers, clear what it keeps, or take this server for one that is broken.
const FOR_A_SERVER_BEFORE: [(&str, &str); 6] = [
    ("x-accel-", "nginx: X-Accel-Redirect leads to internal locations"),
    ("x-envoy-", "Envoy: X-Envoy-Immediate-Health-Check-Fail sends it no more requests"),
    ("x-lighttpd-", "lighttpd: X-LIGHTTPD-send-file and -send-tempfile send, and the latter deletes, files"),
    ("x-litespeed-", "LiteSpeed: X-LiteSpeed-Location leads to files, X-LiteSpeed-Purge clears its cache"),
    ("x-reproxy-", "Perlbal and others: X-REPROXY-URL and -FILE fetch"),
    ("x-sendfile", "Apache, lighttpd and others: X-Sendfile and X-Sendfile2 send files"),
];

/// Where a redirection leads that is not to the port it comes from: not in `Location`, so that no client follows it with
/// the key that it sends to this server.
pub(super) const ELSEWHERE: HeaderName = HeaderName::from_static("x-sandbox-location");

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// The one order that passes: it is about this answer alone, and streams depend on it.
const UNBUFFERED: &str = "x-accel-buffering";

/// The address of a port, as clients and as programs inside see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address<'a> {
    /// The path that stands for the port, without a slash at its end.
    pub(super) prefix: &'a str,
    pub(super) port: NonZeroU16,
    /// What is asked of the program inside: path and query.
    pub(super) asked: &'a Uri,
}

/// The headers of a request as they go inside.
pub(super) fn inward(address: &Address<'_>, client: &HeaderMap, uri: &Uri) -> HeaderMap {
    let mut headers =
        passed(client, |name| FOR_THIS_SERVER.contains(&name) || name.starts_with(FAMILY_FOR_THIS_SERVER));
    let value = |text: &str| HeaderValue::try_from(text).ok();
    // Services refuse names that they do not know, and this is what they are called inside.
    if let Some(host) = value(&format!("localhost:{}", address.port)) {
        headers.insert(header::HOST, host);
    }
    if let Some(host) = outer_host(client, uri).and_then(value) {
        headers.insert(FORWARDED_HOST, host);
    }
    if let Some(prefix) = value(address.prefix) {
        headers.insert(FORWARDED_PREFIX, prefix);
    }
    headers
}

/// The headers of an answer as they go to the client.
pub(super) fn outward(
    address: &Address<'_>,
    method: &Method,
    outer_host: Option<&str>,
    status: StatusCode,
    inner: &HeaderMap,
) -> HeaderMap {
    let mut headers = passed(inner, |name| {
        FOR_THE_SITE.iter().any(|(for_the_site, _)| *for_the_site == name)
            || FOR_A_SERVER_BEFORE.iter().any(|(family, _)| name.starts_with(family) && name != UNBUFFERED)
            || name == ELSEWHERE.as_str()
    });
    if let Some(location) = headers.remove(header::LOCATION) {
        match within(address, outer_host, &location) {
            Some(within) => headers.insert(header::LOCATION, within),
            None => headers.insert(ELSEWHERE, location),
        };
    }
    // Where there is no body, this is all that tells how long it would be.
    let length = inner.get(header::CONTENT_LENGTH);
    if let Some(length) = length.filter(|length| is_bodiless(method, status) && is_length(length)) {
        headers.insert(header::CONTENT_LENGTH, length.clone());
    }
    headers
}

/// The headers of an answer that switches protocols.
pub(super) fn of_switch(inner: &HeaderMap) -> HeaderMap {
    let is_about_it = |name: &&HeaderName| name.as_str().starts_with("sec-websocket-");
    let names = inner.keys().filter(is_about_it);
    names
        .flat_map(|name| inner.get_all(name).iter().map(move |value| (name.clone(), value.clone())))
        .collect()
}

/// What the client calls this server.
pub(super) fn outer_host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| Some(uri.authority()?.as_str()))
}

/// Whether a list of tokens in headers, as in `Connection: keep-alive, Upgrade`, has this one.
pub(super) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn passed(headers: &HeaderMap, is_dropped: impl Fn(&str) -> bool) -> HeaderMap {
    let named: Vec<_> = tokens(headers, &header::CONNECTION).map(str::to_ascii_lowercase).collect();
    let passes = |name: &&HeaderName| {
        let name = name.as_str();
        !(BETWEEN_NEIGHBOURS.contains(&name) || is_dropped(name) || named.iter().any(|named| named == name))
    };
    let mut kept = HeaderMap::with_capacity(headers.len());
    for name in headers.keys().filter(passes) {
        for value in headers.get_all(name) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

fn is_bodiless(method: &Method, status: StatusCode) -> bool {
    *method == Method::HEAD || status == StatusCode::NOT_MODIFIED
}

fn is_length(value: &HeaderValue) -> bool {
    value
        .to_str()
        .is_ok_and(|text| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u64>().is_ok())
}

/// A redirection below the address of the port; `None` when it leads elsewhere.
fn within(address: &Address<'_>, outer_host: Option<&str>, location: &HeaderValue) -> Option<HeaderValue> {
    let base = Url::parse(&format!("http://localhost:{}{}", address.port, address.asked)).ok()?;
    // What the client would make of it, dots and backslashes resolved.
    let url = base.join(location.to_str().ok()?).ok()?;
    let is_inside = is_loopback(&url) && url.port_or_known_default() == Some(address.port.get());
    let is_outside = outer_host.is_some_and(|host| is_at(&url, host));
    if !matches!(url.scheme(), "http" | "https") || !(is_inside || is_outside) {
        return None;
    }
    let below =
        url.path().strip_prefix(address.prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let mut path = format!("{}{}", address.prefix, below.unwrap_or(url.path()));
    for (mark, part) in [('?', url.query()), ('#', url.fragment())] {
        if let Some(part) = part {
            path.push(mark);
            path.push_str(part);
        }
    }
    HeaderValue::try_from(path).ok()
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback() || address.is_unspecified(),
        Some(Host::Ipv6(address)) => address.is_loopback() || address.is_unspecified(),
        None => false,
    }
}

/// Whether a URL is at `host`, a name or address with or without a port.
fn is_at(url: &Url, host: &str) -> bool {
    let host = Url::parse(&format!("{}://{host}/", url.scheme()));
    host.is_ok_and(|host| {
        host.host() == url.host() && host.port_or_known_default() == url.port_or_known_default()
    })
}

#[cfg(test)]
mod tests;
