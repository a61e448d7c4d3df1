//! What the attacks are aimed at, found from the policy: what it permits, what it refuses, and how each is judged.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use policy::{
    Decision, Entry, Flow, HostName, KernelDefault, Policy, Protocol, Reason, Rule, Target, Verdict,
};

use crate::names::Names;

/// Where permitted names are, in order of preference: public addresses, of which a policy hardly denies all.
const PERMITTED: [(&str, &str); 4] = [
    ("104.16.1.1", "2606:4700:1::1"),
    ("23.32.7.7", "2600:1406:7::7"),
    ("151.101.9.9", "2a04:4e42:9::9"),
    ("142.250.5.5", "2607:f8b0:5::5"),
];
/// Where nobody is to get.
const REFUSED: [(&str, &str); 4] = [
    ("185.199.109.66", "2a0a:66::67"),
    ("140.82.112.33", "2a01:7c8:33::1"),
    ("91.198.174.11", "2620:0:861::11"),
    ("17.253.144.21", "2a03:2880:21::1"),
];
/// Where every answer for the permitted name leads besides: inside.
pub(crate) const INSIDE: [&str; 8] = [
    "169.254.169.254",
    "10.0.0.7",
    "127.0.0.1",
    "198.51.100.2",
    "100.64.0.1",
    "fd00::7",
    "fe80::1",
    "fd00:ec2::254",
];
/// Names that no policy means.
const NOBODY: &str = "refused.selftest.example";
const ANYBODY: &str = "permitted.selftest.example";
/// Where a name below a wildcard is.
const BELOW: &str = "selftest";

/// A name that the policy permits.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) name: HostName,
    pub(crate) addresses: [IpAddr; 2],
    /// The only port it is permitted on; `None` is every port.
    pub(crate) port: Option<u16>,
}

impl Named {
    /// `port`, if the name is permitted there, else the one port that it is permitted on.
    pub(crate) fn port_or(&self, port: u16) -> u16 {
        self.port.unwrap_or(port)
    }
}

/// How TCP to an address and port gets on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Whatever is said on it: the kernel forwards it.
    Open(Verdict),
    /// The proxy judges what is said on it, and goes to that name's own address.
    Judged {
        /// The address was the answer for a permitted name.
        is_bound: bool,
    },
    /// It is refused before a word is said.
    Closed(Verdict),
}

/// What is to become of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing of it gets out.
    Refused {
        /// What refuses it, in words.
        rule: String,
        /// The machine word of the reason, if there is only one that is right.
        reason: Option<Reason>,
    },
    /// The policy permits it, and it gets through.
    Permitted {
        /// What permits it, in words.
        rule: String,
    },
    /// It works and stays inside the sandbox.
    Inside,
    /// Whatever is answered, nothing of it gets out.
    Contained,
}

impl Expect {
    /// Refused by something that is no rule of the policy.
    pub(crate) fn never(what: &str) -> Self {
        Self::Refused { rule: what.to_owned(), reason: None }
    }

    pub(crate) fn of(verdict: &Verdict) -> Self {
        if verdict.is_allowed() {
            Self::Permitted { rule: verdict.rule.to_string() }
        } else {
            Self::Refused { rule: verdict.rule.to_string(), reason: Some(verdict.reason) }
        }
    }

    pub(crate) fn is_permitted(&self) -> bool {
        matches!(self, Self::Permitted { .. })
    }
}

/// The targets, and the judgement of each.
pub(crate) struct Ground {
    pub(crate) policy: Arc<Policy>,
    /// A name that is permitted, if the policy permits any that can be found.
    pub(crate) named: Option<Named>,
    /// An address that is permitted by an entry or the default, with its only port.
    pub(crate) address: Option<(IpAddr, Option<u16>)>,
    /// A name that is refused, unless everything is permitted.
    pub(crate) refused: HostName,
    /// Whether names below `refused` are judged as it is.
    refuses_below: bool,
    /// Addresses that are refused, unless everything is permitted.
    pub(crate) refused_addresses: [IpAddr; 2],
}

impl Ground {
    /// Finds the targets, and gives the names among them their addresses.
    pub(crate) fn find(policy: Arc<Policy>, names: &Names) -> Self {
        let named = find_named(&policy);
        if let Some(named) = &named {
            // A zone of somebody else's can say what it likes of its names.
            let inside = INSIDE.iter().filter_map(|text| text.parse().ok());
            let answers: Vec<IpAddr> = named.addresses.into_iter().chain(inside).collect();
            names.give(named.name.as_str(), &answers);
        }
        let (refused, refuses_below) = find_refused_name(&policy);
        let refused_addresses = find_refused_addresses(&policy);
        names.give(refused.as_str(), &refused_addresses);
        names.give_below(refused.as_str(), &refused_addresses);
        let address = find_address(&policy);
        Self { policy, named, address, refused, refuses_below, refused_addresses }
    }

    /// A refused name with a canary in it, where the policy permits no such name either.
    pub(crate) fn refused_with(&self, canary: &str) -> String {
        if self.refuses_below { format!("{canary}.{}", self.refused) } else { self.refused.to_string() }
    }

