//! What a reader says of the bytes it has seen.

use std::fmt;

/// The state of a reader after some bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<T> {
    /// The bytes so far are the beginning of something.
    NeedMore,
    /// It is complete.
    Done(T),
    /// It is not acceptable, whatever follows. The reader stays refused.
    Refused(Refusal),
}

/// Why bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {detail}")]
pub struct Refusal {
    /// The stable word.
    pub kind: RefusalKind,
    /// What exactly, for people.
    pub detail: &'static str,
}

impl Refusal {
    pub(crate) const fn tls(detail: &'static str) -> Self {
        Self { kind: RefusalKind::MalformedTls, detail }
    }

    pub(crate) const fn http(detail: &'static str) -> Self {
        Self { kind: RefusalKind::MalformedHttp, detail }
    }

    pub(crate) const fn host(detail: &'static str) -> Self {
        Self { kind: RefusalKind::InvalidHost, detail }
    }
}

/// The kinds of refusals. Each has the name of the verdict's reason in the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// A ClientHello with more than one server name.
    MultipleSni,
    /// A server name that cannot be one (empty).
    InvalidSni,
    /// SSL 2 or SSL 3.
    TlsVersion,
    /// A ClientHello that cannot be parsed, or is over the bounds.
    MalformedTls,
    /// An HTTP message that cannot be parsed, is ambiguous or is over the bounds.
    MalformedHttp,
    /// An HTTP request without exactly one valid `Host`.
    InvalidHost,
    /// An absolute-form request target.
    HttpAbsoluteForm,
    /// A CONNECT request.
    HttpConnect,
    /// An upgrade to HTTP/2 in clear, or its preface.
    HttpH2c,
}

impl RefusalKind {
    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MultipleSni => "multiple_sni",
            Self::InvalidSni => "invalid_sni",
            Self::TlsVersion => "tls_version",
            Self::MalformedTls => "malformed_tls",
            Self::MalformedHttp => "malformed_http",
            Self::InvalidHost => "invalid_host",
            Self::HttpAbsoluteForm => "http_absolute_form",
            Self::HttpConnect => "http_connect",
            Self::HttpH2c => "http_h2c",
        }
    }
}

impl fmt::Display for RefusalKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
