//! The sandboxes, past and present.

use std::{collections::BTreeMap, fmt, str::FromStr};

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteExecutor, sqlite::SqliteRow};

use crate::{
    Inner, StoreError,
    error::doing,
    value::{Reader, json, micros, signed},
};

/// The most bytes of records on a page whose number of sandboxes is limited.
pub const PAGE_BYTES: usize = 8 << 20;

/// A sandbox as it is stored.
#[derive(Clone, PartialEq)]
pub struct SandboxRecord {
    /// `sbx-` and eight lower-case letters or digits.
    pub id: String,
    /// The account it belongs to.
    pub account: String,
    /// The template it was made from.
    pub template_id: String,
    /// A name for people; may be empty.
    pub name: String,
    /// The state's word in the API.
    pub state: String,
    /// What the client attached to it.
    pub metadata: BTreeMap<String, String>,
    /// The environment of its commands. May hold secrets: `Debug` shows the names only.
    pub envs: BTreeMap<String, String>,
    /// The policy and security settings as the client gave them.
    pub spec: serde_json::Value,
    /// Whether events beyond the life cycle are recorded.
    pub audit_enabled: bool,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it last began to run.
    pub started_at: Option<Timestamp>,
    /// When it will be, or was, ended by its timeout.
    pub end_at: Option<Timestamp>,
    /// Its time to live in seconds; 0 is for ever.
    pub timeout_s: u64,
    /// What happens then: the word of the API.
    pub on_timeout: String,
    /// Whether it goes on when it is paused and used.
    pub auto_resume: bool,
    /// Where and how it runs on this machine, in the sandbox manager's own terms.
    pub host: serde_json::Value,
    /// The policy generation in force.
    pub generation: u64,
}

impl fmt::Debug for SandboxRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SandboxRecord")
            .field("id", &self.id)
            .field("account", &self.account)
            .field("template_id", &self.template_id)
            .field("name", &self.name)
            .field("state", &self.state)
            .field("metadata", &self.metadata)
            .field("envs", &self.envs.keys())
            .field("audit_enabled", &self.audit_enabled)
            .field("created_at", &self.created_at)
            .field("started_at", &self.started_at)
            .field("end_at", &self.end_at)
            .field("timeout_s", &self.timeout_s)
            .field("on_timeout", &self.on_timeout)
            .field("auto_resume", &self.auto_resume)
            .field("host", &self.host)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// Which sandboxes to list. The default is all of them.
#[derive(Clone, Debug, Default)]
pub struct SandboxFilter {
    /// Only of this account.
    pub account: Option<String>,
    /// Only in one of these states; empty means any.
    pub states: Vec<String>,
    /// Only with all of these in their metadata.
    pub metadata: BTreeMap<String, String>,
    /// At most this many, and then at most [`PAGE_BYTES`] of records.
    pub limit: Option<u32>,
    /// Only those after this one. The other fields must be as they were.
    pub after: Option<SandboxCursor>,
    /// After skipping this many.
    pub offset: u32,
}

/// A place in the list of sandboxes. It stays where it is when sandboxes come, change or go, because it is made of what
/// the list is ordered by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxCursor {
    /// In microseconds.
    created_at: i64,
    id: String,
}

/// The text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token of a page that was given out")]
pub struct InvalidSandboxCursor;

impl SandboxCursor {
    /// What every cursor begins with.
    const PREFIX: &str = "s1";

    /// The place of a sandbox.
    pub fn at(sandbox: &SandboxRecord) -> Self {
        Self { created_at: micros(sandbox.created_at), id: sandbox.id.clone() }
    }
}

impl fmt::Display for SandboxCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", Self::PREFIX, self.created_at, self.id)
    }
}

impl FromStr for SandboxCursor {
    type Err = InvalidSandboxCursor;

    fn from_str(text: &str) -> Result<Self, InvalidSandboxCursor> {
        let read = || {
            let (created_at, id) = text.strip_prefix(Self::PREFIX)?.strip_prefix('.')?.split_once('.')?;
            let usual = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let known =
                id.strip_prefix("sbx-").is_some_and(|name| name.len() == 8 && name.bytes().all(usual));
            let cursor = Self { created_at: created_at.parse().ok()?, id: id.to_owned() };
            // One place has one spelling.
            (known && cursor.to_string() == text).then_some(cursor)
        };
        read().ok_or(InvalidSandboxCursor)
    }
}

/// Sandboxes, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxPage {
    /// The sandboxes.
    pub sandboxes: Vec<SandboxRecord>,
    /// How many the filter keeps in all, whatever its limit, and wherever it begins.
    pub total: u64,
    /// Where the next page begins; `None` at the end.
    pub next: Option<SandboxCursor>,
}

