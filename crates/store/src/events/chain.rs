//! The chains that make a later change of the events noticeable.
//!
//! Each stream of events (a sandbox's, or the service's own) is one chain of numbered links. A link is the SHA-256 of
//! the link before it, its number, and what it stands for: an event as it was inserted, or a record of something that
//! happened later. Records are:
//!
//! - `amended`: an event's count grew, or its flow ended. The event's row has the new values, this has them too.
//! - `pruned`: the beginning of the chain was deleted, up to a link that is named here.
//! - `opened`, `retired` (in the service's chain): another chain began, or was deleted because nothing was left of it.
//!
//! The end of each chain is kept in a table of its own, and everything that belongs together is written in one
//! transaction, so a chain is whole at every moment, a crash included.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
    str::FromStr,
    sync::LazyLock,
};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    columns::{Outcome, Values},
    statement::{Statements, Value},
};
use crate::value::{json, micros};

/// The service's own stream.
pub(super) const SERVICE: &str = "";

/// A link of a chain of events: it stands for everything before it. In text, 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainHash([u8; 32]);

impl ChainHash {
    /// The link before the first of a stream.
    pub(super) fn genesis(stream: &str) -> Self {
        let digest = Sha256::new().chain_update(b"bailiwick audit chain 1\0").chain_update(stream);
        Self(digest.finalize().into())
    }

    /// The link of an event at position `seq`.
    pub(super) fn of_event(self, seq: i64, event: &Values<'_>) -> Self {
        self.next(b'e', seq, event)
    }

    /// The link of a record at position `seq`.
    pub(super) fn of_record(self, seq: i64, record: &RecordValues<'_>) -> Self {
        self.next(b'r', seq, record)
    }

    /// Absent values are left out, and the others say which they are: so a column may be added at the end without
    /// changing the links of events that do not have it.
    fn next(self, kind: u8, seq: i64, values: &[Value<'_>]) -> Self {
        let mut text = Vec::with_capacity(512);
        text.extend_from_slice(&self.0);
        text.push(kind);
        text.extend_from_slice(&seq.to_be_bytes());
        for (column, value) in (0_u8..).zip(values) {
            match value {
                Value::Null => {}
                Value::Integer(number) => {
                    text.extend_from_slice(&[column, b'i']);
                    text.extend_from_slice(&number.to_be_bytes());
                }
                Value::Text(value) => {
                    text.extend_from_slice(&[column, b't']);
                    text.extend_from_slice(&u64::try_from(value.len()).unwrap_or(u64::MAX).to_be_bytes());
                    text.extend_from_slice(value.as_bytes());
                }
                Value::Hash(hash) => {
                    text.extend_from_slice(&[column, b'h']);
                    text.extend_from_slice(&hash.0);
                }
            }
        }
        Self(Sha256::digest(&text).into())
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A stored link.
    pub(super) fn stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a hash of 64 hexadecimal digits")]
pub struct ChainHashError(String);

impl FromStr for ChainHash {
    type Err = ChainHashError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ChainHashError(text.to_owned());
        let mut bytes = [0; 32];
        if text.len() != 2 * bytes.len() || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        for (n, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * n..2 * n + 2).ok_or_else(bad)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// What a record stands for.
#[derive(Clone, Debug)]
pub(super) enum Record {
    Amended { event: i64, outcome: Outcome },
    Pruned(Pruned),
    Opened { stream: String },
    Retired(Retired),
}

pub(super) const AMENDED: &str = "amended";
pub(super) const PRUNED: &str = "pruned";
pub(super) const OPENED: &str = "opened";
pub(super) const RETIRED: &str = "retired";

/// Where the beginning of a chain was cut off, and why.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Pruned {
    /// The last position that is gone.
    pub(super) through: i64,
    /// Its link, in hexadecimal digits.
    pub(super) link: String,
    /// How many events were deleted in this step.
    pub(super) events: u64,
    /// `retention` or `database_full`.
    pub(super) reason: String,
}

/// A chain that was deleted when nothing was left of it.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Retired {
    pub(super) stream: String,
    /// Its last position.
    pub(super) seq: i64,
    /// Its last link, in hexadecimal digits.
    pub(super) link: String,
    /// How many events were deleted in this step.
    pub(super) events: u64,
    /// `retention` or `database_full`.
    pub(super) reason: String,
}

/// The columns of a record that its link is made of, in this order. New ones go to the end.
pub(super) const RECORD_COLUMNS: [&str; 9] =
    ["time", "kind", "event_id", "count", "last_time", "bytes_up", "bytes_down", "duration_ms", "detail"];

/// The values of a record's [`RECORD_COLUMNS`].
pub(super) type RecordValues<'a> = [Value<'a>; RECORD_COLUMNS.len()];

/// The values of a stored record, as they are.
///
/// # Errors
/// If one is of another type than its column.
pub(super) fn record_values(row: &SqliteRow) -> Result<RecordValues<'_>, sqlx::Error> {
    let mut values = [const { Value::Null }; RECORD_COLUMNS.len()];
    for (value, column) in values.iter_mut().zip(RECORD_COLUMNS) {
        *value = if matches!(column, "kind" | "detail") {
            row.try_get::<Option<&str>, _>(column)?.into()
        } else {
            row.try_get::<Option<i64>, _>(column)?.into()
        };
    }
    Ok(values)
}

