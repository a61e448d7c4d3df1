//! Writing a batch.
//!
//! Rows are bound to prepared statements that take many at a time: what a statement costs by itself is then shared
//! by them. (A batch as one JSON parameter costs several times as much: SQLite would search each row's text for
//! each of its columns.)

use std::sync::{Arc, LazyLock};

use sqlx::{AssertSqlSafe, SqliteConnection, SqlitePool};

use super::{
    EventBatch, EventUpdate,
    columns::{self, COLUMNS, Value, parameters},
};
use crate::{
    StoreError,
    error::doing,
    transaction,
    value::{micros, signed},
};

const ACTION: &str = "record events";

static INSERT: LazyLock<Statements> = LazyLock::new(|| {
    Statements::new(
        COLUMNS.len(),
        &format!("INSERT INTO events ({}) VALUES ", COLUMNS.join(", ")),
        " ON CONFLICT (id) DO NOTHING",
    )
});

static UPDATE_REPEATED: LazyLock<Statements> = LazyLock::new(|| {
    let set = "UPDATE events SET count = change.column2, last_time = change.column3 FROM (VALUES ";
    Statements::new(3, set, ") AS change WHERE events.id = change.column1")
});

static UPDATE_FINISHED: LazyLock<Statements> = LazyLock::new(|| {
    let set = "UPDATE events SET bytes_up = change.column2, bytes_down = change.column3, \
               duration_ms = change.column4 FROM (VALUES ";
    Statements::new(4, set, ") AS change WHERE events.id = change.column1")
});

/// Writes a batch in one transaction.
pub(super) async fn run(pool: &SqlitePool, batch: &EventBatch) -> Result<(), StoreError> {
    transaction::run(pool, ACTION, async |connection: &mut SqliteConnection| {
        INSERT.execute(connection, batch.inserts.iter().map(columns::values)).await?;
        update(connection, &batch.updates).await
    })
    .await
}

async fn update(connection: &mut SqliteConnection, updates: &[EventUpdate]) -> Result<(), StoreError> {
    let mut repeated = Vec::new();
    let mut finished = Vec::new();
    for update in updates {
        match *update {
            EventUpdate::Repeated { id, count, last_time } => {
                repeated.push([signed(id), signed(count), micros(last_time)].map(Value::from));
            }
            EventUpdate::Finished { id, bytes_up, bytes_down, duration_ms } => {
                finished.push([id, bytes_up, bytes_down, duration_ms].map(|n| signed(n).into()));
            }
        }
    }
    UPDATE_REPEATED.execute(connection, repeated.into_iter()).await?;
    UPDATE_FINISHED.execute(connection, finished.into_iter()).await
}

/// How many rows a statement takes, the largest first. Each is prepared once.
const SIZES: [usize; 3] = [50, 10, 1];

/// A statement for each of the [`SIZES`].
struct Statements {
    sized: [(usize, Arc<str>); SIZES.len()],
}

impl Statements {
    /// The statement is `head`, the parameters of so many rows of `columns` values, and `tail`.
    fn new(columns: usize, head: &str, tail: &str) -> Self {
        Self { sized: SIZES.map(|rows| (rows, format!("{head}{}{tail}", parameters(rows, columns)).into())) }
    }

    async fn execute<'a, const N: usize>(
        &self,
        connection: &mut SqliteConnection,
        mut rows: impl ExactSizeIterator<Item = [Value<'a>; N]>,
    ) -> Result<(), StoreError> {
        for (size, sql) in &self.sized {
            while rows.len() >= *size {
                let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
                for value in rows.by_ref().take(*size).flatten() {
                    query = value.bind_to(query);
                }
                query.execute(&mut *connection).await.map_err(doing(ACTION))?;
            }
        }
        Ok(())
    }
}
