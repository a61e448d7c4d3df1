//! What the store promises, seen from outside.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path};

use jiff::{Timestamp, ToSpan};
use serde_json::json;
use store::{
    Begin, Category, EventBatch, EventQuery, EventRecord, EventUpdate, KeyRecord, MAX_KEYS, MAX_REVOKED_KEYS,
    Order, PAGE_BYTES, Revocation, SandboxCursor, SandboxFilter, SandboxRecord, Store, StoreError,
};

fn sandbox(id: &str, account: &str, state: &str) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        account: account.to_owned(),
        template_id: "tpl-base".to_owned(),
        name: String::new(),
        state: state.to_owned(),
        metadata: BTreeMap::from([("purpose".to_owned(), "test's \"own\"".to_owned())]),
        envs: BTreeMap::from([("TOKEN".to_owned(), "secret-value".to_owned())]),
        spec: json!({"network": {"allow_out": ["api.github.com"]}}),
        audit_enabled: true,
        created_at: now(),
        started_at: Some(now()),
        end_at: None,
        timeout_s: 0,
        on_timeout: "kill".to_owned(),
        auto_resume: false,
        host: json!({"pid": 17}),
        generation: u64::MAX >> 1,
    }
}

fn key(id: &str, hash: u8) -> KeyRecord {
    KeyRecord {
        id: id.to_owned(),
        account: "acme".to_owned(),
        name: "ci".to_owned(),
        hash: [hash; 32],
        masked: "bw_…x1".to_owned(),
        created_at: now(),
        revoked: false,
    }
}

fn event(id: u64, sandbox: &str, kind: &'static str) -> EventRecord {
    let time = Timestamp::from_microsecond(id as i64).unwrap();
    EventRecord {
        sandbox_id: Some(sandbox.to_owned()),
        ..EventRecord::new(id, time, Category::Network, kind)
    }
}

/// The store's times are in microseconds.
fn now() -> Timestamp {
    Timestamp::from_microsecond(Timestamp::now().as_microsecond()).unwrap()
}

async fn open(dir: &Path) -> Store {
    Store::open(dir).await.unwrap()
}

async fn insert(store: &Store, events: Vec<EventRecord>) {
    store.events().write(&EventBatch { inserts: events, updates: Vec::new() }).await.unwrap();
}

async fn ids(store: &Store, query: EventQuery) -> Vec<u64> {
    store.events().query(&query).await.unwrap().events.iter().map(|event| event.id).collect()
}

#[tokio::test]
async fn a_second_daemon_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).await;
    let refused = Store::open(dir.path()).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Locked { dir: d, pid: Some(pid) } if d == dir.path() && *pid == std::process::id()),
        "{refused}"
    );
    drop(first);
    open(dir.path()).await;
}

#[tokio::test]
async fn the_directory_and_its_files_are_private() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let store = open(&dir).await;
    store.sandboxes().put(&sandbox("sbx-00000001", "acme", "running")).await.unwrap();
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o700);
    let mut names = Vec::new();
    for file in fs::read_dir(&dir).unwrap() {
        let file = file.unwrap();
        names.push(file.file_name().into_string().unwrap());
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o600, "{file:?}");
    }
    names.sort();
    assert_eq!(names, ["bailiwick.db", "bailiwick.db-shm", "bailiwick.db-wal", "lock", "revocations"]);
}

#[tokio::test]
async fn a_shared_directory_of_others_is_left_alone_and_an_empty_one_is_closed() {
    let parent = tempfile::tempdir().unwrap();
    let (shared, empty) = (parent.path().join("shared"), parent.path().join("empty"));
    for dir in [&shared, &empty] {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(shared.join("somebody's"), "file").unwrap();
    let refused = Store::open(&shared).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotPrivate { mode: 0o755, .. }), "{refused}");
    assert_eq!(fs::metadata(&shared).unwrap().permissions().mode() & 0o777, 0o755);

    open(&empty).await;
    assert_eq!(fs::metadata(&empty).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_file_that_is_no_database_is_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("bailiwick.db"),
        "not a database at all, and long enough to be read as one".repeat(30),
    )
    .unwrap();
    let refused = Store::open(dir.path()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_damaged_table_of_state_is_noticed_when_the_database_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bailiwick.db");
    let store = open(dir.path()).await;
    for n in 0..400 {
        store.sandboxes().put(&sandbox(&format!("sbx-{n:08}"), "acme", "running")).await.unwrap();
    }
    store.close().await;
    drop(store);
    let sound = fs::read(&path).unwrap();
    // Everything after the schema's page is overwritten, page by page, in its header.
    let mut damaged = sound.clone();
    for page in damaged.chunks_mut(4096).skip(10) {
        page[..64].fill(0xff);
    }
    fs::write(&path, damaged).unwrap();
    let refused = Store::open(dir.path()).await.unwrap_err();
    assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused:?}");

    fs::write(&path, sound).unwrap();
    assert_eq!(open(dir.path()).await.sandboxes().list(&SandboxFilter::default()).await.unwrap().total, 400);
}

