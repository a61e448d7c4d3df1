//! Whole sandboxes, through the API of the built daemon, and `runc` beside them.

mod streams;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::{Client, Lab, LabConfig, Method, Zone};

use crate::{
    Settings,
    figure::{Figure, Peer, Target, Unit},
    memory::Usage,
    peers::Runc,
    policy_change::{self, Open},
    statistics::{median, percentile},
};

const GROUPS: [&str; 9] =
    ["start", "create-rate", "command", "policy-change", "terminal", "output", "files", "crowd", "idle"];

/// Measures what is asked for of it.
pub(crate) fn measure(settings: &Settings) -> Result<Vec<Figure>> {
    if !GROUPS.iter().any(|group| settings.wants(group)) {
        return Ok(Vec::new());
    }
    let directory = tempfile::Builder::new().prefix("bailiwick-bench-").tempdir()?;
    let template = if settings.templates.join("python/rootfs").exists() { "python" } else { "host" };
    let mut lab = Lab::start(LabConfig {
        zone: Zone::standard(),
        program: testkit::sibling("bailiwick")?,
        templates: Some(settings.templates.clone()),
        directory: directory.path().to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
    })?;
    let daemon = lab.daemon().pid();
    let (api, key) = (lab.daemon().api(), lab.key().to_owned());
    let rootfs = settings.templates.join(template).join("rootfs");
    // On the node, where the daemon listens: the lab's way in for the machine costs a hop.
    let node = lab.world().node();
    node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let client = Client::connect(api, &key).await?;
            let place = directory.path().to_owned();
            Session { client, api, key, settings, template, rootfs, place, daemon }.measure().await
        })
    })?
}

struct Session<'a> {
    client: Client,
    /// For further connections.
    api: SocketAddr,
    key: String,
    settings: &'a Settings,
    template: &'static str,
    rootfs: PathBuf,
    /// On the file system that the sandboxes are on.
    place: PathBuf,
    daemon: u32,
}

