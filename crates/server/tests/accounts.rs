//! Accounts, their keys, and what becomes of a request whose key is revoked.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::sync::atomic::Ordering;

use common::{Lab, request};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use store::{Day, MoreUsage};
use tower::ServiceExt;

async fn new_key(lab: &Lab, name: &str) -> (String, String) {
    let made = lab.alice("POST", "/accounts/alice/api-keys", json!({ "name": name })).await.expect(201);
    assert_eq!(made["name"], name);
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("key_id"), text("api_key"))
}

async fn revoke(lab: &Lab, id: &str) -> Value {
    lab.alice("DELETE", &format!("/accounts/alice/api-keys/{id}"), ()).await.expect(200)
}

#[tokio::test]
async fn a_client_learns_from_its_key_whose_it_is_and_what_that_account_is() {
    let lab = Lab::new().await;
    let me = lab.alice("GET", "/auth/me", ()).await.expect(200);
    assert_eq!(me["owner_id"], "alice");
    let account = lab.alice("GET", "/accounts/alice", ()).await.expect(200);
    let created_at = account["created_at"].as_str().unwrap();
    assert!(created_at.ends_with("+00:00"), "{created_at}");
    let info = json!({"owner_id": "alice", "email": "", "tier": "self-hosted", "created_at": created_at});
    let amounts = json!({"sandbox_free_micros": 0, "guardrails_free_micros": 0, "balance_micros": 0});
    // One client reads what is below `account`, another what is beside it.
    assert_eq!(account["account"], info);
    for (name, value) in info.as_object().unwrap().iter().chain(amounts.as_object().unwrap()) {
        assert_eq!(&account[name], value);
    }
    let wallet = lab.alice("GET", "/accounts/alice/wallet", ()).await.expect(200);
    assert_eq!(wallet["wallet"], amounts);
    assert_eq!(wallet["balance_micros"], 0);
}

#[tokio::test]
async fn of_another_account_not_even_its_existence_is_told() {
    let lab = Lab::new().await;
    let (id, _) = new_key(&lab, "mine").await;
    for (method, path) in [
        ("GET", ""),
        ("GET", "/wallet"),
        ("GET", "/usage"),
        ("GET", "/usage/daily"),
        ("GET", "/overview"),
        ("GET", "/deposits"),
        ("POST", "/deposits"),
        ("POST", "/api-keys"),
        ("GET", "/api-keys"),
        ("DELETE", &format!("/api-keys/{id}")),
    ] {
        for account in ["alice", "nobody", "..", "%2E%2E", "%00", "Bob"] {
            let answer = lab.bob(method, &format!("/accounts/{account}{path}"), json!({"name": "x"})).await;
            let expected = ("forbidden: cannot access another account".to_owned(), None);
            assert_eq!(answer.error(403), expected, "{method} {account}{path}");
        }
        let own = lab.bob(method, &format!("/accounts/bob{path}"), json!({"name": "x"})).await;
        let expected = match (method, path) {
            ("POST", "/deposits") => 400,
            ("POST", _) => 201,
            // It is alice's.
            ("DELETE", _) => 404,
            _ => 200,
        };
        own.expect(expected);
    }
    let keys = lab.alice("GET", "/accounts/alice/api-keys", ()).await.expect(200);
    assert!(keys["api_keys"].as_array().unwrap().iter().all(|key| key["revoked"] == false), "{keys}");
}

#[tokio::test]
async fn a_key_is_shown_once_listed_masked_and_dead_when_it_is_revoked() {
    let lab = Lab::new().await;
    let (id, secret) = new_key(&lab, "nightly build").await;
    let mine = async || lab.send(request("GET", "/sandboxes", &secret, ())).await;
    mine().await.expect(200);

    let answer = lab.alice("GET", "/accounts/alice/api-keys", ()).await;
    let text = String::from_utf8(answer.bytes.clone()).unwrap();
    assert!(!text.contains(&secret[8..40]), "{text}");
    let listed = answer.expect(200);
    let key = listed["api_keys"].as_array().unwrap().iter().find(|key| key["key_id"] == id.as_str()).unwrap();
    assert_eq!((&key["name"], &key["revoked"]), (&json!("nightly build"), &json!(false)));
    assert_eq!(key["masked_key"], format!("{}…{}", &secret[..8], &secret[40..]));

    assert_eq!(revoke(&lab, &id).await, json!({"revoked": true}));
    mine().await.error(401);
    assert_eq!(revoke(&lab, &id).await, json!({"revoked": false}));
    let unknown = lab.alice("DELETE", "/accounts/alice/api-keys/key-none", ()).await;
    assert_eq!(unknown.error(404).0, "API key not found");
    lab.alice("GET", "/sandboxes", ()).await.expect(200);
}

