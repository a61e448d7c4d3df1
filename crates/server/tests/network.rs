//! Replacing a policy over the API, and the tokens that may only narrow it.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{Answer, Lab};
use sandbox::ChangedBy;
use serde_json::{Value, json};
use store::EventQuery;

async fn lab() -> (Lab, String) {
    let lab = Lab::new().await;
    let network = json!({"allow_out": ["a.example.com", "*.b.example.com", "10.0.0.0/8"], "deny_out": ["*"]});
    let created = lab.alice("POST", "/sandboxes", json!({"network": network})).await.expect(201);
    (lab, created["sandbox_id"].as_str().unwrap().to_owned())
}

async fn token(lab: &Lab, id: &str) -> String {
    let made = lab.alice("POST", &format!("/sandboxes/{id}/ratchet"), ()).await.expect(201);
    assert_eq!(made["sandbox_id"], id);
    made["token"].as_str().unwrap().to_owned()
}

async fn put(lab: &Lab, id: &str, key: &str, network: &Value) -> Answer {
    lab.send(common::request("PUT", &format!("/sandboxes/{id}/network"), key, network)).await
}

async fn events(lab: &Lab, id: &str, kind: &str) -> Vec<Value> {
    lab.audit.flush().await.unwrap();
    let kinds = vec![kind.to_owned()];
    let query = EventQuery { sandbox: Some(id.to_owned()), kinds, ..EventQuery::default() };
    let page = lab.store.events().query(&query).await.unwrap();
    page.events.into_iter().filter_map(|event| event.detail).collect()
}

