//! What the audit promises, from the recorder to a query.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{collections::BTreeSet, path::Path, time::Duration};

use audit::{Audit, AuditConfig, AuditError, AuditStats, Recorder, Subscription, Update};
use jiff::Timestamp;
use policy::{Decision, EventKind, FlowEvent, FlowTotals, List, NameSource, Protocol, Reason, Rule, Verdict};
use serde_json::json;
use store::{Category, EventBatch, EventQuery, EventRecord, EventUpdate, SandboxRecord, Store};
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(20);

async fn start(dir: &Path, config: AuditConfig) -> (Store, Audit) {
    let store = Store::open(dir).await.unwrap();
    let audit = Audit::start(store.clone(), config).await.unwrap();
    (store, audit)
}

/// All events of the network and of the life cycle, after a flush.
async fn events(store: &Store, audit: &Audit) -> Vec<EventRecord> {
    audit.flush().await.unwrap();
    store.events().query(&EventQuery { limit: Some(1000), ..EventQuery::default() }).await.unwrap().events
}

fn blocked(port: u16) -> FlowEvent {
    FlowEvent {
        kind: EventKind::EgressBlocked,
        verdict: Verdict { decision: Decision::Deny, rule: Rule::Floor("metadata"), reason: Reason::Floor },
        name: None,
        name_source: NameSource::None,
        address: Some("169.254.169.254".parse().unwrap()),
        port: Some(port),
        protocol: Protocol::Tcp,
        generation: 4,
        count: 1,
    }
}

fn allowed() -> FlowEvent {
    let rule = Rule::Entry { list: List::AllowOut, index: 2, entry: "api.github.com".into() };
    FlowEvent {
        kind: EventKind::EgressAllowed,
        verdict: Verdict { decision: Decision::Allow, rule, reason: Reason::AllowEntry },
        name: Some("api.github.com".parse().unwrap()),
        name_source: NameSource::Sni,
        address: Some("140.82.112.5".parse().unwrap()),
        ..blocked(443)
    }
}

async fn next(follower: &mut Subscription) -> Update {
    timeout(DEADLINE, follower.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_repeated_refusal_is_one_event_with_a_count() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig::default()).await;
    let recorder = audit.recorder("sbx-a", true);
    let id = recorder.flow(blocked(80));
    for _ in 0..9 {
        assert_eq!(recorder.flow(blocked(80)), id);
    }
    let seen = events(&store, &audit).await;
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].id, seen[0].count), (id, 10));
    assert!(seen[0].last_time.unwrap() >= seen[0].time);

    assert_eq!(recorder.flow(blocked(80)), id);
    assert_eq!(events(&store, &audit).await[0].count, 11, "the stored row is counted on");
    assert_ne!(recorder.flow(blocked(81)), id);
    assert_eq!(events(&store, &audit).await.len(), 2);
}

#[tokio::test]
async fn an_allowed_flow_gets_its_bytes_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig::default()).await;
    let recorder = audit.recorder("sbx-a", true);
    let totals = |n| FlowTotals { bytes_up: n, bytes_down: 2 * n, duration: Duration::from_millis(3 * n) };
    let (short, long) = (recorder.flow(allowed()), recorder.flow(allowed()));
    recorder.finish(short, totals(10));
    let seen = events(&store, &audit).await;
    let of = |event: &EventRecord| (event.id, event.bytes_up, event.bytes_down, event.duration_ms);
    assert_eq!(
        seen.iter().map(of).collect::<Vec<_>>(),
        [(short, Some(10), Some(20), Some(30)), (long, None, None, None)]
    );
    recorder.finish(long, totals(100));
    assert_eq!(of(&events(&store, &audit).await[1]), (long, Some(100), Some(200), Some(300)));
}

#[tokio::test]
async fn an_event_tells_the_rule_the_name_and_the_destination() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig::default()).await;
    let recorder = audit.recorder("sbx-a", true);
    let ids =
        [recorder.flow(allowed()), recorder.flow(FlowEvent { protocol: Protocol::Other(47), ..blocked(80) })];
    let seen = events(&store, &audit).await;
    assert_eq!(
        serde_json::to_value(&seen[0]).unwrap(),
        json!({
            "id": ids[0],
            "time": seen[0].time,
            "sandbox_id": "sbx-a",
            "category": "network",
            "type": "egress_allowed",
            "decision": "allow",
            "reason": "allow_entry",
            "rule": {
                "text": "allow_out[2] api.github.com",
                "kind": "entry", "list": "allow_out", "index": 2, "entry": "api.github.com",
            },
            "host": "api.github.com",
            "host_source": "sni",
            "address": "140.82.112.5",
            "port": 443,
            "protocol": "tcp",
            "generation": 4,
            "count": 1,
        })
    );
    let refusal = serde_json::to_value(&seen[1]).unwrap();
    assert_eq!(refusal["rule"], json!({"text": "floor:metadata", "kind": "floor", "floor": "metadata"}));
    assert_eq!((&refusal["protocol"], &refusal["host_source"]), (&json!("47"), &json!("none")));
    assert!(refusal.get("host").is_none());
}

