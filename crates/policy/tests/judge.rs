//! What a policy permits and refuses, by example. Each refused case stands beside a permitted one.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::{net::IpAddr, sync::Arc};

use policy::{
    AddressRule, Decision, Floor, Flow, HostName, KernelDefault, List, Policy, PolicyError, PolicySpec,
    Protocol, Reason, Rule, Topology, WarningKind, private_networks,
};

/// The address of `allowed.test` and of `sib.test`.
const A1: &str = "203.0.112.10";
/// The address of `evil.test`.
const E1: &str = "198.51.99.66";
const EVERYTHING: &str = "0.0.0.0/0";

fn floor() -> Arc<Floor> {
    Arc::new(Floor::new(["93.184.215.14".parse().unwrap()]))
}

fn compile(allow: &[&str], deny: &[&str]) -> Result<Policy, PolicyError> {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    let spec = PolicySpec { allow_out: texts(allow), deny_out: texts(deny), ..PolicySpec::default() };
    Policy::compile(&spec, floor())
}

#[track_caller]
fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    compile(allow, deny).unwrap()
}

/// Judges `name`, `address`, `name@address`, each with or without a port, over TCP.
#[track_caller]
fn judge(policy: &Policy, subject: &str, port: impl Into<Option<u16>>) -> (Decision, String, Reason) {
    judge_over(Protocol::Tcp, policy, subject, port)
}

#[track_caller]
fn judge_over(
    protocol: Protocol,
    policy: &Policy,
    subject: &str,
    port: impl Into<Option<u16>>,
) -> (Decision, String, Reason) {
    let (name, address) = match subject.split_once('@') {
        Some((name, address)) => (Some(name), address.parse::<IpAddr>().ok()),
        None => match subject.parse::<IpAddr>() {
            Ok(address) => (None, Some(address)),
            Err(_) => (Some(subject), None),
        },
    };
    let name = name.map(|name| HostName::parse(name).unwrap());
    let verdict = policy.judge(&Flow { protocol, name: name.as_ref(), address, port: port.into() });
    (verdict.decision, verdict.rule.to_string(), verdict.reason)
}

fn allowed(rule: &str) -> (Decision, String, Reason) {
    let reason = if rule == "default" { Reason::DefaultAllow } else { Reason::AllowEntry };
    (Decision::Allow, rule.to_owned(), reason)
}

fn denied(rule: &str, reason: Reason) -> (Decision, String, Reason) {
    (Decision::Deny, rule.to_owned(), reason)
}

fn default_deny() -> (Decision, String, Reason) {
    denied("default", Reason::DefaultDeny)
}

#[test]
fn the_default_is_the_public_internet_and_nothing_private() {
    let open = policy(&[], &[]);
    assert_eq!(judge(&open, "evil.test", None), allowed("default"));
    assert_eq!(judge(&open, "8.8.8.8", 53), allowed("default"));
    assert_eq!(judge(&open, "2606:4700::1111", 443), allowed("default"));
    let private =
        ["10.0.0.1", "192.168.1.1", "100.64.0.9", "198.18.0.1", "203.0.113.1", "fd00::1", "::ffff:10.0.0.1"];
    for address in private {
        assert_eq!(judge(&open, address, 443), denied("default", Reason::PrivateRange), "{address}");
    }
    assert_eq!(open.kernel().default, KernelDefault::ForwardPublic);
    assert_eq!(open.topology(), Topology::Wire);
    assert!(open.kernel().resolves_names);
}

