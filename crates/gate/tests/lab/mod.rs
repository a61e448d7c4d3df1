//! A gate on the node of a small internet, and what a sandbox's programs would do in its namespace.
#![allow(dead_code, clippy::unwrap_used, reason = "not every test file uses all of it; a test may fail")]

use std::{
    future::Future,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use audit::{Audit, AuditConfig, Recorder};
use dns::{Upstream, UpstreamConfig};
use gate::{AttachRequest, Attachment, GATE_V4, GATE_V6, Gate, GateConfig};
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use policy::{Policy, PolicySpec};
use store::{EventQuery, EventRecord, Store};
use sys::netns::NetNs;
use testkit::{World, Zone};

/// How long anything in the lab may take at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A world with a gate on its node.
pub(crate) struct Lab {
    pub(crate) gate: Gate,
    pub(crate) audit: Audit,
    pub(crate) store: Store,
    /// Unless this is a daemon in another process.
    pub(crate) world: Option<Arc<World>>,
    pub(crate) node: NetNs,
}

/// Runs `test` in a runtime all of whose threads live on the node of a world.
pub(crate) fn run<F, Fut>(test: F)
where
    F: FnOnce(Lab) -> Fut + Send,
    Fut: Future<Output = ()>,
{
    let directory = tempfile::tempdir().unwrap();
    let world = Arc::new(World::build(Zone::standard(), directory.path()).unwrap());
    on_node(&world, || async {
        let mut lab = Lab::on(world.node(), directory.path(), "lab").await;
        lab.world = Some(Arc::clone(&world));
        test(lab).await;
    });
}

/// Runs a future in a runtime all of whose threads live on the node.
pub(crate) fn on_node<F, Fut, T>(world: &World, work: F) -> T
where
    F: FnOnce() -> Fut + Send,
    Fut: Future<Output = T>,
    T: Send,
{
    world
        .node()
        .run(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let result = runtime.block_on(work());
            runtime.shutdown_timeout(PATIENCE);
            result
        })
        .unwrap()
}

/// A gate whose upstream is the world's DNS authority.
pub(crate) async fn start_gate(daemon_id: &str) -> Gate {
    let upstream = Upstream::new(UpstreamConfig::new(vec!["198.51.100.1:53".parse().unwrap()])).unwrap();
    Gate::start(GateConfig { daemon_id: daemon_id.to_owned(), ..GateConfig::new(upstream) }).await.unwrap()
}

impl Lab {
    /// A gate and its audit; the calling thread and the runtime's are on `node`.
    pub(crate) async fn on(node: &NetNs, directory: &std::path::Path, daemon_id: &str) -> Self {
        let store = Store::open(&directory.join("data")).await.unwrap();
        let audit = Audit::start(store.clone(), AuditConfig::default()).await.unwrap();
        let gate = start_gate(daemon_id).await;
        Self { gate, audit, store, world: None, node: node.try_clone().unwrap() }
    }

    pub(crate) fn world(&self) -> &World {
        self.world.as_ref().unwrap()
    }

    pub(crate) fn policy(&self, spec: &PolicySpec) -> Arc<Policy> {
        Arc::new(Policy::compile(spec, self.gate.floor()).unwrap())
    }

    pub(crate) fn recorder(&self) -> Recorder {
        self.audit.recorder("sbx-test0001", true)
    }

    /// A sandbox under a policy with these `allow_out` entries.
    pub(crate) async fn allowing(&self, entries: &[&str]) -> Sandbox {
        self.attach(&allow(entries)).await
    }

    pub(crate) async fn attach(&self, spec: &PolicySpec) -> Sandbox {
        let request = self.request(spec);
        Sandbox(self.gate.attach(request).await.unwrap())
    }

    pub(crate) fn request(&self, spec: &PolicySpec) -> AttachRequest {
        AttachRequest {
            sandbox: "sbx-test0001".to_owned(),
            policy: self.policy(spec),
            generation: 1,
            audit: self.recorder(),
        }
    }

    /// What the world saw going to an address: connections, datagrams, other packets.
    pub(crate) fn seen_at(&self, address: &str) -> usize {
        let lines = self.world().sinks().lines().unwrap();
        lines.iter().filter(|line| line["destination"] == address).count()
    }

    /// The names that the world's DNS authority was asked for.
    pub(crate) fn asked_for(&self, name: &str) -> usize {
        let lines = self.world().queries().lines().unwrap();
        lines.iter().filter(|line| line.to_string().contains(&format!("\"{name}"))).count()
    }

