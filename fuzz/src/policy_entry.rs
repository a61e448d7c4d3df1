//! An entry that is accepted has one meaning, permits nothing beside it, and never the floor.

use std::{
    net::IpAddr,
    sync::{Arc, LazyLock},
};

use ipnet::IpNet;
use policy::{Decision, Entry, Floor, Flow, HostName, Policy, PolicyError, PolicySpec, Protocol, Target};
use regex::bytes::RegexBuilder;

pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parsed = Entry::parse(text);
    let allow = compile(&[text], &[]);
    let deny = compile(&[], &[text]);
    let Ok(entry) = parsed else {
        assert!(allow.is_err() && deny.is_err());
        return;
    };
    let again = Entry::parse(&printed(&entry)).expect("an entry that was read can be written");
    assert_eq!((&again.target, again.port), (&entry.target, entry.port));
    let deny = match deny {
        Ok(policy) => policy,
        Err(PolicyError::PatternsTooLarge { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    // What is on the floor cannot be permitted, and is refused.
    let allow = allow.ok();
    if let Some(allow) = &allow {
        check_floor(allow, entry.port);
    }
    match &entry.target {
        Target::Network(net) => check_network(*net, entry.port, allow.as_ref(), &deny),
        Target::Host(name) => check_host(name, entry.port, allow.as_ref(), &deny),
        Target::Subdomains(name) => check_subdomains(name, entry.port, allow.as_ref()),
        Target::Pattern(source) => check_pattern(source, entry.port, allow.as_ref()),
        Target::Everything => {}
    }
}

static FLOOR: LazyLock<Arc<Floor>> = LazyLock::new(|| Arc::new(Floor::new(["192.168.7.7".parse().unwrap()])));

/// The entry in its plainest spelling.
fn printed(entry: &Entry) -> String {
    let target = match &entry.target {
        Target::Everything => "*".to_owned(),
        Target::Network(IpNet::V4(net)) => net.to_string(),
        Target::Network(IpNet::V6(net)) => format!("[{net}]"),
        Target::Host(name) => name.to_string(),
        Target::Subdomains(name) => format!("*.{name}"),
        Target::Pattern(source) => format!("~{source}"),
    };
    entry.port.map_or(target.clone(), |port| format!("{target}:{port}"))
}

fn check_floor(allow: &Policy, port: Option<u16>) {
    for address in ["169.254.169.254", "127.0.0.1", "::1", "192.168.7.7", "64:ff9b::a9fe:a9fe", "ff02::1"] {
        assert_eq!(decide(allow, None, Some(address.parse().unwrap()), port), Decision::Deny);
    }
    let metadata = HostName::parse("metadata.google.internal").unwrap();
    assert_eq!(decide(allow, Some(&metadata), None, port), Decision::Deny);
}

fn check_network(net: IpNet, port: Option<u16>, allow: Option<&Policy>, deny: &Policy) {
    assert_eq!(net, net.trunc());
    for address in [net.network(), net.broadcast()] {
        assert_eq!(decide(deny, None, Some(address), port), Decision::Deny);
        if let Some(allow) = allow {
            let floor = FLOOR.address(address).is_some();
            assert_eq!(decide(allow, None, Some(address), port) == Decision::Deny, floor, "{address}");
            let other = port.map_or(Some(1), |port| port.checked_add(1));
            assert!(port.is_none() || decide(allow, None, Some(address), other) == Decision::Deny);
        }
    }
    for address in [before(net.network()), after(net.broadcast())].into_iter().flatten() {
        if let Some(allow) = allow {
            assert_eq!(decide(allow, None, Some(address), port), Decision::Deny, "{address} is beside {net}");
        }
    }
}

fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_sub(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_sub(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => v4.to_bits().checked_add(1).map(|bits| IpAddr::V4(bits.into())),
        IpAddr::V6(v6) => v6.to_bits().checked_add(1).map(|bits| IpAddr::V6(bits.into())),
    }
}

fn check_host(name: &HostName, port: Option<u16>, allow: Option<&Policy>, deny: &Policy) {
    assert_eq!(decide(deny, Some(name), None, Some(port.unwrap_or(443))), Decision::Deny);
    let Some(allow) = allow else { return };
    assert_eq!(decide(allow, Some(name), None, port), Decision::Allow);
    for other in [format!("a.{name}"), format!("a{name}"), format!("{name}.a"), format!("{name}a")] {
        if let Ok(other) = HostName::parse(&other) {
            assert_eq!(decide(allow, Some(&other), None, port), Decision::Deny, "{other}");
        }
    }
}

fn check_subdomains(name: &HostName, port: Option<u16>, allow: Option<&Policy>) {
    let Some(allow) = allow else { return };
    assert_eq!(decide(allow, Some(name), None, port), Decision::Deny);
    for below in [format!("a.{name}"), format!("a.b.{name}")] {
        if let Ok(below) = HostName::parse(&below) {
            let floor = FLOOR.name(&below).is_some();
            assert_eq!(decide(allow, Some(&below), None, port) == Decision::Deny, floor, "{below}");
        }
    }
    for beside in [format!("a{name}"), format!("{name}.a"), format!("a.{name}.a")] {
        if let Ok(beside) = HostName::parse(&beside)
            && !beside.as_str().ends_with(&format!(".{name}"))
        {
            assert_eq!(decide(allow, Some(&beside), None, port), Decision::Deny, "{beside}");
        }
    }
}

/// Whatever stands between the anchors, what is permitted matches the expression itself.
fn check_pattern(source: &str, port: Option<u16>, allow: Option<&Policy>) {
    let Some(allow) = allow else { return };
    // By itself it has to be one: what is none may be, between anchors, and escape from them.
    let regex = RegexBuilder::new(source).case_insensitive(true).unicode(false).build();
    let regex = regex.expect("an expression that is accepted is one");
    let literal: String =
        source.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')).collect();
    for name in ["a.test", "b", "api.example.com", "evil.test", &literal] {
        let Ok(name) = HostName::parse(name) else { continue };
        if decide(allow, Some(&name), None, port) == Decision::Allow {
            assert!(regex.is_match(name.as_str().as_bytes()), "{name} does not match {source}");
        }
        if !source.contains(['\\', '.', '*', '+', '?', '[', '{', '(', '|', '^', '$']) {
            let same = name.as_str().eq_ignore_ascii_case(source);
            assert_eq!(decide(allow, Some(&name), None, port) == Decision::Allow, same, "{name}");
        }
    }
}

fn compile(allow: &[&str], deny: &[&str]) -> Result<Policy, PolicyError> {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let spec = PolicySpec { allow_out: texts(allow), deny_out: texts(deny), ..PolicySpec::default() };
    Policy::compile(&spec, Arc::clone(&FLOOR))
}

fn decide(policy: &Policy, name: Option<&HostName>, address: Option<IpAddr>, port: Option<u16>) -> Decision {
    policy.judge(&Flow { protocol: Protocol::Tcp, name, address, port }).decision
}
