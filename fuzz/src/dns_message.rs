//! The name that is judged is the name that was asked for, and every reply belongs to its query.
//!
//! The sandbox may resolve nothing, so no query may have to wait for anybody. A query is read a second time by the
//! few lines below.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    pin::pin,
    sync::{Arc, LazyLock, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use dns::{BindRefused, Budget, Transport, Upstream, UpstreamConfig, Zone};
use hickory_proto::{
    op::{Message, MessageType},
    rr::RData,
};
use policy::{Floor, FlowEvent, HostName, InForce, Policy, PolicySpec};

pub fn check(query: &[u8]) {
    for transport in [Transport::Udp, Transport::Tcp] {
        let sandbox = Sandbox::default();
        let reply = answer(query, &sandbox, transport);
        let judged = sandbox.judged.into_inner().unwrap();
        let asked = question(query);
        for name in &judged {
            let asked = asked.as_ref().expect("a name is judged where there is no question");
            let text = asked.labels.join(&b'.');
            assert_eq!(HostName::from_wire(&text).as_ref(), Ok(name), "another name is judged");
            // A dot inside a label looks like a border between two, and is none.
            assert_eq!(asked.labels.len(), name.as_str().split('.').count(), "{name} has other labels");
        }
        match reply {
            Some(reply) => check_reply(query, &reply, transport, &judged),
            None => assert!(judged.is_empty(), "a query that is judged has a reply"),
        }
    }
}

fn check_reply(query: &[u8], reply: &[u8], transport: Transport, judged: &[HostName]) {
    let limit = if transport == Transport::Udp { 1232 } else { 65_535 };
    assert!(reply.len() <= limit);
    assert_eq!(reply[..2], query[..2], "the reply is to another query");
    if let (Some(asked), Some(answered)) = (question(query), question(reply)) {
        assert_eq!((asked.labels, asked.kind_and_class), (answered.labels, answered.kind_and_class));
    }
    let message = Message::from_vec(reply).expect("a reply can be read");
    assert_eq!(message.message_type, MessageType::Response);
    for record in &message.answers {
        assert_eq!(record.name, message.queries[0].name().clone(), "an answer about another name");
        match &record.data {
            RData::A(address) if address.0 == SINK => assert!(!judged.is_empty()),
            RData::A(address) => assert!(address.0.is_loopback() && judged.is_empty()),
            RData::AAAA(address) => assert!(address.0.is_loopback() && judged.is_empty()),
            other => panic!("an answer that nobody asked for: {other}"),
        }
    }
}

/// The resolver of a sandbox that may reach one address, and no name.
#[derive(Default)]
struct Sandbox {
    judged: Mutex<Vec<HostName>>,
    budget: Budget,
}

const SINK: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 7);

static POLICY: LazyLock<Arc<Policy>> = LazyLock::new(|| {
    let spec = PolicySpec { allow_out: vec!["192.0.2.1".to_owned()], ..PolicySpec::default() };
    Arc::new(Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap())
});

static UPSTREAM: LazyLock<Upstream> = LazyLock::new(|| {
    let nobody = (IpAddr::from([127, 0, 0, 1]), 9).into();
    Upstream::new(UpstreamConfig::new(vec![nobody])).unwrap()
});

impl Zone for Sandbox {
    fn in_force(&self) -> InForce {
        InForce { policy: Arc::clone(&POLICY), generation: 1 }
    }

    fn bind(&self, name: &HostName, _: &[IpAddr], _: Duration, _: u64) -> Result<(), BindRefused> {
        panic!("{name} is made reachable");
    }

    fn sink(&self, name: &HostName) -> Option<Ipv4Addr> {
        self.judged.lock().unwrap().push(name.clone());
        Some(SINK)
    }

    fn budget(&self) -> &Budget {
        &self.budget
    }

    fn record(&self, event: FlowEvent) {
        assert!(!event.verdict.is_allowed());
        self.judged.lock().unwrap().extend(event.name);
    }

    fn record_if_alone(&self, event: FlowEvent) {
        self.record(event);
    }

    fn ipv6(&self) -> bool {
        true
    }
}

fn answer(query: &[u8], sandbox: &Sandbox, transport: Transport) -> Option<Vec<u8>> {
    let answer = pin!(dns::answer(query, sandbox, &UPSTREAM, transport));
    match answer.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(reply) => reply,
        Poll::Pending => panic!("a name that is not permitted is looked up"),
    }
}

/// The first question of a message.
struct Question<'a> {
    labels: Vec<&'a [u8]>,
    kind_and_class: [u8; 4],
}

fn question(message: &[u8]) -> Option<Question<'_>> {
    let questions = u16::from_be_bytes(*message.get(4..)?.first_chunk()?);
    let (labels, after) = labels(message, 12)?;
    let kind_and_class = *message.get(after..)?.first_chunk()?;
    (questions > 0).then_some(Question { labels, kind_and_class })
}

/// The labels of the name at `at`, and where what follows it begins.
fn labels(message: &[u8], mut at: usize) -> Option<(Vec<&[u8]>, usize)> {
    let mut labels = Vec::new();
    let mut after = None;
    for _ in 0..256 {
        let length = usize::from(*message.get(at)?);
        match length >> 6 {
            0 if length == 0 => return Some((labels, after.unwrap_or(at + 1))),
            0 => {
                labels.push(message.get(at + 1..at + 1 + length)?);
                at += 1 + length;
            }
            3 => {
                after = after.or(Some(at + 2));
                at = (length & 0x3f) << 8 | usize::from(*message.get(at + 1)?);
            }
            _ => return None,
        }
    }
    None
}