#[tokio::test]
async fn a_sandbox_is_read_back_as_it_was_written_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut record = sandbox("sbx-00000001", "acme", "creating");
    store.sandboxes().put(&record).await.unwrap();
    assert_eq!(store.sandboxes().get(&record.id).await.unwrap().as_ref(), Some(&record));
    record.state = "running".to_owned();
    record.end_at = Some(now());
    store.sandboxes().put(&record).await.unwrap();
    drop(store);

    let store = open(dir.path()).await;
    assert_eq!(store.sandboxes().get(&record.id).await.unwrap().as_ref(), Some(&record));
    assert!(store.sandboxes().delete(&record.id).await.unwrap());
    assert!(!store.sandboxes().delete(&record.id).await.unwrap());
    assert_eq!(store.sandboxes().get(&record.id).await.unwrap(), None);
}

#[tokio::test]
async fn a_list_keeps_to_its_account_states_and_metadata_and_counts_them_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for n in 0..5 {
        store.sandboxes().put(&sandbox(&format!("sbx-0000000{n}"), "acme", "running")).await.unwrap();
    }
    store.sandboxes().put(&sandbox("sbx-killed00", "acme", "killed")).await.unwrap();
    store.sandboxes().put(&sandbox("sbx-foreign0", "other", "running")).await.unwrap();
    let mut tagged = sandbox("sbx-tagged00", "acme", "paused");
    tagged.metadata.insert("team".to_owned(), "a%b".to_owned());
    store.sandboxes().put(&tagged).await.unwrap();

    let mine = SandboxFilter { account: Some("acme".to_owned()), ..SandboxFilter::default() };
    let list = async |filter: SandboxFilter| {
        let page = store.sandboxes().list(&filter).await.unwrap();
        (page.sandboxes.into_iter().map(|r| r.id).collect::<Vec<_>>(), page.total)
    };
    assert_eq!(list(mine.clone()).await.1, 7);
    let running = SandboxFilter { states: vec!["running".to_owned()], ..mine.clone() };
    let (page, total) = list(SandboxFilter { limit: Some(2), offset: 1, ..running }).await;
    assert_eq!((page, total), (vec!["sbx-00000003".to_owned(), "sbx-00000002".to_owned()], 5));
    let metadata = BTreeMap::from([
        ("team".to_owned(), "a%b".to_owned()),
        ("purpose".to_owned(), "test's \"own\"".to_owned()),
    ]);
    assert_eq!(list(SandboxFilter { metadata, ..mine.clone() }).await, (vec!["sbx-tagged00".to_owned()], 1));
    let metadata = BTreeMap::from([("team".to_owned(), "axb".to_owned())]);
    assert_eq!(list(SandboxFilter { metadata, ..mine }).await.1, 0);
}

#[tokio::test]
async fn pages_have_each_sandbox_once_whatever_is_created_killed_and_forgotten_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    // Two of each moment, so that the moment alone does not order them.
    let at = |n: i64| Timestamp::from_microsecond(1_000_000 + n / 2).unwrap();
    let put = async |n: i64, state: &str| {
        let id = format!("sbx-{n:08}");
        let record = SandboxRecord { created_at: at(n), ..sandbox(&id, "acme", state) };
        store.sandboxes().put(&record).await.unwrap();
        id
    };
    let mut expected = Vec::new();
    for n in 0..20 {
        expected.push(put(n, "running").await);
    }
    expected.sort_by_key(|id| (std::cmp::Reverse(id[4..].parse::<i64>().unwrap() / 2), id.clone()));

    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let states = vec!["running".to_owned()];
        let filter = SandboxFilter { states, limit: Some(3), after, ..SandboxFilter::default() };
        let page = store.sandboxes().list(&filter).await.unwrap();
        assert!(page.sandboxes.len() <= 3);
        let ids: Vec<_> = page.sandboxes.into_iter().map(|record| record.id).collect();
        // What was shown goes, the one that the next page begins after is forgotten, and a new one comes.
        put(ids[0][4..].parse().unwrap(), "killed").await;
        store.sandboxes().delete(ids.last().unwrap()).await.unwrap();
        put(1000 + seen.len() as i64, "running").await;
        seen.extend(ids);
        let Some(next) = page.next else { break };
        after = Some(next.to_string().parse().unwrap());
    }
    assert_eq!(seen, expected);
}

