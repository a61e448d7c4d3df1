//! `bailiwick audit`: the events, as a table a person likes to read, or as JSON lines.

mod verify;

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use jiff::{SignedDuration, Timestamp};
use policy::Decision;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use store::{EventQuery, EventRecord, MAX_PAGE, Order, Store};

use crate::{
    cli::{AuditArgs, AuditCommand},
    config::{Config, DataArgs, ServeArgs},
    exit::{self, BadInput},
    printable::printable,
};

/// How often new events are looked for with `--follow`.
const POLL: Duration = Duration::from_millis(250);

/// Shows or checks the events.
pub(crate) async fn run(data: &DataArgs, args: &AuditArgs) -> Result<u8> {
    let directory = Config::load(data, &ServeArgs::default())?.data_dir;
    anyhow::ensure!(
        directory.join(store::DATABASE).exists(),
        "there are no events in {}: no daemon has run with this --data-dir",
        directory.display()
    );
    match &args.command {
        Some(AuditCommand::Verify(args)) => verify::run(&directory, args).await,
        None => show(&directory, args).await,
    }
}

/// Prints events; with `--follow` until interrupted, or until nobody reads them.
async fn show(directory: &Path, args: &AuditArgs) -> Result<u8> {
    let store = Store::open_beside(directory)
        .await
        .with_context(|| format!("opening the events in {}", directory.display()))?;
    let query = EventQuery {
        sandbox: args.sandbox.clone(),
        since: args.since.as_deref().map(parse_since).transpose()?,
        decision: args
            .decision
            .as_deref()
            .map(|word| if word == "deny" { Decision::Deny } else { Decision::Allow }),
        host: args.host.clone(),
        ..EventQuery::default()
    };
    match print_all(&store, query, args).await {
        Err(error) if is_reader_gone(&error) => Ok(exit::OK),
        other => other.map(|()| exit::OK),
    }
}

async fn print_all(store: &Store, query: EventQuery, args: &AuditArgs) -> Result<()> {
    let newest = EventQuery { order: Order::NewestFirst, limit: Some(args.limit), ..query.clone() };
    let mut events = store.events().query(&newest).await?.events;
    events.reverse();
    print(&events, args.json, true)?;
    if !args.follow {
        return Ok(());
    }
    // From the last one on, none is left out, however many there are at a time.
    let mut next = EventQuery { order: Order::OldestFirst, limit: Some(MAX_PAGE), ..query };
    loop {
        if let Some(last) = events.last() {
            next = next.after(last);
        }
        events = store.events().query(&next).await?.events;
        print(&events, args.json, false)?;
        if events.is_empty() {
            tokio::time::sleep(POLL).await;
            // Events may be rare: whoever waits for this program to end is not to wait for the next.
            if is_output_closed()? {
                return Ok(());
            }
        }
    }
}

/// Whether what is printed goes to a pipe or a terminal that nobody has open any more.
fn is_output_closed() -> Result<bool> {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::empty())];
    poll(&mut watched, Some(&Timespec::default())).context("watching standard output")?;
    Ok(watched.iter().any(|watched| watched.revents().intersects(PollFlags::ERR | PollFlags::HUP)))
}

fn is_reader_gone(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A point in time, or how long ago.
pub(crate) fn parse_since(text: &str) -> Result<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let bad =
        || anyhow!(BadInput(format!("{text:?} is neither an RFC 3339 time nor a span such as 15m or 2h")));
    let (number, unit) = text.split_at(text.len().saturating_sub(1));
    let number: i64 = number.parse().map_err(|_| bad())?;
    let unit: i64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(bad()),
    };
    let ago = SignedDuration::from_secs(number.checked_mul(unit).ok_or_else(bad)?);
    Timestamp::now().checked_sub(ago).map_err(|_| bad())
}

