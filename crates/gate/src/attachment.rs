//! The handle on one attached sandbox.

use std::{
    future::Future,
    io,
    net::TcpListener,
    os::fd::{AsFd, BorrowedFd},
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::Duration,
};

use dns::Datagrams;
use futures_util::FutureExt;
use nft::LogSocket;
use policy::{Policy, Topology};

use crate::{
    GateConfig, GateError, events,
    gate::{Shared, blocking},
    member::{Broken, Member},
    proof,
    watched::watched,
};

/// How long the kernel may keep what the uplink's packet filter has logged, with some leeway.
const HAND_OVER: Duration = Duration::from_millis(15);
/// How long is waited at most until that is read and recorded.
const CATCH_UP: Duration = Duration::from_secs(5);

/// How long is waited between finding the rules suspect and trying them: what is wrong may show many times, and the log of
/// refused packets, if it was overrun, has room again.
const SUSPICION: Duration = Duration::from_secs(1);

/// A sandbox that is attached to the gate. Dropping it detaches it.
pub struct Attachment {
    shared: Arc<Shared>,
    member: Arc<Member>,
}

/// What there is to say about an attached sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachmentInfo {
    /// Whether there is a wire now.
    pub topology: Topology,
    /// The generation of the policy in force.
    pub generation: u64,
    /// How many addresses are bound.
    pub bindings: usize,
    /// How many connections go through the proxy.
    pub flows: usize,
    /// How many of them have not shown yet what they are.
    pub half_open: usize,
}

/// The sockets inside the sandbox's namespace that tasks serve.
pub(crate) struct Listeners {
    pub(crate) log: LogSocket,
    pub(crate) dns_udp: [Datagrams; 2],
    pub(crate) dns_tcp: [TcpListener; 2],
    /// In groups, within which the kernel spreads connections.
    pub(crate) proxy: Vec<Vec<TcpListener>>,
}

impl Attachment {
    pub(crate) fn new(shared: Arc<Shared>, member: Arc<Member>) -> Self {
        Self { shared, member }
    }

