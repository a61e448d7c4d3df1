//! What accounts have used: how long their sandboxes ran, and how many there were, by day.

use jiff::Timestamp;
use sqlx::{Row, SqliteConnection};

use crate::{
    Inner, SandboxRecord, StoreError,
    error::doing,
    sandboxes, transaction,
    value::{micros, signed},
};

/// A day in UTC, by how many days it is after 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(pub i32);

impl Day {
    const MICROS: i64 = 24 * 60 * 60 * 1_000_000;

    /// The day of a moment.
    pub fn of(time: Timestamp) -> Self {
        // All times that exist are within some ten million days.
        Self(i32::try_from(micros(time).div_euclid(Self::MICROS)).unwrap_or_default())
    }

    /// Its first moment; the first or last of all time if it has none.
    pub fn begins(self) -> Timestamp {
        let bound = if self.0 < 0 { Timestamp::MIN } else { Timestamp::MAX };
        let micros = i64::from(self.0).checked_mul(Self::MICROS);
        micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()).unwrap_or(bound)
    }

    /// The day after.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// More usage of one account on one day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MoreUsage {
    /// The account.
    pub account: String,
    /// The day.
    pub day: Day,
    /// How long sandboxes ran on it, together, in milliseconds.
    pub running_ms: u64,
    /// How many sandboxes have ended that were created on it.
    pub ended: u64,
}

/// Up to when the time of running sandboxes is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metered {
    /// Which start of the machine.
    pub boot: String,
    /// Milliseconds since then.
    pub uptime_ms: u64,
}

/// What an account has used on one day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageDay {
    /// The day.
    pub day: Day,
    /// How long sandboxes ran on it, together, in milliseconds.
    pub running_ms: u64,
    /// How many sandboxes were created on it.
    pub sandboxes: u64,
}

/// The table of usage.
#[derive(Clone, Copy, Debug)]
pub struct Usage<'a> {
    pub(crate) store: &'a Inner,
}

impl Usage<'_> {
    /// Adds usage, together with what it belongs to: the end or pause of a sandbox, or the moment up to which those that
    /// run are counted. Either all of it is written or nothing.
    pub async fn add(
        &self,
        more: &[MoreUsage],
        metered: Option<&Metered>,
        sandbox: Option<&SandboxRecord>,
    ) -> Result<(), StoreError> {
        const ACTION: &str = "record the usage";
        transaction::run(&self.store.writer, ACTION, async |connection| {
            for more in more {
                add(connection, more).await.map_err(doing(ACTION))?;
            }
            if let Some(Metered { boot, uptime_ms }) = metered {
                sqlx::query("INSERT OR REPLACE INTO metered (only_one, boot, uptime_ms) VALUES (1, ?, ?)")
                    .bind(boot)
                    .bind(signed(*uptime_ms))
                    .execute(&mut *connection)
                    .await
                    .map_err(doing(ACTION))?;
            }
            if let Some(sandbox) = sandbox {
                sandboxes::put(&mut *connection, sandbox).await?;
            }
            Ok(())
        })
        .await
    }

    /// What was last given to [`Self::add`].
    pub async fn metered(&self) -> Result<Option<Metered>, StoreError> {
        const ACTION: &str = "read up to when usage is counted";
        let row = sqlx::query("SELECT boot, uptime_ms FROM metered")
            .fetch_optional(&self.store.readers)
            .await
            .map_err(doing(ACTION))?;
        row.map(|row| {
            let uptime_ms: i64 = row.try_get("uptime_ms").map_err(doing(ACTION))?;
            let boot = row.try_get("boot").map_err(doing(ACTION))?;
            Ok(Metered { boot, uptime_ms: u64::try_from(uptime_ms).unwrap_or_default() })
        })
        .transpose()
    }

    /// What an account has used on the days from `first` to `last`; those without any are left out.
    ///
    /// `present` are the states of sandboxes that have not ended and have run.
    pub async fn days(
        &self,
        account: &str,
        first: Day,
        last: Day,
        present: [&str; 2],
    ) -> Result<Vec<UsageDay>, StoreError> {
        const ACTION: &str = "read the usage";
        // One statement, so that no sandbox ends between two and is counted twice.
        let rows = sqlx::query(
            "SELECT day, sum(running_ms) AS running_ms, sum(sandboxes) AS sandboxes FROM ( \
               SELECT day, running_ms, sandboxes FROM usage_days WHERE account = ?1 AND day BETWEEN ?2 AND ?3 \
               UNION ALL \
               SELECT created_at / ?4 AS day, 0, 1 FROM sandboxes WHERE account = ?1 AND state IN (?5, ?6) \
                 AND created_at / ?4 BETWEEN ?2 AND ?3 \
             ) GROUP BY day ORDER BY day",
        )
        .bind(account)
        .bind(first.0)
        .bind(last.0)
        .bind(Day::MICROS)
        .bind(present[0])
        .bind(present[1])
        .fetch_all(&self.store.readers)
        .await
        .map_err(doing(ACTION))?;
        rows.iter()
            .map(|row| {
                let number = |column| {
                    let value: i64 = row.try_get(column).map_err(doing(ACTION))?;
                    Ok(u64::try_from(value).unwrap_or_default())
                };
                Ok(UsageDay {
                    day: Day(row.try_get("day").map_err(doing(ACTION))?),
                    running_ms: number("running_ms")?,
                    sandboxes: number("sandboxes")?,
                })
            })
            .collect()
    }
}

async fn add(connection: &mut SqliteConnection, more: &MoreUsage) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO usage_days (account, day, running_ms, sandboxes) VALUES (?, ?, ?, ?) \
         ON CONFLICT (account, day) DO UPDATE SET running_ms = running_ms + excluded.running_ms, \
         sandboxes = sandboxes + excluded.sandboxes",
    )
    .bind(&more.account)
    .bind(more.day.0)
    .bind(signed(more.running_ms))
    .bind(signed(more.ended))
    .execute(connection)
    .await
    .map(drop)
}
