//! What the chains of events promise: every later change is found, and what the service does itself is not taken
//! for one.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{collections::BTreeSet, fs, path::Path};

use jiff::Timestamp;
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use store::{
    Category, ChainHash, ChainReport, DATABASE, EventBatch, EventQuery, EventRecord, EventRule, EventUpdate,
    Problem, RuleKind, Store, StoreError,
};

async fn open(dir: &Path) -> Store {
    Store::open(dir).await.unwrap()
}

fn event(id: u64, sandbox: Option<&str>) -> EventRecord {
    let time = Timestamp::from_microsecond(i64::try_from(id).unwrap()).unwrap();
    EventRecord {
        sandbox_id: sandbox.map(str::to_owned),
        host: Some(format!("host-{id}.example")),
        port: Some(443),
        decision: Some(policy::Decision::Deny),
        ..EventRecord::new(id, time, Category::Network, "egress_blocked")
    }
}

async fn insert(store: &Store, inserts: impl IntoIterator<Item = EventRecord>) {
    let batch = EventBatch { inserts: inserts.into_iter().collect(), updates: Vec::new() };
    store.events().write(&batch).await.unwrap();
}

async fn update(store: &Store, updates: Vec<EventUpdate>) {
    store.events().write(&EventBatch { inserts: Vec::new(), updates }).await.unwrap();
}

fn repeated(id: u64, count: u64) -> EventUpdate {
    EventUpdate::Repeated { id, count, last_time: Timestamp::from_microsecond(5_000_000).unwrap() }
}

fn finished(id: u64, bytes_up: u64) -> EventUpdate {
    EventUpdate::Finished { id, bytes_up, bytes_down: 7, duration_ms: 9 }
}

/// Events of two sandboxes and of the service, ids 1 to 30, of which some have changed since.
async fn fill(store: &Store) {
    for id in (1..=30).step_by(3) {
        insert(store, [event(id, Some("sbx-a")), event(id + 1, Some("sbx-b")), event(id + 2, None)]).await;
    }
    update(store, vec![repeated(4, 5), finished(7, 100), repeated(8, 3)]).await;
    update(store, vec![repeated(4, 6)]).await;
    insert(store, [event(40, Some("sbx-a"))]).await;
}

async fn tamper(dir: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(dir.join(DATABASE)).foreign_keys(false);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let done = sqlx::query(sql).execute(&mut connection).await.unwrap();
    assert!(done.rows_affected() > 0, "{sql}: nothing was tampered with");
    connection.close().await.unwrap();
}

/// Reports of all chains.
async fn reports(store: &Store) -> Vec<ChainReport> {
    let mut reports = Vec::new();
    for sandbox in store.events().chains().await.unwrap() {
        reports.extend(store.events().verify(sandbox.as_deref(), &BTreeSet::new()).await.unwrap());
    }
    reports
}

/// What is wrong in all chains: sandbox, event, problem.
async fn findings(store: &Store) -> Vec<(Option<String>, Option<u64>, Problem)> {
    let of = |report: ChainReport| {
        let sandbox = report.sandbox_id;
        report.findings.into_iter().map(move |found| (sandbox.clone(), found.event, found.problem))
    };
    reports(store).await.into_iter().flat_map(of).collect()
}

async fn assert_intact(store: &Store) {
    assert_eq!(findings(store).await, []);
}

fn of_a(event: u64, problem: Problem) -> (Option<String>, Option<u64>, Problem) {
    (Some("sbx-a".to_owned()), Some(event), problem)
}

async fn ids(store: &Store) -> Vec<u64> {
    let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
    store.events().query(&query).await.unwrap().events.iter().map(|event| event.id).collect()
}

fn at(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap()
}

#[tokio::test]
async fn what_was_recorded_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    assert!(reports(&store).await.is_empty());
    fill(&store).await;
    assert_intact(&store).await;
    let reports = reports(&store).await;
    let summary: Vec<_> = reports.iter().map(|r| (r.sandbox_id.as_deref(), r.events, r.links)).collect();
    // Eleven events and three amendments of four; ten and one; ten and two other chains.
    assert_eq!(summary, [(None, 10, 12), (Some("sbx-a"), 11, 14), (Some("sbx-b"), 10, 11)]);
    drop(store);
    assert_intact(&Store::open_read_only(dir.path()).await.unwrap()).await;
}

