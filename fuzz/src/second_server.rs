//! What an HTTP/1 server makes of a stream of bytes: hyper, without a network.

use std::{
    cell::RefCell,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    header::HOST,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};

/// A complete request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Every `Host`, with its port.
    pub(crate) hosts: Vec<(String, Option<u16>)>,
    pub(crate) body: Vec<u8>,
}

/// The complete requests in `bytes`, up to the first that it refuses, or after which it reads no more.
pub(crate) fn read(bytes: &[u8]) -> Vec<Seen> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes().to_vec();
            let hosts = head.headers.get_all(HOST).iter();
            seen.borrow_mut().push(Seen {
                method: head.method.to_string(),
                target: head.uri.to_string(),
                hosts: hosts.map(|host| split(&String::from_utf8_lossy(host.as_bytes()))).collect(),
                body,
            });
            Ok::<_, hyper::Error>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = http1::Builder::new()
        .max_headers(128)
        .max_buf_size(1 << 20)
        .auto_date_header(false)
        .serve_connection(Wire { unread: bytes }, service);
    {
        let mut connection = pin!(connection);
        let mut context = Context::from_waker(Waker::noop());
        // Nothing it waits for comes from elsewhere: it is done, or will be when asked again.
        let done = (0..100_000).any(|_| connection.as_mut().poll(&mut context).is_ready());
        assert!(done, "hyper does not come to an end");
    }
    seen.take()
}

fn split(host: &str) -> (String, Option<u16>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name.to_owned(), port.parse().ok()),
        _ => (host.to_owned(), None),
    }
}

/// A connection whose client has sent everything, ended its side, and takes every answer.
struct Wire<'a> {
    unread: &'a [u8],
}

impl Read for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let (part, rest) = self.unread.split_at(self.unread.len().min(buffer.remaining()));
        buffer.put_slice(part);
        self.unread = rest;
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