#[test]
fn what_is_no_cursor_is_refused() {
    let good: SandboxCursor = "s1.1764000000000000.sbx-0000000a".parse().unwrap();
    assert_eq!(good.to_string(), "s1.1764000000000000.sbx-0000000a");
    for text in [
        "",
        "3",
        "s1",
        "s1.",
        "s1.1",
        "s1.1.",
        "s2.1.sbx-0",
        "s1.x.sbx-0",
        "s1.01.sbx-0",
        "s1.+1.sbx-0",
        "s1.1.sbx 0",
        "s1.1.a.b",
        "s1.99999999999999999999.sbx-0",
        " s1.1.sbx-0",
        "s1.1.sbx-0000000A",
        "s1.1.sbx-0000000a0",
    ] {
        assert!(text.parse::<SandboxCursor>().is_err(), "{text:?}");
    }
}

#[tokio::test]
async fn only_old_sandboxes_of_the_state_are_pruned() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.sandboxes().put(&sandbox("sbx-killed00", "acme", "killed")).await.unwrap();
    store.sandboxes().put(&sandbox("sbx-running0", "acme", "running")).await.unwrap();
    assert_eq!(store.sandboxes().prune("killed", now() - 1.hour(), 9).await.unwrap(), 0);
    store.sandboxes().put(&sandbox("sbx-killed01", "acme", "killed")).await.unwrap();
    assert_eq!(store.sandboxes().prune("killed", now() + 1.hour(), 1).await.unwrap(), 1);
    assert_eq!(store.sandboxes().prune("killed", now() + 1.hour(), 9).await.unwrap(), 1);
    assert!(store.sandboxes().get("sbx-running0").await.unwrap().is_some());
}

#[tokio::test]
async fn an_account_that_has_ended_too_many_sandboxes_pushes_out_its_own_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut large = sandbox("sbx-large000", "acme", "killed");
    large.metadata = BTreeMap::from([("label".to_owned(), "x".repeat(10_000))]);
    for (id, account, state) in [
        ("sbx-oldest00", "acme", "killed"),
        ("sbx-running0", "acme", "running"),
        ("sbx-newest00", "acme", "killed"),
        ("sbx-other000", "other", "killed"),
    ] {
        let (id, account, state) = (id.to_owned(), account.to_owned(), state.to_owned());
        let record = SandboxRecord { id, account, state, ..large.clone() };
        store.sandboxes().put(&record).await.unwrap();
    }
    assert_eq!(store.sandboxes().prune_beyond("killed", 30_000, 9).await.unwrap(), 0);
    assert_eq!(store.sandboxes().prune_beyond("killed", 20_000, 9).await.unwrap(), 1);
    assert!(store.sandboxes().get("sbx-oldest00").await.unwrap().is_none());
    assert_eq!(store.sandboxes().list(&SandboxFilter::default()).await.unwrap().total, 3);
}

#[tokio::test]
async fn a_sandbox_is_listed_by_many_labels_only_if_it_has_all_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let labels = |of: std::ops::Range<u32>| of.map(|n| (format!("k{n}"), format!("v{n}"))).collect();
    let record = SandboxRecord { metadata: labels(0..40), ..sandbox("sbx-00000001", "acme", "running") };
    store.sandboxes().put(&record).await.unwrap();
    let listed = async |metadata: BTreeMap<String, String>| {
        let filter = SandboxFilter { metadata, ..SandboxFilter::default() };
        store.sandboxes().list(&filter).await.unwrap().total
    };
    assert_eq!(listed(labels(0..32)).await, 1);
    assert_eq!(listed(labels(9..41)).await, 0, "it has no k40");
    let mut other: BTreeMap<_, _> = labels(0..32);
    other.insert("k7".to_owned(), "v8".to_owned());
    assert_eq!(listed(other).await, 0, "its k7 is another");
}