#[test]
fn an_allowlist_permits_its_names_and_nothing_else() {
    let p1 = policy(&["allowed.test"], &[EVERYTHING]);
    for name in ["allowed.test", "ALLOWED.Test", "allowed.test."] {
        assert_eq!(judge(&p1, name, None), allowed("allow_out[0] allowed.test"), "{name}");
        assert_eq!(judge(&p1, &format!("{name}@{A1}"), 443), allowed("allow_out[0] allowed.test"), "{name}");
    }
    let refused = denied("deny_out[0] 0.0.0.0/0", Reason::DenyEntry);
    for subject in [
        "sib.test",
        "evil.test@203.0.112.10",
        A1,
        E1,
        "2606:4700::1111",
        "notallowed.test",
        "a.allowed.test",
        "allowed.test.evil.test",
        "allowed.testevil",
        "аllowed.test",
    ] {
        assert_eq!(judge(&p1, subject, 443), refused, "{subject}");
        assert_eq!(judge(&p1, subject, None), refused, "{subject}");
    }
    assert_eq!(p1.topology(), Topology::NoWire);
    assert_eq!(p1.kernel().default, KernelDefault::Refuse);
    assert!(p1.kernel().allow.is_empty() && p1.kernel().deny.is_empty());
    assert!(p1.kernel().resolves_names);
}

#[test]
fn one_allow_entry_closes_the_rest_even_without_deny_entries() {
    let list = policy(&["allowed.test"], &[]);
    assert_eq!(judge(&list, "allowed.test", 443), allowed("allow_out[0] allowed.test"));
    assert_eq!(judge(&list, "evil.test", 443), default_deny());
    assert_eq!(judge(&list, E1, 443), default_deny());
}

#[test]
fn internationalised_names_match_in_both_notations() {
    let list = policy(&["bücher.test"], &[]);
    assert_eq!(judge(&list, "xn--bcher-kva.test", 443), allowed("allow_out[0] bücher.test"));
    assert_eq!(judge(&list, "bucher.test", 443), default_deny());
}

#[test]
fn a_wildcard_takes_in_every_depth_and_not_the_apex() {
    let p2 = policy(&["*.allowed.test"], &[EVERYTHING]);
    for name in ["a.allowed.test", "a.b.allowed.test", "A.ALLOWED.test."] {
        assert_eq!(judge(&p2, name, 443), allowed("allow_out[0] *.allowed.test"), "{name}");
    }
    for name in [
        "allowed.test",
        "notallowed.test",
        "a.notallowed.test",
        "a.allowed.test.evil.test",
        "allowed.testevil",
    ] {
        assert_eq!(judge(&p2, name, 443).0, Decision::Deny, "{name}");
    }
}

#[test]
fn a_regular_expression_matches_whole_names() {
    let p6 = policy(&[r"~allowed\.test"], &[EVERYTHING]);
    assert_eq!(judge(&p6, "allowed.test", 443), allowed(r"allow_out[0] ~allowed\.test"));
    assert_eq!(judge(&p6, "ALLOWED.test", 443), allowed(r"allow_out[0] ~allowed\.test"));
    for name in ["allowed.test.evil.test", "x-allowed.test", "allowedxtest", "x.allowed.test"] {
        assert_eq!(judge(&p6, name, 443).0, Decision::Deny, "{name}");
    }
    let loose = policy(&["~anthropic.com", r"~.*anthropic\.com"], &[]);
    let kinds: Vec<_> =
        loose.warnings().iter().map(|warning| (warning.index, warning.kind.clone())).collect();
    assert_eq!(kinds, [(0, WarningKind::UnescapedDot { offset: 9 }), (1, WarningKind::LooseBeginning)]);
    let ported = policy(&[r"~[a-z]+\.test:8443"], &[]);
    assert!(judge(&ported, "a.test", 8443).0 == Decision::Allow);
    assert_eq!(judge(&ported, "a.test", 443), default_deny());
}

#[test]
fn an_address_entry_permits_every_protocol_and_name_at_that_address() {
    let p3 = policy(&["203.0.112.10/32"], &[EVERYTHING]);
    let rule = "allow_out[0] 203.0.112.10/32";
    assert_eq!(judge(&p3, A1, 22), allowed(rule));
    assert_eq!(judge(&p3, "evil.test@203.0.112.10", 443), allowed(rule));
    assert_eq!(judge_over(Protocol::Udp, &p3, A1, 443), allowed(rule));
    assert_eq!(judge_over(Protocol::Icmp, &p3, A1, None), allowed(rule));
    assert_eq!(judge(&p3, "203.0.112.11", 22), denied("deny_out[0] 0.0.0.0/0", Reason::DenyEntry));
    assert_eq!(judge(&p3, "evil.test", None).0, Decision::Deny);
    assert_eq!(p3.topology(), Topology::Wire);
    assert_eq!(p3.kernel().allow, [AddressRule { net: "203.0.112.10/32".parse().unwrap(), port: None }]);
}