/// Tampers with a fresh database and says what is found; what is not tampered with stays intact.
async fn found_after(sql: &'static str) -> Vec<(Option<String>, Option<u64>, Problem)> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    fill(&store).await;
    assert_intact(&store).await;
    tamper(dir.path(), sql).await;
    let found = findings(&store).await;
    assert!(!found.is_empty(), "{sql}: nothing was found");
    assert!(found.iter().all(|(sandbox, ..)| sandbox.as_deref() != Some("sbx-b")), "{found:?}");
    found
}

#[tokio::test]
async fn a_removed_event_is_found() {
    let found = found_after("DELETE FROM events WHERE id = 10").await;
    assert_eq!(found, [of_a(13, Problem::Missing { count: 1 })]);
    let found = found_after("DELETE FROM events WHERE id IN (13, 16)").await;
    assert_eq!(found, [of_a(19, Problem::Missing { count: 2 })]);
    let found = found_after("DELETE FROM events WHERE id = 1").await;
    assert_eq!(found, [of_a(4, Problem::Missing { count: 1 })]);
}

#[tokio::test]
async fn removal_of_the_newest_event_is_found() {
    let found = found_after("DELETE FROM events WHERE id = 40").await;
    assert_eq!(found, [(Some("sbx-a".to_owned()), None, Problem::EndMissing { count: 1 })]);
    let found = found_after("UPDATE chains SET seq = 13 WHERE stream = 'sbx-a'").await;
    assert_eq!(found, [(Some("sbx-a".to_owned()), None, Problem::EndDiffers)]);
}

#[tokio::test]
async fn removal_of_a_whole_sandbox_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    fill(&store).await;
    tamper(dir.path(), "DELETE FROM events WHERE sandbox_id = 'sbx-a'").await;
    let headless = findings(&store).await;
    assert_eq!(headless.len(), 2, "{headless:?}");
    tamper(dir.path(), "DELETE FROM chain_records WHERE stream = 'sbx-a'").await;
    tamper(dir.path(), "DELETE FROM chains WHERE stream = 'sbx-a'").await;
    let gone = Problem::ChainMissing { sandbox_id: "sbx-a".to_owned() };
    assert_eq!(findings(&store).await, [(None, None, gone)]);
}

#[tokio::test]
async fn a_changed_field_is_found() {
    for sql in [
        "UPDATE events SET time = time + 1 WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[0]', 'admin') WHERE id = 10",
        "UPDATE events SET type = 'egress_allowed' WHERE id = 10",
        "UPDATE events SET decision = 'allow' WHERE id = 10",
        "UPDATE events SET decision = NULL WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[1]', 'floor') WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[2]', '{}') WHERE id = 10",
        "UPDATE events SET host = 'host-11.example' WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[3]', 'sni') WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[4]', '192.0.2.1') WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[5]', 80) WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[6]', 'tcp') WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[7]', 1) WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[8]', 2) WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[9]', 9) WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[10]', 0) WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[11]', 0) WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[12]', 0) WHERE id = 10",
        "UPDATE events SET body = json_set(body, '$[13]', 'null') WHERE id = 10",
        "UPDATE events SET link = zeroblob(32) WHERE id = 10",
    ] {
        assert_eq!(found_after(sql).await[0], of_a(10, Problem::Changed), "{sql}");
    }
    // Of two columns that hold the same text side by side, which is which counts.
    let swapped = "UPDATE events SET host = NULL, body = json_set(body, '$[3]', host) WHERE id = 10";
    assert_eq!(found_after(swapped).await, [of_a(10, Problem::Changed)]);
    assert_eq!(found_after("UPDATE events SET id = 39 WHERE id = 40").await, [of_a(39, Problem::Changed)]);
    let unreadable = "UPDATE events SET host = x'ff' WHERE id = 10";
    assert_eq!(found_after(unreadable).await, [of_a(10, Problem::Unreadable)]);
}