#[tokio::test]
async fn a_page_ends_where_its_records_are_too_long_and_the_next_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for n in 0..5 {
        let mut record = sandbox(&format!("sbx-0000000{n}"), "acme", "running");
        // Two of them are more than a page, and so is the last alone.
        let length = if n == 4 { PAGE_BYTES + 1 } else { PAGE_BYTES / 2 };
        record.spec = json!({ "text": "x".repeat(length) });
        record.created_at = Timestamp::from_second(1000 - n).unwrap();
        store.sandboxes().put(&record).await.unwrap();
    }
    let (mut after, mut pages) = (None, Vec::new());
    loop {
        let filter = SandboxFilter { limit: Some(100), after, ..SandboxFilter::default() };
        let page = store.sandboxes().list(&filter).await.unwrap();
        assert_eq!(page.total, 5);
        pages.push(page.sandboxes.len());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(pages, [1, 1, 1, 1, 1]);
    let all = store.sandboxes().list(&SandboxFilter::default()).await.unwrap();
    assert_eq!((all.sandboxes.len(), all.next), (5, None), "who asks for all gets all");
}

#[test]
fn the_values_of_the_environment_are_not_in_the_debug_text() {
    let text = format!("{:?}", sandbox("sbx-00000001", "acme", "running"));
    assert!(text.contains("TOKEN") && !text.contains("secret-value"), "{text}");
}

#[tokio::test]
async fn a_revoked_key_opens_nothing_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let (kept, gone) = (key("key-1", 1), key("key-2", 2));
    for key in [&kept, &gone] {
        assert!(store.keys().put(key).await.unwrap());
        assert_eq!(store.keys().by_hash(&key.hash).await.unwrap().as_ref(), Some(key));
    }
    let revoke = async |account| store.keys().revoke(account, &gone.id).await.unwrap();
    assert_eq!(revoke(Some("another account")).await, Revocation::NoSuchKey);
    assert_eq!(store.keys().by_hash(&gone.hash).await.unwrap(), Some(gone.clone()));
    assert_eq!(revoke(Some("acme")).await, Revocation::Done);
    assert_eq!(revoke(Some("acme")).await, Revocation::Before);
    assert_eq!(revoke(None).await, Revocation::Before);
    drop(store);

    let store = open(dir.path()).await;
    assert_eq!(store.keys().by_hash(&gone.hash).await.unwrap(), None);
    assert_eq!(store.keys().by_hash(&kept.hash).await.unwrap(), Some(kept.clone()));
    let revoked = KeyRecord { revoked: true, ..gone };
    assert_eq!(store.keys().list(Some("acme")).await.unwrap(), [kept.clone(), revoked.clone()]);
    assert_eq!(store.keys().list(None).await.unwrap(), [kept, revoked.clone()]);
    assert_eq!(store.keys().list(Some("another account")).await.unwrap(), []);
    assert!(store.keys().put(&revoked).await.is_err(), "an id is used once");
}