    /// The one function that decides.
    pub(crate) fn judge(
        &self,
        protocol: Protocol,
        name: Option<&HostName>,
        address: Option<IpAddr>,
        port: Option<u16>,
    ) -> Verdict {
        self.policy.judge(&Flow { protocol, name, address, port })
    }

    /// How TCP to this place gets on its way.
    pub(crate) fn passage(&self, address: IpAddr, port: u16) -> Passage {
        let bound = self.named.as_ref().filter(|named| {
            let at = Some(address);
            named.addresses.contains(&address.to_canonical())
                && self.judge(Protocol::Tcp, Some(&named.name), at, Some(port)).is_allowed()
        });
        let verdict = self.judge(Protocol::Tcp, None, Some(address), Some(port));
        let by_proxy = self.policy.kernel().default == KernelDefault::ProxyTcp;
        match (verdict.is_allowed(), bound) {
            (true, _) if verdict.rule == Rule::Default && by_proxy => {
                Passage::Judged { is_bound: bound.is_some() }
            }
            (true, _) => Passage::Open(verdict),
            (false, Some(_)) => Passage::Judged { is_bound: true },
            (false, None) => Passage::Closed(verdict),
        }
    }

    /// What is to become of a connection on which this name is claimed, in a form that can be read.
    pub(crate) fn claimed(&self, name: &[u8], address: IpAddr, port: u16) -> Expect {
        match self.passage(address, port) {
            Passage::Open(verdict) | Passage::Closed(verdict) => Expect::of(&verdict),
            Passage::Judged { .. } => match HostName::from_wire(name) {
                Ok(name) => {
                    Expect::of(&self.judge(Protocol::Tcp, Some(&name), self.address_of(&name), Some(port)))
                }
                Err(_) => Expect::never("no host name"),
            },
        }
    }

    /// What is to become of a connection on which something is said that is refused wherever the proxy hears it.
    pub(crate) fn never_said(
        &self,
        what: &str,
        reason: Option<Reason>,
        address: IpAddr,
        port: u16,
    ) -> Expect {
        match self.passage(address, port) {
            Passage::Open(verdict) | Passage::Closed(verdict) => Expect::of(&verdict),
            Passage::Judged { .. } => Expect::Refused { rule: what.to_owned(), reason },
        }
    }

    /// What is to become of a connection on which another protocol is spoken.
    pub(crate) fn unknown(&self, address: IpAddr, port: u16) -> Expect {
        match self.passage(address, port) {
            Passage::Open(verdict) | Passage::Closed(verdict) => Expect::of(&verdict),
            Passage::Judged { is_bound } if !is_bound || [80, 443].contains(&port) => {
                // Which reason it has depends on what it is taken for until then.
                Expect::never("unknown protocol")
            }
            Passage::Judged { .. } => Expect::Permitted { rule: "an address of a permitted name".to_owned() },
        }
    }

    /// What is to become of anything but TCP.
    pub(crate) fn other(&self, protocol: Protocol, address: IpAddr, port: Option<u16>) -> Expect {
        let verdict = self.judge(protocol, None, Some(address), port);
        let bound = self.named.as_ref().filter(|named| named.addresses.contains(&address));
        match bound {
            // Refused all the same, but by what the policy says of the name.
            Some(named) if !verdict.is_allowed() => {
                Expect::of(&self.judge(protocol, Some(&named.name), Some(address), port))
            }
            _ => Expect::of(&verdict),
        }
    }

    /// Whether an answer for a name may lead to this address.
    pub(crate) fn may_resolve_to(&self, name: &str, address: IpAddr) -> bool {
        HostName::parse(name)
            .is_ok_and(|name| self.judge(Protocol::Tcp, Some(&name), Some(address), None).is_allowed())
    }

    /// Whether a name may be looked up.
    pub(crate) fn lookup(&self, name: &str) -> Expect {
        match HostName::parse(name) {
            Ok(name) => Expect::of(&self.judge(Protocol::Tcp, Some(&name), None, None)),
            Err(_) => Expect::never("no host name"),
        }
    }

    fn address_of(&self, name: &HostName) -> Option<IpAddr> {
        let named = self.named.as_ref().filter(|named| named.name == *name)?;
        named.addresses.first().copied()
    }
}

fn pairs(texts: [(&str, &str); 4]) -> impl Iterator<Item = [IpAddr; 2]> {
    texts.into_iter().filter_map(|(v4, v6)| {
        Some([v4.parse::<Ipv4Addr>().ok()?.into(), v6.parse::<Ipv6Addr>().ok()?.into()])
    })
}

fn entries(texts: &[String]) -> impl Iterator<Item = Entry> {
    // They have been compiled, so every one of them can be parsed.
    texts.iter().filter_map(|text| Entry::parse(text).ok())
}

/// A name that an entry is about.
fn name_of(target: &Target, otherwise: &str) -> Option<HostName> {
    let text = match target {
        Target::Host(name) => name.to_string(),
        Target::Subdomains(zone) => format!("{BELOW}.{zone}"),
        Target::Everything => otherwise.to_owned(),
        Target::Pattern(pattern) => concrete(pattern),
        Target::Network(_) => return None,
    };
    HostName::parse(&text).ok()
}

