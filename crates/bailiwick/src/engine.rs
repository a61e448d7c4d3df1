//! Store, audit, gate and sandbox manager, started together: what `serve`, `run` and `gc` have in common.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use audit::{Audit, AuditConfig};
use gate::{GATE_V4, Gate, GateConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sandbox::{DEFAULT_IDS, Manager, spawner::SpawnerProgram, template::Templates};
use store::Store;

use crate::config::Config;

/// The parts of a daemon, without its API.
pub(crate) struct Engine {
    store: Store,
    audit: Audit,
    manager: Manager,
}

impl Engine {
    /// Starts everything; running sandboxes are adopted.
    pub(crate) async fn start(config: &Config) -> Result<Self> {
        raise_descriptors();
        let data_dir = &config.data_dir;
        let store = Store::open(data_dir)
            .await
            .with_context(|| format!("opening the store in {}", data_dir.display()))?;
        let audit = Audit::start(
            store.clone(),
            AuditConfig { retention: config.audit_retention, ..AuditConfig::default() },
        )
        .await
        .context("starting the audit pipeline")?;
        let upstream = if config.dns.is_empty() {
            dns::Upstream::system()
        } else {
            dns::Upstream::new(dns::UpstreamConfig::new(config.dns.clone()))
        }
        .context("finding DNS servers")?;
        let daemon_id = data_dir.display().to_string();
        let gate =
            Gate::start(GateConfig { daemon_id, limits: config.limits.network, ..GateConfig::new(upstream) })
                .await;
        offer_host_template(&config.templates_dir)?;
        let manager = Manager::start(sandbox::Config {
            data_dir: data_dir.clone(),
            templates_dir: config.templates_dir.clone(),
            init_binary: init_binary()?,
            spawner: SpawnerProgram::this_program(),
            network: Arc::new(gate.context("starting the gate")?),
            store: store.clone(),
            audit: audit.clone(),
            limits: config.limits.processes,
            account_sandboxes: config.limits.account_sandboxes,
            ids: DEFAULT_IDS,
            nameserver: GATE_V4.to_string(),
        })
        .await
        .context("starting the sandbox manager")?;
        Ok(Self { store, audit, manager })
    }

    /// The store.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The audit pipeline.
    pub(crate) fn audit(&self) -> &Audit {
        &self.audit
    }

    /// The sandbox manager.
    pub(crate) fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Stops; sandboxes go on running and are adopted by the next start.
    pub(crate) async fn shutdown(self) {
        self.manager.shutdown();
        if let Err(error) = self.audit.close().await {
            tracing::error!(%error, "the last events are not recorded");
        }
        self.store.close().await;
    }
}

/// Lets the process have as many descriptors as it may: each connection through a proxy takes several, and what is usual
/// for a shell (1024) is little for many sandboxes. What runs in them has limits of its own.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, ?limit, "the limit of descriptors cannot be raised");
    }
}

/// The template `host` costs a moment, so it is there without being asked for; where the machine has no `/usr` of the
/// right shape, the other templates still work.
fn offer_host_template(directory: &Path) -> Result<()> {
    let templates = Templates::open(directory)
        .with_context(|| format!("opening the templates in {}", directory.display()))?;
    if let Err(error) = templates.ensure_host() {
        tracing::warn!(%error, "the template \"host\" is not available");
    }
    Ok(())
}

/// `bailiwick-init` beside this program.
pub(crate) fn init_binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let path = own.with_file_name("bailiwick-init");
    anyhow::ensure!(
        path.exists(),
        "{} is not there: install bailiwick-init beside bailiwick",
        path.display()
    );
    Ok(path)
}
