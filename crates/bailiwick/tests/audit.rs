//! `bailiwick audit verify` as its users see it, beside a daemon that has the store open.

#![expect(
    clippy::disallowed_types,
    clippy::unwrap_used,
    reason = "a test: it starts the program, and fails by panicking"
)]

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use store::{Category, DATABASE, EventBatch, EventRecord, Store};
use tempfile::TempDir;

const A: &str = "sbx-aaaaaaaa";
const B: &str = "sbx-bbbbbbbb";
/// When the first event was.
const NOON: i64 = 1_780_000_000_000_000;

/// A store with ten events of each of two sandboxes, open as a daemon has it.
async fn filled() -> (TempDir, Store) {
    filled_with("host").await
}

async fn filled_with(host: &str) -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).await.unwrap();
    let event = |number: u64, sandbox: &str| EventRecord {
        sandbox_id: Some(sandbox.to_owned()),
        host: Some(format!("{host}-{number}.test")),
        ..EventRecord::new(
            number,
            Timestamp::from_microsecond(NOON + i64::try_from(number).unwrap() * 1_000_000).unwrap(),
            Category::Network,
            "egress_blocked",
        )
    };
    let inserts = (1..=10).flat_map(|number| [event(2 * number, A), event(2 * number + 1, B)]).collect();
    store.events().write(&EventBatch { inserts, updates: Vec::new() }).await.unwrap();
    (directory, store)
}

/// More events, at once.
async fn more(store: &Store, numbers: std::ops::Range<u64>) {
    let inserts = numbers.map(|number| {
        let time = Timestamp::from_microsecond(NOON + i64::try_from(number).unwrap()).unwrap();
        EventRecord {
            sandbox_id: Some(A.to_owned()),
            ..EventRecord::new(number, time, Category::Network, "egress_blocked")
        }
    });
    store.events().write(&EventBatch { inserts: inserts.collect(), updates: Vec::new() }).await.unwrap();
}

fn follow(directory: &Path, arguments: &[&str]) -> (Child, BufReader<ChildStdout>) {
    let mut following = Command::new(env!("CARGO_BIN_EXE_bailiwick"))
        .arg("--data-dir")
        .arg(directory)
        .args(["audit", "--follow"])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(following.stdout.take().unwrap());
    (following, output)
}

#[tokio::test(flavor = "multi_thread")]
async fn following_loses_no_event_however_many_come_at_a_time() {
    let (directory, store) = filled().await;
    let (mut following, output) = follow(directory.path(), &["--json", "--limit", "2"]);
    let mut ids = output
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap()["id"].as_u64().unwrap());
    assert_eq!(ids.by_ref().take(2).collect::<Vec<_>>(), [20, 21]);
    more(&store, 100..2600).await;
    assert_eq!(ids.by_ref().take(2500).collect::<Vec<_>>(), (100..2600).collect::<Vec<_>>());
    more(&store, 3000..3003).await;
    assert_eq!(ids.by_ref().take(3).collect::<Vec<_>>(), [3000, 3001, 3002]);
    following.kill().unwrap();
    following.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_in_peace_when_nobody_reads_it_any_more() {
    for arguments in [["--json"].as_slice(), &[]] {
        for comes_more in [false, true] {
            let (directory, store) = filled().await;
            let (mut following, mut output) = follow(directory.path(), arguments);
            output.read_line(&mut String::new()).unwrap();
            drop(output);
            if comes_more {
                more(&store, 100..200).await;
            }
            let ended = tokio::task::spawn_blocking(move || following.wait().unwrap()).await.unwrap();
            assert_eq!(ended.code(), Some(0), "{arguments:?}");
        }
    }
}

async fn tamper(directory: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(directory.join(DATABASE));
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    assert!(sqlx::query(sql).execute(&mut connection).await.unwrap().rows_affected() > 0, "{sql}");
    connection.close().await.unwrap();
}

