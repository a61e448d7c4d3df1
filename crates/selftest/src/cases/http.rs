//! HTTP/1 in clear.

use std::net::SocketAddr;

use anyhow::Result;
use policy::Reason;

use super::{Attempt, Case, PATIENCE, Plan, canary};
use crate::{
    forms::http::{first, request},
    report::Group,
};

pub(super) fn cases(plan: &Plan<'_>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut add = |id, title, attempts: Result<Vec<_>>| -> Result<()> {
        cases.push(plan.case(Group::Http, id, title, attempts?));
        Ok(())
    };
    add("C54", "the permitted host at other addresses, on every port of the web", elsewhere(plan))?;
    add("C55", "another host at the permitted address", other_host(plan))?;
    add("C56", "a second request behind a permitted one", smuggled(plan))?;
    add("C58", "requests that may mean another host", ambiguous(plan))?;
    add("C68", "other headers that name the permitted host", claimed(plan))?;
    add("C65", "the permitted host in other spellings", spellings(plan))?;
    Ok(cases)
}

fn elsewhere(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let [address, _] = plan.ground.refused_addresses;
    let mut attempts = Vec::new();
    for port in [3000, 8000, 8008, 8888] {
        let (canary, to) = (canary()?, SocketAddr::new(address, port));
        let said = request(Some(named.name.as_str()), &format!("/{canary}"), "");
        let expect = plan.ground.claimed(named.name.as_str().as_bytes(), address, port);
        let mut attempt = plan.tcp(format!("at {to}"), &canary, to, vec![said], expect);
        attempt.lands.extend(named.addresses);
        attempts.push(attempt);
    }
    Ok(attempts)
}

fn other_host(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let [address, _] = named.addresses;
    let mut attempts = Vec::new();
    for (method, target) in [("GET", "/"), ("POST", "/"), ("OPTIONS", "*"), ("FROB", "/")] {
        let canary = canary()?;
        let other = plan.ground.refused_with(&canary);
        let to = SocketAddr::new(address, plan.port());
        let said = format!(
            "{method} {target} HTTP/1.1\r\nHost: {other}\r\nX: {canary}\r\nConnection: close\r\n\r\n"
        );
        let expect = plan.ground.claimed(other.as_bytes(), address, to.port());
        let mut attempt = plan.tcp(format!("{method} {target}"), &canary, to, vec![said.into()], expect);
        attempt.lands.extend(plan.places_of(&other));
        attempts.push(attempt);
    }
    Ok(attempts)
}

/// The first request is permitted; what comes behind it is neither part of it nor permitted. `{second}` is a request
/// to another host with the canary in it.
const SMUGGLED: [(&str, &str); 13] = [
    ("a second request", "GET / HTTP/1.1\r\nHost: {host}\r\n\r\n{second}"),
    (
        "CONNECT as the second",
        "GET / HTTP/1.1\r\nHost: {host}\r\n\r\nCONNECT {other}:443 HTTP/1.1\r\nHost: {other}:443\r\nX: {canary}\r\n\r\n",
    ),
    (
        "a length and chunks",
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}",
    ),
    (
        "two transfer codings",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n{second}",
    ),
    (
        "a blank before the colon",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{second}",
    ),
    (
        "two lengths",
        "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nContent-Length: 60\r\n\r\n{second}",
    ),
    ("a length with a sign", "POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: +0\r\n\r\n{second}"),
    (
        "a chunk that overflows",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n{second}",
    ),
    (
        "a chunk extension with a bare LF",
        "POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n0;x=\n\r\n\r\n{second}",
    ),
    ("lines that end in LF", "GET / HTTP/1.1\nHost: {host}\n\n{second}"),
    ("a bare CR", "GET / HTTP/1.1\r\nHost: {host}\r\nX: a\rHost: {other}\r\nY: {canary}\r\n\r\n"),
    ("HTTP/1.0 with keep-alive", "GET / HTTP/1.0\r\nHost: {host}\r\nConnection: keep-alive\r\n\r\n{second}"),
    (
        "an upgrade that is not granted",
        "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n{second}",
    ),
];

fn smuggled(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let [address, _] = named.addresses;
    let host = named.name.as_str();
    let mut attempts = Vec::new();
    for (what, form) in SMUGGLED {
        let canary = canary()?;
        let other = plan.ground.refused_with(&canary);
        let second = format!("GET /{canary} HTTP/1.1\r\nHost: {other}\r\nConnection: close\r\n\r\n");
        let said = form
            .replace("{second}", &second)
            .replace("{host}", host)
            .replace("{other}", &other)
            .replace("{canary}", &canary);
        let to = SocketAddr::new(address, plan.port());
        // Where the kernel forwards, nobody looks at what is said; nor is a second host refused that is permitted.
        let expect = plan.ground.claimed(other.as_bytes(), address, to.port());
        let is_permitted = expect.is_permitted();
        let mut attempt = plan.tcp(what, &canary, to, vec![said.into()], expect);
        if !is_permitted {
            // The first request is permitted and has an event of its own.
            attempt = attempt.contained();
        } else if !matches!(plan.ground.passage(address, to.port()), crate::ground::Passage::Open(_)) {
            // What is malformed is refused all the same; that nothing else gets out is all there is to see.
            continue;
        }
        attempts.push(attempt);
    }
    Ok(attempts)
}