#[tokio::test]
async fn an_event_given_to_another_sandbox_is_found() {
    let found = found_after("UPDATE events SET sandbox_id = 'sbx-c' WHERE id = 10").await;
    assert!(found.contains(&of_a(13, Problem::Missing { count: 1 })), "{found:?}");
    assert!(found.contains(&(Some("sbx-c".to_owned()), None, Problem::HeadMissing)), "{found:?}");
}

#[tokio::test]
async fn a_changed_count_is_found() {
    let changed = Problem::OutcomeChanged;
    assert_eq!(
        found_after("UPDATE events SET outcome = json_set(outcome, '$[0]', 5) WHERE id = 4").await,
        [of_a(4, changed.clone())]
    );
    assert_eq!(
        found_after("UPDATE events SET outcome = json_set(outcome, '$[2]', 1) WHERE id = 7").await,
        [of_a(7, changed.clone())]
    );
    // Back to what it was before the last amendment, in every column.
    let undone = "UPDATE events SET outcome = json_set(outcome, '$[0]', 5), amended = (SELECT min(seq) FROM chain_records \
                  WHERE stream = 'sbx-a' AND event_id = 4) WHERE id = 4";
    assert_eq!(found_after(undone).await, [of_a(4, changed.clone())]);
    let undone = "UPDATE events SET amended = NULL, outcome = NULL WHERE id = 4";
    assert_eq!(found_after(undone).await, [of_a(4, changed.clone()), of_a(4, changed.clone())]);
    let in_record = "UPDATE chain_records SET count = 60 WHERE event_id = 4 AND count = 6";
    let found = found_after(in_record).await;
    assert!(found.contains(&of_a(4, changed.clone())), "{found:?}");
    assert!(found.contains(&(Some("sbx-a".to_owned()), None, Problem::Changed)), "{found:?}");
    // An invented amendment of an event that has none.
    let invented = "UPDATE events SET outcome = '[6,5000000,null,null,null]', amended = \
                    (SELECT max(seq) FROM chain_records WHERE stream = 'sbx-a' AND event_id = 4) WHERE id = 10";
    assert_eq!(found_after(invented).await, [of_a(10, changed)]);
}

#[tokio::test]
async fn reordered_events_are_found() {
    let swap = "UPDATE events SET seq = (SELECT seq FROM events AS other WHERE other.id = 23 - events.id), \
                link = (SELECT link FROM events AS other WHERE other.id = 23 - events.id) WHERE id IN (10, 13)";
    let found = found_after(swap).await;
    assert!(found.contains(&of_a(13, Problem::Misplaced)), "{found:?}");
}

#[tokio::test]
async fn an_inserted_event_is_found() {
    let bare = "INSERT INTO events (id, time, sandbox_id, type, body) \
                SELECT 35, time, sandbox_id, type, body FROM events WHERE id = 40";
    assert_eq!(found_after(bare).await, [of_a(35, Problem::Unchained)]);
    let copied = "INSERT INTO events (id, time, sandbox_id, type, body, seq, link) \
                  SELECT 35, time, sandbox_id, type, body, seq, link FROM events WHERE id = 40";
    let found = found_after(copied).await;
    assert_eq!(found, [of_a(35, Problem::Changed), of_a(40, Problem::Misplaced)]);
    let at_the_end = "INSERT INTO events (id, time, sandbox_id, type, body, seq, link) \
                      SELECT 50, time, sandbox_id, type, body, 15, link FROM events WHERE id = 10";
    let found = found_after(at_the_end).await;
    assert!(found.contains(&of_a(50, Problem::Changed)), "{found:?}");
    let of_nobody = "INSERT INTO events (id, time, sandbox_id, type, body) \
                     VALUES (50, 50, '', 'key_created', '[\"admin\"]')";
    assert_eq!(found_after(of_nobody).await, [(None, Some(50), Problem::Unchained)]);
}

