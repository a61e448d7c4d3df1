//! Asking for events, page by page.

use jiff::Timestamp;
use policy::Decision;
use sqlx::{QueryBuilder, Sqlite, SqlitePool};

use super::{EventRecord, columns};
use crate::{
    StoreError,
    error::doing,
    value::{micros, signed},
};

/// The most events that one page holds.
pub const MAX_PAGE: u32 = 1000;
const DEFAULT_PAGE: u32 = 100;
const ACTION: &str = "query the events";

/// Which events, in which order. The default is all of them, oldest first.
#[derive(Clone, Debug, Default)]
pub struct EventQuery {
    /// Only of sandboxes of this account (those whose record is still kept).
    pub account: Option<String>,
    /// Only of this sandbox.
    pub sandbox: Option<String>,
    /// Only at or after this time.
    pub since: Option<Timestamp>,
    /// Only before this time.
    pub until: Option<Timestamp>,
    /// Only of one of these types; empty means any.
    pub kinds: Vec<String>,
    /// Only with this decision.
    pub decision: Option<Decision>,
    /// Only about this host name, or with `*.example.com` about the names below `example.com`.
    pub host: Option<String>,
    /// The direction.
    pub order: Order,
    /// How many at most: 1 to [`MAX_PAGE`], 100 if absent.
    pub limit: Option<u32>,
    /// Go on after the page that gave this cursor. The other fields must be as they were.
    pub cursor: Option<String>,
}

/// The direction of a query. The order is that of the ids, which a change of the clock does not disturb.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As it happened.
    #[default]
    OldestFirst,
    /// The latest first.
    NewestFirst,
}

/// A page of events.
#[derive(Clone, Debug, Default)]
pub struct EventPage {
    /// The events.
    pub events: Vec<EventRecord>,
    /// For [`EventQuery::cursor`], if there are more.
    pub next: Option<String>,
}

impl EventQuery {
    /// The same, going on after this event.
    #[must_use]
    pub fn after(self, event: &EventRecord) -> Self {
        Self { cursor: Some(cursor(event.id, self.order)), ..self }
    }
}

pub(super) async fn run(pool: &SqlitePool, query: &EventQuery) -> Result<EventPage, StoreError> {
    let limit = query.limit.unwrap_or(DEFAULT_PAGE).clamp(1, MAX_PAGE);
    let after = query.cursor.as_deref().map(|text| parse_cursor(text, query.order)).transpose()?;
    let mut select = QueryBuilder::new("SELECT * FROM events WHERE 1 = 1");
    push_conditions(&mut select, query);
    if let Some(id) = after {
        select.push(match query.order {
            Order::OldestFirst => " AND id > ",
            Order::NewestFirst => " AND id < ",
        });
        select.push_bind(signed(id));
    }
    select.push(match query.order {
        Order::OldestFirst => " ORDER BY id LIMIT ",
        Order::NewestFirst => " ORDER BY id DESC LIMIT ",
    });
    // One more than asked for tells whether there is another page.
    select.push_bind(i64::from(limit) + 1);

    let rows = select.build().fetch_all(pool).await.map_err(doing(ACTION))?;
    let mut events = rows.iter().map(columns::read).collect::<Result<Vec<_>, _>>()?;
    let page = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = events.len() > page;
    events.truncate(page);
    let next = events.last().filter(|_| more).map(|last| cursor(last.id, query.order));
    Ok(EventPage { events, next })
}

fn push_conditions(select: &mut QueryBuilder<Sqlite>, query: &EventQuery) {
    if let Some(account) = &query.account {
        select.push(
            " AND EXISTS (SELECT 1 FROM sandboxes WHERE sandboxes.id = events.sandbox_id AND account = ",
        );
        select.push_bind(account.clone()).push(")");
    }
    if let Some(sandbox) = &query.sandbox {
        select.push(" AND sandbox_id = ").push_bind(sandbox.clone());
    }
    if let Some(since) = query.since {
        // An id is never below its time, so the first bound only helps to start at the right place. The `+`
        // keeps the planner from the index by time, which would have to sort.
        select.push(" AND id >= ").push_bind(micros(since));
        select.push(" AND +time >= ").push_bind(micros(since));
    }
    if let Some(until) = query.until {
        select.push(" AND +time < ").push_bind(micros(until));
    }
    if !query.kinds.is_empty() {
        select.push(" AND type IN (");
        let mut kinds = select.separated(", ");
        for kind in &query.kinds {
            kinds.push_bind(kind.clone());
        }
        select.push(")");
    }
    if let Some(decision) = query.decision {
        select.push(" AND decision = ").push_bind(columns::decision(decision));
    }
    match query.host.as_deref().map(|host| (host, host.strip_prefix('*'))) {
        // `substr` compares the end without giving `%` and `_` a meaning.
        Some((_, Some(suffix))) if suffix.starts_with('.') => {
            select.push(" AND substr(host, -length(").push_bind(suffix.to_owned());
            select.push(")) = ").push_bind(suffix.to_owned());
        }
        Some((host, _)) => {
            select.push(" AND host = ").push_bind(host.to_owned());
        }
        None => {}
    }
}

fn cursor(id: u64, order: Order) -> String {
    format!("{}{id:x}", direction(order))
}

fn parse_cursor(text: &str, order: Order) -> Result<u64, StoreError> {
    text.strip_prefix(direction(order))
        .and_then(|id| u64::from_str_radix(id, 16).ok())
        .ok_or_else(|| StoreError::Cursor { cursor: text.to_owned() })
}

fn direction(order: Order) -> char {
    match order {
        Order::OldestFirst => 'o',
        Order::NewestFirst => 'n',
    }
}