#[tokio::test]
async fn a_ratchet_token_narrows_and_what_widens_is_refused_by_its_entry() {
    let (lab, id) = lab().await;
    let token = token(&lab, &id).await;
    let narrower = json!({"allow_out": ["a.example.com:443", "x.b.example.com", "10.1.0.0/16"]});
    let changed = put(&lab, &id, &token, &narrower).await.expect(200);
    assert_eq!(changed["network"]["allow_out"], narrower["allow_out"]);
    for (network, entry) in [
        (json!({"allow_out": ["10.1.0.0/16", "a.example.com"]}), r#"allow_out[1]: "a.example.com""#),
        (json!({"allow_out": ["*.b.example.com"]}), r#"allow_out[0]: "*.b.example.com""#),
        (json!({"allow_out": ["10.1.0.0/15"]}), r#"allow_out[0]: "10.1.0.0/15""#),
        (json!({"allow_out": []}), "allow_out: "),
        (json!({"deny_out": ["evil.example.com"]}), "allow_out: "),
        (json!({"allow_out": ["10.1.0.0/16"], "ech": "permit"}), "ech: "),
        (json!({"allow_out": ["10.1.0.0/16"], "mask_request_host": "x"}), "mask_request_host: "),
    ] {
        let (message, code) = put(&lab, &id, &token, &network).await.error(403);
        assert_eq!(code.as_deref(), Some("policy_widens"));
        let expected = format!("the policy permits more than the one in force: {entry}");
        assert!(message.starts_with(&expected), "{message}");
    }
    assert_eq!(
        lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200)["network"],
        changed["network"]
    );
    put(&lab, &id, &token, &json!({"deny_out": ["*"]})).await.expect(200);
    // The account's own key is not bound by it.
    put(&lab, &id, &lab.alice, &json!({"allow_out": ["z.example.com"]})).await.expect(200);
    let by = lab.fake.changed_by.lock().unwrap().clone();
    let [ChangedBy::Ratchet(first), ChangedBy::Ratchet(second), ChangedBy::Key(key)] = by.as_slice() else {
        panic!("{by:?}");
    };
    assert!(first == second && first.starts_with("rat-") && key.starts_with("key-"), "{by:?}");
}

#[tokio::test]
async fn a_token_is_shown_once_and_ends_when_it_is_replaced_or_revoked_or_with_its_sandbox() {
    let (lab, id) = lab().await;
    let narrow = json!({"allow_out": ["a.example.com"]});
    let path = format!("/sandboxes/{id}/ratchet");
    assert_eq!(lab.alice("DELETE", &path, ()).await.expect(200), json!({"revoked": false}));

    let first = token(&lab, &id).await;
    assert!(first.starts_with("rat_") && first.len() == 44, "{first}");
    put(&lab, &id, &first, &narrow).await.expect(200);
    let second = token(&lab, &id).await;
    put(&lab, &id, &first, &narrow).await.error(401);
    put(&lab, &id, &second, &narrow).await.expect(200);
    assert_eq!(lab.bob("DELETE", &path, ()).await.error(404).0, "sandbox not found");
    put(&lab, &id, &second, &narrow).await.expect(200);
    assert_eq!(lab.alice("DELETE", &path, ()).await.expect(200), json!({"revoked": true}));
    put(&lab, &id, &second, &narrow).await.error(401);

    let third = token(&lab, &id).await;
    for wrong in [&third[..43], &third.to_lowercase(), &third.replace("rat_", "dcl_"), "rat_", "rat_x"] {
        put(&lab, &id, wrong, &narrow).await.error(401);
    }
    lab.fake.set_state(&id, "paused");
    put(&lab, &id, &third, &narrow).await.expect(200);
    lab.fake.set_state(&id, "killed");
    lab.store.sandboxes().put(&lab.fake.record(&id)).await.unwrap();
    put(&lab, &id, &third, &narrow).await.error(401);
    assert_eq!(lab.alice("POST", &path, ()).await.error(410).1.as_deref(), Some("sandbox_killed"));

    let described = format!("{:?}", events(&lab, &id, "ratchet_created").await);
    for token in [&first, &second, &third] {
        assert!(!described.contains(&token[4..]), "{described}");
    }
    assert_eq!(events(&lab, &id, "ratchet_created").await.len(), 3);
    let revoked = events(&lab, &id, "ratchet_revoked").await;
    assert!(
        revoked.len() == 1 && revoked[0]["by"]["key"].as_str().unwrap().starts_with("key-"),
        "{revoked:?}"
    );
}

#[tokio::test]
async fn an_invalid_policy_changes_nothing_names_the_entry_and_is_recorded() {
    let (lab, id) = lab().await;
    let token = token(&lab, &id).await;
    let before = lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200);
    let bad = [
        (json!({"allow_out": ["a.example.com", "http://x/"]}), r#"network.allow_out[1]: "http://x/""#),
        (json!({"allow_out": ["a.example.com", "169.254.169.254"]}), "network.allow_out[1]"),
        (json!({"deny_out": ["10.0.0.0/40"]}), "network.deny_out[0]"),
    ];
    for (network, entry) in &bad {
        for key in [&lab.alice, &token] {
            let (message, code) = put(&lab, &id, key, network).await.error(400);
            assert!(message.starts_with(entry), "{message}");
            assert_eq!(code.as_deref(), Some("invalid_policy"));
        }
    }
    put(&lab, &id, &token, &json!({"allow_out": [7]})).await.error(400);
    lab.send(common::request("PUT", &format!("/sandboxes/{id}/network"), &token, "")).await.error(400);
    assert_eq!(lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200), before);
    assert!(lab.fake.policies.lock().unwrap().is_empty());

    let refused = events(&lab, &id, "policy_change_refused").await;
    assert_eq!(refused.len(), 2 * bad.len() + 2);
    assert!(refused[0]["by"]["key"].is_string() && refused[1]["by"]["ratchet"].is_string(), "{refused:?}");
    assert!(refused[1]["message"].as_str().unwrap().starts_with(bad[0].1), "{refused:?}");
    let other = lab.sandbox().await;
    put(&lab, &id, &lab.bob, &bad[0].0).await.error(404);
    assert!(events(&lab, &other, "policy_change_refused").await.is_empty());
    assert_eq!(events(&lab, &id, "policy_change_refused").await.len(), refused.len());
}

#[tokio::test]
async fn a_refused_policy_is_recorded_in_few_words_and_few_times_however_much_is_sent() {
    let (lab, id) = lab().await;
    let token = token(&lab, &id).await;
    let long = "n".repeat(1 << 20);
    for _ in 0..15 {
        let (message, _) = put(&lab, &id, &token, &json!({(long.clone()): 1})).await.error(400);
        assert!(message.starts_with("network.nnn") && message.len() < 1000, "{} bytes", message.len());
    }
    let refused = events(&lab, &id, "policy_change_refused").await;
    assert_eq!(refused.len(), 10);
    assert!(refused.iter().all(|event| event.to_string().len() < 2000), "{}", refused[0]);
    let query = EventQuery { kinds: vec!["audit_gap".to_owned()], ..EventQuery::default() };
    let gaps = lab.store.events().query(&query).await.unwrap().events;
    assert!(gaps.iter().all(|gap| gap.reason.as_deref() == Some("attempt_limit")), "{gaps:?}");
    assert_eq!(gaps.iter().map(|gap| gap.count).sum::<u64>(), 5);
}

#[tokio::test]
async fn an_update_that_fails_on_the_way_says_that_the_old_policy_is_in_force() {
    let (lab, id) = lab().await;
    let (message, code) =
        put(&lab, &id, &lab.alice, &json!({"allow_out": ["kernel.refuses.test"]})).await.error(500);
    assert_eq!(message, "the network policy could not be changed; the one before is in force");
    assert_eq!(code.as_deref(), Some("policy_kept"));
    put(&lab, &id, &lab.alice, &json!({"allow_out": ["kernel.permits.test"]})).await.expect(200);
}

#[tokio::test]
async fn a_sandbox_is_paused_updated_and_resumed() {
    let (lab, id) = lab().await;
    let state = async || lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200)["state"].clone();
    let pause = async || lab.alice("POST", &format!("/sandboxes/{id}/pause"), ()).await;
    let resume = async || lab.alice("POST", &format!("/sandboxes/{id}/resume"), ()).await;
    pause().await.expect(200);
    assert_eq!(state().await, "paused");
    assert_eq!(pause().await.error(409).1.as_deref(), Some("sandbox_paused"));
    put(&lab, &id, &lab.alice, &json!({"deny_out": ["*"]})).await.expect(200);
    assert_eq!(state().await, "paused");
    for _ in 0..2 {
        resume().await.expect(200);
        assert_eq!(state().await, "running");
    }
    lab.fake.set_state(&id, "killed");
    pause().await.error(410);
    resume().await.error(410);
}