#[tokio::test]
async fn a_revocation_is_noticed_by_a_process_that_trusts_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (daemon, beside) = (open(dir.path()).await, Store::open_beside(dir.path()).await.unwrap());
    daemon.keys().put(&key("key-1", 1)).await.unwrap();
    let before = daemon.keys().revocations().unwrap();
    assert_eq!(beside.keys().revoke(None, "key-2").await.unwrap(), Revocation::NoSuchKey);
    assert_eq!(daemon.keys().revocations(), Some(before));
    assert_eq!(beside.keys().revoke(None, "key-1").await.unwrap(), Revocation::Done);
    assert_ne!(daemon.keys().revocations(), Some(before));
    let mode = fs::metadata(dir.path().join("revocations")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn an_account_begins_with_its_first_key_and_has_a_bounded_number_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.accounts().get("acme").await.unwrap(), None);
    let numbered = |n: u32| {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&n.to_le_bytes());
        KeyRecord { id: format!("key-{n:04}"), hash, ..key("", 0) }
    };
    let first = numbered(0);
    for n in 0..MAX_KEYS {
        assert!(store.keys().put(&KeyRecord { created_at: first.created_at, ..numbered(n) }).await.unwrap());
    }
    let account = store.accounts().get("acme").await.unwrap().unwrap();
    assert_eq!((account.id.as_str(), account.created_at), ("acme", first.created_at));
    assert!(!store.keys().put(&numbered(MAX_KEYS)).await.unwrap());
    let other = KeyRecord { account: "other".to_owned(), ..numbered(1 << 20) };
    assert!(store.keys().put(&other).await.unwrap(), "the keys of another account do not count");
    assert_eq!(store.accounts().list().await.unwrap().len(), 2);

    // Revoked ones make room, and the oldest of them are forgotten.
    for n in 0..2 * MAX_REVOKED_KEYS {
        store.keys().revoke(Some("acme"), &numbered(n).id).await.unwrap();
        assert!(store.keys().put(&numbered(MAX_KEYS + n)).await.unwrap(), "{n}");
    }
    let listed = store.keys().list(Some("acme")).await.unwrap();
    let revoked = listed.iter().filter(|key| key.revoked).count();
    assert_eq!(listed.len() - revoked, MAX_KEYS as usize);
    assert_eq!(revoked, MAX_REVOKED_KEYS as usize);
    assert!(listed.iter().all(|key| key.id != "key-0000"));
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_ones_answer() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let requests = store.idempotency();
    assert_eq!(requests.begin("acme", "k", b"hash").await.unwrap(), Begin::New);
    assert_eq!(requests.begin("acme", "k", b"hash").await.unwrap(), Begin::InProgress);
    assert_eq!(requests.begin("acme", "k", b"other").await.unwrap(), Begin::BodyDiffers);
    assert_eq!(requests.begin("other", "k", b"hash").await.unwrap(), Begin::New, "keys are per account");
    requests.finish("acme", "k", 201, b"{}").await.unwrap();
    requests.abandon("acme", "k").await.unwrap();
    let replay = Begin::Replay { status: 201, body: b"{}".to_vec() };
    assert_eq!(requests.begin("acme", "k", b"hash").await.unwrap(), replay, "an answer cannot be abandoned");
    assert_eq!(requests.begin("acme", "k", b"other").await.unwrap(), Begin::BodyDiffers);
    assert_eq!(requests.purge().await.unwrap(), 0);

    requests.abandon("other", "k").await.unwrap();
    assert_eq!(requests.begin("other", "k", b"new").await.unwrap(), Begin::New);
    drop(store);
    let store = open(dir.path()).await;
    assert_eq!(store.idempotency().begin("acme", "k", b"hash").await.unwrap(), replay);
    let after_a_crash = store.idempotency().begin("other", "k", b"new").await.unwrap();
    assert_eq!(after_a_crash, Begin::New, "a request that was never answered can be made again");
}

#[tokio::test]
async fn an_account_with_too_many_answers_pushes_out_its_own_oldest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let requests = store.idempotency();
    let body = vec![b'x'; 10_000];
    for (account, key) in [("acme", "1, \"oldest\""), ("acme", "2"), ("acme", "3"), ("other", "1")] {
        assert_eq!(requests.begin(account, key, b"hash").await.unwrap(), Begin::New);
        requests.finish(account, key, 201, &body).await.unwrap();
    }
    // One that is not answered yet takes nothing.
    assert_eq!(requests.begin("acme", "4", b"hash").await.unwrap(), Begin::New);
    assert_eq!(requests.purge_beyond(31_000).await.unwrap(), 0);
    assert_eq!(requests.purge_beyond(21_000).await.unwrap(), 1);
    assert_eq!(requests.begin("acme", "1, \"oldest\"", b"hash").await.unwrap(), Begin::New);
    for (account, key) in [("acme", "2"), ("acme", "3"), ("other", "1")] {
        let again = requests.begin(account, key, b"hash").await.unwrap();
        assert!(matches!(again, Begin::Replay { .. }), "{account} {key}");
    }
    assert_eq!(requests.begin("acme", "4", b"hash").await.unwrap(), Begin::InProgress);
}

#[tokio::test]
async fn a_request_that_was_interrupted_is_answered_by_the_sandbox_it_has_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let begin = async |store: &Store| store.idempotency().begin("acme", "k", b"hash").await.unwrap();
    assert_eq!(begin(&store).await, Begin::New);
    store.idempotency().assign("acme", "k", "sbx-00000001").await.unwrap();
    assert_eq!(begin(&store).await, Begin::InProgress);
    drop(store);
    // The process died before it answered.
    let store = open(dir.path()).await;
    let interrupted = Begin::Interrupted { sandbox: "sbx-00000001".to_owned() };
    assert_eq!(begin(&store).await, interrupted);
    assert_eq!(begin(&store).await, Begin::InProgress, "of repeats one goes on");
    store.idempotency().release("acme", "k");
    assert_eq!(begin(&store).await, interrupted);
    store.idempotency().finish("acme", "k", 201, b"{}").await.unwrap();
    assert_eq!(begin(&store).await, Begin::Replay { status: 201, body: b"{}".to_vec() });
}

