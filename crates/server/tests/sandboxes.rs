//! Creating, describing, listing and ending sandboxes.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::{sync::Arc, time::Duration};

use common::{Lab, request};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::Begin;
use tokio::sync::Notify;

#[tokio::test]
async fn what_each_client_sends_creates_the_sandbox_it_means() {
    let lab = Lab::new().await;
    let allow = json!({"allow_out": ["api.example.com"], "deny_out": ["0.0.0.0/0"]});
    let inner = json!({"allow_out": ["inner.example.com"]});
    let in_json =
        json!({"network": inner, "audit": {"enabled": false}, "pii": {"enabled": false}}).to_string();
    for (body, allowed, denied, audit) in [
        ("".to_owned(), &[][..], &[][..], true),
        ("{}".to_owned(), &[], &[], true),
        (json!({"template": "base", "timeout": 300, "secure": true}).to_string(), &[], &[], true),
        (json!({"network": allow}).to_string(), &["api.example.com"], &["0.0.0.0/0"], true),
        (json!({"network": {"deny_out": ["*"]}}).to_string(), &[], &["*"], true),
        (json!({"network": {"deny_out": ["::/0"]}}).to_string(), &[], &["::/0"], true),
        (json!({"network": {"deny_out": ["ALL_TRAFFIC"]}}).to_string(), &[], &["ALL_TRAFFIC"], true),
        (json!({"security": {"network": inner}}).to_string(), &["inner.example.com"], &[], true),
        (json!({"security": {"policy_json": in_json}}).to_string(), &["inner.example.com"], &[], false),
        (
            json!({"network": {}, "security": {"network": inner}}).to_string(),
            &["inner.example.com"],
            &[],
            true,
        ),
        (
            json!({"network": null, "security": {"network": inner}}).to_string(),
            &["inner.example.com"],
            &[],
            true,
        ),
        (
            json!({"network": allow, "security": {"network": inner}}).to_string(),
            &["api.example.com"],
            &["0.0.0.0/0"],
            true,
        ),
        (
            json!({"network": allow, "future": {"field": [1, 2]}}).to_string(),
            &["api.example.com"],
            &["0.0.0.0/0"],
            true,
        ),
    ] {
        lab.alice("POST", "/sandboxes", body.as_str()).await.expect(201);
        let create = lab.fake.created.lock().unwrap().pop().unwrap();
        assert_eq!(
            (create.policy.allow_out, create.policy.deny_out),
            (owned(allowed), owned(denied)),
            "{body}"
        );
        assert_eq!(
            (create.audit, create.account.as_str(), create.template.as_str()),
            (audit, "alice", "base")
        );
        assert_eq!(create.timeout, Duration::from_secs(300));
    }
}

fn owned(entries: &[&str]) -> Vec<String> {
    entries.iter().map(|entry| (*entry).to_owned()).collect()
}

#[tokio::test]
async fn every_field_of_a_policy_arrives() {
    let lab = Lab::new().await;
    let network = json!({
        "allow_out": ["a.example.com:443"], "deny_out": null, "allow_public_traffic": false,
        "mask_request_host": "masked.example.com", "ech": "permit", "refused_names": "nxdomain"
    });
    lab.alice("POST", "/sandboxes", json!({"network": network})).await.expect(201);
    let policy = lab.fake.created.lock().unwrap().pop().unwrap().policy;
    let expected = policy::PolicySpec {
        allow_out: owned(&["a.example.com:443"]),
        deny_out: Vec::new(),
        allow_public_traffic: false,
        mask_request_host: Some("masked.example.com".to_owned()),
        ech: policy::EchMode::Permit,
        refused_names: policy::RefusedNames::Nxdomain,
    };
    assert_eq!(policy, expected);
    for (mask, warnings) in [(json!(true), 1), (json!(false), 0), (json!(null), 0)] {
        let body = json!({"network": {"deny_out": ["*"], "mask_request_host": mask}});
        let created = lab.alice("POST", "/sandboxes", body).await.expect(201);
        assert_eq!(created["warnings"].as_array().map_or(0, Vec::len), warnings);
        assert_eq!(lab.fake.created.lock().unwrap().pop().unwrap().policy.mask_request_host, None);
    }
}