impl Record {
    fn values(&self, time: i64) -> RecordValues<'static> {
        let (kind, event, outcome, detail) = match self {
            Self::Amended { event, outcome } => (AMENDED, Some(*event), *outcome, None),
            Self::Pruned(pruned) => (PRUNED, None, Outcome::default(), Some(json(pruned))),
            Self::Opened { stream } => (OPENED, None, Outcome::default(), Some(stream.clone())),
            Self::Retired(retired) => (RETIRED, None, Outcome::default(), Some(json(retired))),
        };
        let [count, last_time, bytes_up, bytes_down, duration_ms] = outcome.map(Value::from);
        let (time, kind) = (time.into(), kind.into());
        [time, kind, event.into(), count, last_time, bytes_up, bytes_down, duration_ms, detail.into()]
    }
}

/// The ends of the chains that a transaction appends to.
pub(super) struct Heads {
    /// `None` for a chain that does not exist yet.
    heads: BTreeMap<String, Option<Head>>,
    records: Vec<[Value<'static>; RECORD_COLUMNS.len() + 3]>,
    time: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) opened: Option<i64>,
    pub(super) seq: i64,
    pub(super) link: ChainHash,
    /// The id of its last event, if there still is one.
    last_id: Option<i64>,
    pub(super) pruned_seq: i64,
    pub(super) pruned_link: ChainHash,
    /// Whether it differs from what is stored.
    changed: bool,
}

static INSERT_RECORDS: LazyLock<Statements> = LazyLock::new(|| {
    let columns = RECORD_COLUMNS.join(", ");
    let head = format!("INSERT INTO chain_records (stream, seq, link, {columns}) VALUES ");
    Statements::new(RECORD_COLUMNS.len() + 3, &head, "")
});

static UPSERT_HEADS: LazyLock<Statements> = LazyLock::new(|| {
    Statements::new(
        6,
        "INSERT INTO chains (stream, opened, seq, link, pruned_seq, pruned_link) VALUES ",
        " ON CONFLICT (stream) DO UPDATE SET opened = excluded.opened, seq = excluded.seq, \
         link = excluded.link, pruned_seq = excluded.pruned_seq, \
         pruned_link = excluded.pruned_link",
    )
});

impl Heads {
    pub(super) fn new() -> Self {
        Self { heads: BTreeMap::new(), records: Vec::new(), time: micros(Timestamp::now()) }
    }

