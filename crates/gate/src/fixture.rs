//! A gate for tests that look inside: on a machine of its own, which is a network namespace where nobody is.
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use audit::{Audit, AuditConfig};
use dns::{Upstream, UpstreamConfig};
use netns::NetNs;
use policy::{Floor, Policy, PolicySpec};
use store::Store;
use tokio::time::timeout;

use crate::{AttachRequest, Attachment, Gate, GateConfig, Limits};

/// What takes longer hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A gate, and what its sandboxes are recorded by.
pub(crate) struct Fixture {
    pub(crate) gate: Gate,
    audit: Audit,
}

impl Fixture {
    /// With its data in this directory.
    pub(crate) async fn start(directory: &Path) -> Self {
        Self::with(directory, Limits::default()).await
    }

    /// As [`Self::start`], with these limits.
    pub(crate) async fn with(directory: &Path, limits: Limits) -> Self {
        let store = Store::open(&directory.join("data")).await.unwrap();
        let audit = Audit::start(store, AuditConfig::default()).await.unwrap();
        let upstream = Upstream::new(UpstreamConfig::new(vec!["127.0.0.1:9".parse().unwrap()])).unwrap();
        let config = GateConfig { limits, ..GateConfig::new(upstream) };
        Self { gate: Gate::start(config).await.unwrap(), audit }
    }

    /// For a sandbox under these entries, compiled over this floor.
    pub(crate) fn request(&self, name: &str, entries: &[&str], floor: Arc<Floor>) -> AttachRequest {
        AttachRequest {
            sandbox: name.to_owned(),
            policy: Arc::new(Policy::compile(&allow(entries), floor).unwrap()),
            generation: 1,
            audit: self.audit.recorder(name, true),
        }
    }

    /// A sandbox under these entries.
    pub(crate) async fn attach(&self, name: &str, entries: &[&str]) -> Attachment {
        self.gate.attach(self.request(name, entries, self.gate.floor())).await.unwrap()
    }
}

/// Two sandboxes of a gate.
pub(crate) async fn sandboxes(directory: &Path, entry: &str) -> (Fixture, [Attachment; 2]) {
    let fixture = Fixture::start(directory).await;
    let both = [fixture.attach("sbx-one", &[entry]).await, fixture.attach("sbx-two", &[entry]).await];
    (fixture, both)
}

/// Runs a test whose machine is a namespace of its own.
pub(crate) fn on_a_machine<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F + Send) {
    let machine = match NetNs::create_and(|| ()) {
        Ok((machine, ())) => machine,
        Err(error) => {
            println!("SKIP no network namespaces: {error}");
            assert!(std::env::var_os("STRICT").is_none());
            return;
        }
    };
    let directory = tempfile::tempdir().unwrap();
    let run = || {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async { timeout(PATIENCE * 3, test(directory)).await.unwrap() });
    };
    machine.run(run).unwrap();
}

/// How a connection to a sandbox's resolver comes out.
pub(crate) async fn resolver(attachment: &Attachment) -> Result<(), ErrorKind> {
    let namespace = NetNs::from(attachment.netns().try_clone_to_owned().unwrap());
    let connect = || {
        let resolver = SocketAddr::new(crate::GATE_V4.into(), 53);
        TcpStream::connect_timeout(&resolver, PATIENCE).map(drop).map_err(|error| error.kind())
    };
    tokio::task::spawn_blocking(move || namespace.run(connect).unwrap()).await.unwrap()
}

/// A policy that permits these entries alone.
pub(crate) fn allow(entries: &[&str]) -> PolicySpec {
    let allow_out = entries.iter().map(|entry| (*entry).to_owned()).collect();
    PolicySpec { allow_out, ..PolicySpec::default() }
}
