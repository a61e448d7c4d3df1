//! The other end of a connection: what it may cost, and whether it is still there.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::{Shutdown, shutdown, sockopt};
use sys::net::{Answers, answers, set_unsent_limit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval},
};

/// The most bytes that wait in the kernel to be sent on a connection. More wait with whoever makes them, so that a client
/// that does not read costs no more than this.
const UNSENT: u32 = 128 << 10;
/// Probes of a connection on which nothing moves, of which none may be answered before it is given up.
const PROBES: u32 = 6;

/// Prepares a connection that was accepted. On one on which nothing moves the kernel looks whether the client is still there
/// often enough that it is given up after `silence`.
pub(crate) fn prepare(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    // The kernel counts in seconds.
    let part = |of: u32| (silence / of).max(Duration::from_secs(1));
    stream.set_nodelay(true)?;
    set_unsent_limit(stream, UNSENT)?;
    sockopt::set_tcp_keepidle(stream, part(3))?;
    sockopt::set_tcp_keepintvl(stream, part(3 * PROBES / 2))?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    sockopt::set_socket_keepalive(stream, true)?;
    Ok(())
}

/// Waits until the client has owed an answer for `silence` without giving any sign of life: it crashed, or its network is
/// gone. One that only does not read answers, however long it does not: the kernel asks it at least every two minutes.
///
/// This is what `TCP_USER_TIMEOUT` is for, but that also ends connections whose clients answer and do not read.
pub(crate) async fn gone(stream: &TcpStream, silence: Duration) {
    let mut looks = interval(silence / 10);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut owing = None;
    loop {
        let now = looks.tick().await;
        // What cannot be asked is not a connection any more, and whoever reads or writes will see that.
        let Ok(answers) = answers(stream) else { return std::future::pending().await };
        owing = owing_since(owing, now, answers);
        if owing.is_some_and(|since| now.duration_since(since) >= silence) {
            return;
        }
    }
}

/// Has the connection end at once when it is closed, with nothing of it left in the kernel for a client that is not there.
pub(crate) fn give_up(stream: &TcpStream) {
    tracing::debug!("a client is gone without a word; its connection is closed");
    if let Err(error) = sockopt::set_socket_linger(stream, Some(Duration::ZERO)) {
        tracing::debug!(%error, "what was not sent to it stays in the kernel for a while");
    }
}

/// Since when the client owes an answer, if it does: `before` is what was found when we looked the last time.
fn owing_since(before: Option<Instant>, now: Instant, answers: Answers) -> Option<Instant> {
    match before {
        _ if !answers.awaited => None,
        Some(since) if answers.last >= now.duration_since(since) => Some(since),
        // It begins to owe one, or has answered since we looked, and owes the next.
        _ => Some(now),
    }
}

/// A connection that others can look at while it is read and written.
#[derive(Debug)]
pub(crate) struct Watched(pub(crate) Arc<TcpStream>);

impl AsyncRead for Watched {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result.map(|_| ())),
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(buffer)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write_vectored(buffers) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&*self.0, Shutdown::Write).map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_owes_an_answer_from_when_it_is_first_seen_to_until_it_gives_one() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let seen = |awaited, last| Answers { awaited, last: Duration::from_secs(last) };
        // It has been idle for an hour, and owes an answer only now.
        assert_eq!(owing_since(None, at(0), seen(true, 3600)), Some(at(0)));
        assert_eq!(owing_since(Some(at(0)), at(30), seen(true, 3630)), Some(at(0)));
        assert_eq!(owing_since(Some(at(0)), at(180), seen(true, 180)), Some(at(0)));
        // One that does not read answers now and then, and owes the next answer at once.
        assert_eq!(owing_since(Some(at(0)), at(150), seen(true, 119)), Some(at(150)));
        assert_eq!(owing_since(Some(at(0)), at(30), seen(false, 20)), None);
        assert_eq!(owing_since(None, at(30), seen(false, 3600)), None);
    }
}
