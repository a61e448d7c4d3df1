//! When a policy is within another, by example and for generated ones. Each refused case stands beside a permitted one.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::{net::IpAddr, sync::Arc};

use policy::{EchMode, Floor, Flow, HostName, List, Policy, PolicySpec, Protocol, RefusedNames, Widening};
use proptest::{prelude::*, sample::select};

fn spec(allow: &[&str], deny: &[&str]) -> PolicySpec {
    let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    PolicySpec { allow_out: texts(allow), deny_out: texts(deny), ..PolicySpec::default() }
}

fn compiled(spec: &PolicySpec) -> Policy {
    Policy::compile(spec, Arc::new(Floor::new([]))).unwrap()
}

#[track_caller]
fn check(old: (&[&str], &[&str]), new: (&[&str], &[&str])) -> Result<(), Widening> {
    compiled(&spec(new.0, new.1)).check_within(&compiled(&spec(old.0, old.1)))
}

/// Checks that each of `narrower` is within the policy that allows `old`, and each of `wider` is not, by its entry.
#[track_caller]
fn allowlist(old: &[&str], narrower: &[&str], wider: &[&str]) {
    for entry in narrower {
        assert_eq!(check((old, &[]), (&[entry], &[])), Ok(()), "{entry}");
    }
    for (entry, first) in wider.iter().flat_map(|entry| old.iter().map(move |first| (entry, first))) {
        let refused = check((old, &[]), (&[first, entry], &[])).unwrap_err();
        assert_eq!(refused.entry(), Some((List::AllowOut, 1, *entry)), "{refused}");
    }
}

#[test]
fn an_address_entry_is_within_the_networks_that_cover_it() {
    allowlist(
        &["10.0.0.0/8", "203.0.112.10", "2001:db8::/32"],
        &[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3:443",
            "::ffff:10.1.2.3",
            "::ffff:10.0.0.0/104",
            "2001:db8:1::/48",
        ],
        &[
            "10.0.0.0/7",
            "11.0.0.1",
            "203.0.112.11",
            "2001:db8::/31",
            "64:ff9b::10.1.2.3",
            "a.x.test",
            "*",
            "*:443",
        ],
    );
    allowlist(
        &["10.0.0.0/8:443", "10.128.0.0/9:22", "10.0.0.0/9:22"],
        &["10.1.2.3:443", "10.0.0.0/8:22"],
        &["10.1.2.3", "10.1.2.3:80", "10.0.0.0/7:22"],
    );
    // Two halves make up a whole; a half on every port and one on a single port do so on that one.
    allowlist(&["10.0.0.0/9", "10.128.0.0/9"], &["10.0.0.0/8"], &["10.0.0.0/7"]);
    allowlist(&["10.0.0.0/9", "10.128.0.0/9:443"], &["10.0.0.0/8:443"], &["10.0.0.0/8:80", "10.0.0.0/8"]);
}

#[test]
fn a_name_entry_is_within_the_entry_that_names_all_it_names() {
    allowlist(
        &["x.test", "*.b.x.test"],
        &["x.test", "X.Test.", "x.test:443", "a.b.x.test", "*.b.x.test", "*.a.b.x.test:22"],
        &["a.x.test", "b.x.test", "*.x.test", "notx.test", "x.test.evil.test", "~x\\.test", "203.0.112.10"],
    );
    allowlist(&["x.test:443"], &["x.test:443"], &["x.test", "x.test:80"]);
    allowlist(
        &[r"~[ab]\.x\.test"],
        &["a.x.test", r"~[ab]\.x\.test", r"~[ab]\.x\.test:443"],
        &["c.x.test", r"~[ba]\.x\.test", r"~a\.x\.test", "*.x.test", "*.a.x.test"],
    );
}

#[test]
fn everything_takes_in_names_and_public_addresses_and_no_private_ones() {
    allowlist(
        &["*"],
        &[
            "*",
            "*:443",
            "x.test",
            "*.x.test",
            "~.*",
            "203.0.112.0/24",
            "2606:4700::/32",
            "64:ff9b::203.0.112.1",
        ],
        &["10.0.0.1", "0.0.0.0/1", "fd00::1"],
    );
    allowlist(
        &["*:443"],
        &["x.test:443", "203.0.112.1:443"],
        &["x.test", "203.0.112.1", "203.0.112.1:80", "*"],
    );
    allowlist(&["*", "0.0.0.0/1"], &["0.0.0.0/1", "10.0.0.1"], &["128.0.0.0/1", "172.16.0.0/12"]);
}

