//! Names: what is asked, of whom, and what may be answered.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use super::{Attempt, Case, Plan, SHORT, canary, trace_of};
use crate::{
    forms::dns::{TYPES, framed, question, question_of},
    forms::http::request,
    ground::{Expect, INSIDE},
    report::Group,
    sinks::Trace,
};

/// Names that mean a service of some cloud that gives credentials out.
const METADATA: [&str; 4] =
    ["metadata.google.internal", "metadata", "instance-data", "metadata.tencentyun.com"];

pub(super) fn cases(plan: &Plan<'_>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |id, title, attempts: Result<Vec<_>>| -> Result<()> {
        cases.push(plan.case(Group::Dns, id, title, attempts?));
        Ok(())
    };
    add("F117", "data in names that are not permitted", names(plan))?;
    add("F118", "records of other types", types(plan))?;
    add("F121", "single labels and special names", special(plan))?;
    add("F122", "data beside the name, in options and in its case", beside(plan))?;
    add("F124", "queries that cannot be read", broken(plan))?;
    add("F125", "answers for a permitted name that lead inside", inside(plan))?;
    add("F133", "resolvers of one's own choice", servers(plan))?;
    add("F134", "DNS over TCP to another resolver", over_tcp(plan))?;
    add("F103", "DNS over HTTPS and TLS, by server name", over_tls(plan))?;
    add("G143", "names of metadata services", metadata(plan))?;
    Ok(cases)
}

fn names(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for what in ["one label", "two labels", "before the permitted name", "after the permitted name"] {
        let canary = canary()?;
        let permitted = plan.ground.named.as_ref().map_or("nobody.example", |named| named.name.as_str());
        let other = &plan.ground.refused;
        let name = match what {
            "one label" => plan.ground.refused_with(&canary),
            "two labels" => plan.ground.refused_with(&format!("{}.{}", canary.split_at(16).0, canary)),
            "before the permitted name" => format!("{canary}.{permitted}"),
            _ => format!("{permitted}.{canary}.{other}"),
        };
        let trace = trace_of(&name, &canary);
        let query = question(&name, 1);
        let expect = plan.ground.lookup(&name);
        attempts.push(plan.query(format!("A of {name}"), trace, "8.8.8.8:53".parse()?, query, expect)?);
    }
    Ok(attempts)
}

/// Of a name that is not permitted nothing is asked; of a permitted one, addresses only.
fn types(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for (word, kind) in TYPES {
        let canary = canary()?;
        let name = plan.ground.refused_with(&canary);
        let trace = trace_of(&name, &canary);
        let expect = match plan.ground.lookup(&name) {
            // Nothing but addresses is looked up, and the others are not refused as a name is.
            Expect::Permitted { .. } if !matches!(kind, 1 | 28 | 255) => Expect::Contained,
            expect => expect,
        };
        let server = "8.8.8.8:53".parse()?;
        attempts.push(plan.query(
            format!("{word} of {name}"),
            trace,
            server,
            question(&name, kind),
            expect,
        )?);
    }
    Ok(attempts)
}

/// Each answer for the permitted name has private addresses, that of the machine and that of a metadata service in it:
/// none of them is told, and none of them is opened.
fn inside(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let name = named.name.as_str();
    let mut attempts = vec![
        plan.lookup(name, 1, format!("A of {name}"))?,
        plan.lookup(name, 28, format!("AAAA of {name}"))?,
    ];
    for text in INSIDE {
        let (canary, address) = (canary()?, text.parse::<IpAddr>()?);
        // Of those that are its own nobody decides.
        if address.is_loopback() {
            continue;
        }
        let to = SocketAddr::new(address, plan.port());
        let expect = plan.ground.claimed(name.as_bytes(), address, to.port());
        let said = request(Some(name), &format!("/{canary}"), "");
        let mut attempt = plan.tcp(format!("HTTP to {name} at {to}"), &canary, to, vec![said], expect);
        attempt.lands.extend(named.addresses);
        attempts.push(attempt);
    }
    Ok(attempts)
}

fn special(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let names =
        ["wpad", "x.local", "x.onion", "x.invalid", "x.cluster.local", "kubernetes.default.svc", "_dmarc"];
    // Where they are permitted there is nothing to see: some of them exist nowhere.
    let refused = names.into_iter().filter(|name| !plan.ground.lookup(name).is_permitted());
    refused.map(|name| plan.lookup(name, 1, format!("A of {name}"))).collect()
}

