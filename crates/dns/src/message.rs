//! DNS messages: reading a query, writing the reply to it.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, RData, Record, RecordType,
        rdata::{
            A, AAAA, HINFO,
            opt::{EdnsCode, EdnsOption},
        },
    },
};
use policy::HostName;

/// The length of a message header in bytes (RFC 1035 section 4.1.1).
const HEADER: usize = 12;
/// The most records behind the question: EDNS (RFC 6891) and a signature of the message (RFC 8945, RFC 2931), neither of
/// which there may be two of.
const MAX_ADDITIONAL: u16 = 2;
/// The most bytes of the name of a question (RFC 1035 section 2.3.4).
const MAX_NAME: usize = 255;
/// The length of an EDNS record without options (RFC 6891 section 6.1.2): the root's name, type, payload, flags, and how
/// long the options are.
const OPT: usize = 11;
/// The largest reply over UDP in bytes, whatever the client offers: it never needs fragments.
const MAX_UDP_REPLY: u16 = 1232;
/// The option code of an Extended DNS Error (RFC 8914 section 2).
const EDE: u16 = 15;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In a datagram: the reply is bounded and may say that it is truncated.
    Udp,
    /// In a stream.
    Tcp,
}

/// What a query turned out to be.
pub(crate) enum Received {
    /// Not even a query: there is nobody to reply to.
    Nothing,
    /// A message that cannot be answered as it should be, with the reply that says so.
    Bad {
        /// The error reply.
        reply: Vec<u8>,
        /// Whether it is worth an event, and if the name could be read, that.
        fault: Option<Fault>,
    },
    /// One question about a host name.
    Asked(Asked),
}

/// Why a message was not taken as a question.
pub(crate) enum Fault {
    /// It cannot be parsed, or is not exactly one question about a host name.
    Malformed,
    /// Its class or type is never answered.
    Type(Option<HostName>),
}

/// One question with what is needed to reply to it.
pub(crate) struct Asked {
    /// The name, canonical.
    pub(crate) name: HostName,
    /// The type asked for.
    pub(crate) kind: Kind,
    frame: Frame,
}

/// The record types, as far as they make a difference here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A
    A,
    /// AAAA
    Aaaa,
    /// ANY
    Any,
    /// Any other.
    Other,
}

/// The code of an Extended DNS Error (RFC 8914 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ede {
    /// The policy of the operator (here: of the sandbox) forbids the name.
    Blocked = 15,
    /// No server of the zone could be reached.
    NoReachableAuthority = 22,
    /// Anything else.
    Other = 0,
}

/// What every reply to a query takes over from it.
struct Frame {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    query: Option<Query>,
    /// The client's EDNS: its offered payload and its DO flag. Its options are not looked at.
    edns: Option<(u16, bool)>,
    transport: Transport,
}

/// Reads a message that came as a query.
///
/// What is no query is found by the header alone: the records of an answer may be many, with names that point to one
/// another, and are not looked at.
pub(crate) fn read(bytes: &[u8], transport: Transport) -> Received {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Received::Nothing };
    let [id_high, id_low, flags, ..] = *header;
    if flags & 0x80 != 0 {
        return Received::Nothing; // A response: replying to it could start a loop.
    }
    let frame = Frame {
        id: u16::from_be_bytes([id_high, id_low]),
        recursion_desired: flags & 0x01 != 0,
        checking_disabled: false,
        query: None,
        edns: None,
        transport,
    };
    if OpCode::from_u8((flags >> 3) & 0x0f) != OpCode::Query {
        return frame.bad(ResponseCode::NotImp, None);
    }
    let [_, _, _, _, counts @ ..] = *header;
    if !is_question(counts) {
        return frame.bad(ResponseCode::FormErr, Some(Fault::Malformed));
    }
    match Message::from_vec(bytes) {
        Ok(message) => frame.question(message),
        Err(_) => frame.bad(ResponseCode::FormErr, Some(Fault::Malformed)),
    }
}

