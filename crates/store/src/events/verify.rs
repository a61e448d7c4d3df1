//! Checking the chains.
//!
//! A chain is read once from its beginning to its end, a page at a time, within one read transaction: a daemon may go
//! on writing meanwhile. Where something is wrong, the check goes on with what is stored, so that one change is told
//! once, and another one behind it as well.

mod report;
mod walk;

use std::collections::{BTreeSet, HashMap};

use sqlx::{Row, SqliteConnection, SqlitePool};

pub use self::report::{ChainReport, Finding, Problem};
use self::{report::Place, walk::Walk};
use super::chain::{ChainHash, Head, OPENED, PRUNED, Pruned, RETIRED, Retired, SERVICE};
use crate::{StoreError, error::doing};

const ACTION: &str = "check the chain of events";

/// The streams of which there is anything, the service's own first.
pub(super) async fn streams(pool: &SqlitePool) -> Result<Vec<String>, StoreError> {
    // Each recursive step is one search in an index, so the events themselves are not read.
    sqlx::query_scalar(
        "WITH RECURSIVE of_events (stream) AS (SELECT min(sandbox_id) FROM events UNION ALL \
         SELECT (SELECT min(sandbox_id) FROM events WHERE sandbox_id > stream) FROM of_events \
         WHERE stream IS NOT NULL), \
         of_records (stream) AS (SELECT min(stream) FROM chain_records UNION ALL \
         SELECT (SELECT min(chain_records.stream) FROM chain_records \
         WHERE chain_records.stream > of_records.stream) FROM of_records WHERE stream IS NOT NULL) \
         SELECT stream FROM (SELECT '' AS stream UNION SELECT stream FROM of_events \
         UNION SELECT stream FROM of_records UNION SELECT stream FROM chains) \
         WHERE typeof(stream) = 'text' ORDER BY stream",
    )
    .fetch_all(pool)
    .await
    .map_err(doing(ACTION))
}

/// Checks the chain of a stream; `None` if there is nothing of it. Of the hashes that are `wanted`, the report names
/// those that are in the chain.
pub(super) async fn run(
    pool: &SqlitePool,
    stream: &str,
    wanted: &BTreeSet<ChainHash>,
) -> Result<Option<ChainReport>, StoreError> {
    let mut snapshot = pool.begin().await.map_err(doing(ACTION))?;
    let waiting: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM unchained)")
        .fetch_one(&mut *snapshot)
        .await
        .map_err(doing(ACTION))?;
    if waiting {
        return Err(StoreError::Unchained);
    }
    Check { stream, wanted, connection: &mut snapshot }.run().await.map_err(doing(ACTION))
}

struct Check<'a> {
    stream: &'a str,
    wanted: &'a BTreeSet<ChainHash>,
    connection: &'a mut SqliteConnection,
}

