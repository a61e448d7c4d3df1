//! What judging a flow gives.

use std::{fmt, sync::Arc};

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

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllowOut => "allow_out",
            Self::DenyOut => "deny_out",
        })
    }
}

/// The rule that fired. Its text is `allow_out[0] api.github.com`, `floor:metadata` or `default`.
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

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Entry { list, index, entry } => write!(f, "{list}[{index}] {entry}"),
            Self::Floor(word) => write!(f, "floor:{word}"),
        }
    }
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
    /// The sandbox has as many flows as it may have at a time, or by a wire opens them too fast.
    FlowLimit,
    /// The sandbox opens connections through the proxy too fast.
    FlowRate,
    /// The sandbox has as many connections as it may have that have not shown yet what they are.
    HalfOpen,
    /// The sandbox sends DNS queries too fast.
    DnsRate,
    /// The sandbox has as many DNS lookups under way as it may have.
    DnsLookups,
    /// The sandbox asks for too many new names of a permitted zone, or for too many bytes of them.
    DnsLabels,
    /// The sandbox has used up the bytes that it may move.
    ByteBudget,
    /// The daemon could not deal with it: it has no descriptor left, or a fault of its own, which the log tells.
    DaemonFault,
}

impl Reason {
    /// The word of the API, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllowEntry => "allow_entry",
            Self::DefaultAllow => "default_allow",
            Self::DenyEntry => "deny_entry",
            Self::DefaultDeny => "default_deny",
            Self::Floor => "floor",
            Self::PrivateRange => "private_range",
            Self::NotBound => "not_bound",
            Self::BindingLimit => "binding_limit",
            Self::NoSni => "no_sni",
            Self::MultipleSni => "multiple_sni",
            Self::InvalidSni => "invalid_sni",
            Self::Ech => "ech",
            Self::TlsVersion => "tls_version",
            Self::MalformedTls => "malformed_tls",
            Self::MalformedHttp => "malformed_http",
            Self::InvalidHost => "invalid_host",
            Self::HttpAbsoluteForm => "http_absolute_form",
            Self::HttpConnect => "http_connect",
            Self::HttpH2c => "http_h2c",
            Self::HttpHostChanged => "http_host_changed",
            Self::UnknownProtocol => "unknown_protocol",
            Self::PeekTimeout => "peek_timeout",
            Self::DnsType => "dns_type",
            Self::MalformedDns => "malformed_dns",
            Self::Quic => "quic",
            Self::FlowLimit => "flow_limit",
            Self::FlowRate => "flow_rate",
            Self::HalfOpen => "half_open",
            Self::DnsRate => "dns_rate",
            Self::DnsLookups => "dns_lookups",
            Self::DnsLabels => "dns_labels",
            Self::ByteBudget => "byte_budget",
            Self::DaemonFault => "daemon_fault",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_reason_is_its_word_in_json() {
        let reasons = [
            Reason::AllowEntry,
            Reason::DefaultAllow,
            Reason::DenyEntry,
            Reason::DefaultDeny,
            Reason::Floor,
            Reason::PrivateRange,
            Reason::NotBound,
            Reason::BindingLimit,
            Reason::NoSni,
            Reason::MultipleSni,
            Reason::InvalidSni,
            Reason::Ech,
            Reason::TlsVersion,
            Reason::MalformedTls,
            Reason::MalformedHttp,
            Reason::InvalidHost,
            Reason::HttpAbsoluteForm,
            Reason::HttpConnect,
            Reason::HttpH2c,
            Reason::HttpHostChanged,
            Reason::UnknownProtocol,
            Reason::PeekTimeout,
            Reason::DnsType,
            Reason::MalformedDns,
            Reason::Quic,
            Reason::FlowLimit,
            Reason::FlowRate,
            Reason::HalfOpen,
            Reason::DnsRate,
            Reason::DnsLookups,
            Reason::DnsLabels,
            Reason::ByteBudget,
            Reason::DaemonFault,
        ];
        for reason in reasons {
            assert_eq!(serde_json::to_string(&reason).unwrap(), format!("\"{reason}\""));
        }
    }

    #[test]
    fn the_text_of_a_rule_names_list_index_and_entry() {
        let rule = Rule::Entry { list: List::AllowOut, index: 0, entry: "api.github.com".into() };
        assert_eq!(rule.to_string(), "allow_out[0] api.github.com");
        assert_eq!(Rule::Floor("metadata").to_string(), "floor:metadata");
        assert_eq!(Rule::Default.to_string(), "default");
    }
}
