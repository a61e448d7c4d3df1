//! A manager in a directory of its own, with networks that lead nowhere.

#![allow(dead_code, unreachable_pub, clippy::print_stderr, reason = "every test file uses a part of it")]

use std::{
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use audit::{Audit, AuditConfig};
use policy::{Floor, Policy, PolicySpec};
use sandbox::{
    Attachment, BoxFuture, Config, Create, DEFAULT_ACCOUNT_SANDBOXES, DEFAULT_IDS, Exec, Manager, Network,
    NetworkError, NetworkRequest, OnTimeout, Output, SandboxError, SandboxId, cgroup::Limits,
    spawner::SpawnerProgram,
};
use store::{SandboxRecord, Store, StoreError};
use sys::netns::NetNs;

pub const ACCOUNT: &str = "account";

/// Namespaces with a loopback, down, and nothing else.
pub struct Isolated;

impl Network for Isolated {
    fn floor(&self) -> Arc<Floor> {
        Arc::new(Floor::new([]))
    }

    fn attach(&self, request: NetworkRequest) -> BoxFuture<'_, Result<Box<dyn Attachment>, NetworkError>> {
        Box::pin(async move {
            let namespace = match request.namespace {
                Some(namespace) => namespace,
                None => NetNs::create_and(|| ())?.0.as_fd().try_clone_to_owned()?,
            };
            Ok(Box::new(IsolatedAttachment(namespace)) as Box<dyn Attachment>)
        })
    }
}

struct IsolatedAttachment(OwnedFd);

impl Attachment for IsolatedAttachment {
    fn namespace(&self) -> Result<OwnedFd, NetworkError> {
        Ok(self.0.try_clone()?)
    }

    fn set_policy(&self, _policy: Arc<Policy>) -> BoxFuture<'_, Result<u64, NetworkError>> {
        Box::pin(async { Ok(2) })
    }

    fn broken(&self) -> BoxFuture<'static, gate::Broken> {
        Box::pin(std::future::pending())
    }

    fn detach(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A data directory and the daemon parts on it.
pub struct Lab {
    pub manager: Manager,
    pub store: Store,
    pub audit: Audit,
    pub dir: Arc<tempfile::TempDir>,
    /// Cleared when the sandboxes are to outlive the lab.
    ends_sandboxes: bool,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.manager.shutdown();
        let close = async {
            let _ = self.audit.close().await;
            self.store.close().await;
        };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(close));
        if self.ends_sandboxes {
            end_all_below(self.dir.path());
        }
    }
}

/// Whether this machine lets the tests make sandboxes; says why not, and fails if that was asked for.
pub fn possible() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("STRICT").is_none(), "not root");
    eprintln!("SKIP not root");
    false
}

impl Lab {
    pub async fn new() -> Self {
        Self::on(Arc::new(tempfile::tempdir().expect("temporary directory"))).await
    }

    /// A lab on the directory of an earlier one.
    pub async fn on(dir: Arc<tempfile::TempDir>) -> Self {
        Self::with(dir, Arc::new(Isolated)).await
    }

    /// A lab whose sandboxes get their networks from `network`.
    pub async fn with(dir: Arc<tempfile::TempDir>, network: Arc<dyn Network>) -> Self {
        Self::configured(dir, |config| Config { network, ..config }).await
    }

    /// A lab with another configuration.
    pub async fn configured(dir: Arc<tempfile::TempDir>, configure: impl FnOnce(Config) -> Config) -> Self {
        let mut store = None;
        // The tasks of an earlier lab may take a moment to let go of it.
        eventually("the data directory is free", async || {
            match Store::open(&dir.path().join("data")).await {
                Err(StoreError::Locked { .. }) => false,
                opened => {
                    store = Some(opened.expect("store"));
                    true
                }
            }
        })
        .await;
        let store = store.expect("opened");
        let audit = Audit::start(store.clone(), AuditConfig::default()).await.expect("audit");
        let config = configure(config(&dir, store.clone(), audit.clone()));
        let manager = Manager::start(config).await.expect("manager");
        let templates = manager.templates().clone();
        tokio::task::spawn_blocking(move || templates.ensure_host())
            .await
            .expect("task")
            .expect("host template");
        Self { manager, store, audit, dir, ends_sandboxes: true }
    }

    /// Lets go of everything as a daemon does that is stopped; gives the directory.
    pub fn stop(mut self) -> Arc<tempfile::TempDir> {
        self.ends_sandboxes = false;
        Arc::clone(&self.dir)
    }

    pub async fn create(&self) -> SandboxId {
        self.create_with(request()).await.expect("sandbox").id.parse().expect("id")
    }

    pub async fn create_with(&self, request: Create) -> Result<SandboxRecord, SandboxError> {
        self.manager.create(request).await
    }

    pub async fn run_as(&self, id: &SandboxId, user: &str, command: &str) -> Output {
        let exec = Exec {
            command: command.to_owned(),
            user: Some(user.to_owned()),
            timeout: Some(Duration::from_secs(60)),
            ..Exec::default()
        };
        self.manager.exec(ACCOUNT, id, exec).await.expect("exec")
    }