#[tokio::test]
async fn a_bad_policy_is_refused_by_entry_and_position() {
    let lab = Lab::new().await;
    let bad = json!(["a.example.com", "*.b.example.com", "http://c.example.com/"]);
    let inner = json!({"network": {"allow_out": bad}}).to_string();
    for (body, field, entry) in [
        (json!({"network": {"allow_out": bad}}), "network.allow_out[2]", "http://c.example.com/"),
        (json!({"network": {"deny_out": ["10.0.0.0/40"]}}), "network.deny_out[0]", "10.0.0.0/40"),
        (json!({"network": {"allow_out": ["*.co.uk"]}}), "network.allow_out[0]", "*.co.uk"),
        (json!({"network": {"allow_out": ["169.254.169.254"]}}), "network.allow_out[0]", "169.254.169.254"),
        (json!({"network": {"allow_out": ["~("]}}), "network.allow_out[0]", "~("),
        (
            json!({"security": {"policy_json": inner}}),
            "security.network.allow_out[2]",
            "http://c.example.com/",
        ),
        (
            json!({"network": {"deny_out": ["*"], "mask_request_host": "a b"}}),
            "network.mask_request_host",
            "a b",
        ),
        (json!({"network": {"allowed": ["a.example.com"]}}), "network.allowed", ""),
    ] {
        let (message, _) = lab.alice("POST", "/sandboxes", &body).await.error(400);
        assert!(message.starts_with(&format!("{field}: ")) && message.contains(entry), "{message}");
    }
    assert!(lab.fake.created.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_probably_not_meant_is_accepted_with_a_warning() {
    let lab = Lab::new().await;
    let network = json!({"allow_out": ["~api.example.com"], "alow_out": ["b.example.com"]});
    let created = lab.alice("POST", "/sandboxes", json!({"network": network})).await.expect(201);
    let warnings = created["warnings"].to_string();
    assert!(warnings.contains("network.allow_out[0]") && warnings.contains("network.alow_out"), "{warnings}");
    let plain = lab.alice("POST", "/sandboxes", json!({"network": {"allow_out": ["a.example.com"]}})).await;
    assert_eq!(plain.expect(201).get("warnings"), None);
}

#[tokio::test]
async fn what_a_request_asks_for_and_cannot_be_done_is_refused_by_name() {
    let lab = Lab::new().await;
    let on = json!({"enabled": true});
    for (body, status, field) in [
        (json!({"security": {"pii": on}}), 501, "security.pii"),
        (json!({"security": {"policy_json": json!({"pii": on}).to_string()}}), 501, "security.pii"),
        (json!({"security": {"injection_defense": true}}), 501, "security.injection_defense"),
        (
            json!({"security": {"transformations": [{"match": "a", "replace": "b"}]}}),
            501,
            "security.transformations",
        ),
        (json!({"security": {"toxicity": on}}), 501, "security.toxicity"),
        (json!({"security": {"code_security": on}}), 501, "security.code_security"),
        (json!({"security": {"invisible_text": on}}), 501, "security.invisible_text"),
        (json!({"security": {"content_gate": on}}), 501, "security.content_gate"),
        (json!({"security": {"custom_policy": on}}), 501, "security.custom_policy"),
        (json!({"vault_refs": {"KEY": "vault://team/prod/key"}}), 501, "vault_refs"),
        (json!({"volumes": [{"volume_id": "vol-1", "mount_path": "/data"}]}), 501, "volumes"),
        (json!({"snapshot_id": "snap-1"}), 501, "snapshot_id"),
        (json!({"lifecycle": {"on_timeout": "sleep"}}), 400, "lifecycle.on_timeout"),
        (json!({"lifecycle": {"auto_resume": "yes"}}), 400, "lifecycle.auto_resume"),
        (json!({"resources": {"vcpus": 2}}), 403, "resources"),
        (json!({"template": "no-such"}), 400, "template"),
        (json!({"template": 5}), 400, "template"),
        (json!({"timeout": -1}), 400, "timeout"),
        (json!({"timeout": "1"}), 400, "timeout"),
        (json!({"envs": {"A": 1}}), 400, "envs.A"),
        (json!({"envs": {"A": "x".repeat(1 << 20)}}), 400, "envs"),
        (json!({"metadata": {"a": "x".repeat(1 << 16)}}), 400, "metadata"),
        (json!({"metadata": {"a": ["b"]}}), 400, "metadata.a"),
        (json!({"network": {"allow_out": ["a.example.com", 5]}}), 400, "network.allow_out[1]"),
        (json!({"security": {"policy_json": "{"}}), 400, "security.policy_json"),
        (json!(["base"]), 400, "body"),
    ] {
        let (message, code) = lab.alice("POST", "/sandboxes", &body).await.error(status);
        assert!(message.starts_with(&format!("{field}: ")), "{message}");
        assert_eq!(code.as_deref() == Some("not_implemented"), status == 501);
    }
    lab.alice("POST", "/sandboxes", "{").await.error(400);
    let (_, code) = lab.alice("POST", "/sandboxes", json!({"template": "building"})).await.error(409);
    assert_eq!(code.as_deref(), Some("template_not_ready"));
    let full = lab.alice("POST", "/sandboxes", json!({"template": "full"})).await;
    full.error(429);
    assert!(full.headers["retry-after"].to_str().unwrap().parse::<u32>().is_ok());
}

#[tokio::test]
async fn a_sandbox_is_described_in_the_form_the_clients_read() {
    let lab = Lab::new().await;
    let body = json!({
        "template": "python", "timeout": 0, "metadata": {"a": "b"}, "envs": {"TOKEN": "secret-value"},
        "network": {"deny_out": ["*"]}, "security": {"policy_json": "{\"audit\":{\"enabled\":true}}"}
    });
    let created = lab.alice("POST", "/sandboxes", &body).await.expect(201);
    let id = created["sandbox_id"].as_str().unwrap();
    let answer = lab.alice("GET", &format!("/sandboxes/{id}"), ()).await;
    assert_eq!(answer.expect(200), created);
    assert!(!String::from_utf8_lossy(&answer.bytes).contains("secret-value"));
    let started = created["started_at"].as_str().unwrap();
    assert!(started.len() == 32 && started.ends_with("+00:00") && &started[19..20] == ".", "{started}");
    let mut rest = created.clone();
    for time in ["started_at", "created_at", "sandbox_id"] {
        rest.as_object_mut().unwrap().remove(time).unwrap();
    }
    let expected = json!({
        "template_id": "python", "name": "", "state": "running", "timeout": 0, "metadata": {"a": "b"},
        "envs": {"TOKEN": "***"}, "network": {"allow_out": [], "deny_out": ["*"]},
        "security": {"audit": {"enabled": true}}, "lifecycle": {"on_timeout": "kill", "auto_resume": false},
        "end_at": null
    });
    assert_eq!(rest, expected);
    let limited = lab.alice("POST", "/sandboxes", json!({"timeout": 1.5})).await.expect(201);
    assert_eq!(limited["timeout"], 2);
    assert!(limited["end_at"].is_string());
}

#[tokio::test]
async fn lists_are_filtered_and_paged() {
    let lab = Lab::new().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let metadata = json!({"metadata": {"n": n.to_string(), "odd": (n % 2).to_string()}});
        let created = lab.alice("POST", "/sandboxes", metadata).await.expect(201);
        ids.push(created["sandbox_id"].as_str().unwrap().to_owned());
    }
    lab.fake.set_state(&ids[0], "killed");
    lab.fake.set_state(&ids[1], "paused");
    for (query, found) in [
        ("", &[4, 3, 2, 1][..]),
        ("?unknown=1", &[4, 3, 2, 1]),
        ("?state=all", &[4, 3, 2, 1, 0]),
        ("?state=killed", &[0]),
        ("?state=running", &[4, 3, 2]),
        ("?state=live", &[4, 3, 2]),
        ("?state=paused&state=killed", &[1, 0]),
        ("?state=creating", &[]),
        ("?metadata=%7B%27odd%27%3A+%270%27%7D", &[4, 2]),
        ("?metadata=%7B%22odd%22%3A%220%22%7D", &[4, 2]),
        ("?metadata[odd]=0&metadata[n]=4", &[4]),
        ("?metadata=odd%3D1", &[3, 1]),
        ("?limit=2", &[4, 3]),
        ("?limit=2&offset=2", &[2, 1]),
        ("?offset=9", &[]),
        ("?limit=&next_token=&state=", &[4, 3, 2, 1]),
    ] {
        let page = lab.alice("GET", &format!("/sandboxes{query}"), ()).await.expect(200);
        let listed: Vec<_> =
            page["sandboxes"].as_array().unwrap().iter().map(|one| &one["sandbox_id"]).collect();
        let expected: Vec<_> = found.iter().map(|&n: &usize| json!(ids[n])).collect();
        assert_eq!(listed, expected.iter().collect::<Vec<_>>(), "{query}");
    }
    let first = lab.alice("GET", "/sandboxes?limit=3", ()).await.expect(200);
    assert_eq!(first["total"], 4);
    let token = first["next_token"].as_str().unwrap();
    let second = lab.alice("GET", &format!("/sandboxes?limit=3&next_token={token}"), ()).await.expect(200);
    assert_eq!((second["sandboxes"].as_array().unwrap().len(), &second["next_token"]), (1, &Value::Null));
    for (query, field) in [
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("offset=x", "offset"),
        ("next_token=x", "next_token"),
        ("next_token=3", "next_token"),
        ("next_token=s1.1.sbx-00000001&offset=1", "offset"),
        ("state=asleep", "state"),
        ("metadata=x", "metadata"),
        (&labels(33), "metadata"),
    ] {
        let (message, _) = lab.alice("GET", &format!("/sandboxes?{query}"), ()).await.error(400);
        assert!(message.starts_with(&format!("{field}: ")), "{message}");
    }
    lab.alice("GET", &format!("/sandboxes?{}", labels(32)), ()).await.expect(200);
}

/// A query for so many labels, in both spellings.
fn labels(count: usize) -> String {
    let most: serde_json::Map<_, _> = (1..count).map(|n| (format!("k{n}"), json!("v"))).collect();
    let most: String = Value::from(most).to_string().bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!("metadata={most}&metadata[k0]=v")
}

#[tokio::test]
async fn killing_answers_in_both_ways_and_in_bulk() {
    let lab = Lab::new().await;
    let (one, two, three) = (lab.sandbox().await, lab.sandbox().await, lab.sandbox().await);
    let path = format!("/sandboxes/{one}");
    assert_eq!(lab.alice("DELETE", &path, ()).await.expect(200), json!({"killed": true}));
    assert_eq!(lab.alice("DELETE", &path, ()).await.expect(200), json!({"killed": false}));
    let path = format!("/sandboxes/{two}?async=true");
    assert_eq!(lab.alice("DELETE", &path, ()).await.expect(202), json!({"queued": true}));
    let ids = json!({"sandbox_ids": [three, "sbx-99999999", "../x"]});
    for (path, outcome) in [
        ("/sandboxes/kill-many?async=true", json!({"queued": true})),
        ("/sandboxes/kill-many", json!({"killed": false})),
    ] {
        let results = lab.alice("POST", path, &ids).await.expect(200);
        let missing = json!({"error": "sandbox not found"});
        let expected = json!({"results": {&three: outcome, "sbx-99999999": missing, "../x": missing}});
        assert_eq!(results, expected);
    }
    let (message, _) =
        lab.alice("POST", "/sandboxes/kill-many", json!({"sandbox_ids": "x"})).await.error(400);
    assert!(message.starts_with("sandbox_ids: "), "{message}");
    let many = json!({"sandbox_ids": vec!["sbx-00000000"; 1001]});
    let (message, _) = lab.alice("POST", "/sandboxes/kill-many", many).await.error(400);
    assert!(message.starts_with("sandbox_ids: "), "{message}");
}

#[tokio::test]
async fn the_time_limit_is_set_by_patch_and_by_connect() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    let path = format!("/sandboxes/{id}/timeout");
    assert_eq!(lab.alice("PATCH", &path, json!({"timeout": 60})).await.expect(200), json!({"ok": true}));
    assert_eq!(lab.alice("GET", &format!("/sandboxes/{id}"), ()).await.expect(200)["timeout"], 60);
    assert_eq!(lab.alice("GET", &format!("/sandboxes/{id}?timeout=90"), ()).await.expect(200)["timeout"], 90);
    for body in [json!({}), json!({"timeout": -5}), json!({"timeout": "60"})] {
        let (message, _) = lab.alice("PATCH", &path, &body).await.error(400);
        assert!(message.contains("timeout"), "{message}");
    }
    lab.alice("GET", &format!("/sandboxes/{id}?timeout=x"), ()).await.error(400);
    lab.fake.set_state(&id, "killed");
    lab.alice("PATCH", &path, json!({"timeout": 60})).await.error(410);
    lab.alice("GET", &format!("/sandboxes/{id}?timeout=90"), ()).await.expect(200);
    lab.alice("GET", &format!("/sandboxes/{id}?timeout=x"), ()).await.error(400);
}

