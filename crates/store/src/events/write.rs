//! Writing a batch: rows, and the links that chain them.

use std::{collections::BTreeMap, sync::LazyLock};

use sqlx::{Row, SqliteConnection, SqlitePool};

use super::{
    EventBatch, EventUpdate,
    chain::{Heads, Record, SERVICE},
    columns::{self, COLUMNS, Outcome},
    statement::Statements,
};
use crate::{
    StoreError,
    error::doing,
    transaction,
    value::{json, signed},
};

const ACTION: &str = "record events";

static INSERT: LazyLock<Statements> = LazyLock::new(|| {
    let head = format!("INSERT INTO events ({}) VALUES ", COLUMNS.join(", "));
    Statements::new(COLUMNS.len(), &head, "")
});

static AMEND: LazyLock<Statements> = LazyLock::new(|| {
    let head = "UPDATE events SET amended = change.column2, outcome = change.column3 FROM (VALUES ";
    Statements::new(3, head, ") AS change WHERE events.id = change.column1")
});

/// Writes a batch in one transaction.
pub(super) async fn run(pool: &SqlitePool, batch: &EventBatch) -> Result<(), StoreError> {
    transaction::run(pool, ACTION, async |connection: &mut SqliteConnection| {
        let mut heads = Heads::new();
        insert(connection, &mut heads, batch).await.map_err(doing(ACTION))?;
        amend(connection, &mut heads, &batch.updates).await.map_err(doing(ACTION))?;
        heads.store(connection).await.map_err(doing(ACTION))
    })
    .await
}

async fn insert(
    connection: &mut SqliteConnection,
    heads: &mut Heads,
    batch: &EventBatch,
) -> Result<(), sqlx::Error> {
    heads.load(connection, batch.inserts.iter().filter_map(columns::stream)).await?;
    let mut rows = Vec::with_capacity(batch.inserts.len());
    for event in &batch.inserts {
        let values = columns::values(event);
        let stream = columns::stream(event).unwrap_or(SERVICE);
        if let Some((seq, link)) = heads.append_new(stream, signed(event.id), &values) {
            rows.push(columns::row(values, seq, link));
        }
    }
    INSERT.execute(connection, rows.into_iter()).await
}

/// A stored event that is to be changed.
struct Amended {
    stream: String,
    before: Outcome,
    after: Outcome,
}

async fn amend(
    connection: &mut SqliteConnection,
    heads: &mut Heads,
    updates: &[EventUpdate],
) -> Result<(), sqlx::Error> {
    let mut events = find(connection, updates).await?;
    for update in updates {
        if let Some(event) = events.get_mut(&signed(update.id())) {
            columns::apply(update, &mut event.after);
        }
    }
    events.retain(|_, event| event.after != event.before);
    heads.load(connection, events.values().map(|event| event.stream.as_str())).await?;
    let rows: Vec<_> = events
        .into_iter()
        .map(|(id, Amended { stream, after, .. })| {
            let seq = heads.append(&stream, &Record::Amended { event: id, outcome: after });
            [id.into(), seq.into(), json(&after).into()]
        })
        .collect();
    AMEND.execute(connection, rows.into_iter()).await
}

/// The events that are to be changed, by id; those that are not there any more, or cannot be read, are left out.
async fn find(
    connection: &mut SqliteConnection,
    updates: &[EventUpdate],
) -> Result<BTreeMap<i64, Amended>, sqlx::Error> {
    if updates.is_empty() {
        return Ok(BTreeMap::new());
    }
    let ids: Vec<_> = updates.iter().map(|update| signed(update.id())).collect();
    let select = "SELECT events.* FROM (SELECT DISTINCT value FROM json_each(?)) AS wanted JOIN events ON events.id = wanted.value";
    let rows = sqlx::query(select).bind(json(&ids)).fetch_all(connection).await?;
    let read = |row| {
        let before = match columns::amended(row)? {
            Some(outcome) => outcome,
            None => columns::outcome(&columns::stored(row)?),
        };
        let stream: Option<String> = row.try_get("sandbox_id")?;
        let event = Amended { stream: stream.unwrap_or(SERVICE.to_owned()), before, after: before };
        Ok::<_, sqlx::Error>((row.try_get("id")?, event))
    };
    // One that cannot be read, which the check of its chain tells, must not keep all others from being written.
    Ok(rows.iter().filter_map(|row| read(row).ok()).collect())
}
