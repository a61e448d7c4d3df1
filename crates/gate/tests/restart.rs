//! A daemon that dies, and the next one that adopts its sandboxes. The daemon is this program, started again.
#![expect(clippy::unwrap_used, reason = "a test may fail")]
#![expect(clippy::disallowed_types, reason = "the test kills a process")]

mod lab;

use std::{
    io::{BufRead, BufReader, ErrorKind, ErrorKind::ConnectionRefused, Lines, Write},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use gate::{GATE_V4, GATE_V6};
use hickory_proto::rr::RecordType;
use netns::{Connection, NetNs};
use policy::{PolicySpec, Topology};

use crate::lab::{Lab, Sandbox, allow, kind};

const GITHUB: &str = "140.82.112.5:80";
const GITHUB_V6: &str = "[2606:50c0:8000::154]:80";
const ENTRIES: [&str; 3] = ["api.github.com", "10.1.2.3", "2001:db8:9::1"];

/// Tells the program that it is the daemon, and which namespace is its node.
const NODE: &str = "GATE_TEST_NODE";

/// Not a test of its own: the daemon that the tests kill.
#[test]
fn daemon() {
    let Ok(node) = std::env::var(NODE) else { return };
    let node = NetNs::open(Path::new(&node)).unwrap();
    node.run(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let directory = tempfile::tempdir().unwrap();
            let lab = Lab::on(&node, directory.path(), "restarting").await;
            let sandbox = lab.allowing(&ENTRIES).await;
            sandbox.lookup("api.github.com").await;
            sandbox.lookup_v6("api.github.com").await;
            println!("\nready {}", sandbox.0.netns().as_raw_fd());
            // Until it is told to end in order.
            let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next()).await;
            if line.unwrap().is_some() {
                lab.gate.settle();
                println!("\nsettled");
            }
            std::future::pending::<()>().await;
        });
    })
    .unwrap();
}

/// A daemon process with one sandbox.
struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Daemon {
    /// Starts it, and returns the sandbox's namespace once everything is up.
    fn start(node: &NetNs) -> (Self, NetNs) {
        let path = format!("/proc/{}/fd/{}", std::process::id(), node.as_fd().as_raw_fd());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "daemon", "--nocapture", "--test-threads=1"])
            .env(NODE, path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let descriptor = lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| line.strip_prefix("ready ").map(str::to_owned));
        let path = format!("/proc/{}/fd/{}", child.id(), descriptor.unwrap());
        let sandbox = NetNs::open(Path::new(&path)).unwrap();
        (Self { child, lines }, sandbox)
    }

    /// Has it do what a daemon does that is told to end.
    fn settle(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap(), "end").unwrap();
        assert!(self.lines.by_ref().map(Result::unwrap).any(|line| line == "settled"));
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn when_the_daemon_is_dead_nothing_passes_and_nothing_hangs() {
    lab::run(|lab| async move {
        let (daemon, inside) = Daemon::start(&lab.node);
        let run = |work: fn() -> ()| inside.run(work).unwrap();
        // The twin: as long as it lives, everything does.
        run(|| {
            for (target, host) in
                [(GITHUB, "api.github.com"), (GITHUB_V6, "api.github.com"), ("10.1.2.3:80", "x")]
            {
                lab::get(lab::connect(target.parse().unwrap()).unwrap(), host).unwrap();
            }
        });
        let seen: Vec<usize> = TARGETS.iter().map(|address| lab.seen_at(address)).collect();

        daemon.kill();
        let begun = Instant::now();
        run(|| {
            for target in [GITHUB, GITHUB_V6, "8.8.8.8:443", "169.254.169.254:80"] {
                let target: SocketAddr = target.parse().unwrap();
                assert_eq!(kind(lab::connect(target)), ConnectionRefused, "{target}");
            }
            for server in ["8.8.8.8:53", "[2001:4860:4860::8888]:53"] {
                assert!(unanswered(server), "{server}");
            }
            for gate in [SocketAddr::from((GATE_V4, 53)), SocketAddr::from((GATE_V6, 53))] {
                assert_eq!(kind(lab::connect(gate)), ConnectionRefused);
            }
        });
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // The kernel takes the wire down in the background; until then packets have nowhere to go.
        wait_until(|| {
            inside.run(|| Connection::open().unwrap().link_index("eth0").unwrap().is_none()).unwrap()
        });
        run(|| {
            for target in ["10.1.2.3:80", "[2001:db8:9::1]:80"] {
                let target = target.parse().unwrap();
                assert!(std::net::TcpStream::connect_timeout(&target, Duration::from_millis(300)).is_err());
            }
        });
        let still: Vec<usize> = TARGETS.iter().map(|address| lab.seen_at(address)).collect();
        assert_eq!(still, seen);
    });
}

