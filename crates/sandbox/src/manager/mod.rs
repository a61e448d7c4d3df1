//! The manager: every sandbox of this machine, from its creation to the last trace of it.

mod admission;
mod clock;
mod create;
mod end;
mod gc;
mod history;
mod living;
mod meter;
mod operate;
mod pause;
mod policy_change;
mod ports;
mod prepare;
mod recover;
mod shells;
mod stats;
mod unrecorded;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use audit::Audit;
use init_protocol::ByteBuf;
use parking_lot::Mutex;
use policy::PolicySpec;
use store::{SandboxCursor, SandboxFilter, SandboxPage, SandboxRecord, Store};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

pub use gc::GcReport;
pub use history::{MEASURED_EVERY, MEASUREMENTS, Measurement};
pub use living::{State, stored_policy};
pub use policy_change::{ChangedBy, PolicyChange};
pub use stats::Stats;

use crate::{
    cgroup::{Hierarchies, Limits},
    error::SandboxError,
    ids::{IdPool, SandboxId},
    network::Network,
    seccomp,
    spawner::{BindMount, Spawner, SpawnerProgram},
    template::Templates,
};
use admission::Admissions;
use living::Living;
use meter::Meter;
use shells::Shells;
use stats::Counters;

/// What a manager is started with.
pub struct Config {
    /// The daemon's directory; sandboxes are kept below it.
    pub data_dir: PathBuf,
    /// The directory of templates; several daemons may share it.
    pub templates_dir: PathBuf,
    /// The program that is the first process of each sandbox.
    pub init_binary: PathBuf,
    /// The program that starts first processes: [`SpawnerProgram::this_program`] in the product.
    pub spawner: SpawnerProgram,
    /// Where sandboxes get their networks from: the gate.
    pub network: Arc<dyn Network>,
    /// Where state is kept.
    pub store: Store,
    /// Where events are recorded.
    pub audit: Audit,
    /// What a sandbox may use unless it is created with other limits.
    pub limits: Limits,
    /// How many sandboxes of one account there can be at a time.
    pub account_sandboxes: u32,
    /// The first id on the machine that sandboxes may use, and how many ranges of 65536 from there on.
    pub ids: (u32, u32),
    /// The address of the resolver inside each sandbox.
    pub nameserver: String,
}

/// Ids that systemd's register of ranges leaves unused: above those of its containers, below its foreign ones.
pub const DEFAULT_IDS: (u32, u32) = (0x7000_0000, 4094);

/// How many sandboxes of one account there can be at a time, unless the configuration says otherwise: one account does not
/// take all places of the machine.
pub const DEFAULT_ACCOUNT_SANDBOXES: u32 = 1000;

/// What a sandbox is created with.
#[derive(Clone, Debug)]
pub struct Create {
    /// The account it belongs to.
    pub account: String,
    /// The template's name, or `tpl-` and the name.
    pub template: String,
    /// How long it lives; zero is without end.
    pub timeout: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Whether it goes on when it is paused and used.
    pub auto_resume: bool,
    /// What the client attaches to it.
    pub metadata: BTreeMap<String, String>,
    /// The environment of all its commands.
    pub envs: BTreeMap<String, String>,
    /// What it may reach.
    pub policy: PolicySpec,
    /// Whether its network decisions are recorded.
    pub audit: bool,
    /// The network and security settings as the client gave them, to be shown again.
    pub stored: serde_json::Value,
    /// What it may use of the machine; `None` is the manager's default.
    pub limits: Option<Limits>,
    /// Directories of the machine to show inside.
    pub mounts: Vec<BindMount>,
    /// The idempotency key of the request, if it was begun with one: its claim says which sandbox it makes before that
    /// can live without the daemon.
    pub idempotency_key: Option<String>,
}

/// What happens when the time of a sandbox is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// It ends.
    #[default]
    Kill,
    /// It stands still until it is resumed.
    Pause,
}

impl OnTimeout {
    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
        }
    }
}

/// Which sandboxes to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only those in one of these states; empty means all but killed ones.
    pub states: Vec<State>,
    /// Only those with all of these in their metadata.
    pub metadata: BTreeMap<String, String>,
    /// At most this many.
    pub limit: Option<u32>,
    /// Only those after this place.
    pub after: Option<SandboxCursor>,
    /// After skipping this many.
    pub offset: u32,
}

/// The manager. Clones are the same one.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    sandboxes_dir: PathBuf,
    templates: Templates,
    hierarchies: Hierarchies,
    spawner: Spawner,
    ids: IdPool,
    seccomp: Vec<ByteBuf>,
    living: Mutex<HashMap<SandboxId, Arc<Living>>>,
    admissions: Arc<Admissions>,
    shells: Shells,
    /// Places for connections to ports inside.
    ports: Arc<Semaphore>,
    counters: Counters,
    meter: Meter,
    /// Told when the end of a sandbox could not be stored.
    unrecorded: Notify,
    stop: CancellationToken,
}