impl Session<'_> {
    async fn measure(mut self) -> Result<Vec<Figure>> {
        // The first one of a template may make things that stay.
        let first = self.create().await?;
        self.kill(&first).await?;
        let mut figures = Vec::new();
        if self.settings.wants("start") {
            figures.push(self.start().await?);
        }
        if self.settings.wants("create-rate") {
            figures.extend(self.create_rate().await?);
        }
        if self.settings.wants("command") {
            figures.push(self.command().await?);
        }
        if self.settings.wants("policy-change") {
            figures.push(self.policy_change().await?);
        }
        if self.settings.wants("terminal") {
            figures.push(self.echo().await?);
        }
        if self.settings.wants("output") {
            figures.extend(self.output().await?);
        }
        if self.settings.wants("files") {
            figures.extend(self.files().await?);
        }
        if self.settings.wants("crowd") {
            figures.push(self.crowd().await?);
        }
        if self.settings.wants("idle") {
            figures.extend(self.idle().await?);
        }
        Ok(figures)
    }

    /// Creating a sandbox and reading the whole answer of `echo hi`, against the first byte of `runc run`.
    async fn start(&mut self) -> Result<Figure> {
        let mut runc = self.runc()?;
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..self.settings.times(100) {
            let begun = Instant::now();
            let id = self.create().await?;
            let answer = self.exec(&id, "echo hi").await?;
            ours.push(milliseconds(begun));
            anyhow::ensure!(answer["stdout"] == "hi\n", "echo hi: {answer}");
            self.kill(&id).await?;
            if let Some(runc) = &mut runc {
                peers.push(runc.first_byte()?.as_secs_f64() * 1e3);
            }
        }
        Ok(Figure {
            name: "start".to_owned(),
            what: "POST /sandboxes → output of `echo hi`, p50".to_owned(),
            unit: Unit::Milliseconds,
            ours,
            peer: runc.map(|_| Peer { name: "runc run", values: peers }),
            target: Target::AtMostAndPeer(15.0),
        })
    }

    /// Creating and killing, one after the other; each call answers when it is done.
    async fn create_rate(&mut self) -> Result<Vec<Figure>> {
        let (mut rates, mut creating, mut killing) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.settings.rounds().min(3) {
            let count = self.settings.times(200);
            let all = Instant::now();
            for _ in 0..count {
                let begun = Instant::now();
                let id = self.create().await?;
                creating.push(milliseconds(begun));
                let begun = Instant::now();
                self.kill(&id).await?;
                killing.push(milliseconds(begun));
            }
            rates.push(per_second(count, all));
        }
        let figure = |name: &str, what: &str, unit, ours, target| Figure {
            name: format!("create-rate{name}"),
            what: what.to_owned(),
            unit,
            ours,
            peer: None,
            target,
        };
        Ok(vec![
            figure(
                "",
                "sandboxes created and killed, one client",
                Unit::PerSecond,
                rates,
                Target::AtLeast(60.0),
            ),
            figure(".create", "of that: POST /sandboxes, p50", Unit::Milliseconds, creating, Target::None),
            figure(
                ".kill",
                "of that: DELETE until all is gone, p50",
                Unit::Milliseconds,
                killing,
                Target::None,
            ),
        ])
    }

    async fn command(&mut self) -> Result<Figure> {
        let id = self.create().await?;
        let mut times = Vec::new();
        for _ in 0..self.settings.times(500) {
            let begun = Instant::now();
            self.exec(&id, "true").await?;
            times.push(milliseconds(begun));
        }
        self.kill(&id).await?;
        Ok(Figure {
            name: "command".to_owned(),
            what: "command round trip (`true`), p50".to_owned(),
            unit: Unit::Milliseconds,
            ours: times,
            peer: None,
            target: Target::AtMost(3.0),
        })
    }

    /// From asking for another policy until nothing of the old one passes any more.
    async fn policy_change(&mut self) -> Result<Figure> {
        let id = self.create().await?;
        let name = self.exec(&id, "readlink /proc/self/ns/net").await?;
        let namespace = policy_change::namespace(name["stdout"].as_str().unwrap_or_default())?;
        let path = format!("/sandboxes/{id}/network");
        let mut times = Vec::new();
        for _ in 0..self.settings.times(100) {
            let before = json!({ "allow_out": [policy_change::BEFORE] });
            self.client.expect(Method::PUT, &path, Some(&before)).await?;
            let open = Open::new(&namespace)?;
            let asked = Instant::now();
            let after = json!({ "allow_out": [policy_change::AFTER] });
            self.client.expect(Method::PUT, &path, Some(&after)).await?;
            times.push(open.ended()?.duration_since(asked).as_secs_f64() * 1e3);
            // A sandbox may not begin so many connections a second for long.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.kill(&id).await?;
        Ok(Figure {
            name: "policy-change".to_owned(),
            what: format!("PUT network in force, {} connections cut, p99", policy_change::CONNECTIONS),
            unit: Unit::Milliseconds,
            ours: vec![percentile(&times, 0.99)],
            peer: None,
            target: Target::AtMost(50.0),
        })
    }

    /// Many sandboxes that do nothing.
    async fn idle(&mut self) -> Result<Vec<Figure>> {
        let count = self.settings.times(500);
        let before = Usage::read(self.daemon)?;
        let (mut ids, mut times) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let begun = Instant::now();
            ids.push(self.create().await?);
            times.push(milliseconds(begun));
        }
        let after = Usage::read(self.daemon)?;
        for id in &ids {
            self.kill(id).await?;
        }
        let some = (count / 10).max(1);
        let first = median(times.get(..some).unwrap_or_default());
        let last = median(times.get(count - some..).unwrap_or_default());
        let each = |kibibytes: u64| {
            #[expect(clippy::cast_precision_loss, reason = "a figure, not a count")]
            let each = kibibytes as f64 / 1024.0 / count as f64;
            each
        };
        let counted = (after.kernel + after.processes).saturating_sub(before.kernel + before.processes);
        let unavailable = before.available.saturating_sub(after.available);
        let figure = |name: &str, what: String, unit, value, target| Figure {
            name: format!("idle.{name}"),
            what,
            unit,
            ours: vec![value],
            peer: None,
            target,
        };
        Ok(vec![
            figure(
                "memory",
                format!("idle sandbox of {count}: kernel, init, daemon"),
                Unit::Mebibytes,
                each(counted),
                Target::AtMost(2.0),
            ),
            figure(
                "available",
                format!("idle sandbox of {count}: fall of MemAvailable, the whole machine's"),
                Unit::Mebibytes,
                each(unavailable),
                Target::None,
            ),
            figure(
                "growth",
                format!("creating the last {some} of {count}, in terms of the first {some}"),
                Unit::Times,
                if first > 0.0 { last / first } else { 0.0 },
                Target::AtMost(1.5),
            ),
        ])
    }

    fn runc(&self) -> Result<Option<Runc>> {
        if !is_installed("runc") {
            anstream::eprintln!("runc is not there: not measured against");
            return Ok(None);
        }
        Runc::prepare(&self.rootfs, self.template == "host").map(Some)
    }

    async fn create(&mut self) -> Result<String> {
        let request = json!({
            "template": self.template, "timeout": 600, "network": { "allow_out": ["api.github.com"] },
        });
        let made = self.client.expect(Method::POST, "/sandboxes", Some(&request)).await?;
        Ok(made["sandbox_id"].as_str().context("the API gave no sandbox_id")?.to_owned())
    }

    async fn kill(&mut self, id: &str) -> Result<Value> {
        self.client.expect(Method::DELETE, &format!("/sandboxes/{id}"), None).await
    }

    async fn exec(&mut self, id: &str, command: &str) -> Result<Value> {
        let request = json!({ "cmd": command, "timeout": 60 });
        self.client.expect(Method::POST, &format!("/sandboxes/{id}/commands"), Some(&request)).await
    }
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| Path::new(&directory).join(program).exists())
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn per_second(count: usize, since: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "there are far fewer than 2^52 of them")]
    let count = count as f64;
    count / since.elapsed().as_secs_f64()
}
