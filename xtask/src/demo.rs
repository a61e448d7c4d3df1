//! `cargo xtask demo`: a sandbox locked to one host, what is tried inside, and what decides.

use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use owo_colors::OwoColorize;
use serde_json::{Value, json};
use testkit::{Client, Daemon, Lab, LabConfig, Method, Zone};

const ALLOWED: &str = "api.github.com";
/// What runs inside; prints a JSON line for each attempt.
const ATTEMPTS: &str = include_str!("attempts.py");
/// How long the internet may take to answer before the lab is used.
const PATIENCE: Duration = Duration::from_secs(3);

/// Options of `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// Use the lab's small internet even if there is a way to the real one
    #[arg(long, env = "BAILIWICK_DEMO_LAB")]
    lab: bool,
    /// Templates to use
    #[arg(long, value_name = "DIR")]
    templates: Option<PathBuf>,
}

/// Shows it.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("bailiwick-demo-").tempdir()?;
    let program = testkit::sibling("bailiwick")?;
    let runtime = tokio::runtime::Runtime::new()?;
    if !args.lab && reachable() {
        let daemon = Daemon::start_on_machine(&program, directory.path(), args.templates.as_deref())?;
        return runtime.block_on(show(daemon.api(), daemon.key()));
    }
    if !args.lab {
        anstream::println!("No way to {ALLOWED} from here: using the lab's small internet instead.\n");
    }
    let lab = Lab::start(LabConfig {
        zone: Zone::standard(),
        program,
        templates: args.templates.clone(),
        directory: directory.path().to_owned(),
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
    })?;
    runtime.block_on(show(lab.api(), lab.key()))
}

fn reachable() -> bool {
    let Ok(mut addresses) = (ALLOWED, 443).to_socket_addrs() else { return false };
    addresses.next().is_some_and(|address| TcpStream::connect_timeout(&address, PATIENCE).is_ok())
}

async fn show(api: SocketAddr, key: &str) -> Result<()> {
    let mut client = Client::connect(api, key).await?;
    let request = json!({ "template": "python", "timeout": 300, "network": { "allow_out": [ALLOWED] } });
    let sandbox = client.expect(Method::POST, "/sandboxes", Some(&request)).await?;
    let id = sandbox["sandbox_id"].as_str().context("the API gave no sandbox_id")?.to_owned();
    anstream::println!("{} {id}  allow_out = [{ALLOWED:?}]\n", "sandbox".bold());

    client.write(&id, "/tmp/attempts.py", ATTEMPTS).await?;
    let command = json!({ "cmd": "python3 /tmp/attempts.py", "timeout": 120 });
    let done = client.expect(Method::POST, &format!("/sandboxes/{id}/commands"), Some(&command)).await?;
    let output = done["stdout"].as_str().unwrap_or_default();
    let attempts: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    anyhow::ensure!(!attempts.is_empty(), "the program inside said nothing: {done}");

    let events = client.expect(Method::GET, &format!("/sandboxes/{id}/audit?limit=1000"), None).await?;
    let events = events["events"].as_array().cloned().unwrap_or_default();
    let network: Vec<&Value> = events.iter().filter(|event| event["category"] == "network").collect();
    anstream::println!("{}", attempts_table(&attempts, &network));
    anstream::println!("\n{}\n{}", "audit".bold(), events_table(&network));
    client.expect(Method::DELETE, &format!("/sandboxes/{id}"), None).await?;
    Ok(())
}

fn attempts_table(attempts: &[Value], events: &[&Value]) -> Table {
    let mut table = new_table(&["TRIED INSIDE", "WHAT HAPPENED", "DECIDED BY"]);
    for attempt in attempts {
        let reached = attempt["reached"] == true;
        let what = attempt["what"].as_str().unwrap_or_default();
        let happened = attempt["happened"].as_str().unwrap_or_default();
        let happened = if reached { happened.green().to_string() } else { happened.red().to_string() };
        let decided = events.iter().find(|event| matches(attempt, event)).map(|event| rule(event));
        table.add_row([what.to_owned(), happened, decided.unwrap_or_default()]);
    }
    table
}

/// Whether an event is about an attempt: same port, and same name or address, and the same outcome.
fn matches(attempt: &Value, event: &Value) -> bool {
    let decision = if attempt["reached"] == true { "allow" } else { "deny" };
    let same = |field: &str| !attempt[field].is_null() && attempt[field] == event[field];
    event["decision"] == decision
        && (attempt["port"].is_null() || attempt["port"] == event["port"])
        && (same("host") || same("address"))
}

fn rule(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} ({})", text(&event["rule"]["text"]), text(&event["reason"]))
}

fn events_table(events: &[&Value]) -> Table {
    let mut table = new_table(&["EVENT", "HOST", "ADDRESS", "PORT", "RULE"]);
    for event in events {
        let text = |field: &str| match &event[field] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.add_row([text("type"), text("host"), text("address"), text("port"), rule(event)]);
    }
    table
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_table_are_as_wide_as_each_other_with_colours_and_without() {
        let attempt =
            |reached: bool, what: &str| json!({ "reached": reached, "what": what, "happened": what });
        let table = attempts_table(&[attempt(true, "one"), attempt(false, "another one")], &[]).to_string();
        assert!(table.contains('\u{1b}'), "there are colours");
        let plain = anstream::adapter::strip_str(&table).to_string();
        let widths: Vec<_> = plain.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| Some(width) == widths.first()), "{widths:?}\n{plain}");
    }
}
