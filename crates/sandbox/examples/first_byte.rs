//! Measures how long a sandbox takes from the request to the first byte a command writes, and to its end.
//!
//! `cargo run --release -p sandbox --example first_byte -- <init> <spawner> [count] [shells] [allow entry]`. Everything is in
//! a temporary directory below the current one; `shells` are kept ready. Nothing is looked up or connected to.

#![expect(clippy::print_stdout, reason = "a measurement says what it measured")]

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use audit::{Audit, AuditConfig};
use dns::{Upstream, UpstreamConfig};
use gate::{Gate, GateConfig};
use policy::PolicySpec;
use sandbox::{
    CommandEvent, Config, Create, DEFAULT_ACCOUNT_SANDBOXES, DEFAULT_IDS, Exec, Manager, OnTimeout,
    SandboxId, cgroup::Limits, spawner::SpawnerProgram,
};
use store::Store;

const ACCOUNT: &str = "measurement";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let init = PathBuf::from(arguments.next().context("the path of init")?);
    let spawner = PathBuf::from(arguments.next().context("the path of the spawner")?);
    let count = arguments.next().map_or(Ok(50), |count| count.parse())?;
    let shells = arguments.next().map_or(Ok(0), |shells| shells.parse())?;
    let allow = arguments.next();

    let dir = tempfile::tempdir_in(".")?;
    let store = Store::open(&dir.path().join("data")).await?;
    let audit = Audit::start(store.clone(), AuditConfig::default()).await?;
    let upstream = Upstream::new(UpstreamConfig::new(vec!["127.0.0.1:53".parse()?]))?;
    let gate = Gate::start(GateConfig::new(upstream)).await?;
    let config = Config {
        data_dir: dir.path().join("data"),
        templates_dir: dir.path().join("templates"),
        init_binary: init,
        spawner: SpawnerProgram { path: spawner, arguments: Vec::new() },
        network: Arc::new(gate),
        store: store.clone(),
        audit: audit.clone(),
        limits: Limits::default(),
        account_sandboxes: DEFAULT_ACCOUNT_SANDBOXES,
        ids: DEFAULT_IDS,
        nameserver: "100.64.0.1".to_owned(),
    };
    let manager = Manager::start(config).await?;
    let templates = manager.templates().clone();
    tokio::task::spawn_blocking(move || templates.ensure_host()).await??;

    if shells > 0 {
        manager.keep_ready(shells);
    }
    let mut times: [Vec<Duration>; 3] = Default::default();
    for _ in 0..count {
        for (times, time) in times.iter_mut().zip(one(&manager, allow.clone()).await?) {
            times.push(time);
        }
    }
    for (what, times) in ["created", "first byte", "killed"].into_iter().zip(&mut times) {
        times.sort_unstable();
        let at = |part: usize| {
            times.get((times.len() * part / 100).min(times.len() - 1)).copied().unwrap_or_default()
        };
        println!(
            "{what:>10}: min {:.1?}  p50 {:.1?}  p90 {:.1?}  max {:.1?}",
            at(0),
            at(50),
            at(90),
            at(100)
        );
    }
    manager.shutdown();
    audit.close().await?;
    Ok(())
}

/// One sandbox: until it is there, until its command has written, and how long killing it takes.
async fn one(manager: &Manager, allow: Option<String>) -> anyhow::Result<[Duration; 3]> {
    let request = Create {
        account: ACCOUNT.to_owned(),
        template: "host".to_owned(),
        timeout: Duration::from_secs(60),
        on_timeout: OnTimeout::Kill,
        auto_resume: false,
        metadata: Default::default(),
        envs: Default::default(),
        policy: PolicySpec {
            allow_out: allow.into_iter().collect(),
            deny_out: vec!["0.0.0.0/0".to_owned()],
            ..PolicySpec::default()
        },
        audit: true,
        stored: serde_json::Value::Null,
        limits: None,
        mounts: Vec::new(),
        idempotency_key: None,
    };
    let start = Instant::now();
    let id: SandboxId = manager.create(request).await?.id.parse()?;
    let created = start.elapsed();
    let exec = Exec { command: "echo x".to_owned(), ..Exec::default() };
    let mut command = manager.exec_streaming(ACCOUNT, &id, exec).await?;
    let event = command.next().await?;
    let first_byte = start.elapsed();
    anyhow::ensure!(matches!(event, Some(CommandEvent::Stdout(_))), "{event:?}");
    while command.next().await?.is_some() {}
    let start = Instant::now();
    manager.kill(ACCOUNT, &id).await?;
    Ok([created, first_byte, start.elapsed()])
}
