//! Tricks with the bytes that are looked at before a connection is carried.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use policy::Reason;

use super::{Attempt, Case, Plan, SHORT, canary};
use crate::{
    forms::tls::{Hello, ech, extension, large_key_share, padding, record, record_of, records, server_names},
    report::Group,
};

pub(super) fn cases(plan: &Plan<'_>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |id, title, attempts: Result<Vec<_>>| -> Result<()> {
        cases.push(plan.case(Group::Tls, id, title, attempts?));
        Ok(())
    };
    add("B6", "no server name, or several", names(plan))?;
    add("B33", "a refused name in every shape of a ClientHello", refused_shapes(plan))?;
    add("B36", "the permitted name in the same shapes", permitted_shapes(plan))?;
    add("B37", "a ClientHello that cannot be read", unreadable(plan))?;
    add("B40", "SSL 2 and SSL 3", old(plan))?;
    add("B44", "Encrypted Client Hello", encrypted(plan))?;
    add("B42", "a second ClientHello behind the first", second(plan))?;
    add("B47", "STARTTLS at addresses that are not listed", starttls(plan))?;
    add("B48", "DTLS and QUIC", datagrams(plan))?;
    Ok(cases)
}

/// The permitted name and its first address.
fn target<'a>(plan: &'a Plan<'_>) -> Option<(&'a [u8], IpAddr)> {
    let named = plan.ground.named.as_ref()?;
    let [address, _] = named.addresses;
    Some((named.name.as_str().as_bytes(), address))
}

/// Something that the proxy refuses whatever the policy, wherever it hears it.
fn refused(
    plan: &Plan<'_>,
    what: &str,
    reason: Option<Reason>,
    make: impl FnOnce(&str) -> Vec<u8>,
) -> Result<Option<Attempt>> {
    let Some((_, address)) = target(plan) else { return Ok(None) };
    let canary = canary()?;
    let to = SocketAddr::new(address, plan.port());
    let expect = plan.ground.never_said(what, reason, address, to.port());
    Ok(Some(plan.tcp(what, &canary, to, vec![make(&canary)], expect)))
}

fn names(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some((name, _)) = target(plan) else { return Ok(Vec::new()) };
    let other = plan.ground.refused.as_str().as_bytes();
    let mut attempts: Vec<Attempt> = [
        refused(plan, "no server name", Some(Reason::NoSni), |canary| Hello::naming(canary, &[]).record())?,
        refused(plan, "the permitted name and another", Some(Reason::MultipleSni), |canary| {
            Hello::naming(canary, &[name, other]).record()
        })?,
        refused(plan, "the permitted name twice", Some(Reason::MultipleSni), |canary| {
            Hello::naming(canary, &[name, name]).record()
        })?,
        refused(plan, "two extensions with names", None, |canary| {
            Hello::naming(canary, &[name]).with(server_names(&[other], 0)).record()
        })?,
        refused(plan, "a name of another kind", None, |canary| {
            Hello::naming(canary, &[]).with(server_names(&[name], 1)).record()
        })?,
    ]
    .into_iter()
    .flatten()
    .collect();
    // Where nobody is to be reached, a hello without a name is no better.
    for elsewhere in plan.ground.refused_addresses {
        let (canary, to) = (canary()?, SocketAddr::new(elsewhere, plan.fresh_port()));
        let expect = plan.ground.never_said("no server name", Some(Reason::NoSni), elsewhere, to.port());
        let bytes = Hello::naming(&canary, &[]).record();
        attempts.push(plan.tcp(format!("no server name at {to}"), &canary, to, vec![bytes], expect));
    }
    Ok(attempts)
}