#[tokio::test]
async fn a_policy_is_replaced_as_a_whole_or_not_at_all() {
    let lab = Lab::new().await;
    let created =
        json!({"network": {"allow_out": ["a.example.com"]}, "security": {"audit": {"enabled": true}}});
    let id = lab.alice("POST", "/sandboxes", created).await.expect(201)["sandbox_id"].clone();
    let path = format!("/sandboxes/{}", id.as_str().unwrap());
    let network = json!({"allow_out": ["b.example.com"], "deny_out": ["*"]});
    let changed = lab.alice("PUT", &format!("{path}/network"), &network).await.expect(200);
    assert_eq!(changed["network"], network);
    assert_eq!(lab.fake.policies.lock().unwrap().len(), 1);
    for bad in [json!({"allow_out": ["a", "http://x/"]}), json!({"allowed": ["x"]}), json!({"deny_out": [5]})]
    {
        lab.alice("PUT", &format!("{path}/network"), &bad).await.error(400);
    }
    lab.alice("PUT", &format!("{path}/network"), "").await.error(400);
    assert_eq!(lab.fake.policies.lock().unwrap().len(), 1);
    let now = lab.alice("GET", &path, ()).await.expect(200);
    assert_eq!((&now["network"], &now["security"]), (&network, &json!({"audit": {"enabled": true}})));
}

