//! Bodies on their way in and out.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::body::HttpBody;
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};

use super::{Driver, End, Exchange, inner::Watch};
use crate::{
    error::ApiError,
    refused_body::{self, Lent},
};

/// A body without trailers: they are headers that nobody has looked at.
pub(super) struct DataOnly(pub(super) Lent);

impl HttpBody for DataOnly {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next<axum::Error>> {
        poll_data(Pin::new(&mut self.0), context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// What comes next of a body.
type Next<E> = Option<Result<Frame<Bytes>, E>>;

/// The next frame that is no trailers.
fn poll_data<B: HttpBody<Data = Bytes>>(
    mut body: Pin<&mut B>,
    context: &mut Context<'_>,
) -> Poll<Next<B::Error>> {
    loop {
        match ready!(body.as_mut().poll_frame(context)) {
            Some(Ok(frame)) if frame.is_trailers() => {}
            other => return Poll::Ready(other),
        }
    }
}

/// The body of an answer on its way out. It drives the connection that it comes by, and ends when there is nothing left to
/// pass on in either direction.
pub(super) struct Forwarded {
    incoming: Option<Incoming>,
    driver: Driver,
    end: End,
    watch: Watch,
    request: Lent,
    /// Reads what the client still sends, and nobody wants.
    rest: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Whether the request was complete when the answer began, so that the end of the answer is the end of all.
    is_alone: bool,
}

impl Forwarded {
    pub(super) fn new(incoming: Incoming, exchange: Exchange) -> Self {
        let Exchange { driver, end, watch, request } = exchange;
        let is_alone = request.is_end_stream();
        Self { incoming: Some(incoming), driver, end, watch, request, rest: None, is_alone }
    }

    /// Waits until the request has been passed on too, or nobody inside wants it any more.
    pub(super) async fn finish(&mut self) {
        self.begin_to_finish();
        let _in_vain = std::future::poll_fn(|context| self.poll_rest(context)).await;
    }

    fn begin_to_finish(&mut self) {
        self.incoming = None;
        self.watch.finish();
    }

    /// What there is to do when the answer is complete.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        if self.is_alone {
            return Poll::Ready(Ok(()));
        }
        if Pin::new(&mut self.driver).poll(context).is_pending() {
            // A program that neither takes the request nor says that it will not is not waited for.
            let _too_long = ready!(self.end.as_mut().poll(context));
            self.driver = Driver(None);
        }
        let rest =
            self.rest.get_or_insert_with(|| Box::pin(refused_body::discard_rest(self.request.clone())));
        ready!(rest.as_mut().poll(context));
        Poll::Ready(Ok(()))
    }
}

impl HttpBody for Forwarded {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Next<Self::Error>> {
        let this = self.get_mut();
        let _done = Pin::new(&mut this.driver).poll(context);
        if let Some(incoming) = &mut this.incoming {
            if let Poll::Ready(why) = this.end.as_mut().poll(context) {
                return Poll::Ready(Some(Err(why.message.into())));
            }
            match ready!(poll_data(Pin::new(incoming), context)) {
                None => this.begin_to_finish(),
                Some(frame) => return Poll::Ready(Some(frame.map_err(Into::into))),
            }
        }
        let _in_vain = ready!(this.poll_rest(context));
        Poll::Ready(None)
    }

    fn size_hint(&self) -> SizeHint {
        // An answer of a known length is over for the server with its last byte, whatever there is still to do.
        let known = self.incoming.as_ref().filter(|_| self.is_alone);
        known.map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}