impl Check<'_> {
    async fn run(mut self) -> Result<Option<ChainReport>, sqlx::Error> {
        let sandbox = (self.stream != SERVICE).then(|| self.stream.to_owned());
        let row = sqlx::query("SELECT * FROM chains WHERE stream = ?")
            .bind(self.stream)
            .fetch_optional(&mut *self.connection)
            .await?;
        let head = match row.as_ref().map(Head::read) {
            Some(Ok(head)) => Some(head),
            Some(Err(_)) => None,
            None if self.is_empty().await? => return Ok(None),
            None => None,
        };
        let Some(head) = head else {
            let mut report = ChainReport::new(sandbox, ChainHash::genesis(self.stream), 0, 0);
            report.add(Place::default(), Problem::HeadMissing);
            return Ok(Some(report));
        };
        let mut report = ChainReport::new(sandbox, head.link, head.seq, head.pruned_seq);
        let notes = self.walk(&head, &mut report).await?;
        check_beginning(self.stream, &head, notes.pruned.as_ref(), &mut report);
        if self.stream == SERVICE {
            self.check_others(notes.opened, &mut report).await?;
            self.check_owners(&mut report).await?;
        } else {
            self.check_opened(&head, &mut report).await?;
        }
        Ok(Some(report))
    }

    async fn is_empty(&mut self) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "SELECT NOT EXISTS (SELECT 1 FROM events WHERE sandbox_id IS nullif(?1, '')) \
             AND NOT EXISTS (SELECT 1 FROM chain_records WHERE stream = ?1)",
        )
        .bind(self.stream)
        .fetch_one(&mut *self.connection)
        .await
    }

    /// Goes along the whole chain and compares its end with `head`.
    async fn walk(&mut self, head: &Head, report: &mut ChainReport) -> Result<Notes, sqlx::Error> {
        let mut notes = Notes::default();
        let mut walk = Walk::new(self.stream, head);
        while let Some(step) = walk.next(self.connection, report).await? {
            self.find_wanted(report, step.link);
            match step.record {
                Some((PRUNED, detail)) => notes.pruned = serde_json::from_str(&detail).ok(),
                Some((OPENED, stream)) => {
                    notes.opened.insert(stream, step.seq);
                }
                Some((RETIRED, detail)) => {
                    if let Ok(retired) = serde_json::from_str::<Retired>(&detail) {
                        notes.opened.remove(&retired.stream);
                    }
                }
                _ => {}
            }
        }
        walk.end(head, report);
        Ok(notes)
    }

    fn find_wanted(&self, report: &mut ChainReport, links: impl IntoIterator<Item = ChainHash>) {
        report.met.extend(links.into_iter().filter(|link| self.wanted.contains(link)));
    }

    /// Every chain that the service's chain says there is must be there, and be the same.
    async fn check_others(
        &mut self,
        opened: HashMap<String, i64>,
        report: &mut ChainReport,
    ) -> Result<(), sqlx::Error> {
        for (stream, seq) in opened {
            let found: Option<Option<i64>> = sqlx::query_scalar("SELECT opened FROM chains WHERE stream = ?")
                .bind(&stream)
                .fetch_optional(&mut *self.connection)
                .await?;
            if found.flatten() != Some(seq) {
                let place = Place { seq: Some(seq), ..Place::default() };
                report.add(place, Problem::ChainMissing { sandbox_id: stream });
            }
        }
        Ok(())
    }

    /// Events whose owner is nothing that this program writes would belong to no chain.
    async fn check_owners(&mut self, report: &mut ChainReport) -> Result<(), sqlx::Error> {
        let strays: Vec<i64> = sqlx::query_scalar(
            "SELECT id FROM events WHERE sandbox_id = '' UNION ALL \
             SELECT id FROM events WHERE sandbox_id >= x'' LIMIT 100",
        )
        .fetch_all(&mut *self.connection)
        .await?;
        for id in strays {
            report.add(Place { event: Some(id), ..Place::default() }, Problem::Unchained);
        }
        Ok(())
    }

    /// The service's chain must say that this chain exists.
    async fn check_opened(&mut self, head: &Head, report: &mut ChainReport) -> Result<(), sqlx::Error> {
        let record = sqlx::query("SELECT kind, detail FROM chain_records WHERE stream = '' AND seq = ?")
            .bind(head.opened)
            .fetch_optional(&mut *self.connection)
            .await?;
        let says_so = record.is_some_and(|row| {
            row.try_get("kind").is_ok_and(|kind: &str| kind == OPENED)
                && row.try_get("detail").is_ok_and(|stream: &str| stream == self.stream)
        });
        if !says_so {
            report.add(Place::default(), Problem::NotOpened);
        }
        Ok(())
    }
}

/// What was read along the way.
#[derive(Debug, Default)]
struct Notes {
    /// The last record of a cut.
    pruned: Option<Pruned>,
    /// The chains that were opened and not retired, with the positions of the records that say so.
    opened: HashMap<String, i64>,
}

/// The chain must begin where its last record of a cut says.
fn check_beginning(stream: &str, head: &Head, pruned: Option<&Pruned>, report: &mut ChainReport) {
    let expected = match pruned {
        Some(pruned) => (pruned.through, pruned.link.parse().ok()),
        None => (0, Some(ChainHash::genesis(stream))),
    };
    if expected != (head.pruned_seq, Some(head.pruned_link)) {
        report.add(Place::default(), Problem::BeginningMissing);
    }
}
