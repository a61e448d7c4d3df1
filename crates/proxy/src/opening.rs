//! The first bytes of a connection: enough of them to know what it is and whom it names.

use std::{future::poll_fn, io, pin::Pin, task::ready};

use policy::Reason;
use sniff::{ClientHelloLimits, ClientHelloReader, FirstBytes, Progress, RefusalKind, classify};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, timeout_at},
};

use crate::{buffer, refusal::Language};

/// What a connection begins with. The bytes themselves are in the caller's buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    /// The client sent nothing in time.
    Silent,
    /// The client ended its stream before it was known what it is.
    Closed,
    /// A whole ClientHello.
    Tls(Hello),
    /// The beginning of an HTTP/1 request.
    Http,
    /// Neither.
    Unknown,
    /// Something that is never permitted, and how to tell the client.
    Refused(Reason, Language),
}

/// What a ClientHello says that decides where it may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// The server name as its bytes are.
    pub(crate) server_name: Option<Vec<u8>>,
    pub(crate) has_ech: bool,
}

/// Reads on from `bytes` until it is known what the connection is: `patience` is when a client that has sent nothing is
/// found silent, `deadline` when one that has begun must have come far enough.
pub(crate) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    limit: usize,
    patience: Instant,
    deadline: Instant,
) -> Opening {
    if bytes.is_empty() {
        match timeout_at(patience, read_some(stream, bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(_) => return Opening::Closed,
            Err(_) => return Opening::Silent,
        }
    }
    finish(stream, bytes, limit, deadline).await
}

/// Appends what the stream has to `bytes`: how much that was, 0 at its end.
pub(crate) async fn read_some(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
) -> io::Result<usize> {
    poll_fn(|cx| {
        buffer::with(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            bytes.extend_from_slice(buffer.filled());
            Ok(buffer.filled().len()).into()
        })
    })
    .await
}

/// As [`read`], after the first bytes have come.
pub(crate) async fn finish(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
    limit: usize,
    deadline: Instant,
) -> Opening {
    let mut tls = None;
    let mut seen = 0;
    loop {
        let step = match &mut tls {
            None => begin(bytes, limit, &mut tls),
            Some(reader) => {
                let progress = reader.feed(bytes.get(seen..).unwrap_or_default());
                hello(progress)
            }
        };
        seen = bytes.len();
        if let Some(opening) = step {
            return opening;
        }
        if bytes.len() >= limit {
            return too_large(tls.is_some());
        }
        match timeout_at(deadline, read_some(stream, bytes)).await {
            Ok(Ok(1..)) => {}
            Ok(_) if tls.is_none() => return Opening::Unknown,
            Ok(_) => return Opening::Closed,
            Err(_) => return Opening::Refused(Reason::PeekTimeout, language(tls.is_some())),
        }
    }
}

/// Classifies; for TLS, `tls` becomes the reader that has seen all bytes so far.
fn begin(bytes: &[u8], limit: usize, tls: &mut Option<ClientHelloReader>) -> Option<Opening> {
    match classify(bytes) {
        FirstBytes::NeedMore => None,
        FirstBytes::Http1 => Some(Opening::Http),
        FirstBytes::Http2Preface => Some(Opening::Refused(Reason::HttpH2c, Language::Http)),
        FirstBytes::Ssl2 => Some(Opening::Refused(Reason::TlsVersion, Language::Tls)),
        FirstBytes::Unknown => Some(Opening::Unknown),
        FirstBytes::Tls => {
            let limits = ClientHelloLimits { bytes: limit, ..ClientHelloLimits::default() };
            let reader = tls.insert(ClientHelloReader::new(limits));
            hello(reader.feed(bytes))
        }
    }
}

fn hello(progress: Progress<sniff::ClientHello>) -> Option<Opening> {
    match progress {
        Progress::NeedMore => None,
        Progress::Done(hello) => {
            Some(Opening::Tls(Hello { server_name: hello.server_name, has_ech: hello.has_ech }))
        }
        Progress::Refused(refusal) => Some(Opening::Refused(reason(refusal.kind), Language::Tls)),
    }
}

fn too_large(is_tls: bool) -> Opening {
    let reason = if is_tls { Reason::MalformedTls } else { Reason::UnknownProtocol };
    Opening::Refused(reason, language(is_tls))
}

fn language(is_tls: bool) -> Language {
    if is_tls { Language::Tls } else { Language::Reset }
}

/// The word of the policy for a reader's refusal.
pub(crate) fn reason(kind: RefusalKind) -> Reason {
    match kind {
        RefusalKind::MultipleSni => Reason::MultipleSni,
        RefusalKind::InvalidSni => Reason::InvalidSni,
        RefusalKind::TlsVersion => Reason::TlsVersion,
        RefusalKind::MalformedTls => Reason::MalformedTls,
        RefusalKind::MalformedHttp => Reason::MalformedHttp,
        RefusalKind::InvalidHost => Reason::InvalidHost,
        RefusalKind::HttpAbsoluteForm => Reason::HttpAbsoluteForm,
        RefusalKind::HttpConnect => Reason::HttpConnect,
        RefusalKind::HttpH2c => Reason::HttpH2c,
    }
}
