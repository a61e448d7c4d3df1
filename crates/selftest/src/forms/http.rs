//! Requests of HTTP/1.

/// A request with this `Host`, if any, and more header lines, each with its line end.
pub(crate) fn request(host: Option<&str>, target: &str, more: &str) -> Vec<u8> {
    let host = host.map(|host| format!("Host: {host}\r\n")).unwrap_or_default();
    format!("GET {target} HTTP/1.1\r\n{host}{more}Connection: close\r\n\r\n").into_bytes()
}

/// A request for `/CANARY` at a host, after which the connection goes on.
pub(crate) fn first(host: &str, canary: &str) -> String {
    format!("GET /{canary} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}