#[test]
fn a_blackout_permits_nothing_and_resolves_nothing() {
    for word in ["0.0.0.0/0", "::/0", "*", "ALL_TRAFFIC"] {
        let p4 = policy(&[], &[word]);
        let refused = denied(&format!("deny_out[0] {word}"), Reason::DenyEntry);
        for subject in ["allowed.test", "localhost", A1, "2606:4700::1111", "10.0.0.1"] {
            assert_eq!(judge(&p4, subject, 443), refused, "{subject}");
            assert_eq!(judge(&p4, subject, None), refused, "{subject}");
        }
        assert!(!p4.kernel().resolves_names);
        assert_eq!((p4.kernel().default, p4.topology()), (KernelDefault::Refuse, Topology::NoWire));
    }
    let with_address = policy(&[A1], &[EVERYTHING]);
    assert!(with_address.kernel().resolves_names);
    assert_eq!(with_address.topology(), Topology::Wire);
}

#[test]
fn an_empty_allow_list_is_no_allow_list() {
    let spec: PolicySpec = serde_json::from_str(r#"{"allow_out": [], "deny_out": []}"#).unwrap();
    let missing: PolicySpec = serde_json::from_str("{}").unwrap();
    for spec in [spec, missing] {
        let open = Policy::compile(&spec, floor()).unwrap();
        assert_eq!(judge(&open, "evil.test", 443), allowed("default"));
    }
    let spec: PolicySpec = serde_json::from_str(r#"{"allow_out": [], "deny_out": ["0.0.0.0/0"]}"#).unwrap();
    let blackout = Policy::compile(&spec, floor()).unwrap();
    assert_eq!(judge(&blackout, "evil.test", 443).0, Decision::Deny);
}

#[test]
fn a_denied_address_is_denied_in_every_notation() {
    let p5 = policy(&[], &["198.51.99.66/32"]);
    let rule = denied("deny_out[0] 198.51.99.66/32", Reason::DenyEntry);
    for address in [E1, "::ffff:198.51.99.66", "64:ff9b::198.51.99.66"] {
        assert_eq!(judge(&p5, address, 443), rule, "{address}");
        assert_eq!(judge_over(Protocol::Udp, &p5, address, 443), rule, "{address}");
    }
    assert_eq!(judge(&p5, "evil.test@198.51.99.66", None), rule);
    assert_eq!(judge(&p5, A1, 443), allowed("default"));
    assert_eq!(judge_over(Protocol::Udp, &p5, A1, 443), allowed("default"));
    let nets: Vec<String> = p5.kernel().deny.iter().map(|rule| rule.net.to_string()).collect();
    assert_eq!(nets, ["198.51.99.66/32", "64:ff9b::c633:6342/128"]);
}

#[test]
fn a_denied_name_leaves_the_rest_open_and_closes_udp() {
    let open = policy(&[], &["evil.test", "*.evil.test"]);
    assert_eq!(judge(&open, "evil.test", None), denied("deny_out[0] evil.test", Reason::DenyEntry));
    assert_eq!(
        judge(&open, "a.evil.test@198.51.99.66", 443),
        denied("deny_out[1] *.evil.test", Reason::DenyEntry)
    );
    assert_eq!(judge(&open, "allowed.test", None), allowed("default"));
    assert_eq!(judge(&open, "allowed.test@203.0.112.10", 443), allowed("default"));
    assert_eq!(judge(&open, "allowed.test@203.0.112.10", 22), allowed("default"));
    assert_eq!(judge(&open, A1, 80), allowed("default"));
    assert_eq!(judge_over(Protocol::Icmp, &open, A1, None), default_deny());
    assert_eq!(judge_over(Protocol::Udp, &open, A1, 443), denied("default", Reason::Quic));
    assert_eq!(judge_over(Protocol::Udp, &open, A1, 123), default_deny());
    assert_eq!(open.kernel().default, KernelDefault::ProxyTcp);
    assert_eq!(open.topology(), Topology::NoWire);
}

#[test]
fn allow_beats_deny_whatever_the_order_or_kind() {
    let list = policy(&["allowed.test", "10.0.0.0/8"], &["allowed.test", "10.1.0.0/16", "*"]);
    assert_eq!(judge(&list, "allowed.test", 443), allowed("allow_out[0] allowed.test"));
    assert_eq!(judge(&list, "10.1.2.3", 443), allowed("allow_out[1] 10.0.0.0/8"));
    assert_eq!(judge(&list, "evil.test", 443), denied("deny_out[2] *", Reason::DenyEntry));
}

#[test]
fn the_rule_of_a_verdict_is_the_first_entry_that_matches() {
    let list = policy(&["*.b.test", "~a\\.b\\.test", "a.b.test", "10.0.0.0/8", "10.1.0.0/16"], &[]);
    assert_eq!(judge(&list, "a.b.test", 443), allowed("allow_out[0] *.b.test"));
    assert_eq!(judge(&list, "a.b.test@10.1.1.1", 443), allowed("allow_out[3] 10.0.0.0/8"));
}

#[test]
fn a_permitted_name_does_not_open_private_addresses() {
    let named = policy(&["allowed.test", "*.rebind.test"], &[]);
    let refused = denied("default", Reason::PrivateRange);
    for subject in [
        "allowed.test@10.0.0.1",
        "x.rebind.test@192.168.0.1",
        "allowed.test@fd00::1",
        "allowed.test@::ffff:172.16.0.1",
        "allowed.test@64:ff9b::10.0.0.1",
        "allowed.test@2002:a00:1::1",
        "allowed.test@198.18.0.1",
    ] {
        assert_eq!(judge(&named, subject, 443), refused, "{subject}");
        assert_eq!(judge(&named, subject, None), refused, "{subject}");
    }
    assert_eq!(judge(&named, "allowed.test@127.0.0.1", 443), denied("floor:loopback", Reason::Floor));
    let covered = policy(&["allowed.test", "10.0.0.0/8:443"], &[]);
    assert_eq!(judge(&covered, "allowed.test@10.0.0.1", 443), allowed("allow_out[1] 10.0.0.0/8:443"));
    assert_eq!(judge(&covered, "allowed.test@10.0.0.1", None), allowed("allow_out[1] 10.0.0.0/8:443"));
    assert_eq!(judge(&covered, "allowed.test@10.0.0.1", 80), refused);
}

#[test]
fn everything_in_the_allow_list_is_the_public_internet_in_both_families() {
    for word in ["*", "0.0.0.0/0", "::/0", "ALL_TRAFFIC"] {
        let open = policy(&[word], &["evil.test", "198.51.99.66"]);
        let rule = format!("allow_out[0] {word}");
        for subject in ["evil.test", "evil.test@198.51.99.66", A1, "2606:4700::1111"] {
            assert_eq!(judge(&open, subject, 443), allowed(&rule), "{subject}");
        }
        assert_eq!(judge_over(Protocol::Udp, &open, A1, 443), allowed(&rule));
        assert_eq!(judge(&open, "10.0.0.1", 443), denied("default", Reason::PrivateRange));
        assert_eq!(judge(&open, "169.254.169.254", 80), denied("floor:metadata", Reason::Floor));
        assert_eq!(open.kernel().default, KernelDefault::ForwardPublic);
        assert!(open.kernel().allow.is_empty() && open.kernel().deny.is_empty());
        assert!(open.warnings().iter().all(|warning| warning.kind == WarningKind::NoEffect));
        assert_eq!(open.warnings().len(), 2);
    }
    let with_private = policy(&["*", "10.0.0.0/8"], &[]);
    assert_eq!(judge(&with_private, "10.0.0.1", 443), allowed("allow_out[1] 10.0.0.0/8"));
}

#[test]
fn everything_on_one_port_is_that_port_of_public_addresses() {
    let https = policy(&["*:443"], &[]);
    assert_eq!(judge(&https, A1, 443), allowed("allow_out[0] *:443"));
    assert_eq!(judge(&https, "any.test", None), allowed("allow_out[0] *:443"));
    assert_eq!(judge(&https, A1, 80), default_deny());
    assert_eq!(judge(&https, "10.0.0.1", 443), denied("default", Reason::PrivateRange));
    assert_eq!(judge_over(Protocol::Icmp, &https, A1, None), default_deny());
    let kernel = https.kernel();
    assert_eq!(kernel.default, KernelDefault::Refuse);
    assert!(kernel.allow.iter().all(|rule| rule.port == Some(443)));
    let private = private_networks();
    assert!(
        kernel
            .allow
            .iter()
            .all(|rule| private.iter().all(|net| !net.contains(&rule.net) && !rule.net.contains(net)))
    );

    let no_mail = policy(&[], &["*:25"]);
    assert_eq!(judge(&no_mail, A1, 25), denied("deny_out[0] *:25", Reason::DenyEntry));
    assert_eq!(judge(&no_mail, A1, 443), allowed("default"));
    assert_eq!(judge(&no_mail, "mail.test", None), allowed("default"));
    let nets: Vec<String> = no_mail.kernel().deny.iter().map(|rule| rule.net.to_string()).collect();
    assert_eq!(nets, ["0.0.0.0/0", "::/0"]);
    assert!(no_mail.kernel().resolves_names);
}

#[test]
fn an_entry_with_a_port_is_about_that_port_only() {
    let list = policy(&["db.test:5432", "[2606:4700::1]:443", "203.0.112.0/24:5432"], &[]);
    assert_eq!(judge(&list, "db.test", 5432), allowed("allow_out[0] db.test:5432"));
    assert_eq!(judge(&list, "db.test", None), allowed("allow_out[0] db.test:5432"));
    assert_eq!(judge(&list, "2606:4700::1", 443), allowed("allow_out[1] [2606:4700::1]:443"));
    assert_eq!(judge(&list, A1, 5432), allowed("allow_out[2] 203.0.112.0/24:5432"));
    for (subject, port) in [("db.test", 443), ("2606:4700::1", 80), (A1, 22)] {
        assert_eq!(judge(&list, subject, port), default_deny(), "{subject}:{port}");
    }
    assert_eq!(judge_over(Protocol::Icmp, &list, A1, None), default_deny());
    let denied_port = policy(&[], &["evil.test:25"]);
    assert_eq!(judge(&denied_port, "evil.test", 25), denied("deny_out[0] evil.test:25", Reason::DenyEntry));
    assert_eq!(judge(&denied_port, "evil.test", 443), allowed("default"));
    assert_eq!(judge(&denied_port, "evil.test", None), allowed("default"));
}

#[test]
fn udp_to_a_permitted_name_is_refused_and_its_lookup_is_not() {
    let list = policy(&["allowed.test"], &[]);
    assert_eq!(
        judge_over(Protocol::Udp, &list, "allowed.test@203.0.112.10", 443),
        denied("default", Reason::Quic)
    );
    assert_eq!(judge_over(Protocol::Udp, &list, "allowed.test@203.0.112.10", 123), default_deny());
    assert!(judge_over(Protocol::Udp, &list, "allowed.test", None).0 == Decision::Allow);
    let by_address = policy(&["allowed.test", A1], &[]);
    assert!(judge_over(Protocol::Udp, &by_address, "allowed.test@203.0.112.10", 443).0 == Decision::Allow);
}

#[test]
fn no_policy_permits_the_floor() {
    let everything = ["*", "0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1", "10.0.0.0/8", "~.*"];
    for policy in [policy(&everything, &[]), policy(&[], &[]), policy(&["~.*", "100.64.0.0/10"], &[])] {
        for (subject, rule) in [
            ("169.254.169.254", "floor:metadata"),
            ("::ffff:169.254.169.254", "floor:metadata"),
            ("64:ff9b::a9fe:a9fe", "floor:metadata"),
            ("2002:a9fe:a9fe::1", "floor:metadata"),
            ("metadata.google.internal", "floor:metadata"),
            ("any.internal@169.254.169.254", "floor:metadata"),
            ("allowed.test@169.254.1.1", "floor:link_local"),
            ("93.184.215.14", "floor:node"),
            ("64:ff9b::93.184.215.14", "floor:node"),
            ("127.0.0.1", "floor:loopback"),
            ("::1", "floor:loopback"),
            ("0.0.0.0", "floor:unspecified"),
            ("224.0.0.251", "floor:multicast"),
            ("255.255.255.255", "floor:broadcast"),
            ("100.80.1.1", "floor:sandbox"),
            ("100.64.0.1", "floor:gate"),
            ("fd62:6169:6c69:1::2", "floor:sandbox"),
        ] {
            assert_eq!(judge(&policy, subject, 80), denied(rule, Reason::Floor), "{subject}");
            assert_eq!(judge(&policy, subject, None), denied(rule, Reason::Floor), "{subject}");
        }
    }
    let halves = policy(&everything, &[]);
    assert_eq!(judge(&halves, "93.184.215.15", 80), allowed("allow_out[0] *"));
    assert_eq!(judge(&halves, "10.0.0.1", 80), allowed("allow_out[1] 0.0.0.0/1"));
}

#[test]
fn an_allow_entry_on_the_floor_is_refused_and_a_deny_entry_is_not() {
    for entry in [
        "169.254.169.254",
        "169.254.0.0/16:80",
        "::ffff:169.254.169.254",
        "127.0.0.1",
        "[fe80::1]:443",
        "93.184.215.14",
        "metadata.google.internal",
        "METADATA.",
        "64:ff9b::a9fe:a9fe",
    ] {
        let error = compile(&["allowed.test", entry], &[]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("allow_out[1]: {entry:?}: this is on the floor (")), "{error}");
        assert!(compile(&[], &[entry]).is_ok(), "{entry}");
    }
    assert!(compile(&["169.0.0.0/8", "*.google.internal", "0.0.0.0/1"], &[]).is_ok());
}

#[test]
fn errors_name_the_list_the_entry_and_the_cause() {
    let error = compile(&["a.test", "b.test", "*.co.uk"], &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"allow_out[2]: "*.co.uk": anybody can register a name below co.uk: name the domains, or, if all of them are meant, write a regular expression: ~.*\.co\.uk"#
    );
    let error = compile(&[], &["x y"]).unwrap_err();
    assert!(matches!(error, PolicyError::Entry { list: List::DenyOut, index: 0, .. }));
    assert!(error.to_string().starts_with(r#"deny_out[0]: "x y": "#));
    let long = "a".repeat(3000);
    assert!(compile(&[&long], &[]).unwrap_err().to_string().len() < 200);
    let control = compile(&["a\u{1b}[31m.test"], &[]).unwrap_err().to_string();
    assert!(!control.contains('\u{1b}'));
}

#[test]
fn ten_thousand_entries_are_accepted_and_one_more_is_refused() {
    let texts: Vec<String> = (0..10_000).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    let mut spec = PolicySpec { allow_out: texts, ..PolicySpec::default() };
    let large = Policy::compile(&spec, floor()).unwrap();
    assert_eq!(judge(&large, "10.39.15.255", 1), allowed("allow_out[9999] 10.39.15.0/24"));
    assert_eq!(judge(&large, "10.39.16.0", 1), default_deny());
    spec.deny_out.push("*".to_owned());
    let error = Policy::compile(&spec, floor()).unwrap_err();
    assert_eq!(error, PolicyError::TooManyEntries { count: 10_001, limit: 10_000 });
    assert!(error.to_string().contains("10000"));
}

#[test]
fn duplicates_and_overlaps_have_exact_semantics() {
    let list = policy(
        &["10.0.0.0/8", "10.0.0.0/8", "10.0.0.0/9", "128.0.0.0/1", "255.255.255.254/32", "a.test", "a.test"],
        &[],
    );
    assert_eq!(judge(&list, "10.0.0.1", 1), allowed("allow_out[0] 10.0.0.0/8"));
    assert_eq!(judge(&list, "255.255.255.254", 1), allowed("allow_out[3] 128.0.0.0/1"));
    assert_eq!(judge(&list, "255.255.255.255", 1), denied("floor:broadcast", Reason::Floor));
    assert_eq!(judge(&list, "9.255.255.255", 1), default_deny());
    assert_eq!(judge(&list, "a.test", 1), allowed("allow_out[5] a.test"));
    let nets: Vec<String> = list.kernel().allow.iter().map(|rule| rule.net.to_string()).collect();
    assert_eq!(nets, ["10.0.0.0/8", "128.0.0.0/1"]);
}

#[test]
fn regular_expressions_cannot_cost_more_than_their_limits() {
    let repetitive = compile(&["~(?:[a-z]{1000}){1000}"], &[]).unwrap_err().to_string();
    assert!(repetitive.contains("compiles to over"), "{repetitive}");
    let compile_many = |count: usize, expression: &str| {
        let allow_out = (0..count).map(|i| format!("~{expression}{i}")).collect();
        Policy::compile(&PolicySpec { allow_out, ..PolicySpec::default() }, floor())
    };
    let large = compile_many(100, "[ab]{2000}").unwrap_err();
    assert!(matches!(large, PolicyError::PatternsTooLarge { list: List::AllowOut, .. }), "{large}");
    let many = compile_many(1001, "a").unwrap_err();
    assert_eq!(many, PolicyError::TooManyPatterns { list: List::AllowOut, count: 1001, limit: 1000 });
    assert!(compile_many(1000, "a").is_ok());
}

#[test]
fn mask_request_host_must_be_the_value_of_a_host_header() {
    let with = |value: &str| {
        let spec = PolicySpec { mask_request_host: Some(value.to_owned()), ..PolicySpec::default() };
        Policy::compile(&spec, floor())
    };
    for value in ["example.com", "example.com:8080", "localhost:3000", "127.0.0.1", "[::1]:80", "[::1]"] {
        assert!(with(value).is_ok(), "{value}");
    }
    for value in
        ["", "a b", "example.com\r\nX: y", "example.com:0", "example.com:x", "http://x", "::1", "bücher.test"]
    {
        assert!(matches!(with(value), Err(PolicyError::MaskRequestHost { .. })), "{value}");
    }
}

#[test]
fn the_kernel_view_and_judge_agree() {
    let policies = [
        policy(&[], &[]),
        policy(&[], &["198.51.99.0/24", "*:25"]),
        policy(&["*"], &[]),
        policy(&["*:443", "10.0.0.0/8", "192.168.0.0/16:22"], &[]),
        policy(&["a.test", A1], &["*"]),
        policy(&[], &["*"]),
    ];
    let addresses =
        [A1, E1, "10.1.1.1", "192.168.1.1", "8.8.8.8", "2606:4700::1", "fd00::1", "64:ff9b::c633:6301"];
    for policy in &policies {
        for address in addresses {
            for port in [22, 25, 443] {
                let kernel = kernel_permits(policy, address.parse().unwrap(), port);
                let judged = judge(policy, address, port).0 == Decision::Allow;
                assert_eq!(kernel, judged, "{:?} {address}:{port}", policy.spec());
            }
        }
    }
}

/// What a kernel does that follows the view literally.
fn kernel_permits(policy: &Policy, address: IpAddr, port: u16) -> bool {
    let view = policy.kernel();
    let covers = |rules: &[AddressRule]| {
        rules.iter().any(|rule| rule.net.contains(&address) && rule.port.is_none_or(|only| only == port))
    };
    let public = !private_networks().iter().any(|net| net.contains(&address));
    if policy.floor().networks().iter().any(|net| net.contains(&address)) {
        return false;
    }
    covers(&view.allow) || (!covers(&view.deny) && view.default != KernelDefault::Refuse && public)
}

#[test]
fn a_verdict_carries_the_entry_as_it_was_written() {
    let list = policy(&["API.Example.COM."], &[]);
    let name = HostName::parse("api.example.com").unwrap();
    let verdict = list.judge(&Flow { protocol: Protocol::Tcp, name: Some(&name), address: None, port: None });
    assert!(verdict.is_allowed());
    assert_eq!(
        verdict.rule,
        Rule::Entry { list: List::AllowOut, index: 0, entry: "API.Example.COM.".into() }
    );
}
