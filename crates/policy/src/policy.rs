//! The compiled policy.

mod within;
mod zone;

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    Decision, Floor, Flow, HostName, KernelDefault, KernelView, List, PolicyError, PolicySpec, Protocol,
    Reason, Rule, Topology, Verdict, Warning, WarningKind,
    entry_list::EntryList,
    ports::{PortQuery, lower},
    ranges::{is_private, public_networks},
};

pub use zone::NameZone;

/// How many entries both lists of a policy may have together.
pub const MAX_ENTRIES: usize = 10_000;

/// The port of HTTPS, and of QUIC.
const HTTPS: u16 = 443;

/// A compiled policy: immutable, shared by every part of the data path.
#[derive(Debug)]
pub struct Policy {
    spec: PolicySpec,
    floor: Arc<Floor>,
    allow: EntryList,
    deny: EntryList,
    kernel: KernelView,
    warnings: Vec<Warning>,
}

impl Policy {
    /// Parses and compiles `spec` over `floor`.
    ///
    /// # Errors
    /// For the first entry that is not valid, for an entry of `allow_out` on the floor, for too many entries, for
    /// regular expressions that are too large and for an impossible `mask_request_host`. No entry is ignored.
    pub fn compile(spec: &PolicySpec, floor: Arc<Floor>) -> Result<Self, PolicyError> {
        let count = spec.allow_out.len() + spec.deny_out.len();
        if count > MAX_ENTRIES {
            return Err(PolicyError::TooManyEntries { count, limit: MAX_ENTRIES });
        }
        if let Some(value) = spec.mask_request_host.as_ref().filter(|value| !is_authority(value)) {
            return Err(PolicyError::MaskRequestHost { value: value.clone() });
        }
        let allow = EntryList::compile(List::AllowOut, &spec.allow_out, &floor)?;
        let deny = EntryList::compile(List::DenyOut, &spec.deny_out, &floor)?;
        let kernel = kernel_view(&allow, &deny);
        let mut warnings: Vec<Warning> = allow.warnings().chain(deny.warnings()).collect();
        if allow.is_everything() {
            let void = deny.texts().iter().enumerate().map(|(index, entry)| Warning {
                list: List::DenyOut,
                index,
                entry: Arc::clone(entry),
                kind: WarningKind::NoEffect,
            });
            warnings.extend(void);
        }
        Ok(Self { spec: spec.clone(), floor, allow, deny, kernel, warnings })
    }

    /// The policy as the user wrote it.
    pub fn spec(&self) -> &PolicySpec {
        &self.spec
    }

    /// The floor it was compiled over.
    pub fn floor(&self) -> &Arc<Floor> {
        &self.floor
    }

    /// What is accepted but probably not meant.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// The one function that decides: floor, then allow entries, then deny entries, then the default.
    ///
    /// - An address on a private or special range needs an allow entry that is an address or network covering it;
    ///   an entry that is a name, or everything, does not cover it.
    /// - Without a port the question is whether some port is permitted (the resolver's question): allow entries
    ///   count whatever their port, deny entries only if they have none. ICMP and other protocols without ports
    ///   are only covered by entries without a port.
    /// - Only TCP, in which the name can be checked, is permitted by name entries, or by an open default next to
    ///   deny entries that are names.
    /// - Of several entries that match, the rule is the first in its list.
    pub fn judge(&self, flow: &Flow<'_>) -> Verdict {
        let subject = Subject::of(flow);
        if let Some(word) = self.floor_word(&subject) {
            return verdict(Decision::Deny, Rule::Floor(word), Reason::Floor);
        }
        self.judge_allow(&subject)
            .or_else(|| self.judge_deny(&subject))
            .unwrap_or_else(|| self.judge_default(&subject))
    }

    /// The part of the policy that the kernel enforces.
    pub fn kernel(&self) -> &KernelView {
        &self.kernel
    }

    /// Whether the sandbox needs a wire: it does if an `allow_out` entry is an address, or if the default is open
    /// without a name being denied.
    pub fn topology(&self) -> Topology {
        if self.kernel.allow.is_empty() && self.kernel.default != KernelDefault::ForwardPublic {
            Topology::NoWire
        } else {
            Topology::Wire
        }
    }

