//! The schema and its history.

use std::path::Path;

use sqlx::{
    SqlSafeStr, SqlitePool,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};

use crate::{StoreError, error};

/// Every step, oldest first. A step that was released is never edited: the next change is another file.
const STEPS: &[(i64, &str, &str)] = &[(1, "initial", include_str!("../migrations/0001_initial.sql"))];

/// Brings the database to the newest schema.
pub(crate) async fn migrate(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let steps = STEPS.iter().map(|&(version, name, sql)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    });
    match Migrator::with_migrations(steps.collect()).run(pool).await {
        Ok(()) => Ok(()),
        Err(MigrateError::VersionMissing(found)) => {
            let known = STEPS.last().map_or(0, |step| step.0);
            Err(StoreError::NewerSchema { path: path.to_owned(), found, known })
        }
        Err(MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _)) => {
            Err(error::opening(path, source))
        }
        Err(source) => Err(StoreError::Migrate { path: path.to_owned(), source: Box::new(source) }),
    }
}

/// Looks for damage in the tables that hold state. The events are left out: they may be many, and are checked by
/// every query that reads them.
pub(crate) async fn check(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    for statement in
        ["PRAGMA quick_check('sandboxes')", "PRAGMA quick_check('keys')", "PRAGMA quick_check('idempotency')"]
    {
        let finding: String =
            sqlx::query_scalar(statement).fetch_one(pool).await.map_err(|e| error::opening(path, e))?;
        if finding != "ok" {
            return Err(StoreError::Corrupt { path: path.to_owned(), detail: finding });
        }
    }
    Ok(())
}