/// As [`read`], of the question and its EDNS flags only, whatever else there is in the message and however long it is: for
/// a reply that costs no more than a short query does.
pub(crate) fn read_question(bytes: &[u8], transport: Transport) -> Received {
    match shortened(bytes) {
        Some(short) => read(&short, transport),
        // The header says what there is to say about it.
        None => read(bytes.get(..HEADER).unwrap_or(bytes), transport),
    }
}

/// Whether the counts of a header are those of one question: no answers, and nothing of an authority.
fn is_question(counts: [u8; 8]) -> bool {
    let [questions, answers, authorities, additional] = counts.as_chunks::<2>().0 else { return false };
    let additional = u16::from_be_bytes(*additional);
    (questions, answers, authorities) == (&[0, 1], &[0, 0], &[0, 0]) && additional <= MAX_ADDITIONAL
}

/// The header and the question of a message, with what comes right behind it if that is EDNS, whose options are left out.
/// `None` if that is not how it is made.
fn shortened(bytes: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let mut labels = rest;
    while let Some((&length, behind)) = labels.split_first().filter(|(length, _)| **length > 0) {
        // A longer one is a pointer, and there is nothing yet to point to.
        labels = behind.get(usize::from(length)..).filter(|_| length < 0x40)?;
    }
    // The end of the name, type and class.
    let behind = labels.get(1 + 4..)?;
    let question = rest.get(..rest.len() - behind.len()).filter(|question| question.len() <= MAX_NAME + 4)?;
    let edns = behind.first_chunk::<OPT>().filter(|record| record.starts_with(&[0, 0, 41]));

    let [id_and_flags @ .., _, _, _, _, _, _, _, _] = *header;
    let mut short = Vec::with_capacity(HEADER + question.len() + OPT);
    short.extend_from_slice(&id_and_flags);
    short.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
    short.extend_from_slice(question);
    if let Some([fixed @ .., _, _]) = edns {
        short.extend_from_slice(fixed);
        short.extend_from_slice(&[0, 0]);
    }
    Some(short)
}

impl Frame {
    fn question(mut self, message: Message) -> Received {
        self.checking_disabled = message.checking_disabled;
        self.edns = message.edns.as_ref().map(|edns| (edns.max_payload(), edns.flags().dnssec_ok));
        let version = message.version();
        let mut queries = message.queries.into_iter();
        let (Some(query), None) = (queries.next(), queries.next()) else {
            return self.bad(ResponseCode::FormErr, Some(Fault::Malformed));
        };
        let (class, kind) = (query.query_class(), query.query_type());
        let name = host_name(&query);
        self.query = Some(query);
        if version > 0 {
            return self.bad(ResponseCode::BADVERS, None);
        }
        if class != DNSClass::IN || is_transfer(kind) {
            return self.bad(ResponseCode::Refused, Some(Fault::Type(name)));
        }
        let Some(name) = name else {
            return self.bad(ResponseCode::Refused, Some(Fault::Malformed));
        };
        let kind = match kind {
            RecordType::A => Kind::A,
            RecordType::AAAA => Kind::Aaaa,
            RecordType::ANY => Kind::Any,
            _ => Kind::Other,
        };
        Received::Asked(Asked { name, kind, frame: self })
    }

    fn bad(self, code: ResponseCode, fault: Option<Fault>) -> Received {
        match self.reply(code, Vec::new(), None) {
            Some(reply) => Received::Bad { reply, fault },
            None => Received::Nothing,
        }
    }

    /// The reply in wire format; `None` only if the codec fails on what it has parsed itself.
    fn reply(&self, code: ResponseCode, answers: Vec<RData>, error: Option<(Ede, &str)>) -> Option<Vec<u8>> {
        self.reply_for(code, answers, 0, error)
    }

