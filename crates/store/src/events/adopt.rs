//! Chaining the events that were stored before there were chains.

use std::sync::LazyLock;

use sqlx::{Row, SqliteConnection, SqlitePool};

use super::{
    chain::{Heads, SERVICE},
    columns,
    statement::Statements,
};
use crate::{StoreError, error::doing, transaction};

const ACTION: &str = "chain the events of an older version";

/// How many events one transaction chains.
const STEP: u32 = 2000;

static LINK: LazyLock<Statements> = LazyLock::new(|| {
    let head = "UPDATE events SET seq = change.column2, link = change.column3 FROM (VALUES ";
    Statements::new(3, head, ") AS change WHERE events.id = change.column1")
});

/// Chains all of them, as they are now. What was done is kept if the program dies in between.
pub(crate) async fn run(pool: &SqlitePool) -> Result<(), StoreError> {
    let waiting = "SELECT EXISTS (SELECT 1 FROM unchained)";
    while sqlx::query_scalar(waiting).fetch_one(pool).await.map_err(doing(ACTION))? {
        transaction::run(pool, ACTION, async |connection: &mut SqliteConnection| {
            step(connection).await.map_err(doing(ACTION))
        })
        .await?;
    }
    Ok(())
}

async fn step(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let waiting: Option<(i64, i64)> =
        sqlx::query_as("SELECT done, last FROM unchained").fetch_optional(&mut *connection).await?;
    let Some((done, last)) = waiting else { return Ok(()) };
    let rows = sqlx::query("SELECT * FROM events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?")
        .bind(done)
        .bind(last)
        .bind(STEP)
        .fetch_all(&mut *connection)
        .await?;
    let mut heads = Heads::new();
    let streams = rows
        .iter()
        .map(|row| row.try_get::<Option<&str>, _>("sandbox_id"))
        .collect::<Result<Vec<_>, sqlx::Error>>()?;
    heads.load(connection, streams.iter().flatten().copied()).await?;
    let mut links = Vec::with_capacity(rows.len());
    let mut last = None;
    for (row, stream) in rows.iter().zip(streams) {
        let id: i64 = row.try_get("id")?;
        // What cannot be read stays without a link, which the check of the chains tells.
        let link = columns::stored(row)
            .ok()
            .map(|values| heads.append_event(stream.unwrap_or(SERVICE), id, &values));
        links.extend(link.map(|(seq, link)| [id.into(), seq.into(), link.into()]));
        last = Some(id);
    }
    LINK.execute(connection, links.into_iter()).await?;
    heads.store(connection).await?;
    match last {
        Some(id) => sqlx::query("UPDATE unchained SET done = ?").bind(id),
        None => sqlx::query("DELETE FROM unchained"),
    }
    .execute(connection)
    .await?;
    Ok(())
}
