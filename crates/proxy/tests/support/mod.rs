//! A sandbox and a world: two network namespaces in which every address is local, so that nothing can leave.
//!
//! The proxy's listeners are in the sandbox's namespace and the runtime is in the world's, as in the product. A
//! listener on all addresses sees the destination that a client meant as its own address; no packet filter is needed.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::Duration,
};

use netns::{Connection, Route, RouteKind};
use parking_lot::Mutex;
use policy::{
    Decision, EventKind, Floor, FlowEvent, FlowTotals, HostName, InForce, NameSource, Policy, PolicySpec,
    Reason, Rule, Verdict,
};
use proxy::{Egress, EventId, Flows, Hold, Limits, NoAddress, serve};
use sys::netns::NetNs;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// How long anything may take before a test gives up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The address of `good.test`.
pub(crate) const GOOD: &str = "93.184.216.34";
/// The address of `evil.test`.
pub(crate) const EVIL: &str = "93.184.216.66";

/// Runs a test in namespaces of its own.
pub(crate) fn lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send) {
    let namespaces = NetNs::create_and(every_address_is_local)
        .and_then(|(sandbox, ())| Ok((sandbox, NetNs::create_and(every_address_is_local)?.0)));
    let (sandbox, world) = match namespaces {
        Ok(namespaces) => namespaces,
        Err(error) => {
            println!("SKIP no network namespaces: {error}");
            assert!(std::env::var_os("STRICT").is_none());
            return;
        }
    };
    world
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async { timeout(DEADLINE * 3, test(Lab::new(sandbox))).await.unwrap() });
        })
        .unwrap();
}

fn every_address_is_local() {
    let mut connection = Connection::open().unwrap();
    let link = connection.link_index("lo").unwrap().unwrap();
    connection.bring_up(link).unwrap();
    for everything in ["0.0.0.0/0", "::/0"] {
        let mut route = Route::direct(everything.parse().unwrap(), link);
        (route.kind, route.table) = (RouteKind::Local, 255);
        connection.set_route(&route).unwrap();
    }
    // IPv6 asks for more than a route before it lets a socket have an address.
    netns::sysctl::set("ipv6/ip_nonlocal_bind", "1").unwrap();
}

/// The sandbox and its proxy.
pub(crate) struct Lab {
    sandbox: NetNs,
    pub(crate) egress: Arc<FakeEgress>,
    pub(crate) flows: Arc<Flows>,
    pub(crate) limits: Limits,
    pub(crate) stop: CancellationToken,
}

impl Lab {
    fn new(sandbox: NetNs) -> Self {
        let limits = Limits {
            peek_timeout: Duration::from_millis(400),
            server_first: Duration::from_millis(50),
            dial_timeout: Duration::from_secs(1),
            ..Limits::default()
        };
        Self {
            sandbox,
            egress: FakeEgress::new(),
            flows: Arc::default(),
            limits,
            stop: CancellationToken::new(),
        }
    }

    /// `good.test` is permitted and has its address; `evil.test` has one too.
    pub(crate) fn permit_good(&self) {
        self.permit(&["good.test"]);
    }

    pub(crate) fn permit(&self, entries: &[&str]) {
        self.set_policy(&PolicySpec {
            allow_out: entries.iter().map(ToString::to_string).collect(),
            ..PolicySpec::default()
        });
        self.egress.resolve("good.test", &[GOOD]);
        self.egress.resolve("evil.test", &[EVIL]);
    }

    /// Puts a policy into force, as the gate does: first the policy, then the judgement of what is open.
    pub(crate) fn set_policy(&self, spec: &PolicySpec) {
        let policy = Arc::new(Policy::compile(spec, Arc::new(Floor::new([]))).unwrap());
        let in_force = {
            let mut slot = self.egress.in_force.lock();
            let generation = slot.as_ref().map_or(1, |old| old.generation + 1);
            slot.insert(InForce { policy, generation }).clone()
        };
        self.flows.rejudge(&in_force);
    }

    /// Starts the proxy for connections of the sandbox to this port of any address.
    pub(crate) fn proxy(&self, port: u16) {
        let listener = TcpListener::from_std(self.listener(port)).unwrap();
        let (egress, flows) = (self.egress.clone(), self.flows.clone());
        tokio::spawn(serve(listener, egress, flows, self.limits, self.stop.clone()));
    }