#[tokio::test]
async fn a_full_queue_is_itself_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig { queue: 10, ..AuditConfig::default() }).await;
    let recorder = audit.recorder("sbx-a", true);
    recorder.lifecycle("sandbox_created", json!({"template": "base"}));
    // Nothing else runs on this thread in between, so the writer takes none of them away.
    for port in 1..=25 {
        recorder.flow(blocked(port));
    }
    let seen = events(&store, &audit).await;
    let ports: Vec<_> = seen.iter().filter_map(|event| event.port).collect();
    assert_eq!(ports, (16..=25).collect::<Vec<_>>());
    assert_eq!(seen[0].kind, "sandbox_created");
    let gap = seen.last().unwrap();
    assert_eq!((gap.kind.as_ref(), gap.count, gap.reason.as_deref()), ("audit_gap", 15, Some("queue_full")));

    recorder.flow(blocked(1));
    let seen = events(&store, &audit).await;
    assert_eq!(seen.last().unwrap().port, Some(1), "with room again nothing is dropped");
}

#[tokio::test]
async fn a_gap_at_the_source_is_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig::default()).await;
    let recorder = audit.recorder("sbx-a", true);
    recorder.gap("kernel_log_overrun", 3);
    recorder.gap("kernel_log_overrun", 4);
    recorder.gap("nothing", 0);
    let seen = events(&store, &audit).await;
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].kind.as_ref(), seen[0].reason.as_deref()), ("audit_gap", Some("kernel_log_overrun")));
    assert_eq!(seen[0].count, 7);
}

#[tokio::test]
async fn a_sandbox_without_audit_keeps_its_life_cycle_only() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig::default()).await;
    let record = |recorder: &Recorder| {
        let id = recorder.flow(blocked(80));
        recorder.finish(id, FlowTotals::default());
        recorder.event(Category::Command, "command_started", json!({"pid": 2}));
        recorder.gap("kernel_log_overrun", 1);
        recorder.lifecycle("sandbox_killed", json!(null));
        id
    };
    assert_eq!(record(&audit.recorder("sbx-off", false)), 0);
    record(&audit.recorder("sbx-on", true));
    audit.admin("key_created", json!({"id": "key-1"}));
    let seen = events(&store, &audit).await;
    let kinds = |sandbox: Option<&str>| -> Vec<String> {
        let of = seen.iter().filter(|event| event.sandbox_id.as_deref() == sandbox);
        of.map(|event| event.kind.to_string()).collect()
    };
    assert_eq!(kinds(Some("sbx-off")), ["sandbox_killed"]);
    assert_eq!(kinds(Some("sbx-on")), ["egress_blocked", "command_started", "sandbox_killed", "audit_gap"]);
    assert_eq!(kinds(None), ["key_created"]);
}

#[tokio::test]
async fn events_survive_a_restart_and_later_ones_come_after_them() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig::default()).await;
    let first = audit.recorder("sbx-a", true).flow(allowed());
    audit.close().await.unwrap();
    // As if the clock had been far ahead before.
    let far = EventRecord::new(first << 1, Timestamp::now(), Category::Admin, "key_created");
    store.events().write(&EventBatch { inserts: vec![far], updates: Vec::new() }).await.unwrap();
    drop((audit, store));

    // The tasks' clones of the store go a moment after the last handle.
    let (store, audit) = timeout(DEADLINE, async {
        loop {
            match Store::open(dir.path()).await {
                Ok(store) => {
                    let audit = Audit::start(store.clone(), AuditConfig::default()).await.unwrap();
                    return (store, audit);
                }
                Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await
    .unwrap();
    let second = audit.recorder("sbx-a", true).flow(allowed());
    let ids: Vec<_> = events(&store, &audit).await.iter().map(|event| event.id).collect();
    assert_eq!(ids, [first, first << 1, second]);
}

#[tokio::test]
async fn a_follower_sees_events_and_their_changes_as_they_happen() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, audit) = start(dir.path(), AuditConfig::default()).await;
    let (mut of_a, mut of_all) = (audit.subscribe(Some("sbx-a".to_owned())), audit.subscribe(None));
    audit.recorder("sbx-b", true).flow(allowed());
    let recorder = audit.recorder("sbx-a", true);
    let id = recorder.flow(allowed());
    let Update::Event(event) = next(&mut of_a).await else { panic!("an event first") };
    assert_eq!((event.id, event.bytes_up), (id, None));
    recorder.finish(id, FlowTotals { bytes_up: 5, ..FlowTotals::default() });
    let Update::Changed { change, .. } = next(&mut of_a).await else { panic!("then its end") };
    assert_eq!(change, EventUpdate::Finished { id, bytes_up: 5, bytes_down: 0, duration_ms: 0 });

    let Update::Event(event) = next(&mut of_all).await else { panic!("an event first") };
    assert_eq!(event.sandbox_id.as_deref(), Some("sbx-b"));
}

#[tokio::test]
async fn a_slow_follower_is_told_that_it_missed_something() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, audit) = start(dir.path(), AuditConfig { follower_lag: 8, ..AuditConfig::default() }).await;
    let mut follower = audit.subscribe(None);
    let recorder = audit.recorder("sbx-a", true);
    for port in 1..=20 {
        recorder.flow(blocked(port));
    }
    audit.flush().await.unwrap();
    assert!(matches!(next(&mut follower).await, Update::Missed(12)));
    let Update::Event(event) = next(&mut follower).await else { panic!("then the rest") };
    assert_eq!(event.port, Some(13));
}

