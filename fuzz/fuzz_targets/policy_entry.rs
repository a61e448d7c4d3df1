//! An entry that is accepted has a meaning, and none of them permits the floor.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use policy::{Decision, Entry, Floor, Flow, HostName, Policy, PolicyError, PolicySpec, Protocol, Target};

static FLOOR: LazyLock<Arc<Floor>> = LazyLock::new(|| Arc::new(Floor::new(["192.168.7.7".parse().unwrap()])));

fuzz_target!(|text: &str| {
    let parsed = Entry::parse(text);
    let allow = compile(&[text], &[]);
    let deny = compile(&[], &[text]);
    let Ok(entry) = parsed else {
        assert!(allow.is_err() && deny.is_err());
        return;
    };
    let deny = match deny {
        Ok(policy) => policy,
        Err(PolicyError::PatternsTooLarge { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    if let Ok(allow) = &allow {
        for address in ["169.254.169.254", "127.0.0.1", "::1", "192.168.7.7", "64:ff9b::a9fe:a9fe", "ff02::1"]
        {
            assert_eq!(decide(allow, None, Some(address), entry.port), Decision::Deny);
        }
        assert_eq!(decide(allow, Some("metadata.google.internal"), None, entry.port), Decision::Deny);
    }
    match &entry.target {
        Target::Network(net) => {
            assert_eq!(*net, net.trunc());
            let first = net.addr().to_string();
            assert_eq!(decide(&deny, None, Some(&first), entry.port), Decision::Deny);
        }
        Target::Host(name) => {
            assert_eq!(
                decide(&deny, Some(name.as_str()), None, Some(entry.port.unwrap_or(443))),
                Decision::Deny
            );
            if let Ok(allow) = &allow {
                assert_eq!(decide(allow, Some(name.as_str()), None, entry.port), Decision::Allow);
            }
        }
        Target::Subdomains(name) => {
            if let (Ok(allow), Ok(_)) = (&allow, HostName::parse(&format!("a.{name}"))) {
                let below = format!("a.{name}");
                let floor = FLOOR.name(&HostName::parse(&below).unwrap()).is_some();
                assert_eq!(decide(allow, Some(&below), None, entry.port) == Decision::Deny, floor);
                assert_eq!(decide(allow, Some(name.as_str()), None, entry.port), Decision::Deny);
            }
        }
        Target::Everything | Target::Pattern(_) => {}
    }
});

fn compile(allow: &[&str], deny: &[&str]) -> Result<Policy, PolicyError> {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let spec = PolicySpec { allow_out: texts(allow), deny_out: texts(deny), ..PolicySpec::default() };
    Policy::compile(&spec, Arc::clone(&FLOOR))
}

fn decide(policy: &Policy, name: Option<&str>, address: Option<&str>, port: Option<u16>) -> Decision {
    let name = name.map(|name| HostName::parse(name).unwrap());
    let address = address.map(|address| address.parse().unwrap());
    policy.judge(&Flow { protocol: Protocol::Tcp, name: name.as_ref(), address, port }).decision
}