    #[cfg(test)]
    pub(crate) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// The sandbox's network namespace, to be joined by its processes.
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.member.sandbox.namespace.as_fd()
    }

    /// Replaces the policy, as one generation, whose number is returned: when this returns, the whole of the new
    /// policy is in force, and the connections that it does not permit are cut.
    ///
    /// # Errors
    /// When the kernel refuses it or the sandbox is detached; the old policy is in force then as before.
    pub async fn set_policy(&self, policy: Arc<Policy>) -> Result<u64, GateError> {
        let (shared, member) = (Arc::clone(&self.shared), Arc::clone(&self.member));
        blocking(move || member.set_policy(&shared, policy)).await
    }

    /// Tries, from inside the sandbox's namespace, what its policy has to refuse and what has to pass; as it is after each
    /// change of the policy. The attempts are no events.
    ///
    /// # Errors
    /// [`GateError::Unproven`] says what did not happen as it should; nothing is done about it.
    pub async fn prove(&self) -> Result<(), GateError> {
        let member = Arc::clone(&self.member);
        blocking(move || proof::prove(&member.sandbox, &member.sandbox.force().now)).await
    }

    /// Waits until the sandbox is cut off for a fault: its rules turn out not to hold, which is tried after each change of
    /// the policy and when they are suspect, or what serves it has ended. Nothing passes any more then, and the sandbox is
    /// to be ended.
    pub fn broken(&self) -> impl Future<Output = Broken> + Send + use<> {
        let mut broken = self.member.broken.subscribe();
        async move {
            loop {
                if let Some(why) = *broken.borrow_and_update() {
                    return why;
                }
                if broken.changed().await.is_err() {
                    // It is gone without having been cut off.
                    return std::future::pending().await;
                }
            }
        }
    }

    /// What there is to say about it.
    pub fn info(&self) -> AttachmentInfo {
        let sandbox = &self.member.sandbox;
        AttachmentInfo {
            topology: if self.member.is_wired() { Topology::Wire } else { Topology::NoWire },
            generation: sandbox.force().now.generation,
            bindings: sandbox.bound(),
            flows: sandbox.flows.len(),
            half_open: sandbox.flows.half_open(),
        }
    }

    /// Cuts everything: the sockets inside are closed, connections with them, and nothing passes by the wire. The rules
    /// stay as long as the namespace does, and so do the interfaces of the wire, unless that is for long. To be called
    /// when the sandbox's processes are gone; calling it twice is fine.
    pub async fn detach(&self) {
        self.member.stop.cancel();
        self.member.tasks.close();
        let (_, retired) =
            tokio::join!(self.member.tasks.wait(), run(&self.shared, &self.member, Member::retire));
        if retired.is_err() {
            // The runtime is shutting down, and with the daemon every wire goes.
            tracing::debug!("a wire was left to the end of the daemon");
        }
        self.member.sandbox.close();
        self.release();
    }

    /// Ends what has not ended in the background, and gives the place of the wire back when the uplink's log has told
    /// what it still had to tell.
    fn release(&self) {
        let (shared, member) = (Arc::clone(&self.shared), Arc::clone(&self.member));
        self.shared.runtime.spawn(async move {
            let ended = run(&shared, &member, Member::retire).await;
            if ended.is_ok() && member.has_slot() {
                tokio::time::sleep(HAND_OVER).await;
                // If others log without end, the place must come back all the same.
                let _in_time = tokio::time::timeout(CATCH_UP, shared.uplink_log_read()).await;
                let _shutting_down = run(&shared, &member, Member::release).await;
            }
        });
    }

    /// Starts the tasks that serve the sandbox.
    pub(crate) fn serve(&self, listeners: Listeners, config: &GateConfig) -> Result<(), GateError> {
        let Listeners { log, dns_udp, dns_tcp, proxy } = listeners;
        let sandbox = &self.member.sandbox;
        let log = watched(log)?;
        let recorder = Arc::clone(sandbox);
        // It is read to its end when the sandbox is detached, which is what is waited for.
        let (reader, _reading) = events::reading();
        self.spawn(
            "the log of refused packets",
            events::follow(log, reader, self.member.stop.clone(), move |received| {
                recorder.record_refusals(received)
            }),
        );
        self.member.tasks.spawn(verify(Arc::downgrade(&self.shared), Arc::downgrade(&self.member)));
        for socket in dns_udp {
            let (zone, stop) = (Arc::clone(sandbox), self.member.stop.clone());
            let (workers, upstream) = (self.shared.workers.clone(), config.upstream.clone());
            self.spawn("the resolver", async move {
                workers.run(stop, |stop| dns::serve_udp(socket, zone, upstream, stop)).await
            });
        }
        for listener in dns_tcp {
            let (zone, stop) = (Arc::clone(sandbox), self.member.stop.clone());
            let (workers, upstream) = (self.shared.workers.clone(), config.upstream.clone());
            self.spawn("the resolver", async move {
                let serve = async |stop| {
                    dns::serve_tcp(tokio::net::TcpListener::from_std(listener)?, zone, upstream, stop).await
                };
                workers.run(stop, serve).await
            });
        }
        let (egress, stop) = (Arc::clone(sandbox), self.member.stop.clone());
        let (flows, limits) = (Arc::clone(&sandbox.flows), config.limits.flows);
        let workers = self.shared.workers.clone();
        self.spawn("the proxy", async move { workers.serve(proxy, egress, flows, limits, stop).await });
        Ok(())
    }

    /// A task whose end before it is told to stop is a fault: the sandbox would go on unserved, or unrecorded. It is cut
    /// off.
    fn spawn(&self, what: &'static str, task: impl Future<Output = io::Result<()>> + Send + 'static) {
        let (shared, member) = (Arc::downgrade(&self.shared), Arc::downgrade(&self.member));
        self.member.tasks.spawn(async move {
            let ended = AssertUnwindSafe(task).catch_unwind().await;
            let (Some(shared), Some(member)) = (shared.upgrade(), member.upgrade()) else { return };
            if member.stop.is_cancelled() || shared.is_stopping() {
                return;
            }
            let error = match ended {
                Ok(Ok(())) => "it has ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(_panic) => "it panicked".to_owned(),
            };
            tracing::error!(sandbox = member.sandbox.recorder.sandbox(), error, "{what} stopped");
            let _shutting_down = run(&shared, &member, Member::fail).await;
        });
    }
}

/// Tries the rules again whenever they are suspect.
async fn verify(shared: Weak<Shared>, member: Weak<Member>) {
    loop {
        let Some((stop, sandbox)) =
            member.upgrade().map(|member| (member.stop.clone(), Arc::clone(&member.sandbox)))
        else {
            return;
        };
        let suspicion = async {
            sandbox.suspect.notified().await;
            tokio::time::sleep(SUSPICION).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = suspicion => {}
        }
        let (Some(shared), Some(member)) = (shared.upgrade(), member.upgrade()) else { return };
        let _shutting_down = run(&shared, &member, Member::verify).await;
    }
}

async fn run(
    shared: &Arc<Shared>,
    member: &Arc<Member>,
    work: fn(&Member, &Shared),
) -> Result<(), GateError> {
    let (shared, member) = (Arc::clone(shared), Arc::clone(member));
    blocking(move || {
        work(&member, &shared);
        Ok(())
    })
    .await
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.member.stop.cancel();
        self.release();
    }
}

#[cfg(test)]
mod tests;
