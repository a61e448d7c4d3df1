//! A TCP connection that is reset unless it ended well.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    pin::Pin,
    task::{Poll, ready},
    time::Duration,
};

use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use crate::buffer;

/// After how much silence of a server it is probed.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// How long a client gets to take in a refusal and close its side.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes of it are read and thrown away meanwhile.
const LINGER_BYTES: usize = 1 << 20;

/// A TCP connection. Dropped before [`Self::finish`], it is reset: the peer must not take a cut stream for a
/// complete one.
pub(crate) struct Socket {
    stream: TcpStream,
    finished: bool,
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, finished: false }
    }

    /// Connects, without Nagle's delay and with probes that notice when the other side is gone for good: the
    /// client's own end only here and would never know.
    pub(crate) async fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
        };
        socket.set_nodelay(true)?;
        socket.set_keepalive(true)?;
        sockopt::set_tcp_keepidle(&socket, PROBE_AFTER)?;
        Ok(Self::new(socket.connect(address).await?))
    }

    /// It ended well: closing it is a regular end of the stream.
    pub(crate) fn finish(mut self) {
        self.finished = true;
    }

    /// Sends a last message and closes so that the peer can read it: data that it is still sending would otherwise
    /// be answered with a reset, which may overtake the message.
    pub(crate) async fn finish_with(mut self, message: &[u8]) {
        let farewell = async {
            self.stream.write_all(message).await?;
            self.stream.shutdown().await?;
            let mut left = LINGER_BYTES;
            while left > 0 {
                match discard(&mut self.stream).await? {
                    0 => break,
                    n => left = left.saturating_sub(n),
                }
            }
            io::Result::Ok(())
        };
        // Whether it was read or not, the connection is over.
        let _ = timeout(LINGER, farewell).await;
        self.finished = true;
    }
}

/// Reads what the stream has and throws it away: how much that was, 0 at its end.
async fn discard(stream: &mut TcpStream) -> io::Result<usize> {
    poll_fn(|cx| {
        buffer::with(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

impl Deref for Socket {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl DerefMut for Socket {
    fn deref_mut(&mut self) -> &mut TcpStream {
        &mut self.stream
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.finished {
            // An error leaves the ordinary close.
            let _ = self.stream.set_zero_linger();
        }
    }
}