#[tokio::test]
async fn old_events_are_deleted_and_young_ones_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let aged =
        |id, days| EventRecord::new(id, Timestamp::now() - day * days, Category::Network, "egress_blocked");
    let inserts = vec![aged(1, 8), aged(2, 6)];
    store.events().write(&EventBatch { inserts, updates: Vec::new() }).await.unwrap();
    let audit = Audit::start(store.clone(), AuditConfig::default()).await.unwrap();
    timeout(DEADLINE, async {
        while events(&store, &audit).await.len() > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(events(&store, &audit).await[0].id, 2);
}

#[tokio::test]
async fn a_database_that_grows_too_large_loses_events_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let inserts = (1..=400).map(|id| {
        let mut event = EventRecord::new(id, Timestamp::now(), Category::Network, "egress_blocked");
        event.sandbox_id = Some("sbx-loud".to_owned());
        event.detail = Some("x".repeat(4000).into());
        event
    });
    store.events().write(&EventBatch { inserts: inserts.collect(), updates: Vec::new() }).await.unwrap();
    let config = AuditConfig { max_bytes: 1 << 20, ..AuditConfig::default() };
    let audit = Audit::start(store.clone(), config).await.unwrap();
    let seen = timeout(DEADLINE, async {
        loop {
            let seen = events(&store, &audit).await;
            if seen.iter().any(|event| event.kind == "audit_gap") {
                return seen;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!((seen[0].reason.as_deref(), seen[0].count), (Some("database_full"), 400));
    assert_eq!(seen[0].sandbox_id.as_deref(), Some("sbx-loud"));
    assert!(store.events().bytes_used().await.unwrap() <= 1 << 20);
}

fn ended(id: &str, account: &str, label: usize) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        account: account.to_owned(),
        template_id: "tpl-base".to_owned(),
        name: String::new(),
        state: "killed".to_owned(),
        metadata: [("label".to_owned(), "x".repeat(label))].into(),
        envs: [].into(),
        spec: json!({}),
        audit_enabled: true,
        created_at: Timestamp::now(),
        started_at: None,
        end_at: None,
        timeout_s: 0,
        on_timeout: "kill".to_owned(),
        auto_resume: false,
        host: json!({}),
        generation: 1,
    }
}

#[tokio::test]
async fn what_is_no_event_costs_no_event_however_much_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    let event = |id| EventRecord::new(id, Timestamp::now(), Category::Network, "egress_blocked");
    let inserts = (1..=20).map(event).collect();
    store.events().write(&EventBatch { inserts, updates: Vec::new() }).await.unwrap();
    // Some MiB of sandboxes and of answers.
    let mut alive = ended("sbx-00000000", "acme", 2 << 20);
    alive.state = "running".to_owned();
    store.sandboxes().put(&alive).await.unwrap();
    store.idempotency().begin("acme", "k", b"hash").await.unwrap();
    store.idempotency().finish("acme", "k", 201, &vec![b'x'; 2 << 20]).await.unwrap();
    store.sandboxes().put(&ended("sbx-gone0000", "acme", 2 << 20)).await.unwrap();
    assert!(store.events().database_bytes().await.unwrap() > 6 << 20);
    assert!(store.events().bytes_used().await.unwrap() < 1 << 20);

    let config = AuditConfig { max_bytes: 1 << 20, killed_bytes: 1 << 20, ..AuditConfig::default() };
    let audit = Audit::start(store.clone(), config).await.unwrap();
    // The last thing of a round: the sandbox that is too much is forgotten.
    timeout(DEADLINE, async {
        while store.sandboxes().get("sbx-gone0000").await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let seen = events(&store, &audit).await;
    assert_eq!(seen.iter().map(|event| event.id).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
    assert!(store.sandboxes().get("sbx-00000000").await.unwrap().is_some());
}

#[tokio::test]
async fn a_flush_says_when_the_store_does_not_take_the_events() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig::default()).await;
    let recorder = audit.recorder("sbx-a", true);
    recorder.flow(allowed());
    audit.flush().await.unwrap();
    store.close().await;
    recorder.flow(allowed());
    assert!(matches!(timeout(DEADLINE, audit.flush()).await.unwrap(), Err(AuditError::Store(_))));
    assert!(matches!(timeout(DEADLINE, audit.close()).await.unwrap(), Err(AuditError::Store(_))));
}

#[tokio::test]
async fn a_gap_at_the_source_is_recorded_with_a_full_queue_too() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig { queue: 10, ..AuditConfig::default() }).await;
    let recorder = audit.recorder("sbx-a", true);
    for port in 1..=25 {
        recorder.flow(blocked(port));
    }
    recorder.gap("kernel_log_limit", 70);
    let gaps: Vec<_> = events(&store, &audit).await.into_iter().filter(|e| e.kind == "audit_gap").collect();
    let gaps: Vec<_> = gaps.iter().map(|gap| (gap.reason.as_deref(), gap.count)).collect();
    assert_eq!(gaps, [(Some("kernel_log_limit"), 70), (Some("queue_full"), 15)]);
}