const TARGETS: [&str; 4] = ["140.82.112.5", "2606:50c0:8000::154", "10.1.2.3", "2001:db8:9::1"];

#[test]
fn what_listens_in_the_sandbox_does_not_take_the_dead_daemons_place() {
    lab::run(|lab| async move {
        let (daemon, inside) = Daemon::start(&lab.node);
        daemon.kill();
        inside
            .run(|| {
                let listener = TcpListener::bind("0.0.0.0:80").unwrap();
                listener.set_nonblocking(true).unwrap();
                let _resolver = UdpSocket::bind("0.0.0.0:53").unwrap();
                assert_eq!(kind(lab::connect(GITHUB.parse().unwrap())), ConnectionRefused);
                assert!(unanswered("8.8.8.8:53"));
                assert_eq!(kind(listener.accept()), ErrorKind::WouldBlock);
            })
            .unwrap();
    });
}

#[test]
fn what_is_bound_while_no_daemon_is_there_does_not_keep_the_next_one_out() {
    lab::run(|lab| async move {
        let (daemon, inside) = Daemon::start(&lab.node);
        daemon.kill();
        let taken = inside
            .run(|| {
                // As nobody inside has it over the namespace.
                let none = rustix::thread::CapabilitySet::empty();
                let none =
                    rustix::thread::CapabilitySets { effective: none, permitted: none, inheritable: none };
                rustix::thread::set_capabilities(None, none).unwrap();
                for port in 1..15 {
                    for address in ["0.0.0.0", "::", "127.0.0.1", "::1"] {
                        assert_eq!(kind(TcpListener::bind((address, port))), ErrorKind::PermissionDenied);
                        assert_eq!(kind(UdpSocket::bind((address, port))), ErrorKind::PermissionDenied);
                    }
                }
                // What a name server does.
                let address = |port| ["::", "0.0.0.0"].map(|address| (address, port));
                let streams: Vec<_> = address(53).map(TcpListener::bind).into_iter().flatten().collect();
                let datagrams: Vec<_> = address(53).map(UdpSocket::bind).into_iter().flatten().collect();
                assert!(!streams.is_empty() && !datagrams.is_empty());
                (TcpListener::bind("0.0.0.0:15").unwrap(), streams, datagrams)
            })
            .unwrap();
        let gate = lab::start_gate("restarting").await;
        let namespace: OwnedFd = inside.as_fd().try_clone_to_owned().unwrap();
        let request = lab.request(&allow(&ENTRIES));
        let sandbox = Sandbox(gate.adopt(namespace, request).await.unwrap());
        let github = |address: &str| [address.parse::<std::net::IpAddr>().unwrap()];
        assert_eq!(sandbox.lookup("api.github.com").await, github("140.82.112.5"));
        assert_eq!(sandbox.lookup_v6("api.github.com").await, github("2606:50c0:8000::154"));
        for server in ["8.8.8.8:53", "[2001:4860:4860::8888]:53"] {
            let (_, found) = sandbox.resolve("api.github.com", RecordType::A, server).await;
            assert_eq!(found, github("140.82.112.5"));
        }
        for target in [GITHUB, GITHUB_V6] {
            sandbox.get(target, "api.github.com").await.unwrap();
        }
        sandbox.0.prove().await.unwrap();
        assert_eq!(kind(sandbox.connect("8.8.8.8:53").await), ConnectionRefused);
        assert_eq!(
            kind(taken.2[0].set_nonblocking(true).and_then(|()| taken.2[0].recv(&mut [0]))),
            ErrorKind::WouldBlock
        );
        sandbox.0.detach().await;
    });
}