/// A ClientHello in shapes that a reader may stumble over; all of them are proper TLS.
fn shapes(canary: &str, name: &[u8]) -> [(&'static str, Vec<Vec<u8>>); 7] {
    let plain = Hello::naming(canary, &[name]);
    let with = |extension| vec![plain.clone().with(extension).record()];
    [
        ("a segment for each byte", plain.record().chunks(1).map(<[u8]>::to_vec).collect()),
        ("a record for each byte", vec![records(&plain.message(), 1)]),
        ("records of seven bytes", vec![records(&plain.message(), 7)]),
        ("as long as post-quantum ones", with(large_key_share())),
        ("padded to 14 kB", with(padding(14_000))),
        ("with unknown extensions", with([extension(0x0a0a, &[]), extension(0x1a1a, &[0])].concat())),
        (
            "with the name at the end",
            vec![Hello::naming(canary, &[]).with(padding(300)).with(server_names(&[name], 0)).record()],
        ),
    ]
}

fn shaped(plan: &Plan<'_>, name: impl Fn(&str) -> String) -> Result<Vec<Attempt>> {
    let Some((_, address)) = target(plan) else { return Ok(Vec::new()) };
    let mut attempts = Vec::new();
    for number in 0..shapes("", b"").len() {
        let canary = canary()?;
        let name = name(&canary);
        let to = SocketAddr::new(address, plan.port());
        let expect = plan.ground.claimed(name.as_bytes(), address, to.port());
        if let Some((what, pieces)) = shapes(&canary, name.as_bytes()).into_iter().nth(number) {
            let mut attempt = plan.tcp(what, &canary, to, pieces, expect);
            attempt.lands.extend(plan.places_of(&name));
            attempts.push(attempt);
        }
    }
    Ok(attempts)
}

fn refused_shapes(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    shaped(plan, |canary| plan.ground.refused_with(canary))
}

fn permitted_shapes(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    shaped(plan, |_| named.name.to_string())
}

fn unreadable(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some((name, _)) = target(plan) else { return Ok(Vec::new()) };
    let malformed = Some(Reason::MalformedTls);
    let attempts = [
        refused(plan, "a length of 16 MB", malformed, |canary| {
            record(&[&[1, 0xff, 0xff, 0xff], canary.repeat(60).as_bytes()].concat())
        })?,
        refused(plan, "over 64 kB", malformed, |canary| {
            records(&[&[1, 1, 0x80, 0], canary.repeat(3072).as_bytes()].concat(), 16_000)
        })?,
        refused(plan, "bytes behind the message", None, |canary| {
            record(&[Hello::naming(canary, &[name]).message(), vec![0]].concat())
        })?,
        refused(plan, "another message", malformed, |canary| {
            let mut message = Hello::naming(canary, &[name]).message();
            if let Some(first) = message.first_mut() {
                *first = 2;
            }
            record(&message)
        })?,
        refused(plan, "an empty record first", None, |canary| {
            let other = Hello::naming(canary, &[plan.ground.refused.as_str().as_bytes()]);
            [record(&[]), other.record()].concat()
        })?,
        refused(plan, "an alert first", None, |canary| {
            let other = Hello::naming(canary, &[plan.ground.refused.as_str().as_bytes()]);
            [record_of(21, 0x0301, &[1, 90]), other.record()].concat()
        })?,
        refused(plan, "a change of ciphers first", None, |canary| {
            let other = Hello::naming(canary, &[plan.ground.refused.as_str().as_bytes()]);
            [record_of(20, 0x0301, &[1]), other.record()].concat()
        })?,
    ];
    Ok(attempts.into_iter().flatten().collect())
}

fn old(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some((name, _)) = target(plan) else { return Ok(Vec::new()) };
    let attempts = [
        refused(plan, "SSL 2", Some(Reason::TlsVersion), |canary| {
            let head = [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10];
            [&head, canary.as_bytes(), &[0; 8]].concat()
        })?,
        refused(plan, "SSL 3", None, |canary| {
            let mut hello = Hello::naming(canary, &[name]);
            hello.version = 0x0300;
            let mut message = hello.message();
            message.pop();
            record_of(crate::forms::tls::HANDSHAKE, 0x0300, &message)
        })?,
    ];
    Ok(attempts.into_iter().flatten().collect())
}

fn encrypted(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some((name, address)) = target(plan) else { return Ok(Vec::new()) };
    let mut attempts = Vec::new();
    let permits = plan.ground.policy.spec().ech == policy::EchMode::Permit;
    for (what, name) in [
        ("with the permitted name outside", name.to_vec()),
        ("with another name outside", plan.ground.refused.as_str().into()),
    ] {
        let canary = canary()?;
        let to = SocketAddr::new(address, plan.port());
        let expect = match plan.ground.claimed(&name, address, to.port()) {
            expect if permits => expect,
            crate::ground::Expect::Permitted { .. } => {
                plan.ground.never_said("Encrypted Client Hello", Some(Reason::Ech), address, to.port())
            }
            // Which of the two is said first is of no matter.
            _ => plan.ground.never_said("Encrypted Client Hello", None, address, to.port()),
        };
        let bytes = Hello::naming(&canary, &[&name]).with(ech()).record();
        let mut attempt = plan.tcp(what, &canary, to, vec![bytes], expect);
        attempt.lands.extend(plan.places_of(&String::from_utf8_lossy(&name)));
        attempts.push(attempt);
    }
    Ok(attempts)
}

/// What follows the first ClientHello goes where that one goes.
fn second(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some((name, address)) = target(plan) else { return Ok(Vec::new()) };
    let canary = canary()?;
    let to = SocketAddr::new(address, plan.port());
    let expect = plan.ground.claimed(name, address, to.port());
    let other = plan.ground.refused_with(&canary);
    let bytes =
        [Hello::naming(&canary, &[name]).record(), Hello::naming(&canary, &[other.as_bytes()]).record()]
            .concat();
    let mut attempt = plan.tcp("permitted, then another", &canary, to, vec![bytes], expect);
    attempt.lands.extend(plan.places_of(&String::from_utf8_lossy(name)));
    Ok(vec![attempt])
}

fn starttls(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let [address, _] = plan.ground.refused_addresses;
    let mut attempts = Vec::new();
    for port in [25, 110, 143, 587, 5432] {
        let (canary, to) = (canary()?, SocketAddr::new(address, port));
        let said = format!("EHLO {canary}\r\n").into_bytes();
        let expect = plan.ground.unknown(address, port);
        attempts.push(plan.tcp(format!("EHLO at {to}"), &canary, to, vec![said], expect));
    }
    Ok(attempts)
}

fn datagrams(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let dtls = [&[0x16, 0xfe, 0xfd][..], &[0; 8], &[0, 92], &[3; 60]].concat();
    let quic = [&[0xc3, 0, 0, 0, 1, 8][..], &[4; 8], &[0, 0, 0x44, 0x9e]].concat();
    let mut attempts = Vec::new();
    let mut addresses: Vec<IpAddr> = plan.ground.refused_addresses.to_vec();
    addresses.extend(plan.ground.named.iter().flat_map(|named| named.addresses));
    for address in addresses {
        for (what, bytes) in [("DTLS", &dtls), ("QUIC", &quic)] {
            let to = SocketAddr::new(address, 443);
            attempts.push(plan.datagram(format!("{what} at {to}"), to, bytes)?.within(SHORT));
        }
    }
    Ok(attempts)
}
