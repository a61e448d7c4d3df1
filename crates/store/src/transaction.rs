//! Several statements that happen together or not at all.

use sqlx::{Connection, SqliteConnection, SqlitePool};

use crate::{StoreError, error::doing};

/// Does `work` in one transaction, which is undone if it fails.
///
/// A connection whose transaction failed is closed, and the pool opens another: SQLite ends a transaction by itself
/// on some errors (a full disk is one), which sqlx does not notice, and the connection would refuse every later one.
pub(crate) async fn run<T>(
    pool: &SqlitePool,
    action: &'static str,
    work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut connection = pool.acquire().await.map_err(doing(action))?;
    let result = match connection.begin_with("BEGIN IMMEDIATE").await {
        Ok(mut transaction) => match work(&mut transaction).await {
            Ok(value) => transaction.commit().await.map(|()| value).map_err(doing(action)),
            Err(error) => Err(error),
        },
        Err(error) => Err(doing(action)(error)),
    };
    if result.is_err() {
        // What matters is that it is gone; its last words do not.
        let _ = connection.close().await;
    }
    result
}
