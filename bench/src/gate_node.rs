//! Our side of the relay figures: a gate in a process of its own on the node, as the daemon has it.

use std::{
    io::{BufRead, stdin},
    net::SocketAddr,
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use audit::{Audit, AuditConfig};
use dns::{Upstream, UpstreamConfig};
use gate::{AttachRequest, Attachment, FlowLimits, Gate, GateConfig, Limits, NameLimits, WireLimits};
use netns::NetNs;
use policy::{Policy, PolicySpec, Rate};
use store::Store;

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
        self.child.say(entry)?;
        let descriptor: i32 = self.child.hear()?.parse().context("attaching a sandbox")?;
        let path = format!("/proc/{}/fd/{descriptor}", self.child.pid());
        let namespace = NetNs::open(Path::new(&path))?;
        namespace.run(network::bound_time_wait)??;
        Ok(namespace)
    }
}

/// The child: attaches a sandbox for each line, which is an `allow_out` entry, and says its namespace's descriptor.
pub(crate) fn run(directory: &Path) -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let store = Store::open(&directory.join("data")).await?;
        let audit = Audit::start(store, AuditConfig::default()).await?;
        let upstream = Upstream::new(UpstreamConfig::new(vec![SocketAddr::from((AUTHORITY, 53))]))?;
        // What a connection costs is asked for, not how many are permitted.
        let limits = Limits {
            flows: FlowLimits { new_flows: Rate::per_second(1 << 20, 1 << 20), ..Default::default() },
            names: NameLimits { queries: Rate::per_second(1 << 20, 1 << 20), ..Default::default() },
            wires: WireLimits { max_flows: 1 << 17, new_flows: 1 << 16, burst: 1 << 16 },
            ..Limits::default()
        };
        let config = GateConfig { daemon_id: "bench".to_owned(), limits, ..GateConfig::new(upstream) };
        let gate = Gate::start(config).await?;
        anstream::println!("ready");
        let mut attached: Vec<Attachment> = Vec::new();
        loop {
            let line = tokio::task::spawn_blocking(|| stdin().lock().lines().next()).await?;
            let Some(entry) = line.transpose()? else { return Ok(()) };
            let sandbox = format!("sbx-bench{:03}", attached.len());
            let spec = PolicySpec { allow_out: vec![entry], ..PolicySpec::default() };
            let request = AttachRequest {
                audit: audit.recorder(sandbox.as_str(), true),
                sandbox,
                policy: Arc::new(Policy::compile(&spec, gate.floor())?),
                generation: 1,
            };
            let attachment = gate.attach(request).await?;
            anstream::println!("{}", attachment.netns().as_raw_fd());
            attached.push(attachment);
        }
    })
}