#[tokio::test]
async fn a_request_that_nobody_works_on_and_that_names_no_sandbox_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let begin = async |hash: &[u8]| store.idempotency().begin("acme", "k", hash).await.unwrap();
    assert_eq!(begin(b"hash").await, Begin::New);
    assert_eq!(begin(b"hash").await, Begin::InProgress);
    // What the client's death and a full disk leave behind: a row that says nothing, and nobody who works on it.
    store.idempotency().release("acme", "k");
    assert_eq!(begin(b"another").await, Begin::New);
    assert_eq!(begin(b"hash").await, Begin::BodyDiffers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_simultaneous_repeats_exactly_one_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move { store.idempotency().begin("acme", "k", b"hash").await.unwrap() })
        })
        .collect();
    let mut new = 0;
    for task in tasks {
        match task.await.unwrap() {
            Begin::New => new += 1,
            other => assert_eq!(other, Begin::InProgress),
        }
    }
    assert_eq!(new, 1);
}

#[tokio::test]
async fn queries_page_through_everything_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    insert(&store, (1..=25).map(|id| event(id, "sbx-a", "egress_blocked")).collect()).await;
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let mut seen = Vec::new();
        let mut query = EventQuery { order, limit: Some(10), ..EventQuery::default() };
        let mut pages = 0;
        loop {
            let page = store.events().query(&query).await.unwrap();
            pages += 1;
            seen.extend(page.events.iter().map(|event| event.id));
            query.cursor = page.next;
            if query.cursor.is_none() {
                break;
            }
        }
        if order == Order::NewestFirst {
            seen.reverse();
        }
        assert_eq!(seen, (1..=25).collect::<Vec<_>>());
        assert_eq!(pages, 3);
    }
}

#[tokio::test]
async fn a_foreign_cursor_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for cursor in ["", "o", "oxyz", "n1", "1", "o-1", "é"] {
        let query = EventQuery { cursor: Some(cursor.to_owned()), ..EventQuery::default() };
        let refused = store.events().query(&query).await.unwrap_err();
        assert!(matches!(refused, StoreError::Cursor { .. }), "{cursor}: {refused}");
    }
    let query = EventQuery { cursor: Some("o1".to_owned()), ..EventQuery::default() };
    assert!(store.events().query(&query).await.unwrap().events.is_empty());
}

#[tokio::test]
async fn a_query_keeps_to_its_conditions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    store.sandboxes().put(&sandbox("sbx-a", "acme", "running")).await.unwrap();
    let mut events: Vec<_> =
        (1..=6).map(|id| event(id, if id % 2 == 0 { "sbx-a" } else { "sbx-b" }, "x")).collect();
    events[1].kind = "egress_allowed".into();
    events[1].decision = Some(policy::Decision::Allow);
    events[2].host = Some("api.example.com".to_owned());
    events[3].host = Some("example.com".to_owned());
    events[4].host = Some("notexample.com".to_owned());
    insert(&store, events).await;

    let all = EventQuery::default;
    let at = |micros| Some(Timestamp::from_microsecond(micros).unwrap());
    assert_eq!(ids(&store, EventQuery { sandbox: Some("sbx-b".to_owned()), ..all() }).await, [1, 3, 5]);
    assert_eq!(ids(&store, EventQuery { account: Some("acme".to_owned()), ..all() }).await, [2, 4, 6]);
    assert_eq!(ids(&store, EventQuery { since: at(3), until: at(5), ..all() }).await, [3, 4]);
    assert_eq!(ids(&store, EventQuery { kinds: vec!["egress_allowed".to_owned()], ..all() }).await, [2]);
    assert_eq!(ids(&store, EventQuery { decision: Some(policy::Decision::Allow), ..all() }).await, [2]);
    assert_eq!(ids(&store, EventQuery { host: Some("example.com".to_owned()), ..all() }).await, [4]);
    assert_eq!(ids(&store, EventQuery { host: Some("*.example.com".to_owned()), ..all() }).await, [3]);
    assert_eq!(ids(&store, EventQuery { host: Some("%".to_owned()), ..all() }).await, [0; 0]);
}

