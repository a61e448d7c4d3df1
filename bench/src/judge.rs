//! What it takes to judge a flow.

use std::{hint::black_box, net::IpAddr, sync::Arc, time::Instant};

use anyhow::Result;
use policy::{Floor, Flow, HostName, Policy, PolicySpec, Protocol};

use crate::{
    Settings,
    figure::{Figure, Target, Unit},
};

/// How many flows one value is the mean of.
const TURNS: u32 = 20_000;

/// Measures it, under a policy with as many entries as one may have.
pub(crate) fn measure(settings: &Settings) -> Result<Vec<Figure>> {
    if !settings.wants("judge") {
        return Ok(Vec::new());
    }
    let entries = (0..10_000_u32).map(|number| match number % 100 {
        0 => format!("~api[0-9]+\\.region{number}\\.example\\.org"),
        1..=33 => format!("host{number}.example.com"),
        34..=66 => format!("*.zone{number}.example.net"),
        _ => format!("{}.{}.{}.0/24", 20 + number % 50, number / 250, number % 250),
    });
    let spec = PolicySpec { allow_out: entries.collect(), ..PolicySpec::default() };
    let policy = Policy::compile(&spec, Arc::new(Floor::new([])))?;
    let flows = [
        ("name", "an exact name", Some("host9901.example.com"), None),
        ("zone", "a name in a permitted zone", Some("a.b.zone9950.example.net"), None),
        ("address", "an address", None, Some("24.39.54.7")),
        ("refused", "a name that is refused", Some("nobody.example.edu"), None),
    ];
    flows
        .into_iter()
        .map(|(name, what, host, address)| figure(settings, &policy, name, what, host, address))
        .collect()
}

fn figure(
    settings: &Settings,
    policy: &Policy,
    name: &str,
    what: &str,
    host: Option<&str>,
    address: Option<&str>,
) -> Result<Figure> {
    let host = host.map(HostName::parse).transpose()?;
    let address = address.map(str::parse::<IpAddr>).transpose()?;
    let flow = Flow { protocol: Protocol::Tcp, name: host.as_ref(), address, port: Some(443) };
    let judged = || {
        let begun = Instant::now();
        for _ in 0..TURNS {
            black_box(policy.judge(black_box(&flow)));
        }
        begun.elapsed().as_secs_f64() * 1e6 / f64::from(TURNS)
    };
    Ok(Figure {
        name: format!("judge.{name}"),
        what: format!("judging {what} against 10 000 entries"),
        unit: Unit::Microseconds,
        ours: (0..settings.rounds()).map(|_| judged()).collect(),
        peer: None,
        target: Target::AtMost(2.0),
    })
}