#[test]
fn the_last_allow_entry_cannot_be_removed_without_denying_everything() {
    for old in [&["x.test"][..], &["10.0.0.0/8"], &["*:443"], &["10.0.0.0/8", "x.test"]] {
        assert_eq!(check((old, &[]), (&[], &[])), Err(Widening::Default));
        assert_eq!(check((old, &[]), (&[], &["evil.test"])), Err(Widening::Default));
        assert_eq!(check((old, &[]), (&[], &["*:443"])), Err(Widening::Default));
        assert_eq!(check((old, &[]), (&[], &["*"])), Ok(()));
        assert_eq!(check((old, &["*"]), (&old[..1], &[])), Ok(()), "what is not allowed is denied anyway");
    }
    assert_eq!(check((&[], &["*"]), (&[], &[])), Err(Widening::Default));
    assert_eq!(check((&[], &["*"]), (&[], &["::/0"])), Ok(()));
    assert!(check((&[], &["*"]), (&["x.test"], &["*"])).is_err());
}

#[test]
fn an_open_policy_may_deny_more_and_not_less() {
    let old = (&[][..], &["a.x.test", "10.0.0.0/8", "203.0.112.0/24", "*:25"][..]);
    for deny in [
        old.1,
        &["*.x.test", "*:25", "203.0.112.0/23"],
        &["a.x.test", "b.x.test", "203.0.112.0/25", "203.0.112.128/25", "*:25"],
        &["~a\\.x\\.test", "203.0.112.0/24", "*:25"],
        &["*"],
    ] {
        assert_eq!(check(old, (&[], deny)), Ok(()), "{deny:?}");
    }
    for (deny, missing) in [
        (&["203.0.112.0/24", "*:25"][..], 0),
        (&["b.x.test", "203.0.112.0/24", "*:25"], 0),
        (&["a.x.test:443", "203.0.112.0/24", "*:25"], 0),
        (&["a.x.test", "203.0.112.0/25", "*:25"], 2),
        (&["a.x.test", "203.0.112.0/24:443", "*:25"], 2),
        (&["a.x.test", "64:ff9b::203.0.112.0/120", "*:25"], 2),
        (&["a.x.test", "203.0.112.0/24"], 3),
        (&["a.x.test", "203.0.112.0/24", "0.0.0.0/1:25", "128.0.0.0/1:25"], 3),
    ] {
        let refused = check(old, (&[], deny)).unwrap_err();
        assert_eq!(refused.entry(), Some((List::DenyOut, missing, old.1[missing])), "{refused}");
    }
    assert_eq!(check((&["*"], &[]), (&[], &["x.test"])), Ok(()));
    assert!(check((&[], &[r"~.*\.x\.test"]), (&[], &["*.x.test"])).is_err());
    assert_eq!(check((&[], &[r"~.*\.x\.test"]), (&[], &[r"~.*\.x\.test", "a.test"])), Ok(()));
}

#[test]
fn denied_names_close_other_protocols_and_that_cannot_be_taken_back() {
    let old = (&[][..], &["a.x.test:25"][..]);
    assert_eq!(check(old, (&[], &["*:25"])), Err(Widening::Default));
    assert_eq!(check(old, (&[], &["*:25", "b.x.test"])), Ok(()));
    assert!(matches!(check(old, (&["203.0.112.1:443"], &[])), Err(Widening::BeatsDeny { index: 0, .. })));
    assert_eq!(check(old, (&["x.test"], &[])), Ok(()));
}