/// A text that a simple regular expression may match: whoever asks finds out whether it does.
fn concrete(pattern: &str) -> String {
    let mut text = pattern.trim_start_matches('^').trim_end_matches('$').to_owned();
    for (form, stands_for) in [
        ("(.*\\.)?", ""),
        ("(.+\\.)?", ""),
        (".*", BELOW),
        (".+", BELOW),
        ("[a-z]+", BELOW),
        ("[a-z0-9]+", BELOW),
        ("[a-z0-9-]+", BELOW),
        ("[^.]+", BELOW),
        ("\\w+", BELOW),
        ("\\d+", "1"),
        ("\\.", "."),
        ("\\-", "-"),
    ] {
        text = text.replace(form, stands_for);
    }
    text
}

fn find_named(policy: &Policy) -> Option<Named> {
    let spec = policy.spec();
    let by_default = if spec.allow_out.is_empty() { HostName::parse(ANYBODY).ok() } else { None };
    let candidates = entries(&spec.allow_out)
        .filter_map(|entry| Some((name_of(&entry.target, ANYBODY)?, entry.port)))
        .chain(by_default.map(|name| (name, None)));
    for (name, port) in candidates {
        // An address that is permitted itself says nothing of what is permitted of the name.
        let is_listed = |address: &IpAddr| {
            let flow = Flow {
                protocol: Protocol::Tcp,
                name: None,
                address: Some(*address),
                port: port.or(Some(443)),
            };
            matches!(policy.judge(&flow), Verdict { decision: Decision::Allow, rule: Rule::Entry { .. }, .. })
        };
        let preferred = pairs(PERMITTED).filter(|pair| !pair.iter().any(is_listed));
        for addresses in preferred.chain(pairs(PERMITTED)) {
            let permits = |port| {
                addresses.iter().all(|address| {
                    let address = Some(*address);
                    policy
                        .judge(&Flow { protocol: Protocol::Tcp, name: Some(&name), address, port })
                        .is_allowed()
                })
            };
            let port = port.or_else(|| (!permits(Some(80)) || !permits(Some(443))).then_some(443));
            if permits(port.or(Some(80))) {
                return Some(Named { name, addresses, port });
            }
        }
    }
    None
}

/// A name that is refused, and whether those below it are, too; the last resort is one that is not.
fn find_refused_name(policy: &Policy) -> (HostName, bool) {
    let refuses = |name: &HostName| {
        let flow = Flow { protocol: Protocol::Tcp, name: Some(name), address: None, port: None };
        !policy.judge(&flow).is_allowed()
    };
    let nobody = HostName::parse(NOBODY).expect("a constant that is a host name");
    let denied = entries(&policy.spec().deny_out).filter_map(|entry| name_of(&entry.target, NOBODY));
    for name in std::iter::once(nobody.clone()).chain(denied) {
        if refuses(&name) {
            let below = HostName::parse(&format!("x.{name}")).is_ok_and(|below| refuses(&below));
            return (name, below);
        }
    }
    (nobody, true)
}

fn find_refused_addresses(policy: &Policy) -> [IpAddr; 2] {
    let refuses = |address: IpAddr| {
        let flow = Flow { protocol: Protocol::Tcp, name: None, address: Some(address), port: Some(4441) };
        !policy.judge(&flow).is_allowed()
    };
    let mut found = pairs(REFUSED).find(|pair| pair.iter().all(|address| refuses(*address)));
    if found.is_none() {
        // An open policy: what its entries deny is what is refused.
        let denied: Vec<IpAddr> = entries(&policy.spec().deny_out)
            .filter_map(|entry| match entry.target {
                Target::Network(net) => Some(net.hosts().next().unwrap_or(net.addr())),
                _ => None,
            })
            .filter(|address| refuses(*address))
            .collect();
        let of = |is_v4: bool| denied.iter().find(|address| address.is_ipv4() == is_v4).copied();
        let [mut v4, mut v6] = pairs(REFUSED).next().expect("constants that are addresses");
        v4 = of(true).unwrap_or(v4);
        v6 = of(false).unwrap_or(v6);
        found = Some([v4, v6]);
    }
    found.expect("found above if not before")
}

/// An address that is permitted without a name.
fn find_address(policy: &Policy) -> Option<(IpAddr, Option<u16>)> {
    let listed = entries(&policy.spec().allow_out).filter_map(|entry| match entry.target {
        Target::Network(net) => Some((net.hosts().next().unwrap_or(net.addr()), entry.port)),
        _ => None,
    });
    let public = pairs(PERMITTED).map(|[v4, _]| (v4, None));
    let mut candidates = listed.chain(public);
    candidates.find(|(address, port)| {
        let (address, port) = (Some(*address), port.or(Some(8081)));
        policy.judge(&Flow { protocol: Protocol::Udp, name: None, address, port }).is_allowed()
    })
}

#[cfg(test)]
mod tests;
