//! What happens when something that serves a sandbox ends: in namespaces of their own, where nobody is.
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use audit::{Audit, AuditConfig};
use dns::{Upstream, UpstreamConfig};
use policy::{Floor, PolicySpec};
use store::Store;
use sys::netns::NetNs;
use tokio::time::timeout;

use super::*;
use crate::{AttachRequest, Gate, GateConfig};

const PATIENCE: Duration = Duration::from_secs(20);

/// Two sandboxes of a gate.
async fn sandboxes(directory: &std::path::Path, spec: &PolicySpec) -> (Gate, [Attachment; 2]) {
    let store = Store::open(&directory.join("data")).await.unwrap();
    let audit = Audit::start(store, AuditConfig::default()).await.unwrap();
    let upstream = Upstream::new(UpstreamConfig::new(vec!["127.0.0.1:9".parse().unwrap()])).unwrap();
    let gate = Gate::start(GateConfig::new(upstream)).await.unwrap();
    let policy = Arc::new(Policy::compile(spec, Arc::new(Floor::new([]))).unwrap());
    let attach = async |name: &str| {
        let request = AttachRequest {
            sandbox: name.to_owned(),
            policy: Arc::clone(&policy),
            generation: 1,
            audit: audit.recorder(name, true),
        };
        gate.attach(request).await.unwrap()
    };
    let both = [attach("sbx-one").await, attach("sbx-two").await];
    (gate, both)
}

fn on_a_machine<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F + Send) {
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

/// How a connection to the resolver comes out.
async fn resolver(attachment: &Attachment) -> Result<(), ErrorKind> {
    let namespace = NetNs::from(attachment.netns().try_clone_to_owned().unwrap());
    let connect = || {
        let resolver = SocketAddr::new(crate::GATE_V4.into(), 53);
        TcpStream::connect_timeout(&resolver, PATIENCE).map(drop).map_err(|error| error.kind())
    };
    tokio::task::spawn_blocking(move || namespace.run(connect).unwrap()).await.unwrap()
}

fn allow(entry: &str) -> PolicySpec {
    PolicySpec { allow_out: vec![entry.to_owned()], ..PolicySpec::default() }
}

#[test]
fn a_sandbox_is_cut_off_when_what_serves_it_panics_fails_or_ends_and_others_are_not() {
    for ending in ["panic", "failure", "end"] {
        on_a_machine(|directory| async move {
            let (_gate, [one, two]) = sandboxes(directory.path(), &allow("good.test")).await;
            assert_eq!((resolver(&one).await, resolver(&two).await), (Ok(()), Ok(())));
            one.spawn("a service", async move {
                match ending {
                    "panic" => panic!("on purpose"),
                    "failure" => Err(io::Error::other("on purpose")),
                    _ => Ok(()),
                }
            });
            assert_eq!(timeout(PATIENCE, one.broken()).await.unwrap(), Broken::Service);
            one.detach().await;
            assert_eq!(resolver(&one).await, Err(ErrorKind::ConnectionRefused));
            let again = Arc::new(Policy::compile(&allow("x.test"), Arc::new(Floor::new([]))).unwrap());
            assert!(matches!(one.set_policy(Arc::clone(&again)).await, Err(GateError::Detached)));
            assert_eq!(resolver(&two).await, Ok(()));
            two.set_policy(again).await.unwrap();
            assert!(timeout(Duration::ZERO, two.broken()).await.is_err());
        });
    }
}

#[test]
fn a_sandbox_is_not_cut_off_by_services_that_end_because_it_is_detached() {
    on_a_machine(|directory| async move {
        let (_gate, [one, _two]) = sandboxes(directory.path(), &allow("good.test")).await;
        let broken = one.broken();
        one.detach().await;
        assert!(timeout(Duration::ZERO, broken).await.is_err());
        assert!(one.member.broken.borrow().is_none());
    });
}

#[test]
fn rules_that_are_gone_are_noticed_when_a_name_is_bound_and_others_go_on() {
    on_a_machine(|directory| async move {
        let (_gate, [one, two]) = sandboxes(directory.path(), &allow("good.test")).await;
        let namespace = NetNs::from(one.netns().try_clone_to_owned().unwrap());
        let delete = || {
            let mut batch = nft::Batch::new();
            batch.del_table(&crate::ruleset::table());
            nft::Connection::open().unwrap().commit(batch).unwrap();
        };
        namespace.run(delete).unwrap();
        let name = policy::HostName::parse("good.test").unwrap();
        let address = ["93.184.216.34".parse().unwrap()];
        let bind = |attachment: &Attachment| {
            dns::Zone::bind(&*attachment.member.sandbox, &name, &address, PATIENCE, 1)
        };
        assert!(matches!(bind(&one), Err(dns::BindRefused::Kernel(_))));
        bind(&two).unwrap();
        assert_eq!(timeout(PATIENCE, one.broken()).await.unwrap(), Broken::Rules);
        assert!(timeout(Duration::ZERO, two.broken()).await.is_err());
    });
}