impl Manager {
    /// Starts a manager: makes its directories, starts the spawner, takes over the sandboxes of an earlier daemon
    /// that still run, and clears away what is left of those that do not.
    ///
    /// # Errors
    /// When the machine cannot run sandboxes, or the state cannot be read.
    pub async fn start(config: Config) -> Result<Self, SandboxError> {
        let sandboxes_dir = config.data_dir.join("sandboxes");
        prepare::make_private(&sandboxes_dir)?;
        let templates = Templates::open(&config.templates_dir)?;
        // Before the spawner is started, because it is to live in the groups that this may move the daemon to.
        let hierarchies = Hierarchies::detect(&group_name(&sandboxes_dir)?)?;
        let seccomp = seccomp::programs()
            .map_err(|error| crate::Fault::new("make the system call filter", error.to_string()))?;
        let manager = Self {
            inner: Arc::new(Inner {
                spawner: Spawner::start(config.spawner.clone())?,
                ids: IdPool::new(config.ids.0, config.ids.1),
                seccomp: seccomp.into_iter().map(ByteBuf::from).collect(),
                living: Mutex::default(),
                admissions: Arc::default(),
                shells: Shells::default(),
                ports: Arc::new(Semaphore::new(ports::OF_ALL)),
                counters: Counters::default(),
                meter: Meter::open(&config.store).await?,
                unrecorded: Notify::new(),
                stop: CancellationToken::new(),
                config,
                sandboxes_dir,
                templates,
                hierarchies,
            }),
        };
        manager.adopt_all().await?;
        manager.gc().await?;
        manager.keep_recording_ends();
        manager.keep_metering();
        manager.keep_measuring();
        Ok(manager)
    }

    /// The templates.
    pub fn templates(&self) -> &Templates {
        &self.inner.templates
    }

    /// A sandbox of this account, whatever its state.
    pub async fn get(&self, account: &str, id: &SandboxId) -> Result<SandboxRecord, SandboxError> {
        if let Some(living) = self.find(account, id) {
            return Ok(living.record());
        }
        let stored = self.inner.config.store.sandboxes().get(id.as_str()).await?;
        let mut record = stored.filter(|record| record.account == account).ok_or(SandboxError::NotFound)?;
        self.correct(&mut record);
        Ok(record)
    }

    /// The sandboxes of this account that `filter` keeps, newest first.
    pub async fn list(&self, account: &str, filter: Filter) -> Result<SandboxPage, SandboxError> {
        let states = if filter.states.is_empty() {
            &[State::Creating, State::Running, State::Paused][..]
        } else {
            &filter.states
        };
        let filter = SandboxFilter {
            account: Some(account.to_owned()),
            states: states.iter().map(|state| state.as_str().to_owned()).collect(),
            metadata: filter.metadata,
            limit: filter.limit,
            after: filter.after,
            offset: filter.offset,
        };
        let mut page = self.inner.config.store.sandboxes().list(&filter).await?;
        let before = page.sandboxes.len();
        let killed_too = states.contains(&State::Killed);
        page.sandboxes.retain_mut(|record| !self.correct(record) || killed_too);
        let gone = u64::try_from(before - page.sandboxes.len()).unwrap_or_default();
        page.total = page.total.saturating_sub(gone);
        Ok(page)
    }

    /// Accepts nothing new and lets go of the sandboxes, which run on; a later daemon takes them over. Meanwhile
    /// nothing passes their networks.
    pub fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.config.network.settle();
    }

    /// What one account can have at a time: how many sandboxes, and what each of them may use unless it is created with
    /// other limits.
    pub fn capacity(&self) -> (u32, Limits) {
        (self.inner.config.account_sandboxes, self.inner.config.limits)
    }

    fn find(&self, account: &str, id: &SandboxId) -> Option<Arc<Living>> {
        self.inner.living.lock().get(id).filter(|living| living.belongs_to(account)).cloned()
    }
}

/// The name of this daemon's control groups: two daemons with different directories do not meet.
fn group_name(sandboxes_dir: &std::path::Path) -> Result<String, SandboxError> {
    let stat = rustix::fs::stat(sandboxes_dir)
        .map_err(|error| prepare::failed("examine", sandboxes_dir, error.into()))?;
    Ok(format!("bailiwick-{:x}-{:x}", stat.st_dev, stat.st_ino))
}

/// Runs what blocks away from the runtime's own threads, to its end even if nobody waits for it any more.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, SandboxError> {
    joined(tokio::task::spawn_blocking(work)).await
}

/// What a task has brought, with its panic if it panicked.
async fn joined<T>(task: tokio::task::JoinHandle<T>) -> Result<T, SandboxError> {
    match task.await {
        Ok(result) => Ok(result),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(SandboxError::ShuttingDown),
    }
}