    /// Reads the ends of these chains, and of the service's.
    pub(super) async fn load<'a>(
        &mut self,
        connection: &mut SqliteConnection,
        streams: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), sqlx::Error> {
        let mut missing = Vec::new();
        for stream in streams.into_iter().chain([SERVICE]) {
            if !self.heads.contains_key(stream) {
                self.heads.insert(stream.to_owned(), None);
                missing.push(stream);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let rows = sqlx::query(
            "SELECT *, (SELECT max(id) FROM events WHERE sandbox_id IS nullif(stream, '')) AS last_id \
             FROM chains WHERE stream IN (SELECT value FROM json_each(?))",
        )
        .bind(json(&missing))
        .fetch_all(connection)
        .await?;
        for row in rows {
            let last_id = row.try_get("last_id")?;
            self.heads.insert(row.try_get("stream")?, Some(Head { last_id, ..Head::read(&row)? }));
        }
        Ok(())
    }

    /// The end of a chain that was loaded, if it exists.
    pub(super) fn get(&self, stream: &str) -> Option<&Head> {
        self.heads.get(stream).and_then(Option::as_ref)
    }

    /// The end of a chain, which begins here if it does not exist.
    pub(super) fn head(&mut self, stream: &str) -> &mut Head {
        if self.get(stream).is_none() {
            let opened = (stream != SERVICE).then(|| self.open(stream));
            self.heads.insert(stream.to_owned(), Some(Head::new(stream, opened)));
        }
        self.heads.get_mut(stream).and_then(Option::as_mut).expect("it was made above")
    }

    /// Says in the service's chain that a chain exists. Returns the position of that record.
    fn open(&mut self, stream: &str) -> i64 {
        self.append(SERVICE, &Record::Opened { stream: stream.to_owned() })
    }

    /// Says so again of a chain that was loaded.
    pub(super) fn open_again(&mut self, stream: &str) {
        let opened = self.open(stream);
        let head = self.head(stream);
        head.opened = Some(opened);
        head.changed = true;
    }

    /// Appends an event to a chain, unless it is there already. Returns its position and its link.
    ///
    /// Ids grow along a chain: an event whose id is not above the last one's was stored before.
    pub(super) fn append_new(
        &mut self,
        stream: &str,
        id: i64,
        values: &Values<'_>,
    ) -> Option<(i64, ChainHash)> {
        let is_known = self.head(stream).last_id.is_some_and(|last| id <= last);
        (!is_known).then(|| self.append_event(stream, id, values))
    }

    /// Appends an event to a chain. Returns its position and its link.
    pub(super) fn append_event(&mut self, stream: &str, id: i64, values: &Values<'_>) -> (i64, ChainHash) {
        let head = self.head(stream);
        head.seq += 1;
        head.link = head.link.of_event(head.seq, values);
        head.last_id = Some(id);
        head.changed = true;
        (head.seq, head.link)
    }

    /// Appends a record to a chain. Returns its position.
    pub(super) fn append(&mut self, stream: &str, record: &Record) -> i64 {
        let values = record.values(self.time);
        let head = self.head(stream);
        head.seq += 1;
        head.link = head.link.of_record(head.seq, &values);
        head.changed = true;
        let (seq, link) = (head.seq, head.link);
        let mut row = [const { Value::Null }; RECORD_COLUMNS.len() + 3];
        let place = [stream.to_owned().into(), seq.into(), link.into()];
        for (to, from) in row.iter_mut().zip(place.into_iter().chain(values)) {
            *to = from;
        }
        self.records.push(row);
        seq
    }

    /// Forgets a chain that is to be deleted.
    pub(super) fn forget(&mut self, stream: &str) {
        self.heads.remove(stream);
    }

    /// Writes the records and the ends.
    pub(super) async fn store(self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        INSERT_RECORDS.execute(connection, self.records.into_iter()).await?;
        let changed = self.heads.iter().filter_map(|(stream, head)| {
            let head = head.as_ref().filter(|head| head.changed)?;
            Some(head.row(stream))
        });
        let heads: Vec<_> = changed.collect();
        UPSERT_HEADS.execute(connection, heads.into_iter()).await
    }
}

impl Head {
    fn new(stream: &str, opened: Option<i64>) -> Self {
        let link = ChainHash::genesis(stream);
        Self { opened, seq: 0, link, last_id: None, pruned_seq: 0, pruned_link: link, changed: true }
    }

    /// Reads a row of `chains`.
    pub(super) fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            opened: row.try_get("opened")?,
            seq: row.try_get("seq")?,
            link: link_of(row, "link")?,
            last_id: None,
            pruned_seq: row.try_get("pruned_seq")?,
            pruned_link: link_of(row, "pruned_link")?,
            changed: false,
        })
    }

    fn row<'a>(&self, stream: &'a str) -> [Value<'a>; 6] {
        [
            stream.into(),
            self.opened.into(),
            self.seq.into(),
            self.link.into(),
            self.pruned_seq.into(),
            self.pruned_link.into(),
        ]
    }
}

/// The link in a column.
pub(super) fn link_of(row: &SqliteRow, column: &str) -> Result<ChainHash, sqlx::Error> {
    let wrong = |detail: &str| sqlx::Error::ColumnDecode { index: column.to_owned(), source: detail.into() };
    ChainHash::stored(row.try_get(column)?).ok_or_else(|| wrong("not a hash"))
}
