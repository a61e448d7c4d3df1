//! An event as the values of its columns.

use std::{borrow::Cow, fmt::Write, sync::Arc};

use policy::Decision;
use sqlx::{Sqlite, query::Query, sqlite::SqliteArguments};

use super::EventRecord;
use crate::value::{json, micros, signed};

/// The columns that an event fills, in the order of [`values`].
pub(super) const COLUMNS: [&str; 20] = [
    "id",
    "time",
    "sandbox_id",
    "category",
    "type",
    "decision",
    "reason",
    "rule",
    "host",
    "host_source",
    "address",
    "port",
    "protocol",
    "generation",
    "count",
    "last_time",
    "bytes_up",
    "bytes_down",
    "duration_ms",
    "detail",
];

/// A value as SQLite stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Integer(i64),
    Text(Cow<'a, str>),
}

/// The values of an event's [`COLUMNS`].
pub(super) fn values(event: &EventRecord) -> [Value<'_>; COLUMNS.len()] {
    [
        signed(event.id).into(),
        micros(event.time).into(),
        event.sandbox_id.as_deref().into(),
        event.category.as_str().into(),
        event.kind.as_ref().into(),
        event.decision.map(decision).into(),
        event.reason.as_deref().into(),
        event.rule.as_ref().map(json).into(),
        event.host.as_deref().into(),
        event.host_source.as_deref().into(),
        event.address.map(|address| address.to_string()).into(),
        event.port.map(i64::from).into(),
        event.protocol.as_deref().into(),
        event.generation.map(signed).into(),
        signed(event.count).into(),
        event.last_time.map(micros).into(),
        event.bytes_up.map(signed).into(),
        event.bytes_down.map(signed).into(),
        event.duration_ms.map(signed).into(),
        event.detail.as_ref().map(json).into(),
    ]
}

impl Value<'_> {
    /// Binds this as the next parameter of a statement.
    pub(super) fn bind_to<'q>(
        self,
        query: Query<'q, Sqlite, SqliteArguments>,
    ) -> Query<'q, Sqlite, SqliteArguments> {
        match self {
            Self::Null => query.bind(None::<i64>),
            Self::Integer(number) => query.bind(number),
            Self::Text(text) => query.bind(Arc::<str>::from(text)),
        }
    }
}

impl From<i64> for Value<'_> {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value<'_> {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A decision's name in the API.
pub(super) fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    }
}

/// `(?, …), (?, …)`: the parameters of `rows` rows of `columns` values.
pub(super) fn parameters(rows: usize, columns: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(", "));
    let mut text = String::with_capacity(rows * (row.len() + 2));
    for n in 0..rows {
        let comma = if n == 0 { "" } else { ", " };
        write!(text, "{comma}{row}").expect("a string takes everything");
    }
    text
}
