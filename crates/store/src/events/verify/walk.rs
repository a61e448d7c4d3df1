//! Along a chain: events and records, in the order of their positions.

use std::collections::VecDeque;

use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    super::{
        chain::{AMENDED, ChainHash, Head, OPENED, PRUNED, RETIRED, RecordValues, link_of, record_values},
        columns::{self, Outcome},
    },
    report::{ChainReport, Place, Problem},
};

/// How many rows are read at a time.
const PAGE: i64 = 500;

/// Where the walk is.
pub(super) struct Walk<'a> {
    stream: &'a str,
    events: Page,
    records: Page,
    /// The position and the link of what was seen last.
    seq: i64,
    link: ChainHash,
    /// Its time, if it was seen.
    time: Option<i64>,
}

/// Rows that were read and not yet looked at.
struct Page {
    rows: VecDeque<SqliteRow>,
    /// Where the next page begins.
    from: i64,
    is_last: bool,
}

/// A link that was passed.
pub(super) struct Step {
    pub(super) seq: i64,
    /// `None` if something is wrong with it.
    pub(super) link: Option<ChainHash>,
    /// Kind and detail, if it is a record.
    pub(super) record: Option<(&'static str, String)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(stream: &'a str, head: &Head) -> Self {
        let page = || Page { rows: VecDeque::new(), from: i64::MIN, is_last: false };
        Self {
            stream,
            events: page(),
            records: page(),
            seq: head.pruned_seq,
            link: head.pruned_link,
            time: None,
        }
    }

    /// Passes the next link that has a place in the chain; reports what is wrong until then.
    pub(super) async fn next(
        &mut self,
        connection: &mut SqliteConnection,
        report: &mut ChainReport,
    ) -> Result<Option<Step>, sqlx::Error> {
        loop {
            self.read(connection).await?;
            let event = self.events.rows.front().map(seq_of);
            let record = self.records.rows.front().map(seq_of);
            let step = match (event, record) {
                (None, None) => return Ok(None),
                // An event without a place is told where it is met.
                (Some(event), Some(Some(record))) if event.is_some_and(|event| event > record) => {
                    self.pass_record(report)
                }
                (Some(_), _) => self.pass_event(report),
                (None, Some(_)) => self.pass_record(report),
            };
            if let Some(step) = step {
                return Ok(Some(step));
            }
        }
    }

    /// Compares the end with what it should be.
    pub(super) fn end(&self, head: &Head, report: &mut ChainReport) {
        if self.seq < head.seq {
            let count = u64::try_from(head.seq.saturating_sub(self.seq)).unwrap_or(0);
            let first = Some(self.seq.saturating_add(1));
            report.add(
                Place { seq: first, after: self.time, ..Place::default() },
                Problem::EndMissing { count },
            );
        } else if self.seq > head.seq || self.link != head.link {
            report.add(Place::default(), Problem::EndDiffers);
        }
    }

    async fn read(&mut self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.events.rows.is_empty() && !self.events.is_last {
            let rows = sqlx::query(
                "SELECT events.*, r.kind AS r_kind, r.event_id AS r_event, r.count AS r_count, \
                 r.last_time AS r_last_time, r.bytes_up AS r_bytes_up, r.bytes_down AS r_bytes_down, \
                 r.duration_ms AS r_duration_ms \
                 FROM events LEFT JOIN chain_records AS r ON r.stream = ?1 AND r.seq = events.amended \
                 WHERE sandbox_id IS nullif(?1, '') AND id >= ?2 ORDER BY id LIMIT ?3",
            )
            .bind(self.stream)
            .bind(self.events.from)
            .bind(PAGE)
            .fetch_all(&mut *connection)
            .await?;
            self.events.fill(rows, "id")?;
        }
        if self.records.rows.is_empty() && !self.records.is_last {
            let rows = sqlx::query(
                "SELECT r.*, events.id AS e_id, events.amended AS e_amended \
                 FROM chain_records AS r LEFT JOIN events ON r.kind = 'amended' AND events.id = r.event_id \
                 WHERE stream = ?1 AND r.seq >= ?2 ORDER BY r.seq LIMIT ?3",
            )
            .bind(self.stream)
            .bind(self.records.from)
            .bind(PAGE)
            .fetch_all(connection)
            .await?;
            self.records.fill(rows, "seq")?;
        }
        Ok(())
    }

    fn pass_event(&mut self, report: &mut ChainReport) -> Option<Step> {
        let row = self.events.rows.pop_front()?;
        let id = row.try_get("id").ok();
        report.events += 1;
        let Some(seq) = seq_of(&row) else {
            report.add(self.place(id, None, &row), Problem::Unchained);
            return None;
        };
        let Ok(values) = columns::stored(&row) else {
            return self.pass(seq, None, &row, Some((id, Problem::Unreadable)), report);
        };
        let problem = (!is_as_recorded(&row)).then_some((id, Problem::OutcomeChanged));
        let link = self.link.of_event(seq, &values);
        self.pass(seq, Some((id, link)), &row, problem, report)
    }