    /// A listener in the sandbox, on this port of every address.
    pub(crate) fn listener(&self, port: u16) -> std::net::TcpListener {
        self.sandbox
            .run(|| {
                let listener = std::net::TcpListener::bind(("::", port))?;
                listener.set_nonblocking(true)?;
                io::Result::Ok(listener)
            })
            .unwrap()
            .unwrap()
    }

    /// A connection that a program in the sandbox makes.
    pub(crate) async fn connect(&self, address: &str, port: u16) -> TcpStream {
        let to = SocketAddr::new(address.parse().unwrap(), port);
        let stream = self.sandbox.run(|| std::net::TcpStream::connect(to)).unwrap().unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        TcpStream::from_std(stream).unwrap()
    }

    /// The events so far, without their numbers.
    pub(crate) fn events(&self) -> Vec<FlowEvent> {
        self.egress.log.borrow().events.clone()
    }

    /// Waits for `count` events and returns them.
    pub(crate) async fn wait_events(&self, count: usize) -> Vec<FlowEvent> {
        let mut log = self.egress.log.subscribe();
        let log = timeout(DEADLINE, log.wait_for(|log| log.events.len() >= count)).await.unwrap().unwrap();
        log.events.clone()
    }

    /// Waits until the flow of the event with this index has ended.
    pub(crate) async fn wait_finished(&self, index: usize) -> FlowTotals {
        let id = u64::try_from(index).unwrap();
        let mut log = self.egress.log.subscribe();
        let log =
            timeout(DEADLINE, log.wait_for(|log| log.finished.contains_key(&id))).await.unwrap().unwrap();
        log.finished[&id]
    }

    /// Waits until no flow is registered any more.
    pub(crate) async fn wait_idle(&self) {
        let idle = async {
            while !self.flows.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, idle).await.unwrap();
    }
}

/// What the gate would be.
pub(crate) struct FakeEgress {
    in_force: Mutex<Option<InForce>>,
    bound: Mutex<HashMap<IpAddr, Vec<HostName>>>,
    addresses: Mutex<HashMap<HostName, Vec<IpAddr>>>,
    /// The name that must not be looked up any more.
    pub(crate) over_limit: Mutex<Option<HostName>>,
    pub(crate) held: Arc<AtomicUsize>,
    /// What it panics at, for the faults of the daemon.
    pub(crate) panics: Mutex<Option<Panics>>,
    log: watch::Sender<Recorded>,
    /// Runs once, when the addresses of a name are asked for.
    pub(crate) meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// Where the double panics.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Panics {
    /// When the addresses of this name are asked for: in the task of a connection.
    Name(String),
    /// When a binding is held: in the loop that accepts.
    Hold,
}

#[derive(Clone, Default)]
struct Recorded {
    events: Vec<FlowEvent>,
    finished: HashMap<u64, FlowTotals>,
}

impl FakeEgress {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            in_force: Mutex::default(),
            bound: Mutex::default(),
            addresses: Mutex::default(),
            over_limit: Mutex::default(),
            held: Arc::default(),
            panics: Mutex::default(),
            log: watch::Sender::default(),
            meanwhile: Mutex::default(),
        })
    }

    pub(crate) fn resolve(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        self.addresses.lock().insert(HostName::parse(name).unwrap(), addresses);
    }

    fn panic_at(&self, here: &Panics) {
        assert!(self.panics.lock().as_ref() != Some(here), "on purpose, at {here:?}");
    }

    pub(crate) fn bind(&self, address: &str, name: &str) {
        let name = HostName::parse(name).unwrap();
        self.bound.lock().entry(address.parse().unwrap()).or_default().push(name);
    }
}

impl Egress for FakeEgress {
    fn in_force(&self) -> InForce {
        self.in_force.lock().clone().expect("the test sets a policy first")
    }

    fn names_bound_to(&self, address: IpAddr) -> Vec<HostName> {
        self.bound.lock().get(&address).cloned().unwrap_or_default()
    }

    async fn addresses_of(&self, name: &HostName) -> Result<Vec<IpAddr>, NoAddress> {
        if let Some(meanwhile) = self.meanwhile.lock().take() {
            meanwhile();
        }
        self.panic_at(&Panics::Name(name.as_str().to_owned()));
        if self.over_limit.lock().as_ref() == Some(name) {
            let (decision, rule, reason) = (Decision::Deny, Rule::Default, Reason::DnsLabels);
            return Err(NoAddress::Refused(Verdict { decision, rule, reason }));
        }
        self.addresses.lock().get(name).cloned().ok_or_else(|| NoAddress::Failed("no such name".to_owned()))
    }

