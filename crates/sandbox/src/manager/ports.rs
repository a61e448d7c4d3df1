//! Which connections to ports inside sandboxes may exist: what the policy says, and how many.

use std::{num::NonZeroU16, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Manager, living::Living};
use crate::{
    error::SandboxError,
    ids::SandboxId,
    port::{Cut, PortConnection, connect},
};

/// Connections to the ports of one sandbox at the same time.
const OF_A_SANDBOX: usize = 256;
/// Connections to the ports of all sandboxes at the same time.
pub(super) const OF_ALL: usize = 2048;

/// The ports of one sandbox.
#[derive(Debug)]
pub(super) struct Ports {
    /// Cancelled while the policy does not permit connections.
    open: Mutex<CancellationToken>,
    places: Arc<Semaphore>,
}

impl Ports {
    pub(super) fn new(permitted: bool) -> Self {
        let ports = Self { open: Mutex::default(), places: Arc::new(Semaphore::new(OF_A_SANDBOX)) };
        ports.permit(permitted);
        ports
    }

    /// Permits connections, or refuses them and cuts those there are.
    pub(super) fn permit(&self, permitted: bool) {
        let mut open = self.open.lock();
        if !permitted {
            open.cancel();
        } else if open.is_cancelled() {
            *open = CancellationToken::new();
        }
    }

    /// Cancelled when the policy does not permit connections any more.
    fn while_permitted(&self) -> Result<CancellationToken, SandboxError> {
        let open = self.open.lock().clone();
        if open.is_cancelled() { Err(SandboxError::PublicTrafficOff) } else { Ok(open) }
    }
}

impl Manager {
    /// Connects to a port inside a sandbox: to what listens there on loopback, or on the sandbox's own address.
    ///
    /// # Errors
    /// [`SandboxError::PublicTrafficOff`], [`SandboxError::NothingListens`], [`SandboxError::PortSilent`],
    /// [`SandboxError::Limit`], and those for sandboxes that do not run.
    pub async fn connect_port(
        &self,
        account: &str,
        id: &SandboxId,
        port: NonZeroU16,
    ) -> Result<PortConnection, SandboxError> {
        // A request that is refused wakes nobody.
        self.present(account, id).await?.ports.while_permitted()?;
        let living = self.living(account, id).await?;
        let cut = Cut {
            ending: living.ending.clone(),
            closing: living.ports.while_permitted()?,
            stop: self.inner.stop.clone(),
        };
        let places = [
            place(&living.ports.places, "connections to the ports of the sandbox", OF_A_SANDBOX)?,
            place(&self.inner.ports, "connections to the ports of all sandboxes", OF_ALL)?,
        ];
        tokio::select! {
            biased;
            why = cut.happened() => Err(why),
            stream = connect_in(&living, port) => Ok(PortConnection::new(stream?, cut.clone(), places)),
        }
    }

    /// How many connections to ports there are.
    pub(super) fn port_connections(&self) -> u64 {
        u64::try_from(OF_ALL.saturating_sub(self.inner.ports.available_permits())).unwrap_or(u64::MAX)
    }
}

async fn connect_in(living: &Living, port: NonZeroU16) -> Result<tokio::net::TcpStream, SandboxError> {
    let namespace = {
        let parts = living.parts.lock().await;
        parts.attachment.as_ref().ok_or(SandboxError::Killed)?.namespace()
    };
    let failed = |source| SandboxError::Network { action: "enter", source };
    connect(namespace.map_err(failed)?, port).await
}

fn place(places: &Arc<Semaphore>, what: &str, limit: usize) -> Result<OwnedSemaphorePermit, SandboxError> {
    let place = Arc::clone(places).try_acquire_owned();
    place.map_err(|_| SandboxError::Limit(format!("{limit} {what} at the same time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_forbids_cuts_what_there_is_and_one_that_permits_again_does_not_bring_it_back() {
        let ports = Ports::new(true);
        let first = ports.while_permitted().unwrap();
        ports.permit(true);
        assert!(!first.is_cancelled(), "still permitted");
        ports.permit(false);
        assert!(first.is_cancelled());
        assert!(matches!(ports.while_permitted(), Err(SandboxError::PublicTrafficOff)));
        ports.permit(true);
        assert!(first.is_cancelled() && !ports.while_permitted().unwrap().is_cancelled());
        assert!(Ports::new(false).while_permitted().is_err());
    }

    #[test]
    fn places_are_counted_and_come_back() {
        let places = Arc::new(Semaphore::new(1));
        let taken = place(&places, "of these", 1).unwrap();
        let refused = place(&places, "of these", 1).unwrap_err();
        assert_eq!(refused.to_string(), "limit reached: 1 of these at the same time");
        drop(taken);
        drop(place(&places, "of these", 1).unwrap());
    }
}
