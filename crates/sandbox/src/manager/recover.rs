//! After a restart of the daemon: its sandboxes still run.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use init_protocol::{InitFrame, Request};
use policy::Policy;
use serde_json::json;
use store::{SandboxFilter, SandboxRecord};
use tokio::time::timeout;

use super::{
    Manager,
    clock::Uptime,
    create::chain,
    end::Reason,
    living::{HostState, Living, Parts, State},
    stats::Counters,
};
use crate::{
    client::InitClient, error::SandboxError, fault::Fault, ids::SandboxId, network::NetworkRequest,
    process::Process,
};

/// How many sandboxes are taken over at the same time.
const ADOPTED_AT_ONCE: usize = 64;

/// How long init may take to answer the new daemon.
const ANSWER: Duration = Duration::from_secs(5);

impl Manager {
    /// Takes over every sandbox that the store says is alive; what cannot be taken over is ended.
    pub(super) async fn adopt_all(&self) -> Result<(), SandboxError> {
        let states = [State::Creating, State::Running, State::Paused];
        let filter = SandboxFilter {
            states: states.iter().map(|state| state.as_str().to_owned()).collect(),
            ..SandboxFilter::default()
        };
        let found = self.inner.config.store.sandboxes().list(&filter).await?;
        let mut adopted = Vec::new();
        for record in found.sandboxes {
            let Ok(id) = record.id.parse::<SandboxId>() else { continue };
            let living = Living::new(id.clone(), InitClient::new(self.directory(&id).socket()), record);
            let living = Arc::new(living);
            self.inner.living.lock().insert(id, Arc::clone(&living));
            adopted.push(living);
        }
        // One that does not answer takes its time, and the API is not there before the last of them.
        let adopting = adopted.iter().map(|living| self.adopt_or_end(living));
        stream::iter(adopting).buffer_unordered(ADOPTED_AT_ONCE).collect::<()>().await;
        Ok(())
    }

    async fn adopt_or_end(&self, living: &Arc<Living>) {
        if let Err(error) = self.adopt(living).await {
            tracing::warn!(sandbox = %living.id, error = %chain(&error), "cannot take it over, so it ends");
            self.end_and_log(living, Reason::Lost).await;
        }
    }

    async fn adopt(&self, living: &Arc<Living>) -> Result<(), SandboxError> {
        let mut parts = living.parts.lock().await;
        let lost = |what: &str| Fault::new("find", what.to_owned());
        let host = living.host().ok_or_else(|| lost("where it runs"))?;
        // First what is needed to end it, should anything below fail.
        parts.cgroups = host.cgroups.clone();
        if self.inner.ids.claim(host.first_id) {
            parts.first_id = Some(host.first_id);
        }
        let identity = host.process.as_ref().ok_or_else(|| lost("its first process"))?;
        let process = Process::find(identity).map_err(|error| lost(&error.to_string()))?;
        let process = Arc::new(process.ok_or_else(|| lost("its first process"))?);
        parts.process = Some(Arc::clone(&process));
        if parts.first_id.is_none() {
            return Err(lost("its range of user ids").into());
        }
        if living.state() == State::Creating {
            return Err(lost("the end of its creation").into());
        }
        parts.template = self.inner.templates.get(&living.record().template_id).ok();
        self.attach_again(living, &mut parts, &host, &process).await?;
        self.freeze_as_recorded(living, &parts).await?;
        if living.state() == State::Running {
            answers(&living.init).await?;
        }
        // Nothing, of one that an earlier version has made.
        if living.state() == State::Running && living.running_since().is_none() {
            living.set_running_since(Some(Uptime::now()));
        }
        drop(parts);
        Counters::add(&self.inner.counters.adopted);
        let away = living.end_at.borrow().is_some_and(|end| end <= Uptime::now());
        self.recorder(&living.record()).lifecycle("sandbox_adopted", json!({ "expired": away }));
        self.watch_over(living);
        Ok(())
    }

    async fn attach_again(
        &self,
        living: &Living,
        parts: &mut Parts,
        host: &HostState,
        process: &Process,
    ) -> Result<(), SandboxError> {
        let network = &self.inner.config.network;
        let record: SandboxRecord = living.record();
        // The floor may have changed since; a policy that no longer compiles must not stay in force.
        let policy = Arc::new(Policy::compile(&host.policy, network.floor())?);
        let failed = |source| SandboxError::Network { action: "take over", source };
        let namespace = process.network_namespace().map_err(|error| failed(error.into()))?;
        let request = NetworkRequest {
            sandbox: record.id.clone(),
            policy,
            generation: record.generation,
            recorder: self.recorder(&record),
            namespace: Some(namespace),
        };
        parts.attachment = Some(network.attach(request).await.map_err(failed)?);
        Ok(())
    }
}

async fn answers(init: &InitClient) -> Result<(), SandboxError> {
    match timeout(ANSWER, init.ask(Request::Ping)).await {
        Ok(Ok(InitFrame::Done)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Ok(Ok(other)) => Err(crate::client::unexpected(&other)),
        Err(_) => Err(SandboxError::InitUnreachable(format!("no answer in {} s", ANSWER.as_secs()))),
    }
}