#[tokio::test]
async fn metrics_are_a_list_and_for_the_go_client_an_object() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/metrics", lab.sandbox().await);
    let list = lab.alice("GET", &path, ()).await.expect(200);
    let one = &list[0];
    assert_eq!((list.as_array().unwrap().len(), &one["memory_usage_mb"]), (1, &json!(3.0)));
    assert!(one["cpu_usage_percent"].as_f64().unwrap() > 0.0 && one["timestamp"].is_string());
    let mut go = request("GET", &path, &lab.alice, ());
    go.headers_mut().insert("user-agent", "Go-http-client/2.0".parse().unwrap());
    assert!(lab.send(go).await.expect(200)["memory_usage_mb"].is_number());
    for (query, count) in [("start=2020-01-01T00:00:00+00:00", 1), ("end=2020-01-01T00:00:00Z", 0)] {
        let list = lab.alice("GET", &format!("{path}?{query}"), ()).await.expect(200);
        assert_eq!(list.as_array().unwrap().len(), count, "{query}");
    }
    lab.alice("GET", &format!("{path}?start=x"), ()).await.error(400);
}

#[tokio::test]
async fn metrics_have_a_history_of_which_a_part_can_be_asked_for() {
    let lab = Lab::new().await;
    let path = format!("/sandboxes/{}/metrics", lab.sandbox().await);
    let at = |time: &str, processors| sandbox::Measurement {
        time: time.parse().unwrap(),
        processors,
        memory_bytes: 1 << 20,
    };
    *lab.fake.measured.lock().unwrap() = vec![
        at("2026-03-01T12:00:00Z", 0.5),
        at("2026-03-01T12:00:10Z", 1.25),
        at("2026-03-01T12:00:20Z", 0.0),
    ];
    let percents = async |query: &str| {
        let list = lab.alice("GET", &format!("{path}?{query}"), ()).await.expect(200);
        let percents = list.as_array().unwrap().iter().map(|one| one["cpu_usage_percent"].as_f64().unwrap());
        percents.collect::<Vec<_>>()
    };
    let all = percents("").await;
    assert_eq!((&all[..3], all.len()), (&[50.0, 125.0, 0.0][..], 4), "the last one is of now");
    assert_eq!(percents("start=2026-03-01T12:00:10%2B00:00&end=2026-03-01T12:00:20Z").await, [125.0]);
    assert_eq!(percents("end=2026-03-01T12:00:10Z").await, [50.0]);
    assert_eq!(percents("start=2026-03-01T12:00:20Z").await.len(), 2);
    assert!(percents("start=2026-03-01T12:00:21Z&end=2026-03-01T13:00:00Z").await.is_empty());
}

