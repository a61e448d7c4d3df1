//! Our side of the relay figures: a gate in a process of its own on the node, as the daemon has it.

use std::{
    io::{BufRead, stdin},
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result};
use audit::{Audit, AuditConfig};
use dns::{Upstream, UpstreamConfig};
use gate::{AttachRequest, Attachment, FlowLimits, Gate, GateConfig, Limits, NameLimits, WireLimits};
use netns::NetNs;
use policy::{Policy, PolicySpec, Rate};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use store::{EventQuery, Store};

use crate::{
    child::{self, Child},
    network::{self, AUTHORITY, Network},
};

/// A gate, and the sandboxes' namespaces that it made.
pub(crate) struct GateNode {
    child: Child,
    _directory: tempfile::TempDir,
}

impl GateNode {
    /// Starts a gate on the node.
    pub(crate) fn start(network: &Network) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut command = child::own(["gate"])?;
        command.arg(directory.path());
        let mut child = Child::start(&network.node, command)?;
        child.hear().context("starting the gate")?;
        Ok(Self { child, _directory: directory })
    }

    /// The namespace of a new sandbox under a policy with this one `allow_out` entry.
    pub(crate) fn attach(&mut self, entry: &str) -> Result<NetNs> {
        let descriptor: i32 = self.ask(Request::Attach(entry.to_owned()))?;
        let path = format!("/proc/{}/fd/{descriptor}", self.child.pid());
        let namespace = NetNs::open(Path::new(&path))?;
        namespace.run(network::bound_time_wait)??;
        Ok(namespace)
    }

    /// How long it takes to prove the rules of the sandbox that was attached last, in µs.
    pub(crate) fn prove(&mut self) -> Result<f64> {
        self.ask(Request::Prove)
    }

    /// How many refusals of the sandbox that was attached last are accounted for: recorded, or counted as a gap.
    pub(crate) fn accounted(&mut self) -> Result<u64> {
        self.ask(Request::Accounted)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: Request) -> Result<T> {
        self.child.say(&serde_json::to_string(&request)?)?;
        let answer = self.child.hear()?;
        serde_json::from_str(&answer).with_context(|| format!("{request:?}: {answer}"))
    }
}

/// What the child is asked for, a line of JSON each; it answers with a number.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Attach a sandbox with this `allow_out` entry: its namespace's descriptor.
    Attach(String),
    /// Prove the rules of the last one: the time in µs.
    Prove,
    /// The refusals of the last one that are accounted for.
    Accounted,
}

/// The child: does what each line asks for, and says the answer.
pub(crate) fn run(directory: &Path) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut node = Node::start(directory).await?;
        anstream::println!("ready");
        loop {
            let line = tokio::task::spawn_blocking(|| stdin().lock().lines().next()).await?;
            let Some(line) = line.transpose()? else { return Ok(()) };
            match serde_json::from_str(&line)? {
                Request::Attach(entry) => anstream::println!("{}", node.attach(entry).await?),
                Request::Prove => anstream::println!("{}", node.prove().await?),
                Request::Accounted => anstream::println!("{}", node.accounted().await?),
            }
        }
    })
}

struct Node {
    gate: Gate,
    store: Store,
    audit: Audit,
    attached: Vec<(String, Attachment)>,
}

impl Node {
    async fn start(directory: &Path) -> Result<Self> {
        let store = Store::open(&directory.join("data")).await?;
        let audit = Audit::start(store.clone(), AuditConfig::default()).await?;
        let upstream = Upstream::new(UpstreamConfig::new(vec![SocketAddr::from((AUTHORITY, 53))]))?;
        // What a connection or a name costs is asked for, not how many are permitted.
        let many = Rate::per_second(1 << 20, 1 << 20);
        let limits = Limits {
            flows: FlowLimits { new_flows: many, ..Default::default() },
            names: NameLimits { queries: many, zone_names: many, zone_bytes: many, ..Default::default() },
            wires: WireLimits { max_flows: 1 << 17, new_flows: 1 << 16, burst: 1 << 16 },
            ..Limits::default()
        };
        let config = GateConfig { daemon_id: "bench".to_owned(), limits, ..GateConfig::new(upstream) };
        let gate = Gate::start(config).await?;
        Ok(Self { gate, store, audit, attached: Vec::new() })
    }

    async fn attach(&mut self, entry: String) -> Result<RawFd> {
        let sandbox = format!("sbx-bench{:03}", self.attached.len());
        let spec = PolicySpec { allow_out: vec![entry], ..PolicySpec::default() };
        let request = AttachRequest {
            audit: self.audit.recorder(sandbox.as_str(), true),
            sandbox: sandbox.clone(),
            policy: Arc::new(Policy::compile(&spec, self.gate.floor())?),
            generation: 1,
        };
        let attachment = self.gate.attach(request).await?;
        let descriptor = attachment.netns().as_raw_fd();
        self.attached.push((sandbox, attachment));
        Ok(descriptor)
    }

    async fn prove(&self) -> Result<f64> {
        let (_, last) = self.attached.last().context("nothing is attached")?;
        let begun = Instant::now();
        last.prove().await?;
        Ok(begun.elapsed().as_secs_f64() * 1e6)
    }

    async fn accounted(&self) -> Result<u64> {
        let (sandbox, last) = self.attached.last().context("nothing is attached")?;
        // Its end has the kernel's last counts.
        last.detach().await;
        self.audit.flush().await?;
        let mut query =
            EventQuery { sandbox: Some(sandbox.clone()), limit: Some(1000), ..Default::default() };
        let mut count = 0;
        loop {
            let page = self.store.events().query(&query).await?;
            let refusals =
                page.events.iter().filter(|event| ["egress_blocked", "audit_gap"].contains(&&*event.kind));
            count += refusals.map(|event| event.count).sum::<u64>();
            query.cursor = page.next;
            if query.cursor.is_none() {
                return Ok(count);
            }
        }
    }
}
