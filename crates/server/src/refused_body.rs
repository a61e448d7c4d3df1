//! Reading what is left of the body of a request that is refused.
//!
//! Most clients read no answer before they have sent everything, and a connection that is closed under them takes the
//! answer with it: they would see a reset instead of the reason.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Error,
    body::{Body, HttpBody},
    extract::Request,
    http::header::CONTENT_LENGTH,
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;

/// How much of a refused body is read, in bytes. Whoever sends more is cut off.
const LIMIT: usize = 64 * 1024 * 1024;
/// How long that may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Reads and forgets, within bounds, what an error's request has left of its body, and answers then.
pub(crate) async fn discard(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    // One HTTP/2 client announces an empty body and never ends it: nothing is there to wait for.
    if parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length == "0") {
        return next.run(Request::from_parts(parts, Body::empty())).await;
    }
    let lent = Lent::new(body);
    let rest = lent.clone();
    let response = next.run(Request::from_parts(parts, Body::new(lent))).await;
    let is_error = response.status().is_client_error() || response.status().is_server_error();
    if is_error && response.extensions().get::<Taken>().is_none() {
        discard_rest(rest).await;
    }
    response
}

/// In the extensions of a response: what the request has left of its body is seen to, whatever the status says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken;

/// Reads and forgets, within bounds, what there is still of a body.
pub(crate) async fn discard_rest(body: impl HttpBody<Data = Bytes> + Unpin) {
    let _cut_off = tokio::time::timeout(DEADLINE, read(body)).await;
}

async fn read(mut body: impl HttpBody<Data = Bytes> + Unpin) {
    let mut left = LIMIT;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

/// A body that somebody else goes on reading when its reader has gone.
#[derive(Clone)]
pub(crate) struct Lent(Arc<Mutex<Reading>>);

struct Reading {
    body: Body,
    /// Whether there is nothing more; a body in chunks does not know by itself.
    is_over: bool,
}

impl Lent {
    pub(crate) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Reading { is_over: body.is_end_stream(), body })))
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut reading = self.0.lock();
        let polled = Pin::new(&mut reading.body).poll_frame(context);
        reading.is_over |= matches!(polled, Poll::Ready(None)) || reading.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_over
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().body.size_hint()
    }
}
