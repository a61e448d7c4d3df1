//! `bailiwick sandbox logs`: what happened in a sandbox, from its daemon.

use anyhow::{Context, Result};
use client::{Client, EventFilter};
use store::EventRecord;

use crate::{audit, cli::LogsArgs, exit, remote::ApiFailure};

/// Events on a page, the most that a daemon gives.
const PAGE: u32 = 1000;

/// Prints all events that match, oldest first.
pub(super) async fn run(client: &Client, args: &LogsArgs) -> Result<u8> {
    let since = args.since.as_deref().map(audit::parse_since).transpose()?;
    let mut filter = EventFilter {
        since: since.map(|time| time.to_string()),
        kinds: args.kind.clone(),
        decision: args.decision.clone(),
        host: args.host.clone(),
        limit: Some(PAGE),
        cursor: None,
    };
    let mut header = true;
    loop {
        let page = client.events(&args.id, &filter).await.map_err(ApiFailure)?;
        if args.json {
            for event in &page.events {
                anstream::println!("{}", serde_json::to_string(event)?);
            }
        } else if header || !page.events.is_empty() {
            let events =
                serde_json::to_value(&page.events).and_then(serde_json::from_value::<Vec<EventRecord>>);
            let events = events.context("reading the events that the daemon sent")?;
            anstream::println!("{}", audit::table(&events, header));
        }
        header = false;
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            return Ok(exit::OK);
        }
    }
}