#[test]
fn an_open_policy_becomes_a_list_of_what_it_did_not_deny() {
    assert_eq!(check((&[], &[]), (&["x.test", "*.x.test", "~.*", "203.0.112.1", "*:443"], &[])), Ok(()));
    let refused = check((&[], &[]), (&["x.test", "10.0.0.1"], &[])).unwrap_err();
    assert_eq!(refused, Widening::Allow { index: 1, entry: "10.0.0.1".into() });
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("a.x.test", &["x.test", "b.x.test", "*.b.x.test"], &["a.x.test", "a.x.test:443", "*.x.test", "~b"]),
        ("*.x.test", &["x.test", "*.y.test"], &["a.x.test", "*.a.x.test", "*.x.test"]),
        ("a.x.test:25", &["a.x.test:443", "b.x.test"], &["a.x.test", "*.x.test:25", "a.x.test:25"]),
        (
            "203.0.112.0/24",
            &["203.0.111.0/24", "2606:4700::1"],
            &["203.0.112.9", "203.0.112.0/23", "64:ff9b::203.0.112.9", "x.test", "*", "~b"],
        ),
        (
            "203.0.112.0/24:25",
            &["203.0.112.9:443", "x.test:443", "*:443"],
            &["203.0.112.9", "x.test", "*", "*:25"],
        ),
        ("*:25", &["x.test:443", "203.0.112.9:443", "*:443"], &["x.test", "203.0.112.9", "*"]),
        ("10.0.0.0/8", &["x.test", "203.0.112.9", "*"], &["10.0.0.1"]),
    ];
    for (denied, narrower, wider) in cases {
        for entry in *narrower {
            assert_eq!(check((&[], &[denied]), (&[entry], &[])), Ok(()), "{entry} under {denied}");
        }
        for entry in *wider {
            let refused = check((&[], &[denied]), (&[entry], &[denied])).unwrap_err();
            assert_eq!(refused.entry(), Some((List::AllowOut, 0, *entry)), "{refused}");
        }
    }
}

#[test]
fn what_is_no_list_may_become_stricter_and_not_looser() {
    let plain = spec(&["x.test"], &[]);
    let cases = [
        (PolicySpec { ech: EchMode::Permit, ..plain.clone() }, plain.clone(), Widening::Ech),
        (plain.clone(), PolicySpec { allow_public_traffic: false, ..plain.clone() }, Widening::PublicTraffic),
    ];
    for (loose, strict, widening) in cases {
        assert_eq!(compiled(&strict).check_within(&compiled(&loose)), Ok(()));
        assert_eq!(compiled(&loose).check_within(&compiled(&strict)), Err(widening));
    }
    let masked = |host: &str| PolicySpec { mask_request_host: Some(host.to_owned()), ..plain.clone() };
    for (new, old) in [
        (masked("a.test"), plain.clone()),
        (plain.clone(), masked("a.test")),
        (masked("a.test"), masked("b.test")),
    ] {
        assert_eq!(compiled(&new).check_within(&compiled(&old)), Err(Widening::MaskRequestHost));
    }
    assert_eq!(compiled(&masked("a.test")).check_within(&compiled(&masked("a.test"))), Ok(()));
    let refused = PolicySpec { refused_names: RefusedNames::Nxdomain, ..plain.clone() };
    assert_eq!(compiled(&refused).check_within(&compiled(&plain)), Ok(()));
    assert_eq!(compiled(&plain).check_within(&compiled(&refused)), Ok(()));
}

#[test]
fn a_floor_may_grow_and_not_shrink() {
    let over = |nodes: &[&str]| {
        let floor = Floor::new(nodes.iter().map(|node| node.parse::<IpAddr>().unwrap()));
        Policy::compile(&spec(&["203.0.112.0/24"], &[]), Arc::new(floor)).unwrap()
    };
    assert_eq!(over(&["203.0.112.1"]).check_within(&over(&[])), Ok(()));
    assert_eq!(over(&["203.0.112.1", "203.0.112.2"]).check_within(&over(&["203.0.112.2"])), Ok(()));
    assert_eq!(over(&[]).check_within(&over(&["203.0.112.1"])), Err(Widening::Floor));
    assert_eq!(over(&["203.0.112.2"]).check_within(&over(&["203.0.112.1"])), Err(Widening::Floor));
}

