//! The first bytes of a connection, and how long they may take.
//!
//! What tells HTTP/1.1 from HTTP/2 is read before either of them is spoken, by code that waits for ever. From then on
//! their own deadlines hold.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// What HTTP/2 begins with (RFC 9113, section 3.4). Anything else is HTTP/1.1 from the first byte that differs.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection of which a read fails when it has not begun in time.
#[derive(Debug)]
pub(crate) struct Opening<S> {
    stream: S,
    /// Until it is known what is spoken.
    deadline: Option<Pin<Box<Sleep>>>,
    /// How much of the preface has come.
    matched: usize,
}

impl<S> Opening<S> {
    pub(crate) fn new(stream: S, limit: Duration) -> Self {
        Self { stream, deadline: Some(Box::pin(sleep(limit))), matched: 0 }
    }

    fn has_begun(&mut self, data: &[u8]) -> bool {
        let expected = PREFACE.get(self.matched..).unwrap_or_default();
        let length = data.len().min(expected.len());
        self.matched += length;
        self.matched == PREFACE.len() || data.get(..length) != expected.get(..length)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(deadline) = &mut this.deadline else {
            return Pin::new(&mut this.stream).poll_read(context, into);
        };
        if deadline.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "nothing was asked for in time",
            )));
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
        if this.has_begun(into.filled().get(before..).unwrap_or_default()) {
            this.deadline = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
        time::Instant,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);

    /// How a read of all of it ends, when a client sends these parts, 10 seconds apart, and then nothing for an hour.
    async fn read_of(parts: &'static [&'static [u8]]) -> io::Result<usize> {
        let (mut client, server) = duplex(1024);
        let (mut server, begun) = (Opening::new(server, LIMIT), Instant::now());
        tokio::spawn(async move {
            for part in parts {
                sleep(LIMIT / 3).await;
                client.write_all(part).await.unwrap();
            }
            sleep(LIMIT * 120).await;
        });
        let read = server.read_to_end(&mut Vec::new()).await;
        assert_eq!(read.is_ok(), begun.elapsed() > LIMIT, "it ends at its deadline, or with the client");
        read
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_say_what_it_speaks_is_not_waited_for() {
        let silent: [&[&[u8]]; 3] = [&[], &[b"P"], &[b"PRI * HTTP", b"/2.0\r\n\r\nSM\r\n\r"]];
        for parts in silent {
            assert_eq!(read_of(parts).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        let speaking: [&[&[u8]]; 4] = [&[b"G"], &[b"P", b"OST"], &[b"PRI * HTTP/1"], &[PREFACE]];
        for parts in speaking {
            assert_eq!(read_of(parts).await.unwrap(), parts.concat().len());
        }
    }
}
