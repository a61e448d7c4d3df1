//! Who the destination is, by name, server name and address.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::Result;

use super::{Case, Plan, canary};
use crate::{forms, report::Group};

pub(super) fn cases(plan: &Plan<'_>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |id, title, attempts: Result<Vec<_>>| -> Result<()> {
        cases.push(plan.case(Group::Destinations, id, title, attempts?));
        Ok(())
    };
    add("A1", "a permitted name at the address of another host", permitted_name_elsewhere(plan))?;
    add("A4", "another server name at the address of a permitted one", other_name(plan))?;
    add("A5", "another name of the same address", shared_address(plan))?;
    add("A7", "raw connections to addresses that are not listed", raw(plan))?;
    add("A13", "names that are nearly the permitted one", nearly(plan))?;
    add("A11", "other spellings of the permitted name", spellings(plan))?;
    add("A27", "other ports of a name that has one port", other_ports(plan))?;
    add("A30", "other notations of a refused address", notations(plan))?;
    add("A134", "a public resolver on other ports", resolver(plan))?;
    Ok(cases)
}

fn permitted_name_elsewhere(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let name = named.name.as_str();
    let mut attempts = Vec::new();
    for address in plan.ground.refused_addresses {
        let to = SocketAddr::new(address, 443);
        attempts.push(plan.hello(format!("TLS for {name} at {to}"), name.as_bytes(), to)?);
        let (to, canary) = (SocketAddr::new(address, 80), canary()?);
        let request = forms::http::request(Some(name), &format!("/{canary}"), "");
        let expect = plan.ground.claimed(name.as_bytes(), address, 80);
        let mut attempt = plan.tcp(format!("HTTP for {name} at {to}"), &canary, to, vec![request], expect);
        attempt.lands.extend(named.addresses);
        attempts.push(attempt);
    }
    Ok(attempts)
}

fn other_name(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let mut attempts = Vec::new();
    for address in named.addresses {
        let canary = canary()?;
        let other = plan.ground.refused_with(&canary);
        let to = SocketAddr::new(address, plan.port());
        attempts.push(plan.hello(format!("TLS for another name at {to}"), other.as_bytes(), to)?);
        let to = SocketAddr::new(address, plan.port());
        let request = forms::http::request(Some(&other), &format!("/{canary}"), "");
        let expect = plan.ground.claimed(other.as_bytes(), address, to.port());
        let mut attempt =
            plan.tcp(format!("HTTP for another name at {to}"), &canary, to, vec![request], expect);
        attempt.lands.extend(plan.places_of(&other));
        attempts.push(attempt);
    }
    Ok(attempts)
}

/// What a content network looks like: two names, one address.
fn shared_address(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let sibling = plan.ground.refused_with("sibling");
    plan.names.give(&sibling, &named.addresses);
    let first = named.addresses.into_iter().take(1);
    first
        .map(|address| {
            let to = SocketAddr::new(address, named.port_or(443));
            plan.hello(format!("TLS for {sibling}, which is at {address}, too"), sibling.as_bytes(), to)
        })
        .collect()
}

fn raw(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let mut attempts = Vec::new();
    for address in plan.ground.refused_addresses {
        for port in [21, 22, 25, 80, 443, 1080, 3128, 5432, 8080, 27017, plan.fresh_port()] {
            let canary = canary()?;
            let to = SocketAddr::new(address, port);
            let expect = plan.ground.unknown(address, port);
            attempts.push(plan.tcp(
                format!("bytes to {to}"),
                &canary,
                to,
                vec![canary.clone().into()],
                expect,
            ));
        }
    }
    Ok(attempts)
}

fn nearly(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let name = named.name.as_str();
    let other = &plan.ground.refused;
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("NUL and another name after it", format!("{name}\0.{other}").into()),
        ("NUL and another name before it", format!("{other}\0.{name}").into()),
        ("a letter before it", format!("not{name}").into()),
        ("another name after it", format!("{name}.{other}").into()),
        ("a letter after it", format!("{name}x").into()),
        ("a dot before it", format!(".{name}").into()),
        ("two dots after it", format!("{name}..").into()),
        ("a blank after it", format!("{name} ").into()),
        ("a letter of another alphabet", format!("\u{430}{name}").into()),
        ("over 255 bytes", format!("{}{name}", "a.".repeat(130)).into()),
        ("no character", Vec::new()),
        ("an address", b"104.16.1.1".to_vec()),
        ("an IPv6 address", b"[::1]".to_vec()),
    ];
    let [address, _] = named.addresses;
    forms
        .into_iter()
        .map(|(what, bytes)| plan.hello(what, &bytes, SocketAddr::new(address, plan.port())))
        .collect()
}

fn spellings(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let upper = named.name.as_str().to_ascii_uppercase();
    let [address, _] = named.addresses;
    let mut attempts = Vec::new();
    for spelling in [upper.clone(), format!("{upper}.")] {
        let to = SocketAddr::new(address, named.port_or(443));
        attempts.push(plan.hello(format!("TLS for {spelling}"), spelling.as_bytes(), to)?);
    }
    Ok(attempts)
}

fn other_ports(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let Some(named) = plan.ground.named.as_ref().filter(|named| named.port.is_some()) else {
        return Ok(Vec::new());
    };
    let [address, _] = named.addresses;
    let ports =
        [22, 25, 53, 80, 443, 8443, plan.fresh_port()].into_iter().filter(|port| Some(*port) != named.port);
    ports
        .map(|port| {
            let to = SocketAddr::new(address, port);
            plan.hello(format!("TLS for the name at {to}"), named.name.as_str().as_bytes(), to)
        })
        .collect()
}

fn notations(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let [IpAddr::V4(refused), _] = plan.ground.refused_addresses else { return Ok(Vec::new()) };
    let [a, b, c, d] = refused.octets();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let forms = [
        ("IPv4-mapped", refused.to_ipv6_mapped()),
        ("NAT64", Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
        ("6to4", Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1)),
        ("IPv4-compatible", Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low)),
    ];
    let mut attempts = Vec::new();
    for (what, address) in forms {
        let (canary, to) = (canary()?, SocketAddr::new(address.into(), plan.fresh_port()));
        let canonical = address.to_canonical();
        let expect = plan.ground.unknown(canonical, to.port());
        let said = vec![canary.clone().into()];
        attempts.push(plan.tcp(format!("{what}: bytes to {to}"), &canary, to, said, expect));
        let to = SocketAddr::new(address.into(), plan.fresh_port());
        attempts.push(plan.datagram(format!("{what}: a datagram to {to}"), to, b"")?);
    }
    Ok(attempts)
}

fn resolver(plan: &Plan<'_>) -> Result<Vec<super::Attempt>> {
    let mut attempts = Vec::new();
    for resolver in ["8.8.8.8", "1.1.1.1", "2001:4860:4860::8888"] {
        let address: IpAddr = resolver.parse()?;
        for port in [22, 53, 80, 443, 853] {
            let canary = canary()?;
            let to = SocketAddr::new(address, port);
            let expect = plan.ground.unknown(address, port);
            attempts.push(plan.tcp(
                format!("bytes to {to}"),
                &canary,
                to,
                vec![canary.clone().into()],
                expect,
            ));
        }
        for port in [123, 443, 784, 853, 5353] {
            attempts.push(plan.datagram(
                format!("a datagram to {resolver} port {port}"),
                SocketAddr::new(address, port),
                b"",
            )?);
        }
    }
    Ok(attempts)
}