#[tokio::test]
async fn an_inserted_sandbox_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let (store, forge) = (open(dir.path()).await, open(other.path()).await);
    fill(&store).await;
    insert(&forge, [event(100, Some("sbx-x"))]).await;
    assert_intact(&forge).await;
    forge.close().await;
    let attach = format!("ATTACH '{}' AS forge", other.path().join(DATABASE).display());
    let options = SqliteConnectOptions::new().filename(dir.path().join(DATABASE));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(attach)).execute(&mut connection).await.unwrap();
    for sql in [
        "INSERT INTO events SELECT * FROM forge.events",
        "INSERT INTO chains SELECT * FROM forge.chains WHERE stream = 'sbx-x'",
    ] {
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }
    assert_eq!(findings(&store).await, [(Some("sbx-x".to_owned()), None, Problem::NotOpened)]);
}

#[tokio::test]
async fn pruning_is_not_tampering() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    fill(&store).await;
    assert_eq!(store.events().prune(at(16), 7).await.unwrap(), 7);
    assert_intact(&store).await;
    assert_eq!(store.events().prune(at(16), 100).await.unwrap(), 3);
    assert_intact(&store).await;
    // Of the service, what is between the records of these sandboxes waits until the records are old.
    let left = |id: &u64| *id >= 16 || id.is_multiple_of(3);
    assert_eq!(ids(&store).await, (1..=30).chain([40]).filter(left).collect::<Vec<_>>());
    assert_eq!(store.events().prune(at(16), 100).await.unwrap(), 0);
    // What goes on after it verifies, too.
    insert(&store, [event(50, Some("sbx-a"))]).await;
    update(&store, vec![finished(16, 3), finished(1, 1)]).await;
    assert_intact(&store).await;
    let reports = reports(&store).await;
    assert!(reports.iter().all(|report| report.sandbox_id.is_none() || report.pruned > 0), "{reports:?}");
    store.events().prune_largest(2).await.unwrap();
    assert_intact(&store).await;

    tamper(
        dir.path(),
        "DELETE FROM events WHERE id = (SELECT min(id) FROM events WHERE sandbox_id = 'sbx-a')",
    )
    .await;
    assert!(matches!(findings(&store).await[..], [(Some(_), Some(_), Problem::Missing { count: 1 })]));
}

#[tokio::test]
async fn a_beginning_that_somebody_else_cut_off_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    fill(&store).await;
    // As a cut does it, but for the record at the end.
    tamper(
        dir.path(),
        "UPDATE chains SET pruned_seq = 3, pruned_link = (SELECT link FROM events WHERE id = 7) WHERE stream = 'sbx-a'",
    )
    .await;
    tamper(dir.path(), "DELETE FROM events WHERE id IN (1, 4, 7)").await;
    assert_eq!(findings(&store).await, [(Some("sbx-a".to_owned()), None, Problem::BeginningMissing)]);
}

#[tokio::test]
async fn a_sandbox_of_which_nothing_is_left_is_forgotten_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    fill(&store).await;
    insert(&store, [event(60, Some("sbx-c"))]).await;
    assert_eq!(store.events().prune(at(35), 1000).await.unwrap(), 20);
    assert_intact(&store).await;
    let left = store.events().chains().await.unwrap();
    assert_eq!(left, [None, Some("sbx-a".to_owned()), Some("sbx-c".to_owned())]);
    insert(&store, [event(61, Some("sbx-b"))]).await;
    assert_intact(&store).await;
    // However long the service's own chain has been cut off, it knows of the sandboxes that there are.
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(24);
    let far = i64::try_from(u64::try_from(later.as_microsecond()).unwrap()).unwrap();
    let young = EventRecord { time: at(far + 1), ..event(62, Some("sbx-b")) };
    insert(&store, [young]).await;
    store.events().prune(later, 1000).await.unwrap();
    assert_intact(&store).await;
    assert_eq!(ids(&store).await, [62]);
    tamper(dir.path(), "DELETE FROM events WHERE sandbox_id = 'sbx-b'").await;
    tamper(dir.path(), "DELETE FROM chains WHERE stream = 'sbx-b'").await;
    tamper(dir.path(), "DELETE FROM chain_records WHERE stream = 'sbx-b'").await;
    let gone = Problem::ChainMissing { sandbox_id: "sbx-b".to_owned() };
    assert_eq!(findings(&store).await, [(None, None, gone)]);
}

