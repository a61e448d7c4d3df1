//! Ends of sandboxes that the store does not know of, because it could not be written to when they ended.
//!
//! What a record says of a sandbox that is not there any more is not believed, and put right as soon as that can be
//! written. No list of such records is kept: they are those that say alive of what does not live, so there is nothing
//! to fill up, and nothing to lose.

use std::time::Duration;

use jiff::Timestamp;
use store::{SandboxFilter, SandboxRecord};

use super::{Manager, create::chain, living::State};
use crate::error::SandboxError;

/// How long the store is left alone after it could not be written to: first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

impl Manager {
    /// Writes the ends that could not be written when they were, until they are.
    pub(super) fn keep_recording_ends(&self) {
        let manager = self.clone();
        tokio::spawn(async move {
            let stopped = manager.inner.stop.cancelled();
            tokio::select! {
                () = stopped => {}
                () = manager.record_ends_when_told() => {}
            }
        });
    }

    async fn record_ends_when_told(&self) {
        let [first, longest] = PAUSES;
        loop {
            self.inner.unrecorded.notified().await;
            let mut pause = first;
            while let Err(error) = self.record_ends().await {
                tracing::warn!(error = %chain(&error), "the end of a sandbox cannot be recorded yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(longest);
            }
        }
    }

    /// Records that sandboxes have ended which are said to live and do not. Gives their ids.
    pub(super) async fn record_ends(&self) -> Result<Vec<String>, SandboxError> {
        let states = [State::Creating, State::Running, State::Paused];
        let filter = SandboxFilter {
            states: states.iter().map(|state| state.as_str().to_owned()).collect(),
            ..SandboxFilter::default()
        };
        let sandboxes = self.inner.config.store.sandboxes();
        let (mut recorded, mut failed) = (Vec::new(), None);
        for listed in sandboxes.list(&filter).await?.sandboxes {
            if self.lives(&listed.id) {
                continue;
            }
            // Read again: it may have ended properly since.
            if let Some(mut record) = sandboxes.get(&listed.id).await?
                && self.correct(&mut record)
            {
                match sandboxes.put(&record).await {
                    Ok(()) => recorded.push(record.id),
                    // The others may be smaller.
                    Err(error) => failed = Some(error),
                }
            }
        }
        match failed {
            None => Ok(recorded),
            Some(error) => Err(error.into()),
        }
    }

    /// Makes a record that was read from the store say that the sandbox has ended, if it says alive of one that is not.
    /// Says whether it did.
    ///
    /// A sandbox is known to live before it is recorded, and is until its end is; so this needs no lock.
    pub(super) fn correct(&self, record: &mut SandboxRecord) -> bool {
        let wrong = record.state != State::Killed.as_str() && !self.lives(&record.id);
        if wrong {
            let now = Timestamp::now();
            record.state = State::Killed.as_str().to_owned();
            record.end_at = Some(record.end_at.map_or(now, |end| end.min(now)));
        }
        wrong
    }
}
