//! The time in which a sandbox runs: it stands still while the sandbox is paused.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

/// The daemon's counterpart of the clock that init measures the time of commands with. Whoever waits for something that
/// happens inside measures by this one: nothing is late that could not happen.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunningTime {
    stands_still: Arc<watch::Sender<bool>>,
}

impl RunningTime {
    /// Lets it stand still, if it does not.
    pub(crate) fn stop(&self) {
        self.stands_still.send_replace(true);
    }

    /// Lets it go on, if it stands still.
    pub(crate) fn start(&self) {
        self.stands_still.send_replace(false);
    }

    /// What `work` gives; `None` when it does not within `limit`.
    pub(crate) async fn timeout<T>(&self, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.passed(limit) => None,
        }
    }

    /// Waits until so much has passed.
    async fn passed(&self, time: Duration) {
        let mut stands_still = self.stands_still.subscribe();
        let mut left = time;
        loop {
            becomes(&mut stands_still, false).await;
            let begun = Instant::now();
            tokio::select! {
                biased;
                () = sleep(left) => return,
                () = becomes(&mut stands_still, true) => left = left.saturating_sub(begun.elapsed()),
            }
        }
    }
}

async fn becomes(stands_still: &mut watch::Receiver<bool>, wanted: bool) {
    // Its sender is in the clock that is waited for.
    let _there = stands_still.wait_for(|stands_still| *stands_still == wanted).await.is_ok();
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn time_that_stands_still_makes_nothing_late() {
        let (time, begun) = (RunningTime::default(), Instant::now());
        let pauses = async {
            for _ in 0..3 {
                sleep(MINUTE / 4).await;
                time.stop();
                sleep(MINUTE * 100).await;
                time.start();
            }
            pending::<()>().await;
        };
        tokio::select! {
            late = time.timeout(MINUTE, pending::<()>()) => assert_eq!(late, None),
            () = pauses => {}
        }
        assert_eq!(begun.elapsed(), MINUTE + MINUTE * 300);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_done_in_time_is_given_also_if_the_time_has_stood_still() {
        let time = RunningTime::default();
        time.stop();
        assert_eq!(time.timeout(MINUTE, async { sleep(MINUTE * 2).await }).await, Some(()));
        time.start();
        assert_eq!(time.timeout(MINUTE, async { sleep(MINUTE / 2).await }).await, Some(()));
        assert_eq!(time.timeout(MINUTE, async { sleep(MINUTE * 2).await }).await, None);
    }
}