    fn floor_word(&self, subject: &Subject<'_>) -> Option<&'static str> {
        let by_address = || subject.address.and_then(|address| self.floor.address(address));
        subject.name.and_then(|name| self.floor.name(name)).or_else(by_address)
    }

    fn judge_allow(&self, subject: &Subject<'_>) -> Option<Verdict> {
        let query = subject.allow_query;
        let allow = |index| verdict(Decision::Allow, self.allow.rule(index), Reason::AllowEntry);
        let by_address = subject.address.and_then(|address| self.allow.find_address(address, query));
        let everything = self.allow.find_everything(query);
        let by_name = subject.name.and_then(|name| self.allow.find_name(name, query));
        if subject.is_private {
            let named = everything.or(by_name).is_some();
            let refused = || verdict(Decision::Deny, Rule::Default, Reason::PrivateRange);
            return by_address.map(allow).or_else(|| named.then(refused));
        }
        let by_traffic = lower(by_address, everything);
        if subject.hides_name {
            let refused = || verdict(Decision::Deny, Rule::Default, subject.hidden_name_reason());
            return by_traffic.map(allow).or_else(|| by_name.map(|_| refused()));
        }
        lower(by_traffic, by_name).map(allow)
    }

    fn judge_deny(&self, subject: &Subject<'_>) -> Option<Verdict> {
        let query = subject.deny_query;
        let by_address = subject.address.and_then(|address| self.deny.find_address(address, query));
        let by_name = subject.name.and_then(|name| self.deny.find_name(name, query));
        let index = lower(lower(by_address, by_name), self.deny.find_everything(query))?;
        Some(verdict(Decision::Deny, self.deny.rule(index), Reason::DenyEntry))
    }

    fn judge_default(&self, subject: &Subject<'_>) -> Verdict {
        let (decision, reason) = match self.kernel.default {
            KernelDefault::Refuse => (Decision::Deny, Reason::DefaultDeny),
            _ if subject.is_private => (Decision::Deny, Reason::PrivateRange),
            KernelDefault::ProxyTcp if subject.hides_name => (Decision::Deny, subject.hidden_name_reason()),
            KernelDefault::ForwardPublic | KernelDefault::ProxyTcp => (Decision::Allow, Reason::DefaultAllow),
        };
        verdict(decision, Rule::Default, reason)
    }
}

/// A policy with the number of the generation in which it is in force. Generations of a sandbox count from 1.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The policy.
    pub policy: Arc<Policy>,
    /// Its generation.
    pub generation: u64,
}

/// A flow as the steps of judging see it.
struct Subject<'a> {
    name: Option<&'a HostName>,
    /// Never IPv4-mapped.
    address: Option<IpAddr>,
    is_private: bool,
    allow_query: PortQuery,
    deny_query: PortQuery,
    /// It is not TCP, so nobody can check the name.
    hides_name: bool,
    port: Option<u16>,
}

impl<'a> Subject<'a> {
    fn of(flow: &Flow<'a>) -> Self {
        let address = flow.address.map(|address| address.to_canonical());
        let has_ports = matches!(flow.protocol, Protocol::Tcp | Protocol::Udp);
        let (allow_query, deny_query) = match flow.port {
            Some(port) if has_ports => (PortQuery::Is(port), PortQuery::Is(port)),
            None if has_ports => (PortQuery::Any, PortQuery::Every),
            _ => (PortQuery::Every, PortQuery::Every),
        };
        Self {
            name: flow.name,
            address,
            is_private: address.is_some_and(is_private),
            allow_query,
            deny_query,
            hides_name: match flow.protocol {
                Protocol::Tcp => false,
                Protocol::Udp => flow.port.is_some(),
                _ => true,
            },
            port: flow.port,
        }
    }

    fn hidden_name_reason(&self) -> Reason {
        if self.port == Some(HTTPS) { Reason::Quic } else { Reason::DefaultDeny }
    }
}

fn verdict(decision: Decision, rule: Rule, reason: Reason) -> Verdict {
    Verdict { decision, rule, reason }
}

fn kernel_view(allow: &EntryList, deny: &EntryList) -> KernelView {
    let everything: [IpNet; 2] =
        ["0.0.0.0/0", "::/0"].map(|text| text.parse().expect("a network of every address"));
    let default = if allow.is_everything() {
        KernelDefault::ForwardPublic
    } else if !allow.is_empty() || deny.is_everything() {
        KernelDefault::Refuse
    } else if deny.has_names() {
        KernelDefault::ProxyTcp
    } else {
        KernelDefault::ForwardPublic
    };
    // Entries that are permitted beat those that are not, so next to any of them `deny` decides nothing.
    let deny_rules = if allow.is_empty() && default != KernelDefault::Refuse {
        deny.address_rules(&everything)
    } else {
        Vec::new()
    };
    KernelView {
        allow: allow.address_rules(public_networks()),
        deny: deny_rules,
        default,
        resolves_names: !(allow.is_empty() && deny.is_everything()),
    }
}

/// Whether `text` can be the value of a `Host` header: a host name or address, with or without a port.
fn is_authority(text: &str) -> bool {
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if let Some(inner) = text.strip_prefix('[') {
        return inner.split_once(']').is_some_and(|(address, after)| {
            let is_v6 = address.parse::<std::net::Ipv6Addr>().is_ok();
            is_v6 && (after.is_empty() || after.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let is_host =
        text.is_ascii() && (host.parse::<std::net::Ipv4Addr>().is_ok() || HostName::parse(host).is_ok());
    is_host && port.is_none_or(is_port)
}
