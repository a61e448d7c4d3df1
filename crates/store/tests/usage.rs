//! What accounts have used is added up by day, and written together with what it belongs to.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::json;
use store::{Day, Metered, MoreUsage, SandboxRecord, Store, UsageDay};

const DAY: i64 = 24 * 60 * 60;
const PRESENT: [&str; 2] = ["running", "paused"];

fn sandbox(id: &str, state: &str, created_at: i64) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        account: "acme".to_owned(),
        template_id: "tpl-base".to_owned(),
        name: String::new(),
        state: state.to_owned(),
        metadata: BTreeMap::new(),
        envs: BTreeMap::new(),
        spec: json!({}),
        audit_enabled: true,
        created_at: Timestamp::from_second(created_at).unwrap(),
        started_at: None,
        end_at: None,
        timeout_s: 0,
        on_timeout: "kill".to_owned(),
        auto_resume: false,
        host: json!({}),
        generation: 1,
    }
}

fn more(account: &str, day: i32, running_ms: u64, ended: u64) -> MoreUsage {
    MoreUsage { account: account.to_owned(), day: Day(day), running_ms, ended }
}

#[test]
fn a_day_is_that_of_utc() {
    for (time, day) in [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T23:59:59.999999Z", 0),
        ("1970-01-02T00:00:00Z", 1),
        ("1969-12-31T23:59:59Z", -1),
        ("2026-11-21T19:00:00+00:00", 20_778),
    ] {
        let time: Timestamp = time.parse().unwrap();
        assert_eq!(Day::of(time), Day(day), "{time}");
        assert!(Day(day).begins() <= time && time < Day(day).next().begins());
    }
    assert_eq!(Day(i32::MAX).next(), Day(i32::MAX));
    assert_eq!((Day(i32::MIN).begins(), Day(i32::MAX).begins()), (Timestamp::MIN, Timestamp::MAX));
}

#[tokio::test]
async fn usage_adds_up_by_account_and_day_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    assert_eq!(store.usage().metered().await.unwrap(), None);
    let metered = |uptime_ms| Metered { boot: "one".to_owned(), uptime_ms };
    let first = [more("acme", 1, 100, 0), more("acme", 2, 50, 1), more("other", 1, 7, 0)];
    store.usage().add(&first, Some(&metered(5)), None).await.unwrap();
    store.usage().add(&[more("acme", 1, 11, 2)], None, None).await.unwrap();
    drop(store);

    let store = Store::open(dir.path()).await.unwrap();
    assert_eq!(store.usage().metered().await.unwrap(), Some(metered(5)));
    store.usage().add(&[], Some(&metered(9)), None).await.unwrap();
    assert_eq!(store.usage().metered().await.unwrap(), Some(metered(9)));
    let used = async |first, last| store.usage().days("acme", Day(first), Day(last), PRESENT).await.unwrap();
    let day = |day, running_ms, sandboxes| UsageDay { day: Day(day), running_ms, sandboxes };
    assert_eq!(used(0, 9).await, [day(1, 111, 2), day(2, 50, 1)]);
    assert_eq!(used(2, 2).await, [day(2, 50, 1)]);
    assert_eq!(used(3, 9).await, []);
    assert_eq!(store.usage().days("nobody", Day(0), Day(9), PRESENT).await.unwrap(), []);
}

#[tokio::test]
async fn a_sandbox_is_counted_once_while_it_is_there_and_when_it_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let count = async || {
        let days = store.usage().days("acme", Day(0), Day(9), PRESENT).await.unwrap();
        days.into_iter().map(|day| (day.day.0, day.sandboxes, day.running_ms)).collect::<Vec<_>>()
    };
    store.sandboxes().put(&sandbox("sbx-a", "creating", DAY)).await.unwrap();
    assert_eq!(count().await, []);
    store.sandboxes().put(&sandbox("sbx-a", "running", DAY)).await.unwrap();
    store.sandboxes().put(&sandbox("sbx-b", "paused", 2 * DAY)).await.unwrap();
    assert_eq!(count().await, [(1, 1, 0), (2, 1, 0)]);
    // It ends, and what it has used is written with that or not at all.
    let ended = sandbox("sbx-a", "killed", DAY);
    store.usage().add(&[more("acme", 1, 40, 1)], None, Some(&ended)).await.unwrap();
    assert_eq!(store.sandboxes().get("sbx-a").await.unwrap().unwrap().state, "killed");
    assert_eq!(count().await, [(1, 1, 40), (2, 1, 0)]);
    store.sandboxes().delete("sbx-a").await.unwrap();
    assert_eq!(count().await, [(1, 1, 40), (2, 1, 0)]);
}
