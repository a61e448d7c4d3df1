//! An upstream server and a sandbox, both fake, and a client.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dns::{BindRefused, Budget, Limits, Transport, Upstream, UpstreamConfig, Zone};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{
            A, AAAA, CNAME, SOA,
            opt::{EdnsCode, EdnsOption},
        },
    },
};
use parking_lot::Mutex;
use policy::{Floor, FlowEvent, HostName, InForce, Policy, PolicySpec};
use tokio::{net::UdpSocket, sync::watch};

/// A policy of these allow entries.
pub(crate) fn allow(entries: &[&str]) -> PolicySpec {
    PolicySpec { allow_out: entries.iter().map(ToString::to_string).collect(), ..PolicySpec::default() }
}

pub(crate) fn compile(spec: &PolicySpec) -> Arc<Policy> {
    Arc::new(Policy::compile(spec, Arc::new(Floor::new([]))).unwrap())
}

pub(crate) fn name(text: &str) -> HostName {
    HostName::parse(text).unwrap()
}

/// One sandbox: what was bound and recorded can be looked at.
pub(crate) struct FakeZone {
    in_force: Mutex<InForce>,
    pub(crate) bound: Mutex<Vec<Binding>>,
    pub(crate) events: Mutex<Vec<FlowEvent>>,
    pub(crate) sinks: Mutex<Vec<HostName>>,
    /// Events of names that were asked for IPv6 addresses only, or for others too.
    pub(crate) alone: Mutex<Vec<FlowEvent>>,
    /// What `bind` says, in turn; `Ok` when it is empty.
    pub(crate) bind_results: Mutex<Vec<BindRefused>>,
    /// The policy that comes into force when a bind is refused.
    pub(crate) successor: Mutex<Option<PolicySpec>>,
    pub(crate) no_sinks: AtomicBool,
    pub(crate) ipv6: AtomicBool,
    /// The name at whose binding it panics, for the faults of the daemon.
    pub(crate) panics: Mutex<Option<HostName>>,
    budget: Budget,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Binding {
    pub(crate) name: HostName,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ttl: Duration,
    pub(crate) generation: u64,
}

impl FakeZone {
    pub(crate) fn new(spec: &PolicySpec) -> Arc<Self> {
        Self::limited(spec, Limits::default())
    }

    pub(crate) fn limited(spec: &PolicySpec, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            in_force: Mutex::new(InForce { policy: compile(spec), generation: 1 }),
            bound: Mutex::default(),
            events: Mutex::default(),
            sinks: Mutex::default(),
            alone: Mutex::default(),
            bind_results: Mutex::default(),
            successor: Mutex::default(),
            no_sinks: AtomicBool::new(false),
            ipv6: AtomicBool::new(false),
            panics: Mutex::default(),
            budget: Budget::new(limits),
        })
    }

    pub(crate) fn reasons(&self) -> Vec<String> {
        self.events.lock().iter().map(|event| event.verdict.reason.as_str().to_owned()).collect()
    }
}

impl Zone for FakeZone {
    fn in_force(&self) -> InForce {
        self.in_force.lock().clone()
    }

    fn bind(
        &self,
        name: &HostName,
        addresses: &[IpAddr],
        ttl: Duration,
        generation: u64,
    ) -> Result<(), BindRefused> {
        assert!(self.panics.lock().as_ref() != Some(name), "on purpose, at {name}");
        if let Some(refused) = self.bind_results.lock().pop() {
            if let Some(spec) = self.successor.lock().take() {
                let mut in_force = self.in_force.lock();
                *in_force = InForce { policy: compile(&spec), generation: in_force.generation + 1 };
            }
            return Err(refused);
        }
        self.bound.lock().push(Binding {
            name: name.clone(),
            addresses: addresses.to_vec(),
            ttl,
            generation,
        });
        Ok(())
    }

