//! Where a sandbox gets its network namespace from. The product's source is [`gate`]; tests of the life cycle
//! that are not about networks have their own.

use std::{error::Error, os::fd::OwnedFd, pin::Pin, sync::Arc};

use audit::Recorder;
use gate::{AttachRequest, Broken, Gate, GateStats};
use policy::{Floor, Policy};

/// Why a network could not be set up or changed.
pub type NetworkError = Box<dyn Error + Send + Sync>;

/// A future that borrows from `'a`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes the networks of sandboxes.
pub trait Network: Send + Sync + 'static {
    /// What policies are compiled over: what no entry can permit on this machine.
    fn floor(&self) -> Arc<Floor>;

    /// What there is to count about the networks; nothing where nobody counts.
    fn stats(&self) -> GateStats {
        GateStats::default()
    }

    /// The daemon is about to end, and its sandboxes are not.
    fn settle(&self) {}

    /// A namespace in which the policy is in force before the call returns.
    fn attach(&self, request: NetworkRequest) -> BoxFuture<'_, Result<Box<dyn Attachment>, NetworkError>>;
}

/// What a network is made for.
#[derive(Debug)]
pub struct NetworkRequest {
    /// The name of the sandbox.
    pub sandbox: String,
    /// Its policy.
    pub policy: Arc<Policy>,
    /// The number of the policy among those the sandbox has had, from 1.
    pub generation: u64,
    /// Where decisions are recorded.
    pub recorder: Recorder,
    /// The namespace that a sandbox already running is in; `None` to make one.
    pub namespace: Option<OwnedFd>,
}

/// The network of one sandbox.
pub trait Attachment: Send + Sync {
    /// A descriptor of the namespace, for a process that is to join it.
    fn namespace(&self) -> Result<OwnedFd, NetworkError>;

    /// Puts another policy in force. Gives its generation.
    fn set_policy(&self, policy: Arc<Policy>) -> BoxFuture<'_, Result<u64, NetworkError>>;

    /// Waits until the network is cut off for a fault. Nothing passes any more then.
    fn broken(&self) -> BoxFuture<'static, Broken>;

    /// Takes everything away that was set up. Can be called twice.
    fn detach(&self) -> BoxFuture<'_, ()>;
}

impl Network for Gate {
    fn floor(&self) -> Arc<Floor> {
        Self::floor(self)
    }

    fn stats(&self) -> GateStats {
        Self::stats(self)
    }

    fn settle(&self) {
        Self::settle(self);
    }

    fn attach(&self, request: NetworkRequest) -> BoxFuture<'_, Result<Box<dyn Attachment>, NetworkError>> {
        let NetworkRequest { sandbox, policy, generation, recorder, namespace } = request;
        let request = AttachRequest { sandbox, policy, generation, audit: recorder };
        Box::pin(async move {
            let attachment = match namespace {
                Some(namespace) => self.adopt(namespace, request).await?,
                None => Self::attach(self, request).await?,
            };
            Ok(Box::new(attachment) as Box<dyn Attachment>)
        })
    }
}

impl Attachment for gate::Attachment {
    fn namespace(&self) -> Result<OwnedFd, NetworkError> {
        Ok(self.netns().try_clone_to_owned()?)
    }

    fn set_policy(&self, policy: Arc<Policy>) -> BoxFuture<'_, Result<u64, NetworkError>> {
        Box::pin(async move { Ok(Self::set_policy(self, policy).await?) })
    }

    fn broken(&self) -> BoxFuture<'static, Broken> {
        Box::pin(Self::broken(self))
    }

    fn detach(&self) -> BoxFuture<'_, ()> {
        Box::pin(Self::detach(self))
    }
}