#[test]
fn the_text_of_a_widening_names_list_position_and_entry() {
    let refused = check((&["x.test"], &[]), (&["x.test", "evil.test"], &[])).unwrap_err();
    assert_eq!(refused.to_string(), r#"allow_out[1]: "evil.test": the policy in force does not permit this"#);
    let refused = check((&[], &["a.test", "evil.test"]), (&["x.test", "evil.test:443"], &[])).unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"allow_out[1]: "evil.test:443": this may permit what the policy in force denies by deny_out[1] "evil.test""#
    );
    let refused = check((&[], &["a.test", "evil.test"]), (&[], &["a.test"])).unwrap_err();
    assert_eq!(
        refused.to_string(),
        r#"deny_out: the policy in force denies "evil.test" (its deny_out[1]), and this one does not"#
    );
}

#[test]
fn comparing_large_policies_does_not_take_long() {
    let halves = |from: u32, port: &str| -> Vec<String> {
        (0..5000u32)
            .map(|i| format!("{}{port}", std::net::Ipv4Addr::from_bits(0xcb00_0000 + 2 * i + from)))
            .collect()
    };
    let old = PolicySpec { allow_out: [halves(0, ""), halves(1, ":443")].concat(), ..PolicySpec::default() };
    let nets = |length: u32| (0..(1 << (length - 20))).map(move |i| (length, i << (32 - length)));
    let nets = (20..=31)
        .flat_map(nets)
        .map(|(length, at)| format!("{}/{length}:443", std::net::Ipv4Addr::from_bits(0xcb00_0000 + at)));
    let new = PolicySpec { allow_out: nets.collect(), ..PolicySpec::default() };
    let (old, new) = (compiled(&old), compiled(&new));
    let begun = std::time::Instant::now();
    assert_eq!(new.check_within(&old), Ok(()));
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}

const NAMES: &[&str] = &[
    "x.test",
    "a.x.test",
    "b.x.test",
    "a.a.x.test",
    "b.a.x.test",
    "a.a.a.x.test",
    "y.test",
    "a.y.test",
    "metadata.google.internal",
];
const NAME_ENTRIES: &[&str] = &[
    "x.test",
    "a.x.test",
    "b.x.test",
    "a.a.x.test",
    "y.test",
    "*.x.test",
    "*.a.x.test",
    "*.a.a.x.test",
    "*.y.test",
    r"~.*",
    r"~.*\.x\.test",
    r"~[ab]\.x\.test",
    r"~a\.(?:x|y)\.test",
    r"~A\.X\.TEST",
];
const ADDRESSES: &[&str] = &[
    "203.0.112.0",
    "203.0.112.64",
    "203.0.112.128",
    "203.0.112.255",
    "203.0.113.1",
    "10.0.0.1",
    "10.128.0.1",
    "11.0.0.1",
    "::ffff:203.0.112.64",
    "::ffff:10.0.0.1",
    "64:ff9b::203.0.112.64",
    "64:ff9b::10.0.0.1",
    "2606:4700::1",
    "2606:4700:8000::1",
    "fd00::1",
    "198.18.0.1",
    "169.254.169.254",
    "127.0.0.1",
];
const NET_ENTRIES: &[&str] = &[
    "203.0.112.0/24",
    "203.0.112.0/25",
    "203.0.112.128/25",
    "203.0.112.64",
    "203.0.112.0/23",
    "10.0.0.0/8",
    "10.0.0.0/9",
    "10.128.0.0/9",
    "10.0.0.1",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "::ffff:203.0.112.64",
    "::ffff:10.0.0.0/104",
    "64:ff9b::203.0.112.0/120",
    "64:ff9b::/96",
    "2606:4700::/32",
    "2606:4700::/33",
    "2606:4700:8000::/33",
    "fd00::/8",
    "::/1",
    "8000::/1",
    "198.18.0.0/15",
    "*",
    "0.0.0.0/0",
    "ALL_TRAFFIC",
];
const PORTS: &[Option<u16>] = &[None, Some(443), Some(25)];

fn entry() -> impl Strategy<Value = String> {
    let target = prop_oneof![select(NAME_ENTRIES), select(NET_ENTRIES)];
    (target, prop_oneof![3 => Just(None), 2 => select(PORTS)]).prop_map(|(target, port)| match port {
        None => target.to_owned(),
        Some(port) if target.contains("::") && !target.contains('/') => format!("[{target}]:{port}"),
        Some(port) => format!("{target}:{port}"),
    })
}

