//! Room for connections. When there is no more, those that do nothing make room for new ones: whoever only holds
//! connections open, which takes no API key, keeps nobody out.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::{
    Request, Response,
    body::{Frame, SizeHint},
    service::Service,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Room for so many connections.
#[derive(Debug)]
pub(crate) struct Room {
    places: Arc<Semaphore>,
    idle: Mutex<Idle>,
    /// Told whenever a connection has become idle.
    became_idle: Notify,
}

/// The connections without a request in work, by when they became so.
#[derive(Debug, Default)]
struct Idle {
    since: BTreeMap<u64, CancellationToken>,
    next: u64,
}

impl Idle {
    fn add(&mut self, close: CancellationToken) -> u64 {
        let since = self.next;
        self.next += 1;
        self.since.insert(since, close);
        since
    }
}

impl Room {
    pub(crate) fn new(connections: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(connections));
        Arc::new(Self { places, idle: Mutex::default(), became_idle: Notify::new() })
    }

    /// A place for a connection that is there. When all are taken, the connection that has been idle for longest is closed;
    /// while none is, this waits.
    pub(crate) async fn place(self: &Arc<Self>) -> io::Result<Place> {
        let permit = loop {
            let became_idle = self.became_idle.notified();
            if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
                break permit;
            }
            let any = Arc::clone(&self.places).acquire_owned();
            if self.close_longest_idle() {
                break any.await.map_err(io::Error::other)?;
            }
            tokio::select! {
                permit = any => break permit.map_err(io::Error::other)?,
                () = became_idle => {}
            }
        };
        let close = CancellationToken::new();
        let state = State { in_work: 0, idle: Some(self.idle.lock().add(close.clone())) };
        self.became_idle.notify_waiters();
        Ok(Place { room: Arc::clone(self), state: Mutex::new(state), close, _permit: permit })
    }

    /// Whether there was one.
    fn close_longest_idle(&self) -> bool {
        let longest = self.idle.lock().since.pop_first();
        longest.inspect(|(_, close)| close.cancel()).is_some()
    }
}

/// The place of one connection.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Room>,
    state: Mutex<State>,
    close: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct State {
    in_work: usize,
    /// Where among the idle ones.
    idle: Option<u64>,
}

impl Place {
    /// Waits until it is to be given up for another connection. No request is in work then, and none begins any more.
    pub(crate) async fn given_up(&self) {
        self.close.cancelled().await;
    }

    /// Begins a request; `None` when the place is to be given up.
    fn begin(self: &Arc<Self>) -> Option<Work> {
        let mut state = self.state.lock();
        if let Some(since) = state.idle.take() {
            // Whoever closes it has taken it from there.
            self.room.idle.lock().since.remove(&since)?;
        }
        if self.close.is_cancelled() {
            return None;
        }
        state.in_work += 1;
        Some(Work { place: Arc::clone(self) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(since) = self.state.get_mut().idle {
            self.room.idle.lock().since.remove(&since);
        }
    }
}

/// A request in work.
#[derive(Debug)]
struct Work {
    place: Arc<Place>,
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut state = self.place.state.lock();
        state.in_work -= 1;
        if state.in_work == 0 {
            state.idle = Some(self.place.room.idle.lock().add(self.place.close.clone()));
            self.place.room.became_idle.notify_waiters();
        }
    }
}

/// A service whose requests are in work from their head to the end of the answer.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    pub(crate) service: S,
    pub(crate) place: Arc<Place>,
}

impl<S, B> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error: Send + Sync + std::error::Error + 'static>,
    S::Future: Send + 'static,
{
    type Response = Response<CountedBody>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn call(&self, request: Request<B>) -> Self::Future {
        let Some(work) = self.place.begin() else {
            return Box::pin(async { Err("the connection has made room for another one".into()) });
        };
        let answer = self.service.call(request);
        Box::pin(async move { Ok(answer.await?.map(|body| CountedBody { body, _work: work })) })
    }
}

/// The body of an answer, with the work that ends with it.
#[derive(Debug)]
pub(crate) struct CountedBody {
    body: Body,
    _work: Work,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The place of a connection that closes when it is to.
    fn open(place: Place) -> (Arc<Place>, CancellationToken) {
        let (place, closed) = (Arc::new(place), CancellationToken::new());
        let (held, done) = (Arc::clone(&place), closed.clone());
        tokio::spawn(async move {
            held.given_up().await;
            drop(held);
            done.cancel();
        });
        (place, closed)
    }

    #[tokio::test]
    async fn the_connection_that_has_been_idle_for_longest_makes_room_and_one_with_a_request_does_not() {
        let room = Room::new(3);
        let (busy, first, second) =
            (room.place().await.unwrap(), room.place().await.unwrap(), room.place().await.unwrap());
        let ((busy, _), (first, first_closed), (second, second_closed)) =
            (open(busy), open(first), open(second));
        let work = busy.begin().unwrap();
        // It was idle for longer until it did something.
        drop(first.begin().unwrap());
        let coming = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.place().await }
        });
        second_closed.cancelled().await;
        assert!(second.begin().is_none(), "no request begins that would not be answered");
        drop(second);
        let third = coming.await.unwrap().unwrap();
        assert!(!first_closed.is_cancelled());
        // None is idle: the next waits until one is.
        let (working, third) = (first.begin().unwrap(), Arc::new(third));
        let other = third.begin().unwrap();
        let mut waiting = std::pin::pin!(room.place());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(working);
        drop(first);
        waiting.await.unwrap();
        drop((work, other));
    }

    #[tokio::test]
    async fn connections_that_end_leave_nothing_behind() {
        let room = Room::new(2);
        for _ in 0..10 {
            let place = Arc::new(room.place().await.unwrap());
            let (one, other) = (place.begin().unwrap(), place.begin().unwrap());
            drop((one, other, place));
        }
        assert_eq!((room.places.available_permits(), room.idle.lock().since.len()), (2, 0));
    }
}
