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

use rustix::{
    io::Errno,
    net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
};
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
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        sockopt::set_tcp_keepidle(&socket, PROBE_AFTER)?;
        match net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        // A server on this machine has answered by now: nothing has to be waited for.
        let is_connected = net::getpeername(&socket).is_ok();
        let stream = TcpStream::from_std(socket.into())?;
        if !is_connected {
            stream.writable().await?;
            if let Some(error) = stream.take_error()? {
                return Err(error);
            }
        }
        Ok(Self::new(stream))
    }

    /// What has come already. The runtime would have to look for it first, and a connection to the web is accepted when
    /// there is something to read.
    pub(crate) fn read_at_once(&self) -> Vec<u8> {
        buffer::with(|buffer| {
            let read = net::recv(&self.stream, &mut *buffer, RecvFlags::DONTWAIT);
            // The end is met again when the runtime has looked, and after an error there is nothing else.
            let count = read.map_or(0, |(count, _)| count);
            buffer.get(..count).unwrap_or_default().to_vec()
        })
    }

    /// Sends what there is room for, which is all of it but for many bytes: a socket that was made just now has room without
    /// the runtime having looked. How many bytes that were; an error is met again by who sends the rest.
    pub(crate) fn write_at_once(&self, bytes: &[u8]) -> usize {
        net::send(&self.stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).unwrap_or(0)
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
