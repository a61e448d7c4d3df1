//! Replacing the network policy of a sandbox: all of the new one, or the old one as it was.

use std::sync::Arc;

use policy::{Floor, Policy, PolicySpec};
use serde::Serialize;
use serde_json::json;
use store::SandboxRecord;

use super::{
    Manager, blocking, joined,
    living::{HostState, Living, State},
};
use crate::{
    error::SandboxError,
    fault::Fault,
    ids::SandboxId,
    network::{Attachment, NetworkError},
};

/// Another network policy for a sandbox.
#[derive(Clone, Debug)]
pub struct PolicyChange {
    /// The policy.
    pub policy: PolicySpec,
    /// What the client is shown of it from then on.
    pub stored: serde_json::Value,
    /// Whether it may permit nothing that the one it replaces does not.
    pub only_narrower: bool,
    /// Who asks for it.
    pub by: ChangedBy,
}

/// Who asks for another policy; for the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangedBy {
    /// An API key, by its id.
    Key(String),
    /// A ratchet token, by its id.
    Ratchet(String),
}

impl Manager {
    /// Puts another policy in force, for flows that exist too; also while the sandbox is paused. It is stored before
    /// this returns, and carried out to the end even if nobody waits for it any more.
    ///
    /// Changes of one sandbox happen one after the other, each compared with the policy it replaces.
    ///
    /// # Errors
    /// [`SandboxError::InvalidPolicy`], [`SandboxError::PolicyWidens`] and [`SandboxError::PolicyKept`]: the policy
    /// is as it was.
    pub async fn set_policy(
        &self,
        account: &str,
        id: &SandboxId,
        change: PolicyChange,
    ) -> Result<SandboxRecord, SandboxError> {
        let living = self.present(account, id).await?;
        let manager = self.clone();
        joined(tokio::spawn(async move {
            let by = change.by.clone();
            let changed = manager.change_policy(&living, change).await;
            if let Err(error) = &changed {
                let detail =
                    json!({ "by": by, "generation": living.record().generation, "message": error.to_string() });
                manager.recorder(&living.record()).attempt("policy_change_refused", detail);
            }
            changed
        }))
        .await?
    }

    async fn change_policy(
        &self,
        living: &Living,
        change: PolicyChange,
    ) -> Result<SandboxRecord, SandboxError> {
        let PolicyChange { policy: spec, stored, only_narrower, by } = change;
        // Held until the end, so that the policy that is compared is the one that is replaced.
        let parts = living.parts.lock().await;
        match living.state() {
            State::Running | State::Paused => {}
            State::Creating => return Err(SandboxError::Creating),
            State::Killed => return Err(SandboxError::Killed),
        }
        let attachment = parts.attachment.as_deref().ok_or(SandboxError::Killed)?;
        let host = living.host().ok_or_else(|| Fault::new("read", "the policy in force"))?;
        let floor = self.inner.config.network.floor();
        let in_force = only_narrower.then(|| host.policy.clone());
        let (spec, policy) = blocking(move || compile(spec, floor, in_force)).await??;

        let before = living.record();
        let generation = attachment.set_policy(policy).await.map_err(SandboxError::PolicyKept)?;
        living.update(|record| {
            record.generation = generation;
            record.spec = stored;
        });
        living.ports.permit(spec.allow_public_traffic);
        living.update_host(|host| host.policy = spec);
        if let Err(error) = living.store(&self.inner.config.store).await {
            return Err(self.take_back(living, attachment, &host, &before, error.into()).await);
        }
        let detail = json!({ "by": by, "from": before.generation, "to": generation });
        self.recorder(&living.record()).lifecycle("policy_changed", detail);
        Ok(living.record())
    }

    /// Puts the policy of `host` in force again because the new one could not be stored, and gives the error to answer
    /// with.
    async fn take_back(
        &self,
        living: &Living,
        attachment: &dyn Attachment,
        host: &HostState,
        before: &SandboxRecord,
        cause: NetworkError,
    ) -> SandboxError {
        let again = match Policy::compile(&host.policy, self.inner.config.network.floor()) {
            Ok(policy) => attachment.set_policy(Arc::new(policy)).await,
            Err(error) => Err(error.into()),
        };
        match again {
            Ok(generation) => {
                living.update(|record| {
                    record.generation = generation;
                    record.spec = before.spec.clone();
                });
                living.ports.permit(host.policy.allow_public_traffic);
                living.update_host(|now| now.policy = host.policy.clone());
                SandboxError::PolicyKept(cause)
            }
            Err(error) => {
                tracing::error!(sandbox = %living.id, %error, "a policy that is not stored stays in force");
                SandboxError::PolicyNotStored(cause)
            }
        }
    }
}

/// Compiles `spec`, and compares it with the policy in force if there is one to compare it with.
fn compile(
    spec: PolicySpec,
    floor: Arc<Floor>,
    in_force: Option<PolicySpec>,
) -> Result<(PolicySpec, Arc<Policy>), SandboxError> {
    let policy = Policy::compile(&spec, floor)?;
    if let Some(in_force) = in_force {
        // What the machine's own addresses take away from either is the same, and an entry of the policy in force may
        // be one of them by now: hence over the floor that every machine has.
        policy.check_within(&Policy::compile(&in_force, Arc::new(Floor::new([])))?)?;
    }
    Ok((spec, Arc::new(policy)))
}