#[tokio::test]
async fn an_event_is_read_back_as_it_was_written_and_changes_apply() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut full: EventRecord = serde_json::from_value(json!({
        "id": 1_790_000_000_000_000_u64,
        "time": "2026-09-21T13:20:00Z",
        "sandbox_id": "sbx-a",
        "category": "network",
        "type": "egress_allowed",
        "decision": "allow",
        "reason": "allow_entry",
        "rule": {"text": "allow_out[0] a.example", "kind": "entry", "list": "allow_out", "index": 0, "entry": "a.example"},
        "host": "a.example",
        "host_source": "sni",
        "address": "2001:db8::1",
        "port": 443,
        "protocol": "tcp",
        "generation": 3,
        "count": 1,
        "detail": {"nested": [null, "text", "\u{0}'\""]},
    }))
    .unwrap();
    insert(&store, vec![full.clone()]).await;
    insert(&store, vec![full.clone()]).await;
    assert_eq!(store.events().query(&EventQuery::default()).await.unwrap().events, [full.clone()]);

    let last_time = now();
    let updates = vec![
        EventUpdate::Finished { id: full.id, bytes_up: 10, bytes_down: 20, duration_ms: 30 },
        EventUpdate::Repeated { id: full.id, count: 7, last_time },
        EventUpdate::Repeated { id: 99, count: 7, last_time },
    ];
    let id = full.id;
    for update in updates.iter().filter(|update| update.id() == id) {
        update.apply(&mut full);
    }
    store.events().write(&EventBatch { inserts: Vec::new(), updates }).await.unwrap();
    assert_eq!((full.count, full.last_time, full.bytes_up), (7, Some(last_time), Some(10)));
    assert_eq!((full.bytes_down, full.duration_ms), (Some(20), Some(30)));
    assert_eq!(store.events().query(&EventQuery::default()).await.unwrap().events, [full.clone()]);
    assert_eq!(store.events().last_id().await.unwrap(), full.id);
}

#[tokio::test]
async fn pruning_deletes_what_is_old_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    insert(&store, (1..=10).map(|id| event(id, "sbx-a", "x")).collect()).await;
    let before = Timestamp::from_microsecond(6).unwrap();
    assert_eq!(store.events().prune(before, 3).await.unwrap(), 3);
    assert_eq!(store.events().prune(before, 3).await.unwrap(), 2);
    assert_eq!(ids(&store, EventQuery::default()).await, [6, 7, 8, 9, 10]);
    assert!(store.events().bytes_used().await.unwrap() > 4096);
}

#[tokio::test]
async fn a_sandbox_that_makes_noise_pushes_out_its_own_past() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.events().prune_largest(2).await.unwrap(), None);
    insert(&store, vec![event(1, "sbx-quiet", "x"), EventRecord { sandbox_id: None, ..event(2, "", "x") }])
        .await;
    insert(&store, (3..=6).map(|id| event(id, "sbx-loud", "x")).collect()).await;
    let pruned = store.events().prune_largest(3).await.unwrap();
    assert_eq!(pruned, Some((Some("sbx-loud".to_owned()), 3)));
    assert_eq!(ids(&store, EventQuery::default()).await, [1, 2, 6]);
}

#[tokio::test]
async fn a_batch_of_any_size_is_written_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut next = 1;
    for size in [1, 9, 10, 11, 50, 61, 111, 500] {
        insert(&store, (next..next + size).map(|id| event(id, "sbx-a", "x")).collect()).await;
        next += size;
    }
    let written = ids(&store, EventQuery { limit: Some(1000), ..EventQuery::default() }).await;
    assert_eq!(written, (1..next).collect::<Vec<_>>());

    let updates = written.iter().flat_map(|&id| {
        let finished = EventUpdate::Finished { id, bytes_up: id, bytes_down: 2 * id, duration_ms: 3 * id };
        [finished, EventUpdate::Repeated { id, count: 4 * id, last_time: now() }]
    });
    store.events().write(&EventBatch { inserts: Vec::new(), updates: updates.collect() }).await.unwrap();
    let query = EventQuery { limit: Some(1000), ..EventQuery::default() };
    for event in store.events().query(&query).await.unwrap().events {
        let totals = (event.bytes_up, event.bytes_down, event.duration_ms, event.count);
        let id = event.id;
        assert_eq!(totals, (Some(id), Some(2 * id), Some(3 * id), 4 * id));
    }
}