#[tokio::test]
async fn a_clock_that_jumped_does_not_break_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let dated = |id, time| EventRecord { time: at(time), ..event(id, Some("sbx-a")) };
    insert(&store, [dated(1, 10), dated(2, 1000), dated(3, 11), dated(4, 2000)]).await;
    assert_eq!(store.events().prune(at(500), 100).await.unwrap(), 1);
    assert_eq!(ids(&store).await, [2, 3, 4]);
    assert_intact(&store).await;
    assert_eq!(store.events().prune(at(1500), 100).await.unwrap(), 2);
    assert_intact(&store).await;
}

#[tokio::test]
async fn a_crash_leaves_chains_that_verify_and_go_on() {
    let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path()).await;
    fill(&store).await;
    // Between an event and its amendment, what the system has of the files is what a killed process leaves behind.
    insert(&store, [event(70, Some("sbx-a"))]).await;
    for name in [DATABASE.to_owned(), format!("{DATABASE}-wal")] {
        fs::copy(dir.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let after = open(copy.path()).await;
    assert_intact(&after).await;
    update(&after, vec![finished(70, 5)]).await;
    insert(&after, [event(71, Some("sbx-a"))]).await;
    assert_intact(&after).await;
    // The same batches again, as after a commit whose answer was lost, are not chained twice.
    update(&after, vec![finished(70, 5)]).await;
    insert(&after, [event(71, Some("sbx-a"))]).await;
    assert_intact(&after).await;
    assert_eq!(ids(&after).await.last(), Some(&71));
}

#[tokio::test]
async fn a_head_that_was_noted_elsewhere_shows_that_everything_was_written_anew() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(dir.path()).await;
    fill(&store).await;
    let noted = store.events().verify(Some("sbx-a"), &BTreeSet::new()).await.unwrap().unwrap().head;
    let wanted = BTreeSet::from([noted]);
    let met = async |store: &Store| {
        store.events().verify(Some("sbx-a"), &wanted).await.unwrap().is_some_and(|r| r.met == wanted)
    };
    assert!(met(&store).await);
    insert(&store, [event(50, Some("sbx-a"))]).await;
    assert!(met(&store).await, "the chain has grown since");

    let forged = open(other.path()).await;
    fill(&forged).await;
    let last = EventRecord { host: Some("innocent.example".to_owned()), ..event(50, Some("sbx-a")) };
    insert(&forged, [last]).await;
    assert_intact(&forged).await;
    let different = open(&other.path().join("different")).await;
    insert(&different, [event(1, Some("sbx-a"))]).await;
    assert_intact(&different).await;
    assert!(!met(&different).await);
}

#[tokio::test]
async fn a_long_chain_is_checked_page_by_page_beside_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = open(dir.path()).await;
    let beside = Store::open_read_only(dir.path()).await.unwrap();
    for start in (1..=3000).step_by(100) {
        insert(&daemon, (start..start + 100).map(|id| event(id, Some("sbx-a")))).await;
        update(&daemon, (start..start + 100).step_by(2).map(|id| finished(id, id)).collect()).await;
        if start % 1000 == 1 {
            assert_intact(&beside).await;
        }
    }
    assert_intact(&beside).await;
    let report = beside.events().verify(Some("sbx-a"), &BTreeSet::new()).await.unwrap().unwrap();
    assert_eq!((report.events, report.links), (3000, 4500));
    tamper(dir.path(), "UPDATE events SET body = json_set(body, '$[5]', 1) WHERE id % 10 = 0").await;
    let report = beside.events().verify(Some("sbx-a"), &BTreeSet::new()).await.unwrap().unwrap();
    assert_eq!((report.findings.len(), report.more_findings), (100, 200));
}

