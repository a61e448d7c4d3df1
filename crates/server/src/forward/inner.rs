//! The connection to a program inside, and when it has lasted long enough.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use sandbox::{Cut, PortConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

use crate::{auth::unauthorized, error::ApiError};

/// How long nothing may move on a connection, in neither direction.
const IDLE: Duration = Duration::from_secs(3600);
/// As [`IDLE`], when there is nothing left to wait for but an end.
const LAST: Duration = Duration::from_secs(30);
/// How many bytes may come before the head of an answer is complete: enough for the longest one, the bytes that follow it
/// in the same packets, and some interim answers, which have no other limit.
const BEFORE_ANSWER: usize = 256 * 1024;

/// A connection to a program inside a sandbox.
#[derive(Debug)]
pub(super) struct Inner {
    connection: PortConnection,
    watch: Watch,
}

/// What is known of a connection besides what is on it. Clones are of the same one.
#[derive(Clone, Debug)]
pub(super) struct Watch(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    moved: Instant,
    patience: Duration,
    /// What may still come before the answer; `None` when it has come.
    before_answer: Option<usize>,
}

impl Inner {
    pub(super) fn new(connection: PortConnection) -> Self {
        let state = State { moved: Instant::now(), patience: IDLE, before_answer: Some(BEFORE_ANSWER) };
        Self { connection, watch: Watch(Arc::new(Mutex::new(state))) }
    }

    pub(super) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    pub(super) fn cut(&self) -> Cut {
        self.connection.cut()
    }

    fn stream(&mut self) -> Pin<&mut tokio::net::TcpStream> {
        Pin::new(&mut self.connection.stream)
    }
}

impl Watch {
    /// Lets what follows the head of the answer be as long as it likes.
    pub(super) fn answered(&self) {
        self.0.lock().before_answer = None;
    }

    /// From now on there is nothing to wait for but the end.
    pub(super) fn finish(&self) {
        let mut state = self.0.lock();
        state.moved = Instant::now();
        state.patience = LAST;
    }

    /// Waits until nothing has moved for too long.
    pub(super) async fn is_idle(&self) {
        loop {
            let (moved, patience) = {
                let state = self.0.lock();
                (state.moved, state.patience)
            };
            let end = moved + patience;
            if end <= Instant::now() {
                return;
            }
            // Whoever shortens the time polls this again.
            sleep_until(end.min(Instant::now() + LAST)).await;
        }
    }

    fn moved(&self, bytes: usize) {
        if bytes != 0 {
            self.0.lock().moved = Instant::now();
        }
    }

    /// Counts what has been read.
    fn read(&self, bytes: usize) -> io::Result<()> {
        self.moved(bytes);
        let mut state = self.0.lock();
        if let Some(left) = &mut state.before_answer {
            *left = left.checked_sub(bytes).ok_or_else(|| io::Error::other(TooMuch))?;
        }
        Ok(())
    }
}

/// More came than may come before an answer.
#[derive(Debug, thiserror::Error)]
#[error("it sent more than 256 KiB and no answer in it")]
pub(super) struct TooMuch;

/// Waits until a connection has to end, and says why.
pub(super) async fn end(
    watch: Watch,
    cut: Cut,
    revoked: impl Future<Output = ()>,
    silent: ApiError,
) -> ApiError {
    tokio::select! {
        biased;
        why = cut.happened() => why.into(),
        () = revoked => unauthorized(),
        () = watch.is_idle() => silent,
    }
}

impl AsyncRead for Inner {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.stream().poll_read(context, buffer);
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(self.watch.read(buffer.filled().len().saturating_sub(before))),
            other => other,
        }
    }
}

impl AsyncWrite for Inner {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.stream().poll_write(context, bytes);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = self.stream().poll_write_vectored(context, bytes);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.connection.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(context)
    }
}

impl Inner {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.watch.moved(*bytes);
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        let state = State { moved: Instant::now(), patience: IDLE, before_answer: Some(BEFORE_ANSWER) };
        Watch(Arc::new(Mutex::new(state)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_moves_is_idle_after_an_hour_and_no_sooner() {
        let (watch, begun) = (watch(), Instant::now());
        let other = watch.clone();
        tokio::spawn(async move {
            tokio::time::sleep(IDLE / 2).await;
            other.moved(1);
            tokio::time::sleep(IDLE / 2).await;
            other.moved(0);
        });
        watch.is_idle().await;
        assert_eq!(begun.elapsed(), IDLE + IDLE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_end_the_patience_is_shorter_and_what_moves_is_waited_for() {
        let (watch, begun) = (watch(), Instant::now());
        let other = watch.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LAST / 2).await;
            other.finish();
            tokio::time::sleep(LAST / 2).await;
            other.moved(1);
        });
        watch.is_idle().await;
        assert_eq!(begun.elapsed(), LAST * 2);
    }

    #[test]
    fn what_comes_before_an_answer_is_bounded_and_what_comes_with_it_is_not() {
        let watch = watch();
        watch.read(BEFORE_ANSWER).unwrap();
        assert!(watch.read(1).unwrap_err().get_ref().unwrap().is::<TooMuch>());
        watch.answered();
        watch.read(usize::MAX).unwrap();
    }
}
