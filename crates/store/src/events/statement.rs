//! Statements that take many rows at a time: what a statement costs by itself is then shared by them.
//!
//! (A batch as one JSON parameter costs four times as much: SQLite would search each row's text for each of its
//! columns.)

use std::{borrow::Cow, sync::Arc};

use sqlx::{AssertSqlSafe, Sqlite, SqliteConnection, query::Query, sqlite::SqliteArguments};

use super::chain::ChainHash;

/// A value as SQLite stores it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    Null,
    Integer(i64),
    Text(Cow<'a, str>),
    Hash(ChainHash),
}

/// How many rows a statement takes, the largest first. Each is prepared once. Handing a statement over to SQLite's thread
/// costs as much as a dozen rows, so any number of rows takes few of them.
const SIZES: [usize; 9] = [256, 128, 64, 32, 16, 8, 4, 2, 1];

/// A statement for each of the [`SIZES`].
pub(super) struct Statements {
    sized: [(usize, Arc<str>); SIZES.len()],
}

impl Statements {
    /// The statement is `head`, the parameters of so many rows of `columns` values, and `tail`.
    pub(super) fn new(columns: usize, head: &str, tail: &str) -> Self {
        let row = format!("({})", vec!["?"; columns].join(", "));
        let sql = |rows| format!("{head}{}{tail}", vec![row.as_str(); rows].join(", "));
        Self { sized: SIZES.map(|rows| (rows, sql(rows).into())) }
    }

    pub(super) async fn execute<'a, const N: usize>(
        &self,
        connection: &mut SqliteConnection,
        mut rows: impl ExactSizeIterator<Item = [Value<'a>; N]>,
    ) -> Result<(), sqlx::Error> {
        for (size, sql) in &self.sized {
            while rows.len() >= *size {
                let mut query = sqlx::query(AssertSqlSafe(Arc::clone(sql)));
                for value in rows.by_ref().take(*size).flatten() {
                    query = value.bind_to(query);
                }
                query.execute(&mut *connection).await?;
            }
        }
        Ok(())
    }
}

impl Value<'_> {
    fn bind_to<'q>(self, query: Query<'q, Sqlite, SqliteArguments>) -> Query<'q, Sqlite, SqliteArguments> {
        match self {
            Self::Null => query.bind(None::<i64>),
            Self::Integer(number) => query.bind(number),
            Self::Text(Cow::Borrowed(text)) => query.bind(Arc::<str>::from(text)),
            Self::Text(Cow::Owned(text)) => query.bind(text),
            Self::Hash(hash) => query.bind(hash.bytes().to_vec()),
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

impl From<ChainHash> for Value<'_> {
    fn from(hash: ChainHash) -> Self {
        Self::Hash(hash)
    }
}

impl<'a, T: Into<Value<'a>>> From<Option<T>> for Value<'a> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}