#[tokio::test]
async fn a_read_only_store_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = open(dir.path()).await;
    insert(&daemon, [event(1, None)]).await;
    let beside = Store::open_read_only(dir.path()).await.unwrap();
    let batch = EventBatch { inserts: vec![event(2, None)], updates: Vec::new() };
    assert!(matches!(beside.events().write(&batch).await, Err(StoreError::Statement { .. })));
    assert_eq!(ids(&beside).await, [1]);
    assert!(matches!(Store::open_read_only(&dir.path().join("none")).await, Err(StoreError::Open { .. })));
}

async fn run(dir: &Path, statements: &[&'static str]) {
    let options = SqliteConnectOptions::new().filename(dir.join(DATABASE)).foreign_keys(false);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    for sql in statements {
        sqlx::raw_sql(*sql).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
}

/// Makes a database as the first schema had it.
async fn first_schema(dir: &Path) {
    open(dir).await.close().await;
    let statements = [
        "DROP TABLE ratchets",
        "DROP TABLE accounts",
        "DROP TABLE usage_days",
        "DROP TABLE metered",
        "DROP TABLE chains",
        "DROP TABLE chain_records",
        "DROP TABLE unchained",
        "DROP TABLE sandboxes",
        "DROP TABLE keys",
        "DROP TABLE idempotency",
        "DROP TABLE events",
        "DELETE FROM _sqlx_migrations WHERE version > 1",
        include_str!("../migrations/0001_initial.sql"),
        "INSERT INTO events (id, time, sandbox_id, category, type, decision, host, port, count) \
         WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < 5000) \
         SELECT n, n, iif(n % 3 = 0, NULL, 'sbx-a'), 'network', 'egress_blocked', 'deny', \
         'host-' || n || '.example', 443, 1 FROM number",
    ];
    run(dir, &statements).await;
}

/// Makes the events' table of a database as it was when each field was a column.
async fn unpack(dir: &Path) {
    let statements = [
        "CREATE TABLE columns AS SELECT id, time, sandbox_id, body ->> 0 AS category, type, decision, body ->> 1 AS reason, \
         body ->> 2 AS rule, host, body ->> 3 AS host_source, body ->> 4 AS address, body ->> 5 AS port, \
         body ->> 6 AS protocol, body ->> 7 AS generation, coalesce(outcome, body) ->> iif(outcome IS NULL, 8, 0) AS count, \
         coalesce(outcome, body) ->> iif(outcome IS NULL, 9, 1) AS last_time, \
         coalesce(outcome, body) ->> iif(outcome IS NULL, 10, 2) AS bytes_up, \
         coalesce(outcome, body) ->> iif(outcome IS NULL, 11, 3) AS bytes_down, \
         coalesce(outcome, body) ->> iif(outcome IS NULL, 12, 4) AS duration_ms, body ->> 13 AS detail, seq, link, amended, \
         iif(outcome IS NULL, NULL, json_array(body ->> 8, body ->> 9, body ->> 10, body ->> 11, body ->> 12)) AS original \
         FROM events",
        "DROP TABLE events",
        "ALTER TABLE columns RENAME TO events",
        "CREATE INDEX events_by_sandbox ON events (sandbox_id, id)",
        "CREATE INDEX events_by_time ON events (time)",
        "DELETE FROM _sqlx_migrations WHERE version > 7",
    ];
    run(dir, &statements).await;
}

#[tokio::test]
async fn the_events_of_a_version_that_kept_each_field_by_itself_are_as_they_were_and_verify() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    fill(&store).await;
    let full = EventRecord {
        reason: Some("floor".into()),
        rule: Some(EventRule {
            text: "allow_out[0] \"ä\u{2028}".to_owned(),
            kind: RuleKind::Entry {
                list: policy::List::AllowOut, index: 0, entry: "\"ä\u{2028}".to_owned()
            },
        }),
        host_source: Some("sni".into()),
        address: Some("2001:db8::1".parse().unwrap()),
        protocol: Some("tcp".into()),
        generation: Some(7),
        count: 3,
        last_time: Some(at(99)),
        bytes_up: Some(1 << 60),
        bytes_down: Some(0),
        duration_ms: Some(12),
        detail: Some(serde_json::json!({"a": ["\u{0}\"", 1.5, null], "b": {"c": -1}})),
        ..event(80, Some("sbx-a"))
    };
    insert(&store, [full.clone(), event(81, None)]).await;
    let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
    let before = store.events().query(&query).await.unwrap().events;
    assert!(before.contains(&full));
    store.close().await;
    drop(store);
    unpack(dir.path()).await;
    let store = open(dir.path()).await;
    assert_eq!(store.events().query(&query).await.unwrap().events, before);
    assert_intact(&store).await;
    update(&store, vec![repeated(4, 9), finished(7, 101), finished(80, 5)]).await;
    insert(&store, [event(90, Some("sbx-a"))]).await;
    assert_intact(&store).await;
    assert_eq!(reports(&store).await.iter().map(|report| report.events).sum::<u64>(), 34);
}

#[tokio::test]
async fn the_events_of_an_older_version_are_chained_when_the_new_one_starts() {
    let dir = tempfile::tempdir().unwrap();
    first_schema(dir.path()).await;
    let too_early = Store::open_read_only(dir.path()).await.unwrap_err();
    assert!(matches!(too_early, StoreError::OlderSchema { found: 1, .. }), "{too_early:?}");
    let store = open(dir.path()).await;
    assert_intact(&store).await;
    insert(&store, [event(6000, Some("sbx-a")), event(6001, None)]).await;
    assert_intact(&store).await;
    assert_eq!(reports(&store).await.iter().map(|report| report.events).sum::<u64>(), 5002);
    tamper(dir.path(), "UPDATE events SET body = json_set(body, '$[5]', 1) WHERE id = 100").await;
    assert_eq!(findings(&store).await, [of_a(100, Problem::Changed)]);
}

#[tokio::test]
async fn what_was_inserted_after_an_upgrade_is_not_taken_for_old() {
    let dir = tempfile::tempdir().unwrap();
    first_schema(dir.path()).await;
    open(dir.path()).await.close().await;
    tamper(dir.path(), "UPDATE events SET seq = NULL, link = NULL WHERE id = 100").await;
    let store = open(dir.path()).await;
    let found = findings(&store).await;
    assert!(found.contains(&of_a(100, Problem::Unchained)), "{found:?}");
}

#[tokio::test]
async fn what_nobody_can_read_keeps_neither_a_new_version_from_starting_nor_events_from_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    fill(&store).await;
    store.close().await;
    drop(store);
    unpack(dir.path()).await;
    tamper(dir.path(), "UPDATE events SET reason = x'ff' WHERE id = 10").await;
    tamper(dir.path(), "UPDATE events SET count = x'31' WHERE id = 4").await;
    tamper(dir.path(), "UPDATE events SET original = 'x' WHERE id = 7").await;
    let store = open(dir.path()).await;
    let unreadable = [4, 7, 10].map(|id| of_a(id, Problem::Unreadable));
    assert_eq!(findings(&store).await, unreadable);
    let refused = store.events().query(&EventQuery { limit: Some(1000), ..EventQuery::default() }).await;
    assert!(matches!(refused, Err(StoreError::Decode { what: "event", column: "body", .. })), "{refused:?}");
    update(&store, vec![finished(10, 1), finished(13, 1), repeated(4, 7)]).await;
    insert(&store, [event(90, Some("sbx-a"))]).await;
    assert_eq!(findings(&store).await, unreadable);
    let later = EventQuery { since: Some(at(12)), ..EventQuery::default() };
    let page = store.events().query(&later).await.unwrap();
    assert!(page.events.iter().any(|event| (event.id, event.bytes_up) == (13, Some(1))), "{page:?}");
}

#[test]
fn a_hash_is_64_hexadecimal_digits() {
    let text = "00ff".repeat(16);
    assert_eq!(text.parse::<ChainHash>().unwrap().to_string(), text);
    assert_eq!(text.to_uppercase().parse::<ChainHash>().unwrap().to_string(), text);
    for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &format!("+{}", "0".repeat(63)), &"é".repeat(32)]
    {
        assert!(bad.parse::<ChainHash>().is_err(), "{bad}");
    }
}
