//! Following the events as they happen.

use std::sync::Arc;

use store::{EventRecord, EventUpdate};
use tokio::sync::broadcast::{self, error::RecvError};

/// What a follower is told.
#[derive(Clone, Debug)]
pub enum Update {
    /// Something happened.
    Event(Arc<EventRecord>),
    /// An event that was told before has changed: it was repeated, or its flow has ended.
    Changed {
        /// The sandbox it concerns.
        sandbox: Option<Arc<str>>,
        /// The event's id and what has changed.
        change: EventUpdate,
    },
    /// The follower was too slow; this many updates of all sandboxes are not told any more. A query finds them.
    Missed(u64),
}

/// A follower's end.
#[derive(Debug)]
pub struct Subscription {
    updates: broadcast::Receiver<Update>,
    sandbox: Option<String>,
}

impl Subscription {
    pub(crate) fn new(updates: broadcast::Receiver<Update>, sandbox: Option<String>) -> Self {
        Self { updates, sandbox }
    }

    /// The next update; `None` when the pipeline has ended. Cancelling loses nothing.
    pub async fn recv(&mut self) -> Option<Update> {
        loop {
            match self.updates.recv().await {
                Ok(update) if self.wants(&update) => return Some(update),
                Ok(_) => {}
                Err(RecvError::Lagged(count)) => return Some(Update::Missed(count)),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn wants(&self, update: &Update) -> bool {
        let of = match update {
            Update::Event(event) => event.sandbox_id.as_deref(),
            Update::Changed { sandbox, .. } => sandbox.as_deref(),
            Update::Missed(_) => return true,
        };
        self.sandbox.is_none() || self.sandbox.as_deref() == of
    }
}
