//! The servers of the small internet: whatever is connected to answers in the protocol that is spoken to it.

use std::{convert::Infallible, io, net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use crate::log::Log;

/// How long a client may keep silent before a server of its port's kind speaks first, or gives up.
const SILENCE: Duration = Duration::from_secs(20);
/// How much of what a client says is logged, a connection.
const LOGGED: usize = 64 * 1024;
/// Largest answer of `/bytes/N`. Beside that path, `?redirect=URL` answers with 302 and this `Location`.
const MAX_BYTES: usize = 64 << 20;

/// One accepted connection of the world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Visit {
    /// The address the client meant, whoever it is.
    pub(crate) destination: SocketAddr,
    /// The client.
    pub(crate) source: SocketAddr,
}

/// Serves one connection: TLS, HTTP/1, or raw bytes that are echoed. Everything said is logged.
pub(crate) async fn serve(
    stream: TcpStream,
    visit: Visit,
    tls: tls::LeafAcceptor,
    log: Log,
) -> io::Result<()> {
    let mut stream = stream;
    if let Some(banner) = banner(visit.destination.port()) {
        stream.write_all(banner).await?;
        return echo(stream, visit, &log).await;
    }
    let mut first = [0; 8];
    let length = tokio::time::timeout(SILENCE, stream.peek(&mut first)).await??;
    match first.get(..length).unwrap_or_default() {
        [] => Ok(()),
        [0x16, ..] => {
            let (stream, name) = tls.accept(stream).await?;
            log.line(&entry(visit, "tls", serde_json::json!({ "sni": name })));
            http(stream, visit, name, log).await
        }
        [b'A'..=b'Z', ..] => http(stream, visit, None, log).await,
        _ => echo(stream, visit, &log).await,
    }
}

/// What a server of a well-known port says before its client does.
fn banner(port: u16) -> Option<&'static [u8]> {
    match port {
        22 => Some(b"SSH-2.0-lab\r\n"),
        25 | 587 => Some(b"220 lab ESMTP\r\n"),
        _ => None,
    }
}

async fn echo(mut stream: TcpStream, visit: Visit, log: &Log) -> io::Result<()> {
    let mut logged = 0;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        let data = buffer.get(..length).unwrap_or_default();
        if data.is_empty() {
            return stream.shutdown().await;
        }
        if logged < LOGGED {
            log.line(&entry(visit, "data", serde_json::json!({ "data": String::from_utf8_lossy(data) })));
            logged += data.len();
        }
        stream.write_all(data).await?;
    }
}

async fn http<S>(stream: S, visit: Visit, sni: Option<String>, log: Log) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let (sni, log) = (sni.clone(), log.clone());
        async move { Ok::<_, Infallible>(respond(request, visit, sni, &log).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

async fn respond(
    request: Request<Incoming>,
    visit: Visit,
    sni: Option<String>,
    log: &Log,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let headers: serde_json::Map<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let body = match Limited::new(body, MAX_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    };
    let said = body.get(..body.len().min(LOGGED)).unwrap_or_default();
    log.line(&entry(
        visit,
        "http",
        serde_json::json!({
            "method": head.method.as_str(), "target": head.uri.to_string(), "headers": headers, "sni": sni,
            "body": String::from_utf8_lossy(said), "body_length": body.len(),
        }),
    ));
    let host = headers.get("host").cloned().unwrap_or_default();
    if let Some(count) = head.uri.path().strip_prefix("/bytes/").and_then(|count| count.parse::<usize>().ok())
    {
        return Response::new(Full::new(Bytes::from(vec![b'b'; count.min(MAX_BYTES)])));
    }
    if let Some(to) = head.uri.query().and_then(|query| query.strip_prefix("redirect=")) {
        let mut response = Response::new(Full::default());
        if let Ok(to) = hyper::header::HeaderValue::from_str(to) {
            *response.status_mut() = hyper::StatusCode::FOUND;
            response.headers_mut().insert("location", to);
        }
        return response;
    }
    let answer = serde_json::json!({
        "server": "lab", "host": host, "sni": sni, "method": head.method.as_str(), "path": head.uri.path(),
        "destination": visit.destination.to_string(), "body_length": body.len(),
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{answer}\n"))));
    response
        .headers_mut()
        .insert("content-type", hyper::header::HeaderValue::from_static("application/json"));
    response
}

/// A log line about a visit.
pub(crate) fn entry(visit: Visit, kind: &str, detail: serde_json::Value) -> serde_json::Value {
    let mut line = serde_json::json!({
        "kind": kind, "protocol": "tcp", "destination": visit.destination.ip().to_string(),
        "port": visit.destination.port(), "source": visit.source.to_string(),
    });
    if let (Some(line), serde_json::Value::Object(detail)) = (line.as_object_mut(), detail) {
        line.extend(detail);
    }
    line
}
