//! The sandboxes, past and present.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use sqlx::{QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use crate::{
    Inner, StoreError,
    error::doing,
    value::{Reader, json, micros, signed},
};

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
    /// At most this many.
    pub limit: Option<u32>,
    /// After skipping this many.
    pub offset: u32,
}

/// The table of sandboxes.
#[derive(Clone, Copy, Debug)]
pub struct Sandboxes<'a> {
    pub(crate) store: &'a Inner,
}

impl Sandboxes<'_> {
    /// Writes a sandbox, new or changed.
    pub async fn put(&self, sandbox: &SandboxRecord) -> Result<(), StoreError> {
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
            .bind(json(&sandbox.host))
            .bind(signed(sandbox.generation))
            .bind(micros(Timestamp::now()))
            .execute(&self.store.writer)
            .await
            .map_err(doing("record the sandbox"))?;
        Ok(())
    }

    /// The sandbox of this id.
    pub async fn get(&self, id: &str) -> Result<Option<SandboxRecord>, StoreError> {
        sqlx::query("SELECT * FROM sandboxes WHERE id = ?")
            .bind(id)
            .fetch_optional(&self.store.readers)
            .await
            .map_err(doing("find the sandbox"))?
            .map(|row| read(&row))
            .transpose()
    }

    /// The sandboxes that `filter` keeps, newest first, and how many there are without its `limit` and `offset`.
    pub async fn list(&self, filter: &SandboxFilter) -> Result<(Vec<SandboxRecord>, u64), StoreError> {
        const ACTION: &str = "list the sandboxes";
        let mut count = QueryBuilder::new("SELECT count(*) FROM sandboxes");
        push_conditions(&mut count, filter);
        let total: i64 =
            count.build_query_scalar().fetch_one(&self.store.readers).await.map_err(doing(ACTION))?;

        let mut select = QueryBuilder::new("SELECT * FROM sandboxes");
        push_conditions(&mut select, filter);
        select.push(" ORDER BY created_at DESC, id LIMIT ").push_bind(filter.limit.map_or(-1, i64::from));
        select.push(" OFFSET ").push_bind(i64::from(filter.offset));
        let rows = select.build().fetch_all(&self.store.readers).await.map_err(doing(ACTION))?;
        let records = rows.iter().map(read).collect::<Result<_, _>>()?;
        Ok((records, u64::try_from(total).unwrap_or(0)))
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

    /// Forgets the sandboxes that have been in `state` without a change since before `before`. Says how many.
    pub async fn prune(&self, state: &str, before: Timestamp) -> Result<u64, StoreError> {
        let done = sqlx::query("DELETE FROM sandboxes WHERE state = ? AND updated_at < ?")
            .bind(state)
            .bind(micros(before))
            .execute(&self.store.writer)
            .await
            .map_err(doing("forget old sandboxes"))?;
        Ok(done.rows_affected())
    }
}

const PUT: &str = "INSERT INTO sandboxes (id, account, template_id, name, state, metadata, envs, spec, \
     audit_enabled, created_at, started_at, end_at, timeout_s, on_timeout, host, generation, updated_at) \
     VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
     ON CONFLICT (id) DO UPDATE SET account = excluded.account, template_id = excluded.template_id, \
     name = excluded.name, state = excluded.state, metadata = excluded.metadata, envs = excluded.envs, \
     spec = excluded.spec, audit_enabled = excluded.audit_enabled, created_at = excluded.created_at, \
     started_at = excluded.started_at, end_at = excluded.end_at, timeout_s = excluded.timeout_s, \
     on_timeout = excluded.on_timeout, host = excluded.host, generation = excluded.generation, \
     updated_at = excluded.updated_at";

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
    for (key, value) in &filter.metadata {
        query
            .push(" AND EXISTS (SELECT 1 FROM json_each(metadata) AS m WHERE m.key = ")
            .push_bind(key.clone());
        query.push(" AND m.value = ").push_bind(value.clone());
        query.push(")");
    }
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
        host: r.json("host")?,
        generation: r.number("generation")?,
    })
}
