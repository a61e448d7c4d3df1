//! An event as the values of its fields, how they are kept, and what of it may change.

use std::{borrow::Cow, fmt, net::IpAddr};

use jiff::Timestamp;
use policy::Decision;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Visitor},
};
use sqlx::{Row, sqlite::SqliteRow};

use super::{EventRecord, EventUpdate, statement::Value};
use crate::{
    StoreError,
    value::{json, micros, signed},
};

/// The fields of an event, in the order of [`values`]. Links are made over these in this order, so new ones go to the end.
const FIELDS: [&str; 20] = [
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

/// The fields with a column of their own: what is looked for. The others are packed into one, because each column costs
/// each event more than all that is in it.
const SEARCHED: [usize; 6] = [0, 1, 2, 4, 5, 8];
/// The others, in the order in which they are packed. New ones go to the end.
const PACKED: [usize; FIELDS.len() - SEARCHED.len()] = [3, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19];

/// The fields of numbers; the others hold text.
const NUMBERS: [usize; 9] = [0, 1, 11, 13, 14, 15, 16, 17, 18];

/// Where an event's [`Outcome`] is among its fields.
const OUTCOME: std::ops::Range<usize> = 14..19;

/// The columns that a new event fills, in the order of [`row`].
pub(super) const COLUMNS: [&str; SEARCHED.len() + 3] =
    ["id", "time", "sandbox_id", "type", "decision", "host", "body", "seq", "link"];

/// The values of an event's [`FIELDS`].
pub(super) type Values<'a> = [Value<'a>; FIELDS.len()];

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

/// The values of the [`COLUMNS`] of an event with this place in its chain.
pub(super) fn row<'a>(
    mut values: Values<'a>,
    seq: impl Into<Value<'a>>,
    link: impl Into<Value<'a>>,
) -> [Value<'a>; COLUMNS.len()] {
    let body = json(&PACKED.map(|field| &values[field]));
    let [id, time, sandbox, kind, decision, host] =
        SEARCHED.map(|field| std::mem::replace(&mut values[field], Value::Null));
    [id, time, sandbox, kind, decision, host, body.into(), seq.into(), link.into()]
}

/// The sandbox whose event it is; none for the service's own.
pub(super) fn stream(event: &EventRecord) -> Option<&str> {
    event.sandbox_id.as_deref().filter(|id| !id.is_empty())
}

/// The values of a stored event as they were when it was inserted.
///
/// # Errors
/// If one is of another type than its field.
pub(super) fn stored(row: &SqliteRow) -> Result<Values<'_>, sqlx::Error> {
    let mut values = [const { Value::Null }; FIELDS.len()];
    for field in SEARCHED {
        values[field] = if NUMBERS.contains(&field) {
            row.try_get::<Option<i64>, _>(FIELDS[field])?.into()
        } else {
            row.try_get::<Option<&str>, _>(FIELDS[field])?.into()
        };
    }
    let body: [Value<'_>; PACKED.len()] = unpack("body", row.try_get("body")?)?;
    for (field, value) in PACKED.into_iter().zip(body) {
        let fits = match value {
            Value::Null => true,
            Value::Integer(_) => NUMBERS.contains(&field),
            Value::Text(_) => !NUMBERS.contains(&field),
            Value::Hash(_) => false,
        };
        if !fits {
            return Err(unreadable(FIELDS[field], "a value of another type".into()));
        }
        values[field] = value;
    }
    Ok(values)
}

/// What amendments have made of a stored event's outcome, if there were any.
pub(super) fn amended(row: &SqliteRow) -> Result<Option<Outcome>, sqlx::Error> {
    let text: Option<&str> = row.try_get("outcome")?;
    text.map(|text| unpack("outcome", text)).transpose()
}

/// The outcome among an event's values.
pub(super) fn outcome(values: &Values<'_>) -> Outcome {
    let mut outcome = Outcome::default();
    for (number, value) in outcome.iter_mut().zip(&values[OUTCOME]) {
        *number = if let Value::Integer(number) = value { Some(*number) } else { None };
    }
    outcome
}