#[test]
fn the_next_daemon_adopts_the_sandbox_and_everything_passes_again() {
    lab::run(|lab| async move {
        let (daemon, inside) = Daemon::start(&lab.node);
        daemon.kill();
        for spec in [allow(&ENTRIES), PolicySpec::default()] {
            let gate = lab::start_gate("restarting").await;
            let request = lab.request(&spec);
            let namespace: OwnedFd = inside.as_fd().try_clone_to_owned().unwrap();
            let sandbox = Sandbox(gate.adopt(namespace, request).await.unwrap());
            assert_eq!(sandbox.0.info().topology, Topology::Wire);
            sandbox.lookup("api.github.com").await;
            sandbox.lookup_v6("api.github.com").await;
            for target in [GITHUB, GITHUB_V6] {
                sandbox
                    .get(target, "api.github.com")
                    .await
                    .unwrap_or_else(|error| panic!("{target}: {error}"));
            }
            assert_eq!(kind(sandbox.connect("169.254.169.254:80").await), ConnectionRefused);
            assert_eq!(kind(sandbox.connect("10.7.7.7:80").await), ConnectionRefused);
            if spec == allow(&ENTRIES) {
                sandbox.get("10.1.2.3:80", "x").await.unwrap();
                sandbox.get("[2001:db8:9::1]:80", "x").await.unwrap();
            }
            sandbox.0.detach().await;
        }
    });
}

#[test]
fn what_was_refused_while_no_daemon_was_there_is_an_audit_gap() {
    lab::run(|lab| async move {
        let (daemon, inside) = Daemon::start(&lab.node);
        daemon.kill();
        inside
            .run(|| {
                for _ in 0..5 {
                    assert_eq!(kind(lab::connect("8.8.8.8:443".parse().unwrap())), ConnectionRefused);
                }
            })
            .unwrap();
        let gate = lab::start_gate("restarting").await;
        let adopt = async || {
            let namespace: OwnedFd = inside.as_fd().try_clone_to_owned().unwrap();
            Sandbox(gate.adopt(namespace, lab.request(&allow(&ENTRIES))).await.unwrap())
        };
        let sandbox = adopt().await;
        let [(reason, count)] = &gaps(&lab).await[..] else { panic!("one gap") };
        // The daemon that was killed refused some by itself, to prove its rules, which nobody knows any more.
        assert!(reason == "daemon_away" && (5..20).contains(count), "{reason}: {count}");
        // The twin: what an adopting daemon sees is recorded.
        assert_eq!(kind(sandbox.connect("8.8.8.8:443").await), ConnectionRefused);
        sandbox.0.detach().await;
        assert_eq!(gaps(&lab).await.len(), 1);
    });
}

#[test]
fn what_a_daemon_recorded_that_ended_in_order_is_no_gap() {
    lab::run(|lab| async move {
        let (mut daemon, inside) = Daemon::start(&lab.node);
        let refused = |times: usize| {
            let attempts = move || {
                for _ in 0..times {
                    assert_eq!(kind(lab::connect("8.8.8.8:443".parse().unwrap())), ConnectionRefused);
                }
            };
            inside.run(attempts).unwrap();
        };
        refused(5);
        daemon.settle();
        daemon.kill();
        refused(3);
        let gate = lab::start_gate("restarting").await;
        let namespace: OwnedFd = inside.as_fd().try_clone_to_owned().unwrap();
        let sandbox = Sandbox(gate.adopt(namespace, lab.request(&allow(&ENTRIES))).await.unwrap());
        assert_eq!(gaps(&lab).await, [("daemon_away".to_owned(), 3)]);
        sandbox.0.detach().await;
    });
}

/// The gaps that were recorded, with their reasons.
async fn gaps(lab: &Lab) -> Vec<(String, u64)> {
    lab.audit.flush().await.unwrap();
    let page = lab.store.events().query(&store::EventQuery::default()).await.unwrap();
    let gaps = page.events.into_iter().filter(|event| event.kind == "audit_gap");
    gaps.map(|gap| (gap.reason.unwrap().into_owned(), gap.count)).collect()
}

/// Whether a query gets no answer for a while. A datagram cannot be refused where it is found that nobody takes it:
/// the kernel has no address from which to say so. Programs ask again, and may find the next daemon.
fn unanswered(server: &str) -> bool {
    let server: SocketAddr = server.parse().unwrap();
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.connect(server).unwrap();
    socket.send(&lab::query("api.github.com", RecordType::A)).unwrap();
    socket.recv(&mut [0; 512]).is_err()
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + lab::PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it does not come");
        std::thread::yield_now();
    }
}