#[tokio::test]
async fn a_key_can_revoke_itself() {
    let lab = Lab::new().await;
    let me = lab.alice("GET", "/auth/me", ()).await.expect(200);
    assert_eq!(revoke(&lab, me["key_id"].as_str().unwrap()).await, json!({"revoked": true}));
    lab.alice("GET", "/auth/me", ()).await.error(401);
    lab.bob("GET", "/auth/me", ()).await.expect(200);
}

#[tokio::test]
async fn an_account_has_a_bounded_number_of_keys() {
    let lab = Lab::new().await;
    let (first, _) = new_key(&lab, "first").await;
    for _ in 2..100 {
        new_key(&lab, "more").await;
    }
    let refused = lab.alice("POST", "/accounts/alice/api-keys", json!({"name": "one more"})).await.error(409);
    assert_eq!(refused.1.as_deref(), Some("too_many_keys"));
    assert!(refused.0.contains("100"), "{}", refused.0);
    revoke(&lab, &first).await;
    new_key(&lab, "one more").await;
}

#[tokio::test]
async fn the_name_of_a_key_is_checked() {
    let lab = Lab::new().await;
    for body in [json!({}), json!({"name": ""}), json!({"name": "a\nb"}), json!({"name": 5})] {
        let (message, _) = lab.alice("POST", "/accounts/alice/api-keys", &body).await.error(400);
        assert!(message.contains("name"), "{message}");
    }
}

#[tokio::test]
async fn there_are_no_deposits_and_none_are_taken() {
    let lab = Lab::new().await;
    let listed = lab.alice("GET", "/accounts/alice/deposits?limit=20&offset=0", ()).await.expect(200);
    assert_eq!(listed, json!({"deposits": [], "entries": [], "total": 0, "has_more": false}));
    let body = json!({"wallet_type": "sandbox", "amount_micros": 1_000_000});
    let (message, code) = lab.alice("POST", "/accounts/alice/deposits", body).await.error(400);
    assert!(message.contains("nothing is charged for"), "{message}");
    assert_eq!(code.as_deref(), Some("no_billing"));
}

#[tokio::test]
async fn a_stream_breaks_off_when_the_key_that_asked_for_it_is_revoked() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    let (key, secret) = new_key(&lab, "streaming").await;
    let open = async |secret: &str| {
        let path = format!("/sandboxes/{id}/commands/stream");
        let request = request("POST", &path, secret, json!({"cmd": "hang"}));
        let response = lab.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body()
    };
    let (dying, living) = (open(&secret).await, open(&lab.alice).await);
    assert_eq!(lab.fake.running.load(Ordering::SeqCst), 2);
    revoke(&lab, &key).await;
    // The command of a stream that has broken off is killed, as if its client had gone.
    let error = dying.collect().await.unwrap_err();
    assert!(error.to_string().contains("revoked"), "{error}");
    assert_eq!(lab.fake.running.load(Ordering::SeqCst), 1);
    drop(living);
    assert_eq!(lab.fake.running.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_that_is_worked_on_is_refused_when_its_key_is_revoked() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    let (key, secret) = new_key(&lab, "working").await;
    let path = format!("/sandboxes/{id}/commands");
    let working = lab.send(request("POST", &path, &secret, json!({"cmd": "hang"})));
    let revoking = async {
        while lab.fake.running.load(Ordering::SeqCst) == 0 {
            lab.fake.changed.notified().await;
        }
        revoke(&lab, &key).await
    };
    let (answer, _) = tokio::join!(working, revoking);
    answer.error(401);
    assert_eq!(lab.fake.running.load(Ordering::SeqCst), 0);
}

fn today() -> Day {
    Day::of(jiff::Timestamp::now())
}

fn date(day: Day) -> String {
    day.begins().strftime("%Y-%m-%d").to_string()
}

async fn use_up(lab: &Lab, account: &str, days_ago: i32, seconds: u64, sandboxes: u64) {
    let (day, account) = (Day(today().0 - days_ago), account.to_owned());
    let more = MoreUsage { account, day, running_ms: seconds * 1000 + 999, ended: sandboxes };
    lab.store.usage().add(&[more], None, None).await.unwrap();
}