fn print(events: &[EventRecord], json: bool, header: bool) -> Result<()> {
    let mut out = anstream::stdout().lock();
    if json {
        for event in events {
            writeln!(out, "{}", serde_json::to_string(event)?)?;
        }
    } else if header || !events.is_empty() {
        writeln!(out, "{}", table(events, header))?;
    }
    Ok(out.flush()?)
}

/// The events as a table. Names in them are those that code in a sandbox chose.
pub(crate) fn table(events: &[EventRecord], header: bool) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    if header {
        table.set_header(["TIME", "SANDBOX", "EVENT", "DESTINATION", "RULE", "REASON", "COUNT"]);
    }
    for event in events {
        // The table colours what it has measured: colours within a text would count as a part of it.
        let kind = Cell::new(printable(&event.kind));
        let kind = match event.decision {
            Some(Decision::Allow) => kind.fg(Color::Green),
            Some(Decision::Deny) => kind.fg(Color::Red),
            None => kind,
        };
        let rule = event.rule.as_ref().map_or("", |rule| rule.text.as_str());
        table.add_row([
            event.time.strftime("%H:%M:%S%.3f").to_string().into(),
            printable(event.sandbox_id.as_deref().unwrap_or_default()).into(),
            kind,
            destination(event).into(),
            printable(rule).into(),
            printable(event.reason.as_deref().unwrap_or_default()).into(),
            event.count.into(),
        ]);
    }
    table
}

/// `protocol host (address):port`, as much of it as is known, printable.
pub(crate) fn destination(event: &EventRecord) -> String {
    let address = event.address.map(|address| address.to_string());
    let host = event.host.as_deref().map(printable);
    let mut text = match (host, address) {
        (Some(host), Some(address)) => format!("{host} ({address})"),
        (Some(host), None) => host,
        (None, Some(address)) => address,
        (None, None) => return String::new(),
    };
    if let Some(port) = event.port {
        text.push_str(&format!(":{port}"));
    }
    match &event.protocol {
        Some(protocol) => format!("{} {text}", printable(protocol)),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let event = |decision, kind: &'static str| EventRecord {
            decision,
            host: Some("a.test".to_owned()),
            ..EventRecord::new(1, Timestamp::UNIX_EPOCH, store::Category::Network, kind)
        };
        let events = [
            event(Some(Decision::Deny), "egress_blocked"),
            event(Some(Decision::Allow), "egress_allowed"),
            event(None, "audit_gap"),
        ];
        let text = table(&events, true).to_string();
        let columns: Vec<_> =
            text.lines().map(|line| line.find("DESTINATION").or(line.find("a.test"))).collect();
        assert!(columns.iter().all(|column| column.is_some() && *column == columns[0]), "{text}");
    }

    #[test]
    fn nothing_that_was_recorded_of_a_sandbox_controls_a_terminal() {
        let evil = "x\u{1b}]52;c;eA==\u{7}\u{9b}2J\ny";
        let event = EventRecord {
            sandbox_id: Some(evil.to_owned()),
            reason: Some(evil.into()),
            rule: Some(store::EventRule {
                text: evil.to_owned(),
                kind: store::RuleKind::Floor { floor: evil.to_owned() },
            }),
            host: Some(evil.to_owned()),
            protocol: Some(evil.into()),
            ..EventRecord::new(1, Timestamp::UNIX_EPOCH, store::Category::Network, evil)
        };
        let text = table(&[event], false).to_string();
        assert!(text.chars().all(|c| !c.is_control() || c == '\n'), "{text:?}");
        // As much as is harmless is there: in six columns, the host's with the protocol.
        assert_eq!(text.matches('y').count(), 6, "{text}");
    }

    #[test]
    fn since_takes_a_time_or_a_span() {
        assert!(parse_since("2026-01-02T03:04:05Z").is_ok());
        assert!(parse_since("15m").unwrap() < Timestamp::now());
        for bad in ["", "m", "15", "yesterday", "99999999999999999d"] {
            assert_eq!(exit::code_of(&parse_since(bad).unwrap_err()), exit::BAD_INPUT, "{bad}");
        }
    }
}