async fn create_with_key(lab: &Lab, account: &str, key: &str, body: &Value) -> common::Answer {
    let mut request = request("POST", "/sandboxes", account, body);
    request.headers_mut().insert("idempotency-key", key.parse().unwrap());
    lab.send(request).await
}

#[tokio::test]
async fn a_repeated_create_with_the_same_key_gives_the_same_sandbox() {
    let lab = Lab::new().await;
    let body = json!({"metadata": {"a": "b"}});
    let first = create_with_key(&lab, &lab.alice, "key-1", &body).await;
    let again = create_with_key(&lab, &lab.alice, "key-1", &body).await;
    assert_eq!((first.status, &first.bytes), (again.status, &again.bytes));
    assert_eq!(lab.fake.created.lock().unwrap().len(), 1);

    let (_, code) = create_with_key(&lab, &lab.alice, "key-1", &json!({})).await.error(422);
    assert_eq!(code.as_deref(), Some("idempotency_key_reused"));
    create_with_key(&lab, &lab.alice, "key-2", &body).await.expect(201);
    create_with_key(&lab, &lab.bob, "key-1", &body).await.expect(201);
    lab.alice("POST", "/sandboxes", &body).await.expect(201);
    assert_eq!(lab.fake.created.lock().unwrap().len(), 4);
    create_with_key(&lab, &lab.alice, &"k".repeat(300), &body).await.error(400);
}

