//! The schema and its history.

use std::{cmp::Ordering, path::Path};

use sqlx::{
    Connection, SqlSafeStr, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    sqlite::SqliteConnectOptions,
};

use crate::{StoreError, error};

/// Every step, oldest first. A step that was released is never edited: the next change is another file.
const STEPS: &[(i64, &str, &str)] = &[
    (1, "initial", include_str!("../migrations/0001_initial.sql")),
    (2, "chains", include_str!("../migrations/0002_chains.sql")),
    (3, "ratchets", include_str!("../migrations/0003_ratchets.sql")),
    (4, "accounts", include_str!("../migrations/0004_accounts.sql")),
    (5, "auto_resume", include_str!("../migrations/0005_auto_resume.sql")),
    (6, "usage", include_str!("../migrations/0006_usage.sql")),
    (7, "claimed_sandboxes", include_str!("../migrations/0007_claimed_sandboxes.sql")),
    (8, "packed_events", include_str!("../migrations/0008_packed_events.sql")),
];

/// Brings the database to the newest schema.
pub(crate) async fn migrate(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    match migrator(STEPS).run(pool).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => {
            Err(StoreError::NewerSchema { path: path.to_owned(), found, known: known() })
        }
        Err(MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) => {
            Err(error::opening(path, source))
        }
        Err(source) => Err(StoreError::Migrate { path: path.to_owned(), source: Box::new(source) }),
    }
}

fn migrator(steps: &'static [(i64, &str, &str)]) -> Migrator {
    let steps = steps.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    Migrator::with_migrations(steps.collect())
}

/// Whether the database has the newest schema; a missing one does not.
pub(crate) async fn is_current(path: &Path) -> Result<bool, StoreError> {
    if !path.exists() {
        return Ok(false);
    }
    Ok(found(path).await? >= known())
}

/// Makes sure that the database has the newest schema.
pub(crate) async fn require_current(path: &Path) -> Result<(), StoreError> {
    let (found, known, path) = (found(path).await?, known(), path.to_owned());
    match found.cmp(&known) {
        Ordering::Less => Err(StoreError::OlderSchema { path, found, known }),
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(StoreError::NewerSchema { path, found, known }),
    }
}

fn known() -> i64 {
    STEPS.last().map_or(0, |step| step.0)
}

/// The schema of a database; 0 if it has none yet.
async fn found(path: &Path) -> Result<i64, StoreError> {
    let opening = |e| error::opening(path, e);
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = SqliteConnection::connect_with(&options).await.map_err(opening)?;
    let has_one = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = '_sqlx_migrations')";
    let found = if sqlx::query_scalar(has_one).fetch_one(&mut connection).await.map_err(opening)? {
        let newest = "SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success";
        sqlx::query_scalar(newest).fetch_one(&mut connection).await.map_err(opening)?
    } else {
        0
    };
    connection.close().await.map_err(opening)?;
    Ok(found)
}

/// Looks for damage in the tables that hold state. The events are left out: they may be many, and are checked by
/// every query that reads them.
pub(crate) async fn check(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    for statement in [
        "PRAGMA quick_check('sandboxes')",
        "PRAGMA quick_check('accounts')",
        "PRAGMA quick_check('keys')",
        "PRAGMA quick_check('ratchets')",
        "PRAGMA quick_check('idempotency')",
        "PRAGMA quick_check('usage_days')",
    ] {
        let finding: String =
            sqlx::query_scalar(statement).fetch_one(pool).await.map_err(|e| error::opening(path, e))?;
        if finding != "ok" {
            return Err(StoreError::Corrupt { path: path.to_owned(), detail: finding });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn the_accounts_of_an_earlier_version_are_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new().filename(dir.path().join(crate::DATABASE));
        let old = SqlitePool::connect_with(options.create_if_missing(true)).await.unwrap();
        migrator(&STEPS[..3]).run(&old).await.unwrap();
        for sql in [
            "INSERT INTO keys VALUES ('key-1', 'acme', 'ci', x'01', 'm', 7000000, FALSE)",
            "INSERT INTO keys VALUES ('key-2', 'acme', 'ci', x'02', 'm', 9000000, TRUE)",
            "INSERT INTO sandboxes VALUES ('sbx-1', 'run', 't', '', 'killed', '{}', '{}', '{}', 1, 8000000, NULL, NULL, \
             0, 'kill', '{}', 1, 8000000)",
        ] {
            sqlx::query(sql).execute(&old).await.unwrap();
        }
        old.close().await;

        let store = Store::open(dir.path()).await.unwrap();
        let accounts = store.accounts().list().await.unwrap();
        let accounts: Vec<_> =
            accounts.iter().map(|account| (account.id.as_str(), account.created_at.as_second())).collect();
        assert_eq!(accounts, [("acme", 7), ("run", 8)]);
    }
}
