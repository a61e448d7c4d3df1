//! Passing a request to a program inside a sandbox, and its answer back.
//!
//! The program is not trusted. It is spoken to over a connection that carries this one request, so that nothing it says can
//! be taken for the answer to another; what it says is parsed, bounded and written anew, never copied; and whatever it
//! does or does not do costs this one request only. The connection lives as long as the request: when the client leaves,
//! the future or the body that drives it is dropped, and it is closed.

mod body;
mod headers;
mod inner;
mod tunnel;

use std::{
    error::Error as _,
    io,
    num::NonZeroU16,
    pin::Pin,
    task::{Context, Poll, ready},
};

use api::code;
use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, header, request::Parts},
    response::Response,
};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use sandbox::PortConnection;

use self::{
    body::{DataOnly, Forwarded},
    headers::Address,
    inner::{Inner, TooMuch, Watch},
};
use crate::{
    error::ApiError,
    refused_body::{Lent, Taken},
    sse::EndsWithServer,
};

/// The longest head of an answer, in bytes, and how much of a body is read at once.
const HEAD: usize = 64 * 1024;
/// The most headers of an answer.
const HEADERS: usize = 128;

/// What drives a connection to a program inside; done when the connection is, however often it is asked.
struct Driver(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Driver {
    fn is_done(&self) -> bool {
        self.0.is_none()
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if let Some(driver) = &mut self.0 {
            ready!(driver.as_mut().poll(context));
            self.0 = None;
        }
        Poll::Ready(())
    }
}

/// What ends a request before its time, and what is answered then.
type End = Pin<Box<dyn Future<Output = ApiError> + Send>>;

/// A port inside a sandbox, and what is asked of it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The path that stands for the port, without a slash at its end.
    pub(crate) prefix: String,
    pub(crate) port: NonZeroU16,
    /// Path and query, as the program inside sees them.
    pub(crate) uri: Uri,
}

impl Asked {
    fn address(&self) -> Address<'_> {
        Address { prefix: &self.prefix, port: self.port, asked: &self.uri }
    }

    fn silent(&self) -> ApiError {
        let message = format!("what listens on port {} in the sandbox does not answer", self.port);
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).with_code(code::PORT_SILENT)
    }

    /// The program inside did not do what HTTP wants.
    fn protocol(&self, what: &str) -> ApiError {
        let message = format!("what listens on port {} in the sandbox {what}", self.port);
        ApiError::new(StatusCode::BAD_GATEWAY, message).with_code(code::PORT_PROTOCOL)
    }

    /// Why there is no answer.
    fn failed(&self, error: &hyper::Error) -> ApiError {
        if error.is_user() {
            return ApiError::bad_request("the request body broke off");
        }
        if is_too_much(error) || error.is_parse_too_large() {
            let message = format!("sent more than {} KiB before its answer was complete", HEAD >> 10);
            return self.protocol(&message);
        }
        if error.is_parse() {
            return self.protocol(&format!("does not speak HTTP/1.1: {error}"));
        }
        self.protocol("closed the connection and has not answered")
    }
}

/// Whether too much came before an answer.
fn is_too_much(error: &hyper::Error) -> bool {
    let failed = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    failed.and_then(io::Error::get_ref).is_some_and(|cause| cause.is::<TooMuch>())
}

/// Passes a request on over `connection`, and gives the answer as soon as its head is there. All of it ends when the key
/// that it came with is `revoked`.
pub(crate) async fn forward(
    asked: Asked,
    connection: PortConnection,
    revoked: impl Future<Output = ()> + Send + 'static,
    request: Request,
) -> Result<Response, ApiError> {
    let (mut client, body) = request.into_parts();
    let on_upgrade = client.extensions.remove::<OnUpgrade>().filter(|_| wants_web_socket(&client));
    let inner = Inner::new(connection);
    let (watch, cut) = (inner.watch(), inner.cut());
    let mut end: End = Box::pin(inner::end(watch.clone(), cut, revoked, asked.silent()));

    let body = Lent::new(body);
    let (mut sender, connection) = Builder::new()
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .handshake(TokioIo::new(inner))
        .await
        .map_err(|error| asked.failed(&error))?;
    let mut driver = drive(connection);
    let answer = {
        let mut sending =
            std::pin::pin!(sender.send_request(inward(&asked, &client, &body, on_upgrade.is_some())));
        loop {
            let is_driven = !driver.is_done();
            tokio::select! {
                biased;
                why = &mut end => return Err(why),
                () = &mut driver, if is_driven => {}
                answer = &mut sending => break answer.map_err(|error| asked.failed(&error))?,
            }
        }
    };
    watch.answered();
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return tunnel::open(&asked, answer, on_upgrade, driver, end);
    }
    outward(&asked, &client, answer, Exchange { driver, end, watch, request: body }).await
}

/// What is under way when the head of an answer has come.
struct Exchange {
    driver: Driver,
    end: End,
    watch: Watch,
    request: Lent,
}

fn drive(connection: Connection<TokioIo<Inner>, DataOnly>) -> Driver {
    let connection = connection.with_upgrades();
    Driver(Some(Box::pin(async move {
        if let Err(error) = connection.await {
            // Whoever waits for the answer, or its body, is told.
            tracing::debug!(%error, "a connection to a port of a sandbox ended");
        }
    })))
}

fn inward(asked: &Asked, client: &Parts, body: &Lent, upgrades: bool) -> hyper::Request<DataOnly> {
    let mut request = hyper::Request::new(DataOnly(body.clone()));
    *request.method_mut() = client.method.clone();
    *request.uri_mut() = asked.uri.clone();
    *request.version_mut() = Version::HTTP_11;
    let mut headers = headers::inward(&asked.address(), &client.headers, &client.uri);
    if upgrades {
        set_upgrade(&mut headers);
    } else {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    *request.headers_mut() = headers;
    request
}

fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// Whether an answer has no end of its own.
fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream"))
}

/// Whether a request asks for a WebSocket. Nothing else is switched to: a client that has switched to HTTP/2 would send its
/// next requests to this server, with its key, into the sandbox.
fn wants_web_socket(client: &Parts) -> bool {
    client.method == Method::GET
        && client.version == Version::HTTP_11
        && headers::has_token(&client.headers, &header::CONNECTION, "upgrade")
        && headers::has_token(&client.headers, &header::UPGRADE, "websocket")
}

async fn outward(
    asked: &Asked,
    client: &Parts,
    answer: hyper::Response<Incoming>,
    exchange: Exchange,
) -> Result<Response, ApiError> {
    let (head, incoming) = answer.into_parts();
    let host = headers::outer_host(&client.headers, &client.uri);
    let headers = headers::outward(&asked.address(), &client.method, host, head.status, &head.headers);
    let has_body = !incoming.is_end_stream();
    let mut body = Forwarded::new(incoming, exchange);
    if !has_body {
        // Nothing asks such a body for its end, and the rest of the request has to go somewhere.
        body.finish().await;
    }
    let mut response = Response::new(if has_body { Body::new(body) } else { Body::empty() });
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    response.extensions_mut().insert(Taken);
    if is_event_stream(response.headers()) {
        response.extensions_mut().insert(EndsWithServer::BrokenOff);
    }
    Ok(response)
}