#[tokio::test]
async fn usage_is_that_of_the_own_account_on_the_days_asked_for_and_costs_nothing() {
    let lab = Lab::new().await;
    use_up(&lab, "alice", 0, 10, 1).await;
    use_up(&lab, "alice", 1, 20, 2).await;
    use_up(&lab, "alice", 40, 1000, 50).await;
    use_up(&lab, "bob", 0, 7777, 77).await;
    lab.sandbox().await;
    let yesterday = date(Day(today().0 - 1));
    for (query, seconds, sandboxes) in [
        // From the first key on: that was made today.
        (String::new(), 10, 2),
        (format!("?start={yesterday}"), 31, 4),
        (format!("?start={yesterday}T23:59:59Z"), 31, 4),
        (format!("?start={yesterday}&end={yesterday}"), 20, 2),
        (format!("?start={yesterday}&end={}T00:00:00Z", date(today())), 20, 2),
        (format!("?start={yesterday}&end={}T00:00:01Z", date(today())), 31, 4),
        ("?start=1970-01-01".to_owned(), 1032, 54),
        (format!("?start=&end={}", date(today())), 10, 2),
    ] {
        let usage = lab.alice("GET", &format!("/accounts/alice/usage{query}"), ()).await.expect(200);
        assert_eq!(
            (&usage["total_seconds"], &usage["sandbox_count"]),
            (&json!(seconds), &json!(sandboxes)),
            "{query}"
        );
        assert_eq!(usage["compute"]["total_seconds"], seconds);
        for (name, value) in usage.as_object().unwrap() {
            assert!(!name.ends_with("_micros") || value == 0, "{name}: {value}");
            assert!(!name.ends_with("_usd") || value == "0.00", "{name}: {value}");
        }
    }
    assert!(lab.fake.settled.load(Ordering::SeqCst) > 0, "what runs now counts, too");
    let (method, path) = ("GET", "/accounts/bob/usage");
    assert_eq!(lab.bob(method, path, ()).await.expect(200)["total_seconds"], 7777);
    lab.alice(method, path, ()).await.error(403);
}

#[tokio::test]
async fn usage_by_day_has_every_day_and_a_bounded_number_of_them() {
    let lab = Lab::new().await;
    use_up(&lab, "alice", 0, 10, 1).await;
    use_up(&lab, "alice", 2, 30, 3).await;
    let daily = async |query: &str| {
        let answer = lab.alice("GET", &format!("/accounts/alice/usage/daily{query}"), ()).await.expect(200);
        answer["days"].as_array().unwrap().clone()
    };
    let month = daily("").await;
    assert_eq!((month.len(), &month[29]["date"]), (30, &json!(date(today()))));
    let days = daily(&format!("?start={}", date(Day(today().0 - 2)))).await;
    let seconds: Vec<_> = days.iter().map(|day| day["total_seconds"].as_u64().unwrap()).collect();
    assert_eq!(seconds, [30, 0, 10]);
    assert_eq!(
        days[0],
        json!({
            "date": date(Day(today().0 - 2)), "total_seconds": 30, "sandbox_count": 3,
            "compute_cost_micros": 0, "guardrails_cost_micros": 0, "total_cost_micros": 0
        })
    );
    assert_eq!(daily("?start=2025-01-01&end=2026-01-01").await.len(), 366);
    for (query, field) in [
        ("start=2025-01-01&end=2026-01-02", "start"),
        ("start=2026-01-02&end=2026-01-01", "start"),
        ("start=x", "start"),
        ("start=2026-02-30", "start"),
        ("end=2026-01-01T25:00:00Z", "end"),
        ("start=-271821-1", "start"),
    ] {
        for path in ["usage", "usage/daily"] {
            if path == "usage" && query == "start=2025-01-01&end=2026-01-02" {
                continue;
            }
            let answer = lab.alice("GET", &format!("/accounts/alice/{path}?{query}"), ()).await;
            let (message, _) = answer.error(400);
            assert!(message.starts_with(field), "{path}?{query}: {message}");
        }
    }
}

#[tokio::test]
async fn an_overview_tells_what_there_is_what_there_may_be_and_what_was_used_today() {
    let lab = Lab::new().await;
    let (one, two, _three) = (lab.sandbox().await, lab.sandbox().await, lab.sandbox().await);
    lab.fake.set_state(&one, "killed");
    lab.fake.set_state(&two, "paused");
    use_up(&lab, "alice", 0, 10, 1).await;
    use_up(&lab, "alice", 1, 500, 9).await;
    let overview = lab.alice("GET", "/accounts/alice/overview", ()).await.expect(200);
    let amounts = json!({"sandbox_free_micros": 0, "guardrails_free_micros": 0, "balance_micros": 0});
    let expected = json!({
        "owner_id": "alice", "tier": "self-hosted", "active_sandboxes": 2,
        "tier_limits": {"max_concurrent": 7, "max_vcpus": 2, "max_memory_mb": 512},
        "wallets": amounts, "wallet": amounts,
        // The three that are in the store count beside the one that has ended.
        "today": {
            "total_seconds": 10, "sandbox_count": 4,
            "compute_cost_micros": 0, "guardrails_cost_micros": 0, "total_cost_micros": 0
        }
    });
    assert_eq!(overview, expected);
    assert_eq!(lab.bob("GET", "/accounts/bob/overview", ()).await.expect(200)["active_sandboxes"], 0);
}