    /// What a command of `user` says, which must succeed.
    pub async fn run(&self, id: &SandboxId, command: &str) -> String {
        said(self.run_as(id, "user", command).await, command)
    }

    /// What a command of root says, which must succeed.
    pub async fn run_as_root(&self, id: &SandboxId, command: &str) -> String {
        said(self.run_as(id, "root", command).await, command)
    }

    pub fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.dir.path().join("data/sandboxes").join(id.as_str())
    }
}

pub fn config(dir: &tempfile::TempDir, store: Store, audit: Audit) -> Config {
    Config {
        data_dir: dir.path().join("data"),
        templates_dir: dir.path().join("templates"),
        init_binary: init_binary(),
        spawner: SpawnerProgram { path: env!("CARGO_BIN_EXE_sandbox-spawner").into(), arguments: Vec::new() },
        network: Arc::new(Isolated),
        store,
        audit,
        limits: Limits { memory_bytes: 256 << 20, ..Limits::default() },
        account_sandboxes: DEFAULT_ACCOUNT_SANDBOXES,
        ids: DEFAULT_IDS,
        nameserver: "100.64.0.1".to_owned(),
    }
}

pub fn request() -> Create {
    Create {
        account: ACCOUNT.to_owned(),
        template: "host".to_owned(),
        timeout: Duration::from_secs(600),
        on_timeout: OnTimeout::Kill,
        auto_resume: false,
        metadata: [("purpose".to_owned(), "test".to_owned())].into(),
        envs: [("GREETING".to_owned(), "hello".to_owned())].into(),
        policy: PolicySpec::default(),
        audit: true,
        stored: serde_json::json!({ "as": "given" }),
        limits: None,
        mounts: Vec::new(),
        idempotency_key: None,
    }
}

/// Makes the store refuse every record of a sandbox until [`accept_records`], as it does when its disk is full.
pub async fn refuse_records(lab: &Lab) {
    let trigger =
        "CREATE TRIGGER refuse BEFORE INSERT ON sandboxes BEGIN SELECT RAISE(ABORT, 'refused'); END";
    beside(lab, trigger).await;
}

/// The store takes records again.
pub async fn accept_records(lab: &Lab) {
    beside(lab, "DROP TRIGGER refuse").await;
}

async fn beside(lab: &Lab, sql: &'static str) {
    use sqlx::Connection as _;
    let path = lab.dir.path().join("data").join(store::DATABASE);
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.expect("database");
    sqlx::query(sql).execute(&mut connection).await.expect(sql);
    connection.close().await.expect("close");
}

fn said(output: Output, command: &str) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    assert_eq!(output.exit_code, 0, "{command}: {} {}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// The init of the product, built once.
#[expect(clippy::disallowed_types, reason = "a test builds what it tests")]
pub fn init_binary() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let path = Path::new(env!("CARGO_BIN_EXE_sandbox-spawner")).with_file_name("bailiwick-init");
        let status = std::process::Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "init", "--bin", "bailiwick-init"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo");
        assert!(status.success() && path.exists(), "no {}", path.display());
        path
    };
    BUILT.get_or_init(build).clone()
}

/// Waits until `condition` holds, and fails when it does not within 20 s.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Ends the sandboxes of a lab, whatever state its manager is in, and removes their control groups.
fn end_all_below(dir: &Path) {
    let Ok(sandboxes) = fs::metadata(dir.join("data/sandboxes")) else { return };
    let name = format!("bailiwick-{:x}-{:x}", sandboxes.dev(), sandboxes.ino());
    for group in groups(Path::new("/sys/fs/cgroup"), &name) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let _ = fs::write(group.join("cgroup.kill"), "1");
        while group.exists() && Instant::now() < deadline {
            for below in fs::read_dir(&group).into_iter().flatten().filter_map(Result::ok) {
                let _ = fs::remove_dir(below.path());
            }
            let _ = fs::remove_dir(&group);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Everything on this machine that carries the name of a sandbox: processes, mounts, control groups, files.
pub fn traces(lab_dir: &Path, id: &SandboxId) -> Vec<String> {
    let mut traces = Vec::new();
    let id = id.as_str();
    let sandboxes = lab_dir.join("data/sandboxes");
    if sandboxes.join(id).exists() {
        traces.push(sandboxes.join(id).display().to_string());
    }
    for line in fs::read_to_string("/proc/self/mountinfo").expect("mountinfo").lines() {
        if line.contains(id) || line.contains(&*lab_dir.to_string_lossy()) {
            traces.push(line.to_owned());
        }
    }
    for group in groups(Path::new("/sys/fs/cgroup"), id) {
        traces.push(group.display().to_string());
    }
    for entry in fs::read_dir("/proc").expect("proc").filter_map(Result::ok) {
        let of_sandbox = |file: &str| {
            let text = fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            text.lines().any(|line| line.ends_with(&format!("/{id}")))
        };
        if entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
            && of_sandbox("cgroup")
        {
            traces.push(entry.path().display().to_string());
        }
    }
    traces
}

pub fn groups(below: &Path, id: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(below).into_iter().flatten().filter_map(Result::ok);
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories
        .flat_map(|entry| {
            let path = entry.path();
            if entry.file_name() == id { vec![path] } else { groups(&path, id) }
        })
        .collect()
}
