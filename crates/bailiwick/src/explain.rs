//! `bailiwick policy explain`: the verdict of the data path, without the data path.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, anyhow};
use owo_colors::OwoColorize;
use policy::{Flow, HostName, KernelDefault, Policy, Protocol, Rule, Verdict};

use crate::{cli::ExplainArgs, exit, exit::BadInput};

/// Judges the destination and prints the verdict; gives the exit code.
pub(crate) fn run(args: &ExplainArgs) -> Result<u8> {
    let policy = Policy::compile(&args.policy.spec(), crate::node::floor()?)?;
    let destination = Destination::parse(&args.destination)?;
    let protocol = if args.protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
    let verdict = policy.judge(&Flow {
        protocol,
        name: destination.name.as_ref(),
        address: destination.address,
        port: destination.port,
    });
    let condition = condition(&policy, &destination, &verdict);
    if args.json {
        let answer = serde_json::json!({
            "destination": args.destination, "protocol": args.protocol, "decision": verdict.decision,
            "rule": verdict.rule.to_string(), "reason": verdict.reason, "condition": condition,
            "warnings": policy.warnings().iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        anstream::println!("{answer}");
    } else {
        let word = if verdict.is_allowed() {
            "permitted".green().bold().to_string()
        } else {
            "refused".red().bold().to_string()
        };
        anstream::println!("{word}  {} {}", args.protocol, args.destination);
        anstream::println!("  rule    {}", verdict.rule);
        anstream::println!("  reason  {}", verdict.reason.as_str());
        if let Some(condition) = condition {
            anstream::println!("  only    {condition}");
        }
        for warning in policy.warnings() {
            anstream::eprintln!("{} {warning}", "warning:".yellow().bold());
        }
    }
    Ok(if verdict.is_allowed() { exit::OK } else { exit::REFUSED })
}

/// What the verdict on a destination leaves to the connection's first bytes.
fn condition(policy: &Policy, destination: &Destination, verdict: &Verdict) -> Option<&'static str> {
    let is_open_to_it = verdict.is_allowed() && verdict.rule == Rule::Default;
    (destination.name.is_none() && is_open_to_it && policy.kernel().default == KernelDefault::ProxyTcp).then_some(
        "as HTTP that names the address: names are denied, so TLS has to name a permitted one, and other protocols \
         pass only to addresses that a permitted name was resolved to",
    )
}

/// What is asked about.
#[derive(Debug)]
struct Destination {
    name: Option<HostName>,
    address: Option<IpAddr>,
    port: Option<u16>,
}

impl Destination {
    /// `HOST`, `HOST:PORT`, `ADDRESS`, `ADDRESS:PORT`, `[V6]:PORT`.
    fn parse(text: &str) -> Result<Self> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self { name: None, address: Some(address.ip()), port: Some(address.port()) });
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self { name: None, address: Some(address), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => {
                let port = port
                    .parse()
                    .map_err(|_| anyhow!(BadInput(format!("{port:?} is not a port, in {text:?}"))))?;
                (host, Some(port))
            }
            None => (text, None),
        };
        let name = HostName::parse(host)
            .map_err(|error| anyhow!(BadInput(format!("{host:?} is not a host name: {error}"))))?;
        Ok(Self { name: Some(name), address: None, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_in_every_form() {
        for (text, name, address, port) in [
            ("api.github.com:443", Some("api.github.com"), None, Some(443)),
            ("API.github.com", Some("api.github.com"), None, None),
            ("1.2.3.4:80", None, Some("1.2.3.4"), Some(80)),
            ("[2001:db8::1]:443", None, Some("2001:db8::1"), Some(443)),
            ("2001:db8::1", None, Some("2001:db8::1"), None),
        ] {
            let destination = Destination::parse(text).unwrap();
            assert_eq!(destination.name.as_ref().map(HostName::as_str), name, "{text}");
            assert_eq!(destination.address, address.map(|address| address.parse().unwrap()), "{text}");
            assert_eq!(destination.port, port, "{text}");
        }
    }

    #[test]
    fn a_bad_port_is_bad_input() {
        let error = Destination::parse("api.github.com:https").unwrap_err();
        assert_eq!(exit::code_of(&error), exit::BAD_INPUT);
    }
}