#[tokio::test]
async fn the_counters_say_what_became_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (store, audit) = start(dir.path(), AuditConfig { queue: 10, ..AuditConfig::default() }).await;
    let decisions = |blocked| {
        [("dns_blocked", 0), ("egress_allowed", 0), ("egress_blocked", blocked), ("egress_revoked", 0)].into()
    };
    assert_eq!(audit.stats(), AuditStats { decisions: decisions(0), ..AuditStats::default() });
    let recorder = audit.recorder("sbx-a", true);
    for port in 1..=12 {
        recorder.flow(blocked(port));
    }
    recorder.flow(blocked(12));
    recorder.gap("kernel_log", 4);
    audit.recorder("sbx-off", false).flow(blocked(1));
    assert_eq!(audit.stats().waiting, 12);
    audit.flush().await.unwrap();
    recorder.flow(blocked(12));
    audit.flush().await.unwrap();
    let expected = AuditStats {
        // One of them by a recorder that is switched off.
        decisions: decisions(15),
        recorded: 12,
        folded: 2,
        stored: 12,
        dropped: [("kernel_log", 4), ("queue_full", 2)].into(),
        write_failures: 0,
        waiting: 0,
    };
    assert_eq!(audit.stats(), expected);
    let counted: u64 = events(&store, &audit).await.iter().map(|event| event.count).sum();
    assert_eq!(counted, 14 + 4);
}

#[tokio::test]
async fn what_the_pipeline_writes_and_deletes_is_an_intact_chain() {
    let dir = tempfile::tempdir().unwrap();
    let config = AuditConfig { repeat_every: Duration::ZERO, ..AuditConfig::default() };
    let (store, audit) = start(dir.path(), config).await;
    let (a, b) = (audit.recorder("sbx-a", true), audit.recorder("sbx-b", true));
    audit.admin("key_created", json!({"id": "key-1"}));
    for round in 0..20_u16 {
        a.flow(blocked(80));
        b.flow(blocked(round));
        let id = a.flow(allowed());
        if round % 2 == 0 {
            audit.flush().await.unwrap();
        }
        a.finish(id, FlowTotals { bytes_up: round.into(), ..FlowTotals::default() });
        b.gap("kernel_log", 1);
    }
    let before = intact(&store, &audit).await;
    assert_eq!(before.iter().map(Option::as_deref).collect::<Vec<_>>(), [None, Some("sbx-a"), Some("sbx-b")]);
    let everything = || Timestamp::now() + Duration::from_secs(60);
    for _ in 0..20 {
        store.events().prune(everything(), 7).await.unwrap();
        a.flow(allowed());
        intact(&store, &audit).await;
    }
    while store.events().prune(everything(), 100).await.unwrap() > 0 {}
    assert_eq!(intact(&store, &audit).await, [None]);
    a.flow(allowed());
    assert_eq!(intact(&store, &audit).await, [None, Some("sbx-a".to_owned())]);
}

/// Checks all chains and says whose there are.
async fn intact(store: &Store, audit: &Audit) -> Vec<Option<String>> {
    audit.flush().await.unwrap();
    let chains = store.events().chains().await.unwrap();
    for sandbox in &chains {
        let report = store.events().verify(sandbox.as_deref(), &BTreeSet::new()).await.unwrap().unwrap();
        assert!(report.is_intact(), "{report:?}");
    }
    chains
}
