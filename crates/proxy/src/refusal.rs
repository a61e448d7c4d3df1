//! Refusals that the client can read.

use serde_json::json;

use crate::{decision::Refusal, socket::Socket};

/// A fatal `access_denied` alert in a record of its own (RFC 8446 section 6; the record version is the one that
/// every client accepts before versions are agreed on).
const ACCESS_DENIED: [u8; 7] = [21, 3, 1, 0, 2, 2, 49];

/// The language in which a refusal is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    /// A TLS alert.
    Tls,
    /// An HTTP response.
    Http,
    /// A reset: the client speaks neither.
    Reset,
}

/// Tells the client and closes its connection.
pub(crate) async fn tell(client: Socket, language: Language, refusal: &Refusal) {
    match language {
        Language::Tls => client.finish_with(&ACCESS_DENIED).await,
        Language::Http => client.finish_with(&forbidden(refusal)).await,
        Language::Reset => drop(client),
    }
}

/// The 403 response that says who refused, why and by which rule.
pub(crate) fn forbidden(refusal: &Refusal) -> Vec<u8> {
    let body = json!({
        "error": "egress_blocked",
        "reason": refusal.verdict.reason.as_str(),
        "rule": refusal.verdict.rule.to_string(),
        "host": refusal.name.as_ref().map(|name| name.as_str()),
    })
    .to_string();
    format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