/// A stored event as it is now.
///
/// # Errors
/// [`StoreError::Decode`] names what cannot be read.
pub(super) fn read(row: &SqliteRow) -> Result<EventRecord, StoreError> {
    let event = Event(row.try_get("id").unwrap_or_default());
    let mut values = stored(row).map_err(|error| event.undecoded(error))?;
    if let Some(outcome) = amended(row).map_err(|error| event.undecoded(error))? {
        for (value, number) in values[OUTCOME].iter_mut().zip(outcome) {
            *value = number.into();
        }
    }
    let [
        id,
        time,
        sandbox,
        category,
        kind,
        decision,
        reason,
        rule,
        host,
        host_source,
        address,
        port,
        protocol,
        generation,
        count,
        last_time,
        bytes_up,
        bytes_down,
        duration_ms,
        detail,
    ] = values;
    Ok(EventRecord {
        id: event.required("id", event.number("id", id)?)?,
        time: event.required("time", event.time("time", time)?)?,
        sandbox_id: text(sandbox),
        category: event.required("category", event.word("category", category)?)?,
        kind: Cow::Owned(event.required("type", text(kind))?),
        decision: event.word("decision", decision)?,
        reason: text(reason).map(Cow::Owned),
        rule: event.json("rule", rule)?,
        host: text(host),
        host_source: text(host_source).map(Cow::Owned),
        address: event.address(address)?,
        port: event.number("port", port)?,
        protocol: text(protocol).map(Cow::Owned),
        generation: event.number("generation", generation)?,
        count: event.required("count", event.number("count", count)?)?,
        last_time: event.time("last_time", last_time)?,
        bytes_up: event.number("bytes_up", bytes_up)?,
        bytes_down: event.number("bytes_down", bytes_down)?,
        duration_ms: event.number("duration_ms", duration_ms)?,
        detail: event.json("detail", detail)?,
    })
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

fn text(value: Value<'_>) -> Option<String> {
    if let Value::Text(text) = value { Some(text.into_owned()) } else { None }
}

fn unpack<'a, T: Deserialize<'a>>(column: &str, text: &'a str) -> Result<T, sqlx::Error> {
    serde_json::from_str(text).map_err(|error| unreadable(column, error.into()))
}

fn unreadable(column: &str, source: Box<dyn std::error::Error + Send + Sync>) -> sqlx::Error {
    sqlx::Error::ColumnDecode { index: column.to_owned(), source }
}

/// A stored event that is read, by its id: reads its values, and names it in errors.
struct Event(i64);

impl Event {
    fn required<T>(&self, field: &'static str, value: Option<T>) -> Result<T, StoreError> {
        value.ok_or_else(|| self.unreadable(field, "it is missing"))
    }

    fn number<N: TryFrom<i64>>(
        &self,
        field: &'static str,
        value: Value<'_>,
    ) -> Result<Option<N>, StoreError> {
        let Value::Integer(value) = value else { return Ok(None) };
        let number = N::try_from(value);
        number.map(Some).map_err(|_| self.unreadable(field, format!("{value} is out of range")))
    }

    fn time(&self, field: &'static str, value: Value<'_>) -> Result<Option<Timestamp>, StoreError> {
        let Value::Integer(value) = value else { return Ok(None) };
        Timestamp::from_microsecond(value).map(Some).map_err(|error| self.unreadable(field, error))
    }

    fn address(&self, value: Value<'_>) -> Result<Option<IpAddr>, StoreError> {
        let Value::Text(text) = value else { return Ok(None) };
        text.parse().map(Some).map_err(|error| self.unreadable("address", error))
    }

    fn json<T: DeserializeOwned>(
        &self,
        field: &'static str,
        value: Value<'_>,
    ) -> Result<Option<T>, StoreError> {
        let Value::Text(text) = value else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| self.unreadable(field, error))
    }

    /// A word of a closed set, as serde names it.
    fn word<T: DeserializeOwned>(
        &self,
        field: &'static str,
        value: Value<'_>,
    ) -> Result<Option<T>, StoreError> {
        let word = text(value).map(|text| serde_json::from_value(text.into())).transpose();
        word.map_err(|error| self.unreadable(field, error))
    }

    fn undecoded(&self, error: sqlx::Error) -> StoreError {
        let sqlx::Error::ColumnDecode { index, source } = error else {
            return self.unreadable("body", error);
        };
        let column = COLUMNS.into_iter().chain(FIELDS).find(|column| *column == index);
        self.unreadable(column.unwrap_or("outcome"), source)
    }

    fn unreadable(&self, column: &'static str, detail: impl ToString) -> StoreError {
        StoreError::Decode { what: "event", id: self.0.to_string(), column, detail: detail.to_string() }
    }
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Hash(hash) => hash.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Scalar)
    }
}

/// Reads a value that is no hash.
struct Scalar;

impl<'de> Visitor<'de> for Scalar {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing, a whole number or text")
    }

    fn visit_unit<E>(self) -> Result<Value<'de>, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value<'de>, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Value<'de>, E> {
        i64::try_from(number).map(Value::Integer).map_err(E::custom)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }
}
