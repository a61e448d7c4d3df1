//! An event as the values of its columns, and what of it may change.

use policy::Decision;
use sqlx::{Row, sqlite::SqliteRow};

use super::{EventRecord, EventUpdate, statement::Value};
use crate::value::{json, micros, signed};

/// The columns that an event fills, in the order of [`values`]. Links are made over these in this order, so new ones
/// go to the end.
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

/// The columns of numbers; the others hold text.
const NUMBERS: [&str; 9] =
    ["id", "time", "port", "generation", "count", "last_time", "bytes_up", "bytes_down", "duration_ms"];

/// Where an event's [`Outcome`] is among its columns.
const OUTCOME: std::ops::Range<usize> = 14..19;

/// The values of an event's [`COLUMNS`].
pub(super) type Values<'a> = [Value<'a>; COLUMNS.len()];

/// What of an event may still change: `count`, `last_time`, `bytes_up`, `bytes_down` and `duration_ms`.
pub(super) type Outcome = [Option<i64>; 5];

/// The values of an event.
pub(super) fn values(event: &EventRecord) -> Values<'_> {
    [
        signed(event.id).into(),
        micros(event.time).into(),
        stream(event).map_or(Value::Null, Value::from),
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

/// The sandbox whose event it is; none for the service's own.
pub(super) fn stream(event: &EventRecord) -> Option<&str> {
    event.sandbox_id.as_deref().filter(|id| !id.is_empty())
}

/// The values of a stored event, as they are.
///
/// # Errors
/// If one is of another type than its column.
pub(super) fn stored(row: &SqliteRow) -> Result<Values<'_>, sqlx::Error> {
    let mut values = [const { Value::Null }; COLUMNS.len()];
    for (value, column) in values.iter_mut().zip(COLUMNS) {
        *value = if NUMBERS.contains(&column) {
            row.try_get::<Option<i64>, _>(column)?.into()
        } else {
            row.try_get::<Option<&str>, _>(column)?.into()
        };
    }
    Ok(values)
}

/// What of a stored event may still change.
pub(super) fn outcome(row: &SqliteRow) -> Result<Outcome, sqlx::Error> {
    let mut outcome = [None; OUTCOME.end - OUTCOME.start];
    for (value, column) in outcome.iter_mut().zip(&COLUMNS[OUTCOME]) {
        *value = row.try_get(column)?;
    }
    Ok(outcome)
}

/// Puts another outcome into an event's values.
pub(super) fn set_outcome(values: &mut Values<'_>, outcome: Outcome) {
    for (value, number) in values[OUTCOME].iter_mut().zip(outcome) {
        *value = number.into();
    }
}

/// Makes a change to an event's outcome.
pub(super) fn apply(update: &EventUpdate, outcome: &mut Outcome) {
    let [count, last_time, bytes_up, bytes_down, duration_ms] = outcome;
    match *update {
        EventUpdate::Repeated { count: now, last_time: last, .. } => {
            *count = Some(signed(now));
            *last_time = Some(micros(last));
        }
        EventUpdate::Finished { bytes_up: up, bytes_down: down, duration_ms: duration, .. } => {
            *bytes_up = Some(signed(up));
            *bytes_down = Some(signed(down));
            *duration_ms = Some(signed(duration));
        }
    }
}

/// A decision's name in the API.
pub(super) fn decision(decision: Decision) -> &'static str {
    match decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    }
}