fn verify(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bailiwick"))
        .arg("--data-dir")
        .arg(directory)
        .args(["audit", "verify"])
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Tampers with events of the first sandbox; gives what the check of it finds. That of the second finds nothing.
async fn found_after(sql: &'static str) -> Vec<Value> {
    let (directory, _daemon) = filled().await;
    assert_eq!(verify(directory.path(), &[]).status.code(), Some(0));
    tamper(directory.path(), sql).await;
    assert_eq!(verify(directory.path(), &[B]).status.code(), Some(0), "{sql}: of another sandbox");
    assert_eq!(verify(directory.path(), &[]).status.code(), Some(1), "{sql}: of all");
    let output = verify(directory.path(), &[A, "--json"]);
    assert_eq!(output.status.code(), Some(1), "{sql}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["intact"], false);
    let chain = &answer["chains"][1];
    assert_eq!((&chain["sandbox_id"], &chain["intact"]), (&json!(A), &json!(false)), "{sql}: {answer}");
    chain["findings"].as_array().unwrap().clone()
}

#[tokio::test]
async fn what_was_removed_is_told_by_sandbox_sequence_and_time() {
    let found = found_after("DELETE FROM events WHERE id IN (8, 10)").await;
    let expected = json!([{
        "problem": "missing", "count": 2, "sequence": 6, "event": 12,
        "after": "2026-05-28T20:26:46Z", "time": "2026-05-28T20:26:52Z",
    }]);
    assert_eq!(json!(found), expected);
    let (directory, _daemon) = filled().await;
    tamper(directory.path(), "DELETE FROM events WHERE id IN (8, 10)").await;
    let table = text(&verify(directory.path(), &[A]).stdout);
    let line = table.lines().last().unwrap();
    for word in [A, "4..5", "after 2026-05-28T20:26:46", "before 2026-05-28T20:26:52", "2 before it are gone"]
    {
        assert!(line.contains(word), "{word} in {table}");
    }
}

#[tokio::test]
async fn a_removed_end_is_told() {
    let found = found_after("DELETE FROM events WHERE id = 20").await;
    let expected =
        json!([{ "problem": "end_missing", "count": 1, "sequence": 10, "after": "2026-05-28T20:26:58Z" }]);
    assert_eq!(json!(found), expected);
}

#[tokio::test]
async fn what_was_changed_reordered_or_inserted_is_told() {
    let found = found_after("UPDATE events SET host = 'innocent.test' WHERE id = 8").await;
    let expected = json!([{
        "problem": "changed", "sequence": 4, "event": 8,
        "after": "2026-05-28T20:26:46Z", "time": "2026-05-28T20:26:48Z",
    }]);
    assert_eq!(json!(found), expected);
    let swapped = "UPDATE events SET seq = 9 - seq, link = (SELECT link FROM events AS other \
                   WHERE other.id = 18 - events.id) WHERE id IN (8, 10)";
    let found = found_after(swapped).await;
    assert!(found.iter().any(|f| f["problem"] == "misplaced" && f["event"] == 10), "{found:?}");
    let inserted = "INSERT INTO events (id, time, sandbox_id, type, body) \
                    SELECT 22, time, sandbox_id, type, body FROM events WHERE id = 20";
    let found = found_after(inserted).await;
    assert!(found.iter().any(|f| f["problem"] == "unchained" && f["event"] == 22), "{found:?}");
}

#[tokio::test]
async fn a_sandbox_of_which_everything_was_removed_is_told_and_one_that_never_was_is_bad_input() {
    let (directory, _daemon) = filled().await;
    for sql in [
        "DELETE FROM events WHERE sandbox_id = 'sbx-aaaaaaaa'",
        "DELETE FROM chains WHERE stream = 'sbx-aaaaaaaa'",
    ] {
        tamper(directory.path(), sql).await;
    }
    let output = verify(directory.path(), &[A]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(&format!("the events of {A} are gone")));
    let output = verify(directory.path(), &["sbx-cccccccc"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("sbx-cccccccc"));
}

#[tokio::test]
async fn what_retention_deleted_is_not_taken_for_tampering() {
    let (directory, daemon) = filled().await;
    let before = Timestamp::from_microsecond(NOON + 11_000_000).unwrap();
    assert_eq!(daemon.events().prune(before, 100).await.unwrap(), 9);
    let output = verify(directory.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["chains"][1]["pruned"], &answer["chains"][1]["events"]), (&json!(5), &json!(5)));
    // As the deletion does it, but for the record that it leaves.
    tamper(
        directory.path(),
        "UPDATE chains SET pruned_seq = 6, pruned_link = (SELECT link FROM events WHERE id = 12) \
         WHERE stream = 'sbx-aaaaaaaa'",
    )
    .await;
    tamper(directory.path(), "DELETE FROM events WHERE id = 12").await;
    assert_eq!(verify(directory.path(), &[A]).status.code(), Some(1));
    assert_eq!(verify(directory.path(), &[B]).status.code(), Some(0));
}

#[tokio::test]
async fn a_hash_that_was_noted_before_shows_that_all_was_written_anew() {
    let (directory, daemon) = filled().await;
    let head = daemon.events().verify(Some(A), &Default::default()).await.unwrap().unwrap().head.to_string();
    assert_eq!(verify(directory.path(), &[A, "--expect", &head]).status.code(), Some(0));
    let (anew, _forger) = filled_with("innocent").await;
    assert_eq!(verify(anew.path(), &[A]).status.code(), Some(0));
    let output = verify(anew.path(), &[A, "--expect", &head, "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["unmet"], &answer["chains"][1]["intact"]), (&json!([head]), &json!(true)));
}

#[tokio::test]
async fn bad_input_is_named() {
    let (directory, _daemon) = filled().await;
    for (arguments, named) in [
        (&["sbx-1"][..], "sbx-1"),
        (&["--expect", "abc"], "abc"),
        (&[A, "extra"], "extra"),
        (&["--follow"], "--follow"),
    ] {
        let output = verify(directory.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(named), "{}", text(&output.stderr));
    }
    let none = tempfile::tempdir().unwrap();
    assert_eq!(verify(none.path(), &[]).status.code(), Some(1));
}