    /// All network events, once what `sandbox` caused before is recorded for certain: a marker goes the same way.
    pub(crate) async fn events(&self, sandbox: &Sandbox) -> Vec<EventRecord> {
        static MARKERS: AtomicU16 = AtomicU16::new(20_000);
        let port = MARKERS.fetch_add(1, Ordering::Relaxed);
        let mut updates = self.audit.subscribe(None);
        sandbox
            .run(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                // On the floor under every policy.
                socket.send_to(b"marker", ("169.254.1.1", port)).unwrap_err()
            })
            .await;
        let marked = async {
            while let Some(update) = updates.recv().await {
                if let audit::Update::Event(event) = update
                    && event.port == Some(port)
                {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, marked).await.expect("the marker is recorded");
        self.audit.flush().await.unwrap();
        let page =
            self.store.events().query(&EventQuery { limit: Some(1000), ..EventQuery::default() }).await;
        let mut events = page.unwrap().events;
        events.retain(|event| event.address != Some("169.254.1.1".parse().unwrap()));
        events
    }
}

pub(crate) fn allow(entries: &[&str]) -> PolicySpec {
    PolicySpec {
        allow_out: entries.iter().map(|entry| (*entry).to_owned()).collect(),
        ..PolicySpec::default()
    }
}

pub(crate) fn deny(entries: &[&str]) -> PolicySpec {
    PolicySpec {
        deny_out: entries.iter().map(|entry| (*entry).to_owned()).collect(),
        ..PolicySpec::default()
    }
}

/// An attached sandbox, with what its programs can do. Nothing here has privileges that matter: the calls are the
/// ordinary ones.
pub(crate) struct Sandbox(pub(crate) Attachment);

impl Sandbox {
    pub(crate) fn namespace(&self) -> NetNs {
        NetNs::from(self.0.netns().try_clone_to_owned().unwrap())
    }

    /// Runs something blocking inside.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = self.namespace();
        tokio::task::spawn_blocking(move || namespace.run(work).unwrap()).await.unwrap()
    }

    /// A TCP connection from inside.
    pub(crate) async fn connect(&self, to: &str) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || connect(to)).await
    }

    /// The answer to a request for `host` over a connection to `to`.
    pub(crate) async fn get(&self, to: &str, host: &str) -> io::Result<String> {
        let (to, host): (SocketAddr, String) = (to.parse().unwrap(), host.to_owned());
        self.run(move || get(connect(to)?, &host)).await
    }

    /// One datagram, and the answer to it.
    pub(crate) async fn datagram(&self, to: &str) -> io::Result<Vec<u8>> {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || datagram(to, b"hello")).await
    }

    /// The addresses of a name, asked of `server`.
    pub(crate) async fn resolve(
        &self,
        name: &str,
        kind: RecordType,
        server: &str,
    ) -> (ResponseCode, Vec<IpAddr>) {
        let (query, server): (Vec<u8>, SocketAddr) = (query(name, kind), server.parse().unwrap());
        let reply = self.run(move || datagram(server, &query)).await;
        let reply = reply.unwrap_or_else(|error| panic!("{server}: {error}"));
        read_reply(&reply)
    }

    /// As [`Self::resolve`], of the gate's own address, over IPv4.
    pub(crate) async fn lookup(&self, name: &str) -> Vec<IpAddr> {
        self.resolve(name, RecordType::A, &format!("{GATE_V4}:53")).await.1
    }

    /// As [`Self::lookup`], IPv6 addresses over IPv6.
    pub(crate) async fn lookup_v6(&self, name: &str) -> Vec<IpAddr> {
        self.resolve(name, RecordType::AAAA, &format!("[{GATE_V6}]:53")).await.1
    }

    pub(crate) async fn set_policy(&self, lab: &Lab, spec: &PolicySpec) -> u64 {
        self.0.set_policy(lab.policy(spec)).await.unwrap()
    }
}

pub(crate) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

pub(crate) fn get(mut stream: TcpStream, host: &str) -> io::Result<String> {
    write!(stream, "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub(crate) fn datagram(to: SocketAddr, data: &[u8]) -> io::Result<Vec<u8>> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // Connected, so that an answer from any other address than the one asked is not taken.
    socket.connect(to)?;
    socket.send(data)?;
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

pub(crate) fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

pub(crate) fn read_reply(reply: &[u8]) -> (ResponseCode, Vec<IpAddr>) {
    let reply = Message::from_vec(reply).unwrap();
    let addresses = reply.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    (reply.metadata.response_code, addresses.collect())
}

/// The kind of an error, for comparing.
pub(crate) fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.expect_err("this must be refused").kind()
}
