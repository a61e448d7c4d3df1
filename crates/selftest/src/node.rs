//! Store, audit, gate and sandbox manager on the node, as a daemon has them.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use audit::{Audit, AuditConfig};
use dns::{Upstream, UpstreamConfig};
use gate::{GATE_V4, Gate, GateConfig};
use parking_lot::Mutex;
use policy::{Floor, PolicySpec};
use sandbox::{
    Attachment, BoxFuture, ChangedBy, Create, DEFAULT_ACCOUNT_SANDBOXES, DEFAULT_IDS, Manager, Network,
    NetworkError, NetworkRequest, OnTimeout, PolicyChange, SandboxId, cgroup::Limits,
    spawner::SpawnerProgram, template::Templates,
};
use store::{EventQuery, EventRecord, Store};

use crate::{Options, inside, world::WORLD};

/// The account of the sandboxes.
pub(crate) const ACCOUNT: &str = "selftest";
const DNS: u16 = 53;

/// The parts of a daemon.
pub(crate) struct Node {
    pub(crate) manager: Manager,
    gate: Gate,
    store: Store,
    audit: Audit,
    /// The network namespaces of the sandboxes, in the order in which they were made.
    namespaces: Arc<Mutex<Vec<OwnedFd>>>,
}

impl Node {
    /// Starts everything. To be called on the node, with state in `directory`. `machine` are the addresses of the
    /// machine itself, which are on the floor of every policy here as they are there.
    pub(crate) async fn start(options: &Options, directory: &Path, machine: &[IpAddr]) -> Result<Self> {
        let data_dir = directory.join("data");
        let store = Store::open(&data_dir).await.context("opening a store")?;
        let audit = Audit::start(store.clone(), AuditConfig::default())
            .await
            .context("starting the audit pipeline")?;
        let [authority, _] = WORLD;
        let upstream = Upstream::new(UpstreamConfig::new(vec![SocketAddr::new(authority, DNS)]))?;
        let daemon_id = data_dir.display().to_string();
        let config = GateConfig { daemon_id, protected: machine.to_vec(), ..GateConfig::new(upstream) };
        let gate = Gate::start(config).await.context("starting the gate")?;
        let namespaces = Arc::<Mutex<Vec<OwnedFd>>>::default();
        let templates = Templates::open(&options.templates_dir)
            .with_context(|| format!("opening the templates in {}", options.templates_dir.display()))?;
        if options.template == "host" {
            templates.ensure_host().context("making the template \"host\"")?;
        }
        let manager = Manager::start(sandbox::Config {
            data_dir,
            templates_dir: options.templates_dir.clone(),
            init_binary: options.init_binary.clone(),
            spawner: SpawnerProgram::this_program(),
            network: Arc::new(Known { gate: gate.clone(), namespaces: Arc::clone(&namespaces) }),
            store: store.clone(),
            audit: audit.clone(),
            limits: Limits::default(),
            account_sandboxes: DEFAULT_ACCOUNT_SANDBOXES,
            ids: DEFAULT_IDS,
            nameserver: GATE_V4.to_string(),
        })
        .await
        .context("starting the sandbox manager")?;
        Ok(Self { manager, gate, store, audit, namespaces })
    }

    /// What policies are compiled over here.
    pub(crate) fn floor(&self) -> Arc<Floor> {
        self.gate.floor()
    }

    /// Makes a sandbox under this policy, with the probe in it.
    pub(crate) async fn sandbox(&self, options: &Options, policy: PolicySpec) -> Result<SandboxId> {
        let create = Create {
            account: ACCOUNT.to_owned(),
            template: options.template.clone(),
            timeout: Duration::ZERO,
            metadata: [("purpose".to_owned(), "selftest".to_owned())].into(),
            envs: [].into(),
            policy,
            audit: true,
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
            stored: serde_json::Value::Null,
            limits: None,
            mounts: vec![inside::mount(&options.probe)],
            idempotency_key: None,
        };
        let record = self.manager.create(create).await.context("making the sandbox")?;
        record.id.parse().context("the sandbox's own id")
    }

    /// Gives a sandbox another policy.
    pub(crate) async fn set_policy(&self, id: &SandboxId, policy: PolicySpec) -> Result<()> {
        let change = PolicyChange {
            policy,
            stored: serde_json::Value::Null,
            only_narrower: false,
            by: ChangedBy::Key(ACCOUNT.to_owned()),
        };
        self.manager.set_policy(ACCOUNT, id, change).await.context("replacing the policy")?;
        Ok(())
    }

    /// The network namespace of the sandbox that was made last.
    pub(crate) fn namespace(&self) -> Result<OwnedFd> {
        let namespaces = self.namespaces.lock();
        let last = namespaces.last().context("no sandbox has a network namespace")?;
        Ok(last.try_clone()?)
    }

    /// All events of a sandbox.
    pub(crate) async fn events(&self, id: &SandboxId) -> Result<Vec<EventRecord>> {
        self.audit.flush().await?;
        let mut events = Vec::new();
        let mut query = EventQuery {
            sandbox: Some(id.to_string()),
            limit: Some(store::MAX_PAGE),
            ..EventQuery::default()
        };
        loop {
            let page = self.store.events().query(&query).await?;
            events.extend(page.events);
            match page.next {
                Some(next) => query.cursor = Some(next),
                None => return Ok(events),
            }
        }
    }

    /// Ends the sandboxes and stops.
    pub(crate) async fn stop(self, sandboxes: &[SandboxId]) -> Result<()> {
        let mut ended = Ok(());
        for id in sandboxes {
            if let Err(error) = self.manager.kill(ACCOUNT, id).await {
                ended = Err(error).with_context(|| format!("ending the sandbox {id}"));
            }
        }
        self.manager.shutdown();
        // The events have been read, and go with their directory.
        let _closed = self.audit.close().await;
        self.store.close().await;
        ended
    }
}

/// The gate, and the namespaces that it made.
struct Known {
    gate: Gate,
    namespaces: Arc<Mutex<Vec<OwnedFd>>>,
}

impl Network for Known {
    fn floor(&self) -> Arc<Floor> {
        self.gate.floor()
    }

    fn attach(&self, request: NetworkRequest) -> BoxFuture<'_, Result<Box<dyn Attachment>, NetworkError>> {
        Box::pin(async move {
            let attachment = Network::attach(&self.gate, request).await?;
            self.namespaces.lock().push(attachment.namespace()?);
            Ok(attachment)
        })
    }
}
