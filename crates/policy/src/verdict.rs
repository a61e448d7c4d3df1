//! What judging a flow gives.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The answer for one flow: the decision, the rule that fired and a stable machine reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Permitted or refused.
    pub decision: Decision,
    /// What decided.
    pub rule: Rule,
    /// Why, as a stable machine word.
    pub reason: Reason,
}

impl Verdict {
    /// Whether the flow is permitted.
    pub fn is_allowed(&self) -> bool {
        matches!(self.decision, Decision::Allow)
    }
}

/// Permitted or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The flow is permitted.
    Allow,
    /// The flow is refused.
    Deny,
}

/// Which of the two lists an entry stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// `allow_out`
    AllowOut,
    /// `deny_out`
    DenyOut,
}

/// The rule that fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// No entry matched.
    Default,
    /// An entry of the policy.
    Entry {
        /// The list it stands in.
        list: List,
        /// Its position in that list, from 0.
        index: usize,
        /// The entry as the user wrote it.
        entry: Arc<str>,
    },
    /// The floor, which no policy can change; the word says which part (`metadata`, `link_local`, `node`, …).
    Floor(&'static str),
}

/// Why a flow was permitted or refused: stable machine words, part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// An `allow_out` entry matched.
    AllowEntry,
    /// Nothing matched and the policy is open.
    DefaultAllow,
    /// A `deny_out` entry matched.
    DenyEntry,
    /// Nothing matched and the policy is an allowlist or a blackout.
    DefaultDeny,
    /// The destination is on the floor.
    Floor,
    /// A private or special range that no address entry covers.
    PrivateRange,
    /// A name was permitted, but the flow's address was never an answer for a permitted name.
    NotBound,
    /// The sandbox's bindings are at their limit.
    BindingLimit,
    /// A TLS connection without a server name.
    NoSni,
    /// A ClientHello with more than one server name.
    MultipleSni,
    /// The server name is an address, or not a valid host name.
    InvalidSni,
    /// The ClientHello carries Encrypted Client Hello.
    Ech,
    /// SSL 2 or SSL 3.
    TlsVersion,
    /// A ClientHello that cannot be parsed, or is over the bounds.
    MalformedTls,
    /// An HTTP request that cannot be parsed, is ambiguous or is over the bounds.
    MalformedHttp,
    /// An HTTP request without exactly one valid `Host`.
    InvalidHost,
    /// An absolute-form request target.
    HttpAbsoluteForm,
    /// A CONNECT request.
    HttpConnect,
    /// An upgrade to HTTP/2 in clear, or its preface.
    HttpH2c,
    /// A later request on a connection names another host than the first.
    HttpHostChanged,
    /// Neither TLS nor HTTP, where that is not permitted.
    UnknownProtocol,
    /// The client sent nothing, or not enough, in time.
    PeekTimeout,
    /// A DNS record type or class that is not answered.
    DnsType,
    /// A DNS message that cannot be parsed or asks more than one question.
    MalformedDns,
    /// QUIC to a named host.
    Quic,
    /// A limit of the sandbox on concurrent flows was reached.
    FlowLimit,
}