/// Requests that are refused wherever the proxy hears them, whatever host they name.
const AMBIGUOUS: [(&str, &str, Option<Reason>); 24] = [
    (
        "absolute form",
        "GET http://{other}/{canary} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        Some(Reason::HttpAbsoluteForm),
    ),
    (
        "absolute form of the same host",
        "GET http://{host}/{canary} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        Some(Reason::HttpAbsoluteForm),
    ),
    (
        "absolute form with a user",
        "GET http://{host}@{other}/{canary} HTTP/1.1\r\nHost: {host}\r\n\r\n",
        Some(Reason::HttpAbsoluteForm),
    ),
    (
        "CONNECT",
        "CONNECT {other}:443 HTTP/1.1\r\nHost: {other}:443\r\nX: {canary}\r\n\r\n",
        Some(Reason::HttpConnect),
    ),
    (
        "CONNECT to the permitted host",
        "CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\nX: {canary}\r\n\r\n",
        Some(Reason::HttpConnect),
    ),
    ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{canary}", Some(Reason::HttpH2c)),
    (
        "an upgrade to HTTP/2",
        "GET /{canary} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
        Some(Reason::HttpH2c),
    ),
    ("a blank before the colon", "GET /{canary} HTTP/1.1\r\nHost : {host}\r\n\r\n", None),
    ("a folded host", "GET /{canary} HTTP/1.1\r\nHost: {host}\r\n {other}\r\n\r\n", None),
    ("two hosts", "GET /{canary} HTTP/1.1\r\nHost: {host}\r\nHost: {other}\r\n\r\n", None),
    ("the host twice", "GET /{canary} HTTP/1.1\r\nHost: {host}\r\nhOsT: {host}\r\n\r\n", None),
    ("no host", "GET /{canary} HTTP/1.1\r\nX: {other}\r\n\r\n", None),
    ("no host in HTTP/1.0", "GET /{canary} HTTP/1.0\r\n\r\n", None),
    ("an empty host", "GET /{canary} HTTP/1.1\r\nHost: \r\n\r\n", None),
    ("a list of hosts", "GET /{canary} HTTP/1.1\r\nHost: {host},{other}\r\n\r\n", None),
    ("a host with a path", "GET /{canary} HTTP/1.1\r\nHost: {host}/{other}\r\n\r\n", None),
    ("a host with a user", "GET /{canary} HTTP/1.1\r\nHost: {host}@{other}\r\n\r\n", None),
    ("a host with NUL", "GET /{canary} HTTP/1.1\r\nHost: {host}\0.{other}\r\n\r\n", None),
    ("a host with two dots", "GET /{canary} HTTP/1.1\r\nHost: {host}..\r\n\r\n", None),
    ("no path", "GET {other} HTTP/1.1\r\nHost: {host}\r\nX: {canary}\r\n\r\n", None),
    ("a user for a path", "GET @{other}/{canary} HTTP/1.1\r\nHost: {host}\r\n\r\n", None),
    ("HTTP/0.9", "GET /{canary}\r\n", None),
    ("a version of other digits", "GET /{canary} HTTP/11\r\nHost: {host}\r\n\r\n", None),
    ("tabs in the line", "GET\t/{canary}\tHTTP/1.1\r\nHost: {other}\r\n\r\n", None),
];

fn ambiguous(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let [address, _] = named.addresses;
    let mut attempts = Vec::new();
    for (what, form, reason) in AMBIGUOUS {
        let canary = canary()?;
        let other = plan.ground.refused_with(&canary);
        let said = form
            .replace("{host}", named.name.as_str())
            .replace("{other}", &other)
            .replace("{canary}", &canary);
        let to = SocketAddr::new(address, plan.port());
        let expect = plan.ground.never_said(what, reason, address, to.port());
        attempts.push(plan.tcp(what, &canary, to, vec![said.into()], expect).within(PATIENCE));
    }
    Ok(attempts)
}

fn claimed(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let [address, _] = named.addresses;
    let host = named.name.as_str();
    let mut attempts = Vec::new();
    for header in ["X-Forwarded-Host", "X-Host", "X-Original-Host"] {
        let canary = canary()?;
        let other = plan.ground.refused_with(&canary);
        let to = SocketAddr::new(address, plan.port());
        let said = request(Some(&other), &format!("/{canary}"), &format!("{header}: {host}\r\n"));
        let expect = plan.ground.claimed(other.as_bytes(), address, to.port());
        let mut attempt = plan.tcp(header, &canary, to, vec![said], expect);
        attempt.lands.extend(plan.places_of(&other));
        attempts.push(attempt);
    }
    Ok(attempts)
}

fn spellings(plan: &Plan<'_>) -> Result<Vec<Attempt>> {
    let Some(named) = &plan.ground.named else { return Ok(Vec::new()) };
    let [address, _] = named.addresses;
    let port = plan.port();
    let upper = named.name.as_str().to_ascii_uppercase();
    let mut attempts = Vec::new();
    for host in [upper.clone(), format!("{upper}."), format!("{upper}:{port}")] {
        let canary = canary()?;
        let to = SocketAddr::new(address, port);
        let said = request(Some(&host), &format!("/{canary}"), "");
        let expect = plan.ground.claimed(named.name.as_str().as_bytes(), address, port);
        let mut attempt = plan.tcp(format!("Host: {host}"), &canary, to, vec![said], expect);
        attempt.lands.extend(named.addresses);
        attempts.push(attempt);
    }
    let canary = canary()?;
    let expect = plan.ground.claimed(named.name.as_str().as_bytes(), address, port);
    let said = first(named.name.as_str(), &canary) + &first(named.name.as_str(), &canary);
    let to = SocketAddr::new(address, port);
    attempts.push(plan.tcp("two permitted requests", &canary, to, vec![said.into()], expect));
    Ok(attempts)
}