    fn reply_for(
        &self,
        code: ResponseCode,
        answers: Vec<RData>,
        ttl: u32,
        error: Option<(Ede, &str)>,
    ) -> Option<Vec<u8>> {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        message.metadata.recursion_desired = self.recursion_desired;
        message.metadata.recursion_available = true;
        message.metadata.checking_disabled = self.checking_disabled;
        message.metadata.response_code = code;
        if let Some(query) = &self.query {
            // The letter case of the question is echoed (RFC 1035 section 4.1.2 by way of 0x20 checks).
            let owner = query.name().clone();
            message.add_answers(answers.into_iter().map(|data| Record::from_rdata(owner.clone(), ttl, data)));
            message.add_query(query.clone());
        }
        if let Some((_, dnssec_ok)) = self.edns {
            message.set_edns(own_edns(code, dnssec_ok, error));
        }
        let bytes = message.to_vec().ok()?;
        if self.transport == Transport::Udp && bytes.len() > usize::from(self.payload()) {
            return message.truncate().to_vec().ok();
        }
        Some(bytes)
    }

    /// The most bytes that the client takes in a datagram (RFC 6891 section 6.2.5).
    fn payload(&self) -> u16 {
        self.edns.map_or(512, |(payload, _)| payload.clamp(512, MAX_UDP_REPLY))
    }
}

impl Asked {
    /// NOERROR with these addresses under the name asked for; with none, "no such record".
    pub(crate) fn addresses(&self, addresses: &[IpAddr], ttl: u32) -> Option<Vec<u8>> {
        let data = addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => RData::A(A(*v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(*v6)),
        });
        self.frame.reply_for(ResponseCode::NoError, data.collect(), ttl, None)
    }

    /// NOERROR without a record.
    pub(crate) fn no_data(&self) -> Option<Vec<u8>> {
        self.addresses(&[], 0)
    }

    /// The minimal answer to ANY (RFC 8482 section 4.2).
    pub(crate) fn any(&self) -> Option<Vec<u8>> {
        let hinfo = RData::HINFO(HINFO::new("RFC8482".to_owned(), String::new()));
        self.frame.reply_for(ResponseCode::NoError, vec![hinfo], 3600, None)
    }

    /// NXDOMAIN.
    pub(crate) fn no_name(&self, error: Option<(Ede, &str)>) -> Option<Vec<u8>> {
        self.frame.reply(ResponseCode::NXDomain, Vec::new(), error)
    }

    /// REFUSED.
    pub(crate) fn refused(&self, error: (Ede, &str)) -> Option<Vec<u8>> {
        self.frame.reply(ResponseCode::Refused, Vec::new(), Some(error))
    }

    /// SERVFAIL.
    pub(crate) fn failed(&self, error: (Ede, &str)) -> Option<Vec<u8>> {
        self.frame.reply(ResponseCode::ServFail, Vec::new(), Some(error))
    }

    /// How the query came.
    pub(crate) fn transport(&self) -> Transport {
        self.frame.transport
    }
}

fn own_edns(code: ResponseCode, dnssec_ok: bool, error: Option<(Ede, &str)>) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_REPLY);
    edns.set_rcode_high(code.high());
    edns.set_dnssec_ok(dnssec_ok);
    if let Some((code, text)) = error {
        let mut data = (code as u16).to_be_bytes().to_vec();
        data.extend_from_slice(text.as_bytes());
        edns.options_mut().insert(EdnsOption::Unknown(EdnsCode::from(EDE).into(), data));
    }
    edns
}

/// The canonical host name of a question; `None` for the root and whatever cannot be one. Labels are checked
/// as bytes: a dot inside a label must not look like a border between two.
fn host_name(query: &Query) -> Option<HostName> {
    let mut text = Vec::with_capacity(64);
    for label in query.name().iter() {
        if label.contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push(b'.');
        }
        text.extend_from_slice(label);
    }
    HostName::from_wire(&text).ok()
}

/// AXFR and IXFR, which no stub resolver asks for.
fn is_transfer(kind: RecordType) -> bool {
    matches!(kind, RecordType::AXFR | RecordType::IXFR)
}