    fn sink(&self, name: &HostName) -> Option<Ipv4Addr> {
        if self.no_sinks.load(Ordering::Relaxed) {
            return None;
        }
        self.sinks.lock().push(name.clone());
        Some(Ipv4Addr::new(198, 18, 0, u8::try_from(self.sinks.lock().len()).unwrap()))
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn record(&self, event: FlowEvent) {
        self.events.lock().push(event);
    }

    fn record_if_alone(&self, event: FlowEvent) {
        self.alone.lock().push(event);
    }

    fn ipv6(&self) -> bool {
        self.ipv6.load(Ordering::Relaxed)
    }
}

/// What the fake server says about one name.
#[derive(Clone, Default)]
pub(crate) struct Reply {
    pub(crate) code: Option<ResponseCode>,
    pub(crate) records: Vec<(&'static str, u32, RData)>,
}

pub(crate) fn a(owner: &'static str, ttl: u32, address: &str) -> (&'static str, u32, RData) {
    (owner, ttl, RData::A(A(address.parse().unwrap())))
}

pub(crate) fn aaaa(owner: &'static str, ttl: u32, address: &str) -> (&'static str, u32, RData) {
    (owner, ttl, RData::AAAA(AAAA(address.parse().unwrap())))
}

pub(crate) fn cname(owner: &'static str, ttl: u32, target: &str) -> (&'static str, u32, RData) {
    (owner, ttl, RData::CNAME(CNAME(Name::from_ascii(target).unwrap())))
}

/// A server on loopback that logs every query it gets.
pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    pub(crate) queries: Arc<Mutex<Vec<Message>>>,
    /// Replies wait until this is true.
    pub(crate) open: watch::Sender<bool>,
}

impl FakeServer {
    pub(crate) async fn start(zone: impl IntoIterator<Item = (&'static str, Reply)>) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let queries = Arc::new(Mutex::new(Vec::new()));
        let (open, gate) = watch::channel(true);
        let zone: HashMap<_, _> = zone.into_iter().collect();
        let log = queries.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let query = Message::from_vec(&buffer[..length]).unwrap();
                log.lock().push(query.clone());
                let reply = reply(&zone, &query);
                let (socket, mut gate) = (socket.clone(), gate.clone());
                tokio::spawn(async move {
                    gate.wait_for(|open| *open).await.unwrap();
                    socket.send_to(&reply, from).await.unwrap();
                });
            }
        });
        Self { address, queries, open }
    }

    pub(crate) fn upstream(&self) -> Upstream {
        self.upstream_of(512)
    }

    /// As [`Self::upstream`], for so many lookups at the same time.
    pub(crate) fn upstream_of(&self, max_lookups: usize) -> Upstream {
        Upstream::new(UpstreamConfig {
            max_lookups,
            timeout: Duration::from_secs(2),
            attempts: 1,
            ..UpstreamConfig::new(vec![self.address])
        })
        .unwrap()
    }

    pub(crate) fn count(&self) -> usize {
        self.queries.lock().len()
    }
}

fn reply(zone: &HashMap<&'static str, Reply>, query: &Message) -> Vec<u8> {
    let question = query.queries[0].clone();
    let key = question.name().to_ascii().to_ascii_lowercase();
    let mut message = Message::new(query.id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_available = true;
    message.add_query(question.clone());
    let absent = Reply { code: Some(ResponseCode::NXDomain), records: Vec::new() };
    let known = zone.get(key.trim_end_matches('.')).unwrap_or(&absent);
    message.metadata.response_code = known.code.unwrap_or(ResponseCode::NoError);
    for (owner, ttl, data) in &known.records {
        if data.record_type() == question.query_type() || data.record_type() == RecordType::CNAME {
            let owner = Name::from_ascii(format!("{owner}.")).unwrap();
            message.add_answer(Record::from_rdata(owner, *ttl, data.clone()));
        }
    }
    if message.answers.is_empty() {
        let zone = Name::from_ascii("test.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 60, 60, 60, 30);
        message.add_authority(Record::from_rdata(zone, 30, RData::SOA(soa)));
    }
    message.to_vec().unwrap()
}

/// A query as a stub resolver sends it, with EDNS.
pub(crate) fn query(text: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(text).unwrap(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// Asks and parses the reply.
pub(crate) async fn ask(zone: &FakeZone, upstream: &Upstream, text: &str, kind: RecordType) -> Message {
    ask_message(zone, upstream, &query(text, kind)).await
}

pub(crate) async fn ask_message(zone: &FakeZone, upstream: &Upstream, query: &Message) -> Message {
    let bytes = dns::answer(&query.to_vec().unwrap(), zone, upstream, Transport::Udp).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

pub(crate) fn addresses(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(a) => Some(a.to_string()),
            RData::AAAA(aaaa) => Some(aaaa.to_string()),
            _ => None,
        })
        .collect()
}

/// The code and the text of the Extended DNS Error.
pub(crate) fn ede(message: &Message) -> Option<(u16, String)> {
    let option = message.edns.as_ref()?.option(EdnsCode::Unknown(15))?;
    let EdnsOption::Unknown(_, data) = option else { return None };
    let (code, text) = data.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*code), String::from_utf8(text.to_vec()).unwrap()))
}
