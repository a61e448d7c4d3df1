//! The bytes that go by wires: the kernel counts them, and now and then they are added to what the sandbox has moved.

use std::{sync::Weak, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    gate::{Shared, blocking},
    member::chain,
};

/// How often: so much later at most a sandbox is cut off that has moved what it may.
const PERIOD: Duration = Duration::from_secs(1);

/// Counts until `stop`.
pub(crate) async fn run(shared: Weak<Shared>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let Some(shared) = shared.upgrade() else { return };
        let count = move || {
            shared.count_bytes();
            Ok(())
        };
        if let Err(error) = blocking(count).await {
            tracing::error!(error = %chain(&error), "the bytes that go by wires are not counted");
        }
    }
}