    fn pass_record(&mut self, report: &mut ChainReport) -> Option<Step> {
        let row = self.records.rows.pop_front()?;
        let Some(seq) = seq_of(&row) else {
            report.add(self.place(None, None, &row), Problem::Unreadable);
            return None;
        };
        let values: Option<RecordValues<'_>> = record_values(&row).ok();
        let kind = [AMENDED, PRUNED, OPENED, RETIRED]
            .into_iter()
            .find(|kind| row.try_get("kind").is_ok_and(|stored: &str| stored == *kind));
        let (Some(values), Some(kind)) = (values, kind) else {
            return self.pass(seq, None, &row, Some((None, Problem::Unreadable)), report);
        };
        // An event that is there must know of its last amendment.
        let event: Option<i64> = row.try_get("e_id").ok().flatten();
        let known: Option<i64> = row.try_get("e_amended").ok().flatten();
        let problem = (event.is_some() && known.is_none_or(|known| known < seq))
            .then_some((event, Problem::OutcomeChanged));
        let link = self.link.of_record(seq, &values);
        let detail = row.try_get("detail").ok().flatten().unwrap_or_default();
        let step = self.pass(seq, Some((None, link)), &row, problem, report)?;
        Some(Step { record: Some((kind, detail)), ..step })
    }

    /// Passes position `seq`, whose link should be the one that is `computed`, if it is the next.
    fn pass(
        &mut self,
        seq: i64,
        computed: Option<(Option<i64>, ChainHash)>,
        row: &SqliteRow,
        problem: Option<(Option<i64>, Problem)>,
        report: &mut ChainReport,
    ) -> Option<Step> {
        let event = computed.and_then(|(event, _)| event).or(problem.as_ref().and_then(|(event, _)| *event));
        let place = self.place(event, Some(seq), row);
        if seq <= self.seq {
            report.add(place, Problem::Misplaced);
            return None;
        }
        let stored = link_of(row, "link").ok();
        let missing = seq.saturating_sub(self.seq) - 1;
        let mut whole = missing == 0;
        if missing > 0 {
            let count = u64::try_from(missing).unwrap_or(0);
            report.add(place, Problem::Missing { count });
        } else if stored.is_none() || computed.is_some_and(|(_, link)| stored != Some(link)) {
            report.add(place, Problem::Changed);
            whole = false;
        }
        if let Some((event, problem)) = problem {
            report.add(Place { event, ..place }, problem);
            whole = false;
        }
        self.seq = seq;
        self.time = place.time;
        self.link = stored.or(computed.map(|(_, link)| link)).unwrap_or(self.link);
        Some(Step { seq, link: whole.then_some(self.link), record: None })
    }

    fn place(&self, event: Option<i64>, seq: Option<i64>, row: &SqliteRow) -> Place {
        Place { event, seq, time: row.try_get("time").ok().flatten(), after: self.time }
    }
}

impl Page {
    fn fill(&mut self, rows: Vec<SqliteRow>, key: &str) -> Result<(), sqlx::Error> {
        let last: Option<i64> = rows.last().map(|last| last.try_get(key)).transpose()?;
        match last.and_then(|last| last.checked_add(1)) {
            Some(next) => self.from = next,
            None => self.is_last = true,
        }
        self.rows = rows.into();
        Ok(())
    }
}

fn seq_of(row: &SqliteRow) -> Option<i64> {
    row.try_get("seq").ok().flatten()
}

/// Whether an event's outcome is as its last amendment says, or as it was at first if there is none.
fn is_as_recorded(row: &SqliteRow) -> bool {
    let amended: Result<Option<i64>, _> = row.try_get("amended");
    match (amended, columns::amended(row)) {
        (Ok(None), Ok(None)) => true,
        (Ok(Some(_)), Ok(Some(outcome))) => is_last_amendment(row, outcome).unwrap_or(false),
        _ => false,
    }
}

/// Whether the record that stands beside the event is its amendment, with the outcome that the event has.
fn is_last_amendment(row: &SqliteRow, outcome: Outcome) -> Result<bool, sqlx::Error> {
    let recorded: Outcome = [
        row.try_get("r_count")?,
        row.try_get("r_last_time")?,
        row.try_get("r_bytes_up")?,
        row.try_get("r_bytes_down")?,
        row.try_get("r_duration_ms")?,
    ];
    Ok(row.try_get::<Option<&str>, _>("r_kind")? == Some(AMENDED)
        && row.try_get::<Option<i64>, _>("r_event")? == row.try_get("id")?
        && recorded == outcome)
}