    fn hold(&self, _: IpAddr) -> Hold {
        self.panic_at(&Panics::Hold);
        self.held.fetch_add(1, Ordering::SeqCst);
        Hold::new(Held(self.held.clone()))
    }

    fn record(&self, event: FlowEvent) -> EventId {
        let mut id = 0;
        self.log.send_modify(|log| {
            id = log.events.len() as u64;
            log.events.push(event);
        });
        EventId(id)
    }

    fn finish(&self, id: EventId, totals: FlowTotals) {
        self.log.send_modify(|log| {
            let before = log.finished.insert(id.0, totals);
            assert!(before.is_none(), "an event is finished once");
        });
    }
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server in the world; what arrives is looked at by the test.
pub(crate) struct Server {
    listener: TcpListener,
}

impl Server {
    pub(crate) async fn listen(address: &str, port: u16) -> Self {
        let address = SocketAddr::new(address.parse().unwrap(), port);
        Self { listener: TcpListener::bind(address).await.unwrap() }
    }

    pub(crate) async fn accept(&self) -> TcpStream {
        timeout(DEADLINE, self.listener.accept()).await.unwrap().unwrap().0
    }

    /// Whether somebody has connected: looked at after whatever could have connected has ended.
    pub(crate) fn was_reached(self) -> bool {
        let listener = self.listener.into_std().unwrap();
        listener.accept().is_ok()
    }
}

pub(crate) async fn write(stream: &mut TcpStream, bytes: &[u8]) {
    timeout(DEADLINE, stream.write_all(bytes)).await.unwrap().unwrap();
}

pub(crate) async fn read_exact(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(DEADLINE, stream.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

/// Everything up to the end of the stream; an error is how it ended.
pub(crate) async fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let result = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.unwrap();
    (bytes, result.map(|_| ()))
}

/// The peer ended the stream with a reset, not regularly.
pub(crate) async fn assert_reset(stream: &mut TcpStream) {
    let (bytes, result) = read_to_end(stream).await;
    assert_eq!(bytes, b"");
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[track_caller]
pub(crate) fn assert_event(
    event: &FlowEvent,
    kind: EventKind,
    reason: &str,
    name: Option<&str>,
    source: NameSource,
) {
    let found = (event.kind, event.verdict.reason.as_str(), event.name.as_ref().map(HostName::as_str));
    assert_eq!(found, (kind, reason, name));
    assert_eq!(event.name_source, source);
}

/// Builds a ClientHello.
#[derive(Clone, Default)]
pub(crate) struct HelloBuilder {
    names: Vec<(u8, Vec<u8>)>,
    extensions: Vec<(u16, Vec<u8>)>,
}

impl HelloBuilder {
    pub(crate) fn named(name: &str) -> Self {
        Self::default().name(name)
    }

    pub(crate) fn name(mut self, name: &str) -> Self {
        self.names.push((0, name.as_bytes().to_vec()));
        self
    }

    pub(crate) fn extension(mut self, kind: u16, data: &[u8]) -> Self {
        self.extensions.push((kind, data.to_vec()));
        self
    }

    pub(crate) fn ech(self) -> Self {
        self.extension(0xfe0d, &[0; 32])
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut extensions = Vec::new();
        if !self.names.is_empty() {
            let list: Vec<u8> = self
                .names
                .iter()
                .flat_map(|(kind, name)| [vec![*kind], prefixed::<2>(name)].concat())
                .collect();
            extensions.extend(extension(0, &prefixed::<2>(&list)));
        }
        for (kind, data) in &self.extensions {
            extensions.extend(extension(*kind, data));
        }
        let body = [
            &[3, 3][..],
            &[7; 32],
            &prefixed::<1>(&[]),
            &prefixed::<2>(&[0x13, 0x01]),
            &prefixed::<1>(&[0]),
            &prefixed::<2>(&extensions),
        ]
        .concat();
        let message = [&[1][..], &prefixed::<3>(&body)].concat();
        [&[22, 3, 1][..], &prefixed::<2>(&message)].concat()
    }
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed::<2>(data)].concat()
}

/// The bytes after their length in `N` bytes.
fn prefixed<const N: usize>(bytes: &[u8]) -> Vec<u8> {
    let length = u64::try_from(bytes.len()).unwrap().to_be_bytes();
    [&length[8 - N..], bytes].concat()
}

/// A fatal TLS alert `access_denied`.
pub(crate) const ACCESS_DENIED: [u8; 7] = [21, 3, 1, 0, 2, 2, 49];