#[tokio::test]
async fn a_create_that_failed_leaves_its_key_free() {
    let lab = Lab::new().await;
    for template in ["disk", "panic", "no-such"] {
        let body = json!({"template": template});
        let first = create_with_key(&lab, &lab.alice, template, &body).await;
        let again = create_with_key(&lab, &lab.alice, template, &body).await;
        assert_eq!(first.status, again.status);
        create_with_key(&lab, &lab.alice, template, &json!({})).await.expect(201);
    }
}

/// Leaves a request behind as a daemon does that dies before it has answered: it had named this sandbox.
async fn interrupted(lab: &Lab, key: &str, body: &Value, sandbox: &str) {
    let (requests, hash) = (lab.store.idempotency(), Sha256::digest(body.to_string()));
    assert_eq!(requests.begin("alice", key, &hash).await.unwrap(), Begin::New);
    requests.assign("alice", key, sandbox).await.unwrap();
    requests.release("alice", key);
}

#[tokio::test]
async fn a_create_that_was_interrupted_after_its_sandbox_was_made_makes_no_second_one() {
    let lab = Lab::new().await;
    let body = json!({"metadata": {"a": "b"}});
    let made = lab.sandbox().await;
    interrupted(&lab, "key", &body, &made).await;
    let first = create_with_key(&lab, &lab.alice, "key", &body).await;
    assert_eq!(first.expect(201)["sandbox_id"], *made);
    let again = create_with_key(&lab, &lab.alice, "key", &body).await;
    assert_eq!(again.expect(201)["sandbox_id"], *made);
    assert_eq!(lab.fake.created.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_create_that_was_interrupted_and_made_nothing_is_done_by_its_repeat() {
    let lab = Lab::new().await;
    let body = json!({"metadata": {"a": "b"}});
    let ended = lab.sandbox().await;
    lab.fake.set_state(&ended, "killed");
    for (key, sandbox) in [("of one that ended", ended.as_str()), ("of none", "sbx-99999999")] {
        interrupted(&lab, key, &body, sandbox).await;
        let first = create_with_key(&lab, &lab.alice, key, &body).await;
        assert_ne!(first.expect(201)["sandbox_id"], *sandbox);
        assert_eq!(create_with_key(&lab, &lab.alice, key, &body).await.bytes, first.bytes);
    }
    assert_eq!(lab.fake.created.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_create_goes_on_when_its_client_is_gone_and_the_repeat_gets_its_sandbox() {
    let lab = Lab::new().await;
    let hold = Arc::new(Notify::new());
    *lab.fake.hold.lock().unwrap() = Some(Arc::clone(&hold));
    let body = json!({});

    let lost =
        tokio::time::timeout(Duration::from_millis(200), create_with_key(&lab, &lab.alice, "key", &body));
    assert!(lost.await.is_err());
    let running = create_with_key(&lab, &lab.alice, "key", &body).await;
    assert_eq!(running.error(409).1.as_deref(), Some("idempotency_in_progress"));
    assert_eq!(running.headers["retry-after"], "1");

    *lab.fake.hold.lock().unwrap() = None;
    hold.notify_one();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    let found = loop {
        let answer = create_with_key(&lab, &lab.alice, "key", &body).await;
        if answer.status != 409 {
            break answer.expect(201);
        }
        assert!(tokio::time::Instant::now() < deadline);
        tokio::task::yield_now().await;
    };
    assert_eq!(lab.fake.created.lock().unwrap().len(), 1);
    lab.alice("GET", &format!("/sandboxes/{}", found["sandbox_id"].as_str().unwrap()), ()).await.expect(200);
}

#[tokio::test]
async fn a_json_body_over_ten_mebibytes_is_413() {
    let lab = Lab::new().await;
    let id = lab.sandbox().await;
    let path = format!("/sandboxes/{id}/files");
    let fits = json!({"path": "/big", "data": "x".repeat(10 * 1024 * 1024 - 64)});
    lab.alice("POST", &path, &fits).await.expect(200);
    let over = json!({"path": "/big", "data": "x".repeat(10 * 1024 * 1024)}).to_string();
    lab.alice("POST", &path, over.as_str()).await.error(413);
    let unannounced = axum::body::Body::from_stream(futures_util::stream::iter(
        over.into_bytes()
            .chunks(1 << 16)
            .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
            .collect::<Vec<_>>(),
    ));
    lab.alice("POST", &path, unannounced).await.error(413);
}
