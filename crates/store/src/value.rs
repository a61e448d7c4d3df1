//! Between column values and Rust values.

use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use sqlx::{ColumnIndex, Decode, Row, Sqlite, Type, sqlite::SqliteRow};

use crate::StoreError;

/// A row being read, with enough of its identity to name it in an error.
pub(crate) struct Reader<'r> {
    row: &'r SqliteRow,
    what: &'static str,
    id: String,
}

impl<'r> Reader<'r> {
    /// Reads a row of the kind `what`, whose text column `id` identifies it.
    pub(crate) fn new(row: &'r SqliteRow, what: &'static str, id: String) -> Self {
        Self { row, what, id }
    }

    pub(crate) fn get<T>(&self, column: &'static str) -> Result<T, StoreError>
    where
        T: Decode<'r, Sqlite> + Type<Sqlite>,
        &'static str: ColumnIndex<SqliteRow>,
    {
        self.row.try_get(column).map_err(|e| self.unreadable(column, e))
    }

    /// An unsigned number of any width.
    pub(crate) fn number<N: TryFrom<i64>>(&self, column: &'static str) -> Result<N, StoreError> {
        let value: i64 = self.get(column)?;
        N::try_from(value).map_err(|_| self.unreadable(column, format!("{value} is out of range")))
    }

    pub(crate) fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        Timestamp::from_microsecond(self.get(column)?).map_err(|e| self.unreadable(column, e))
    }

    pub(crate) fn optional_time(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
        match self.get::<Option<i64>>(column)? {
            None => Ok(None),
            Some(_) => self.time(column).map(Some),
        }
    }

    pub(crate) fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, StoreError> {
        serde_json::from_str(self.get(column)?).map_err(|e| self.unreadable(column, e))
    }

    pub(crate) fn unreadable(&self, column: &'static str, detail: impl ToString) -> StoreError {
        StoreError::Decode { what: self.what, id: self.id.clone(), column, detail: detail.to_string() }
    }
}

/// A value as JSON text. What is stored is maps with text keys and JSON values, so it cannot fail.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("stored values are maps with text keys")
}

/// Microseconds since the epoch.
pub(crate) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// An unsigned number for a signed column. Counters stop at the largest that fits (2^63 - 1).
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
