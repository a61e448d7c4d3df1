//! Tunnels, and protocols that are neither TLS nor HTTP.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{Action, Attempt, Case, PATIENCE, Plan, SHORT, canary};
use crate::report::Group;

/// What tunnels, mail, shells and databases say first. `{canary}` is somewhere in it.
const PROTOCOLS: [(&str, &str); 9] = [
    ("SOCKS 4a", "\u{4}\u{1}\0P\0\0\0\u{1}\0{canary}\0"),
    ("SOCKS 5", "\u{5}\u{1}\0{canary}"),
    ("SSH", "SSH-2.0-{canary}\r\n"),
    ("SMTP", "EHLO {canary}\r\n"),
    ("git", "0032git-upload-pack /{canary}\0host=x\0"),
    ("PostgreSQL", "\0\0\0\u{29}\0\u{3}\0\0user\0{canary}\0"),
    ("Redis", "*1\r\n$32\r\n{canary}\r\n"),
    ("MQTT", "\u{10}\u{2c}\0\u{4}MQTT\u{4}\u{2}\0<\0 {canary}"),
    ("noise", "\u{1}\u{2}\u{3}{canary}"),
];
/// Where they are spoken.
const PORTS: [u16; 9] = [1080, 1080, 22, 25, 9418, 5432, 6379, 1883, 4444];
/// Ports of protocols that run over UDP: tunnels, time, names, discovery, telephony.
const DATAGRAM_PORTS: [u16; 14] =
    [9, 69, 123, 137, 161, 514, 1194, 1900, 3478, 4500, 5060, 5355, 41641, 51820];

pub(super) fn cases(plan: &Plan<'_>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |id, title, attempts: Result<Vec<_>>| -> Result<()> {
        cases.push(plan.case(Group::Tunnels, id, title, attempts?));
        Ok(())
    };
    add("E95", "tunnels, mail, shells and databases at addresses that are not listed", elsewhere(plan))?;
    add("E97", "the same on the ports of the web, at the permitted address", on_web_ports(plan))?;
    add("E102", "the same on other ports of the permitted name", at_the_permitted(plan))?;
    add("E106", "datagrams on every port", datagrams(plan))?;
    add("E107", "ICMP echo with data in it", pings(plan))?;
    add("E109", "multicast and broadcast", groups(plan))?;
    add("E110", "a datagram in fragments", fragments(plan))?;
    add("E112", "another's source address", spoofed(plan))?;
    Ok(cases)
}

fn said(form: &str, canary: &str) -> Vec<u8> {
    form.replace("{canary}", canary).into_bytes()
}

fn spoken(plan: &Plan<'_>, address: IpAddr, port: impl Fn(u16) -> u16) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for ((what, form), usual) in PROTOCOLS.into_iter().zip(PORTS) {
        let (canary, to) = (canary()?, SocketAddr::new(address, port(usual)));
        let expect = plan.ground.unknown(address, to.port());
        attempts.push(plan.tcp(format!("{what} at {to}"), &canary, to, vec![said(form, &canary)], expect));
    }
    Ok(attempts)
}

fn elsewhere(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for address in plan.ground.refused_addresses {
        attempts.extend(spoken(plan, address, |usual| usual)?);
        attempts.extend(spoken(plan, address, |_| 443)?);
    }
    Ok(attempts)
}

fn on_web_ports(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let [address, _] = named.addresses;
    let mut attempts = Vec::new();
    for port in [80, 443].into_iter().filter(|port| named.port.is_none_or(|only| only == *port)) {
        let spoken = spoken(plan, address, |_| port)?;
        attempts.extend(spoken.into_iter().map(|attempt| attempt.within(PATIENCE)));
    }
    Ok(attempts)
}

fn at_the_permitted(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = plan.ground.named.as_ref().filter(|named| named.port.is_none()) else {
        return Ok(Vec::new());
    };
    let [address, _] = named.addresses;
    let mut attempts = spoken(plan, address, |usual| usual)?;
    // What may become HTTP is read as such for as long as it may, so it is not said that it gets through.
    attempts.retain(|attempt| {
        !matches!(&attempt.action, Action::Tcp { pieces, .. }
        if pieces.iter().any(|piece| piece.0.first().is_some_and(u8::is_ascii_alphanumeric)))
    });
    Ok(attempts)
}

fn datagrams(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let mut addresses: Vec<IpAddr> = plan.ground.refused_addresses.to_vec();
    addresses.extend(plan.ground.named.iter().flat_map(|named| named.addresses.into_iter().take(1)));
    for address in addresses {
        for port in DATAGRAM_PORTS {
            let to = SocketAddr::new(address, port);
            attempts.push(plan.datagram(format!("to {to}"), to, b"")?);
        }
    }
    if let Some((address, port)) = plan.ground.address {
        let to = SocketAddr::new(address, port.unwrap_or(9));
        attempts.push(plan.datagram(format!("to {to}, which is permitted"), to, b"")?);
    }
    Ok(attempts)
}

fn pings(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut addresses: Vec<IpAddr> = plan.ground.refused_addresses.to_vec();
    addresses.extend(plan.ground.named.iter().flat_map(|named| named.addresses));
    addresses.extend(plan.ground.address.map(|(address, _)| address));
    addresses.dedup();
    addresses.into_iter().map(|address| plan.ping(format!("to {address}"), address)).collect()
}

fn groups(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for group in ["224.0.0.1", "224.0.0.251", "239.255.255.250", "255.255.255.255", "ff02::1", "ff05::2"] {
        for port in [9, 1900, 5353] {
            let to = SocketAddr::new(group.parse()?, port);
            let mut attempt = plan.datagram(format!("to {to}"), to, b"")?;
            // Without an interface that has groups the kernel itself refuses them, and nothing is decided.
            attempt.is_recorded = false;
            attempts.push(attempt.within(SHORT));
        }
    }
    Ok(attempts)
}

fn fragments(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for address in plan.ground.refused_addresses {
        let to = SocketAddr::new(address, plan.fresh_port());
        attempts.push(plan.datagram(format!("9000 bytes to {to}"), to, &[b'f'; 9000])?);
    }
    Ok(attempts)
}

fn spoofed(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let [address, _] = plan.ground.refused_addresses;
    let sources = ["8.8.8.8", "100.64.0.1", "100.80.0.77", "198.51.100.1"];
    for source in sources {
        let source: IpAddr = source.parse()?;
        for _ in 0..2 {
            let to = SocketAddr::new(address, plan.fresh_port());
            let mut datagram = plan.datagram(format!("a datagram to {to} from {source}"), to, b"")?;
            let canary = canary()?;
            let expect = plan.ground.unknown(address, to.port());
            let what = format!("bytes to {to} from {source}");
            let mut stream = plan.tcp(what, &canary, to, vec![canary.clone().into()], expect);
            for attempt in [&mut datagram, &mut stream] {
                // Whatever the policy permits, it permits to the sandbox's own address only.
                attempt.expect = crate::ground::Expect::never("the sandbox's own address is another");
                attempt.is_recorded = false;
                if let Action::Udp { wait, from, .. } | Action::Tcp { wait, from, .. } = &mut attempt.action {
                    *from = Some(source);
                    *wait = SHORT;
                }
            }
            attempts.extend([datagram, stream]);
        }
    }
    for attempt in &mut attempts {
        attempt.user = super::User::Root;
    }
    Ok(attempts)
}