/// The table of sandboxes.
#[derive(Clone, Copy, Debug)]
pub struct Sandboxes<'a> {
    pub(crate) store: &'a Inner,
}

impl Sandboxes<'_> {
    /// Writes a sandbox, new or changed.
    pub async fn put(&self, sandbox: &SandboxRecord) -> Result<(), StoreError> {
        put(&self.store.writer, sandbox).await
    }

    /// The sandbox of this id.
    pub async fn get(&self, id: &str) -> Result<Option<SandboxRecord>, StoreError> {
        sqlx::query("SELECT * FROM sandboxes WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.store.lookups)
            .await
            .map_err(doing("find the sandbox"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// The sandboxes that `filter` keeps, newest first.
    pub async fn list(&self, filter: &SandboxFilter) -> Result<SandboxPage, StoreError> {
        const ACTION: &str = "list the sandboxes";
        let mut count = QueryBuilder::new("SELECT count(*) FROM sandboxes");
        push_conditions(&mut count, filter);
        let total: i64 =
            count.build_query_scalar().fetch_one(&self.store.readers).await.map_err(doing(ACTION))?;

        let mut select = QueryBuilder::new("SELECT * FROM sandboxes");
        push_conditions(&mut select, filter);
        if let Some(SandboxCursor { created_at, id }) = &filter.after {
            select.push(" AND (created_at < ").push_bind(*created_at);
            select.push(" OR (created_at = ").push_bind(*created_at);
            select.push(" AND id > ").push_bind(id.clone()).push("))");
        }
        // One more than is given, to know whether there is a next page.
        let wanted = filter.limit.map_or(-1, |limit| i64::from(limit) + 1);
        select.push(" ORDER BY created_at DESC, id LIMIT ").push_bind(wanted);
        select.push(" OFFSET ").push_bind(i64::from(filter.offset));
        let limit = filter.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let (mut sandboxes, mut bytes, mut more) = (Vec::new(), 0, false);
        let mut rows = select.build().fetch(&self.store.readers);
        while let Some(row) = rows.try_next().await.map_err(doing(ACTION))? {
            bytes += bytes_of(&row).map_err(doing(ACTION))?;
            // A page that is limited in number is in bytes, too; one sandbox is always on it.
            if sandboxes.len() >= limit
                || (filter.limit.is_some() && bytes > PAGE_BYTES && !sandboxes.is_empty())
            {
                more = true;
                break;
            }
            sandboxes.push(read(&row)?);
        }
        let next = sandboxes.last().filter(|_| more).map(SandboxCursor::at);
        Ok(SandboxPage { sandboxes, total: u64::try_from(total).unwrap_or(0), next })
    }

    /// Forgets a sandbox. Says whether there was one.
    pub async fn delete(&self, id: &str) -> Result<bool, StoreError> {
        let done = sqlx::query("DELETE FROM sandboxes WHERE id = ?")
            .bind(id)
            .execute(&self.store.writer)
            .await
            .map_err(doing("forget the sandbox"))?;
        Ok(done.rows_affected() > 0)
    }

    /// Forgets up to `limit` of the sandboxes that have been in `state` without a change since before `before`. Says how
    /// many; fewer than `limit` means done.
    pub async fn prune(&self, state: &str, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        let done = sqlx::query(
            "DELETE FROM sandboxes WHERE id IN \
             (SELECT id FROM sandboxes WHERE state = ? AND updated_at < ? ORDER BY updated_at LIMIT ?)",
        )
        .bind(state)
        .bind(micros(before))
        .bind(limit)
        .execute(&self.store.writer)
        .await
        .map_err(doing("forget old sandboxes"))?;
        Ok(done.rows_affected())
    }

    /// Forgets up to `limit` of the sandboxes in `state` of which their account has newer ones whose records take
    /// `most_bytes` already. Says how many; fewer than `limit` means done.
    pub async fn prune_beyond(&self, state: &str, most_bytes: u64, limit: u32) -> Result<u64, StoreError> {
        const ACTION: &str = "forget sandboxes whose records take too much";
        // Found by a reader: it looks at all records, for which nobody who writes should wait. The length of a text is
        // known without reading it.
        let ids: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(format!(
            "SELECT id FROM (SELECT id, sum({RECORD_BYTES}) OVER \
             (PARTITION BY account ORDER BY updated_at DESC, id) AS bytes FROM sandboxes WHERE state = ?) \
             WHERE bytes > ? LIMIT ?",
        )))
        .bind(state)
        .bind(signed(most_bytes))
        .bind(limit)
        .fetch_all(&self.store.readers)
        .await
        .map_err(doing(ACTION))?;
        if ids.is_empty() {
            return Ok(0);
        }
        let done =
            sqlx::query("DELETE FROM sandboxes WHERE state = ? AND id IN (SELECT value FROM json_each(?))")
                .bind(state)
                .bind(json(&ids))
                .execute(&self.store.writer)
                .await
                .map_err(doing(ACTION))?;
        Ok(done.rows_affected())
    }
}

/// About what a record takes in the database, in bytes: what clients can make long, and the rest.
const RECORD_BYTES: &str =
    "octet_length(metadata) + octet_length(envs) + octet_length(spec) + octet_length(host) + 512";

/// Writes a sandbox, new or changed.
pub(crate) async fn put(to: impl SqliteExecutor<'_>, sandbox: &SandboxRecord) -> Result<(), StoreError> {
    sqlx::query(PUT)
        .bind(&sandbox.id)
        .bind(&sandbox.account)
        .bind(&sandbox.template_id)
        .bind(&sandbox.name)
        .bind(&sandbox.state)
        .bind(json(&sandbox.metadata))
        .bind(json(&sandbox.envs))
        .bind(json(&sandbox.spec))
        .bind(sandbox.audit_enabled)
        .bind(micros(sandbox.created_at))
        .bind(sandbox.started_at.map(micros))
        .bind(sandbox.end_at.map(micros))
        .bind(signed(sandbox.timeout_s))
        .bind(&sandbox.on_timeout)
        .bind(sandbox.auto_resume)
        .bind(json(&sandbox.host))
        .bind(signed(sandbox.generation))
        .bind(micros(Timestamp::now()))
        .execute(to)
        .await
        .map_err(doing("record the sandbox"))?;
    Ok(())
}

/// The texts of a row that clients can make long, in bytes.
fn bytes_of(row: &SqliteRow) -> Result<usize, sqlx::Error> {
    ["metadata", "envs", "spec", "host"]
        .into_iter()
        .try_fold(0, |bytes, column| Ok(bytes + row.try_get::<&str, _>(column)?.len()))
}

const PUT: &str = "INSERT INTO sandboxes (id, account, template_id, name, state, metadata, envs, spec, \
     audit_enabled, created_at, started_at, end_at, timeout_s, on_timeout, auto_resume, host, generation, \
     updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
     ON CONFLICT (id) DO UPDATE SET account = excluded.account, template_id = excluded.template_id, \
     name = excluded.name, state = excluded.state, metadata = excluded.metadata, envs = excluded.envs, \
     spec = excluded.spec, audit_enabled = excluded.audit_enabled, created_at = excluded.created_at, \
     started_at = excluded.started_at, end_at = excluded.end_at, timeout_s = excluded.timeout_s, \
     on_timeout = excluded.on_timeout, auto_resume = excluded.auto_resume, host = excluded.host, \
     generation = excluded.generation, updated_at = excluded.updated_at";

fn push_conditions(query: &mut QueryBuilder<Sqlite>, filter: &SandboxFilter) {
    query.push(" WHERE 1 = 1");
    if let Some(account) = &filter.account {
        query.push(" AND account = ").push_bind(account.clone());
    }
    if !filter.states.is_empty() {
        query.push(" AND state IN (");
        let mut states = query.separated(", ");
        for state in &filter.states {
            states.push_bind(state.clone());
        }
        query.push(")");
    }
    if filter.metadata.is_empty() {
        return;
    }
    // All in one pass over the labels of a sandbox, which are read once for it: each has another name, so as many fit as
    // are wanted only if all do.
    query.push(" AND (SELECT count(*) FROM json_each(metadata) AS m WHERE FALSE");
    for (key, value) in &filter.metadata {
        query.push(" OR (m.key = ").push_bind(key.clone());
        query.push(" AND m.value = ").push_bind(value.clone()).push(")");
    }
    query.push(") = ").push_bind(i64::try_from(filter.metadata.len()).unwrap_or(i64::MAX));
}

fn read(row: &SqliteRow) -> Result<SandboxRecord, StoreError> {
    let id: String = row.try_get("id").map_err(doing("read a sandbox"))?;
    let r = Reader::new(row, "sandbox", id.clone());
    Ok(SandboxRecord {
        id,
        account: r.get("account")?,
        template_id: r.get("template_id")?,
        name: r.get("name")?,
        state: r.get("state")?,
        metadata: r.json("metadata")?,
        envs: r.json("envs")?,
        spec: r.json("spec")?,
        audit_enabled: r.get("audit_enabled")?,
        created_at: r.time("created_at")?,
        started_at: r.optional_time("started_at")?,
        end_at: r.optional_time("end_at")?,
        timeout_s: r.number("timeout_s")?,
        on_timeout: r.get("on_timeout")?,
        auto_resume: r.get("auto_resume")?,
        host: r.json("host")?,
        generation: r.number("generation")?,
    })
}