fn beside(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let canary = canary()?;
    // A cookie (RFC 7873), and an option for local use.
    let mut options = vec![0, 10, 0, 16];
    options.extend(canary.as_bytes().iter().take(16));
    options.extend([0xfd, 0xe9, 0, 32]);
    options.extend(canary.as_bytes());
    let upper = named.name.as_str().to_ascii_uppercase();
    let labels: Vec<&[u8]> = upper.split('.').map(str::as_bytes).collect();
    let query = question_of(&labels, 1, &options);
    let trace = Trace::Text(canary.split_at(16).0.to_owned());
    let server = "8.8.8.8:53".parse()?;
    let mut attempt = plan.query("a cookie and a local option", trace, server, query, Expect::Contained)?;
    attempt.place = None;
    Ok(vec![attempt])
}

fn broken(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let canary = canary()?;
    let name = plan.ground.refused_with(&canary);
    let whole = question(&name, 1);
    let with = |at: usize, byte: u8| {
        let mut query = whole.clone();
        if let Some(old) = query.get_mut(at) {
            *old = byte;
        }
        query
    };
    let forms: Vec<(&str, Vec<u8>)> = vec![
        ("two questions", with(5, 2)),
        ("no question", with(5, 0)),
        ("a response", with(2, 0x81)),
        ("an update", with(2, 0x29)),
        ("cut off", whole.get(..20).unwrap_or_default().to_vec()),
        (
            "a name that points to itself",
            [whole.get(..12).unwrap_or_default(), &[0xc0, 12, 0, 1, 0, 1]].concat(),
        ),
        ("a dot in a label", question_of(&[b"a.b", canary.as_bytes(), b"example"], 1, &[])),
        ("NUL in a label", question_of(&[b"a\0b", canary.as_bytes(), b"example"], 1, &[])),
        ("the root", question_of(&[], 1, &[])),
        ("no byte", Vec::new()),
        ("noise", canary.repeat(8).into()),
    ];
    let mut attempts = Vec::new();
    for (what, query) in forms {
        let trace = trace_of(&name, &canary);
        let server = "8.8.8.8:53".parse()?;
        let mut attempt = plan.query(what, trace, server, query, Expect::Contained)?;
        // Two questions may be answered as one where the name is permitted.
        if plan.ground.lookup(&name).is_permitted() {
            attempt.trace = Trace::None;
        }
        attempts.push(attempt.within(SHORT));
    }
    Ok(attempts)
}

/// Whatever server is asked, the node's resolver answers.
fn servers(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    let [v4, v6] = plan.ground.refused_addresses;
    let fixed = ["8.8.8.8", "203.0.113.1", "10.0.0.1", "169.254.169.253"];
    let servers = fixed.iter().filter_map(|text| text.parse().ok()).chain([v4, v6]);
    for server in servers.collect::<Vec<IpAddr>>() {
        let canary = canary()?;
        let name = plan.ground.refused_with(&canary);
        let trace = trace_of(&name, &canary);
        let expect = plan.ground.lookup(&name);
        let what = format!("TXT of {name} at {server}");
        let expect = if expect.is_permitted() { Expect::Contained } else { expect };
        attempts.push(plan.query(what, trace, SocketAddr::new(server, 53), question(&name, 16), expect)?);
    }
    Ok(attempts)
}

fn over_tcp(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for server in ["8.8.8.8", "9.9.9.9", "2606:4700:4700::1111"] {
        let (canary, address) = (canary()?, server.parse()?);
        let to = SocketAddr::new(address, 53);
        let said = framed(&question(&plan.ground.refused_with(&canary), 16));
        let expect = plan.ground.unknown(address, 53);
        attempts.push(plan.tcp(format!("TXT over TCP at {server}"), &canary, to, vec![said], expect));
    }
    Ok(attempts)
}

fn over_tls(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for name in ["dns.google", "cloudflare-dns.com", "dns.quad9.net"] {
        if let Some(named) = &plan.ground.named {
            let [address, _] = named.addresses;
            let to = SocketAddr::new(address, plan.port());
            attempts.push(plan.hello(
                format!("TLS for {name} at the permitted address"),
                name.as_bytes(),
                to,
            )?);
        }
        for port in [443, 853] {
            let to = SocketAddr::new("9.9.9.9".parse()?, port);
            attempts.push(plan.hello(format!("TLS for {name} at {to}"), name.as_bytes(), to)?);
        }
    }
    Ok(attempts)
}

fn metadata(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let mut attempts = Vec::new();
    for name in METADATA {
        attempts.push(plan.lookup(name, 1, format!("A of {name}"))?);
    }
    Ok(attempts)
}