fn any_spec() -> impl Strategy<Value = PolicySpec> {
    let list = |longest| prop::collection::vec(entry(), 0..longest);
    let flags = (prop::bool::weighted(0.9), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    (list(5), list(4), flags).prop_map(|(allow_out, deny_out, (public, ech, mask))| PolicySpec {
        allow_out,
        deny_out,
        allow_public_traffic: public,
        ech: if ech { EchMode::Permit } else { EchMode::Refuse },
        mask_request_host: mask.then(|| "mask.test".to_owned()),
        ..PolicySpec::default()
    })
}

/// A policy, and another made from it: entries left out, put in and replaced.
fn pair() -> impl Strategy<Value = (PolicySpec, PolicySpec)> {
    let change =
        |longest| (prop::collection::vec(any::<bool>(), longest), prop::collection::vec(entry(), 0..3));
    (any_spec(), change(5), change(4)).prop_map(|(old, allow, deny)| {
        let changed = |list: &[String], (kept, more): (Vec<bool>, Vec<String>)| {
            let kept = list.iter().zip(kept).filter(|(_, kept)| *kept).map(|(entry, _)| entry.clone());
            kept.chain(more).collect()
        };
        let new = PolicySpec {
            allow_out: changed(&old.allow_out, allow),
            deny_out: changed(&old.deny_out, deny),
            ..old.clone()
        };
        (old, new)
    })
}

/// Calls `visit` for every flow that names, addresses, ports and protocols above make up.
fn every_flow(mut visit: impl FnMut(&Flow<'_>)) {
    let names: Vec<Option<HostName>> =
        NAMES.iter().map(|name| Some(name.parse().unwrap())).chain([None]).collect();
    let addresses: Vec<Option<IpAddr>> =
        ADDRESSES.iter().map(|address| Some(address.parse().unwrap())).chain([None]).collect();
    for name in &names {
        for address in &addresses {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp, Protocol::Other(47)] {
                for port in [None, Some(443), Some(25), Some(22)] {
                    visit(&Flow { protocol, name: name.as_ref(), address: *address, port });
                }
            }
        }
    }
}

/// Whether what `new` permits, `old` does too, for every flow above.
fn check_flows(old: &Policy, new: &Policy) -> Result<(), TestCaseError> {
    let mut wider = None;
    every_flow(|flow| {
        if wider.is_none() && new.judge(flow).is_allowed() && !old.judge(flow).is_allowed() {
            wider = Some(format!("{flow:?} under {:?} after {:?}", new.spec(), old.spec()));
        }
    });
    prop_assert!(wider.is_none(), "{}", wider.unwrap_or_default());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn what_a_policy_within_another_permits_the_other_permits_too(
        (old, new) in prop_oneof![3 => pair(), 1 => (any_spec(), any_spec())],
    ) {
        let (old, new) = (compiled(&old), compiled(&new));
        if new.check_within(&old).is_ok() {
            check_flows(&old, &new)?;
            prop_assert!(old.kernel().resolves_names || !new.kernel().resolves_names);
        }
        if old.check_within(&new).is_ok() {
            check_flows(&new, &old)?;
        }
    }

    #[test]
    fn a_policy_is_within_itself_and_stays_so_with_less_in_it(
        spec in any_spec(),
        at in any::<prop::sample::Index>(),
        more in entry(),
    ) {
        let old = compiled(&spec);
        prop_assert_eq!(compiled(&spec).check_within(&old), Ok(()));
        let mut fewer = spec.clone();
        if spec.allow_out.len() > 1 {
            fewer.allow_out.remove(at.index(spec.allow_out.len()));
            prop_assert_eq!(compiled(&fewer).check_within(&old), Ok(()));
        }
        let mut denying = spec.clone();
        denying.deny_out.push(more);
        prop_assert_eq!(compiled(&denying).check_within(&old), Ok(()));
        let blackout = PolicySpec { allow_out: Vec::new(), deny_out: vec!["*".to_owned()], ..spec };
        prop_assert_eq!(compiled(&blackout).check_within(&old), Ok(()));
        if old.check_within(&compiled(&blackout)).is_ok() {
            every_flow(|flow| assert!(!old.judge(flow).is_allowed()));
        }
    }
}
