//! What the store promises about ratchet tokens.

use std::collections::BTreeMap;

use jiff::Timestamp;
use store::{RatchetRecord, SandboxRecord, Store};

fn sandbox(id: &str, state: &str) -> SandboxRecord {
    SandboxRecord {
        id: id.to_owned(),
        account: "acme".to_owned(),
        template_id: "base".to_owned(),
        name: String::new(),
        state: state.to_owned(),
        metadata: BTreeMap::new(),
        envs: BTreeMap::new(),
        spec: serde_json::Value::Null,
        audit_enabled: true,
        created_at: Timestamp::UNIX_EPOCH,
        started_at: None,
        end_at: None,
        timeout_s: 0,
        on_timeout: "kill".to_owned(),
        auto_resume: false,
        host: serde_json::Value::Null,
        generation: 1,
    }
}

fn ratchet(sandbox_id: &str, hash: u8) -> RatchetRecord {
    RatchetRecord {
        id: format!("rat-{hash}"),
        sandbox_id: sandbox_id.to_owned(),
        hash: [hash; 32],
        created_at: Timestamp::UNIX_EPOCH,
    }
}

#[tokio::test]
async fn a_token_is_that_of_one_sandbox_until_it_is_replaced_or_revoked_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    for id in ["sbx-1", "sbx-2"] {
        store.sandboxes().put(&sandbox(id, "running")).await.unwrap();
    }
    for (id, hash) in [("sbx-1", 1), ("sbx-2", 2), ("sbx-2", 3)] {
        store.ratchets().put(&ratchet(id, hash)).await.unwrap();
    }
    let found = async |store: &Store, hash| store.ratchets().by_hash(&[hash; 32], "killed").await.unwrap();
    assert_eq!(found(&store, 1).await, Some((ratchet("sbx-1", 1), "acme".to_owned())));
    assert_eq!(found(&store, 2).await, None);
    assert_eq!(found(&store, 3).await, Some((ratchet("sbx-2", 3), "acme".to_owned())));
    assert_eq!(store.ratchets().revoke("sbx-1").await.unwrap(), Some("rat-1".to_owned()));
    assert_eq!(store.ratchets().revoke("sbx-1").await.unwrap(), None);
    store.close().await;
    drop(store);

    let store = Store::open(dir.path()).await.unwrap();
    assert_eq!(found(&store, 1).await, None);
    assert!(found(&store, 3).await.is_some());
    assert!(store.ratchets().put(&ratchet("sbx-1", 3)).await.is_err(), "a hash of another sandbox's token");
    assert!(store.ratchets().put(&ratchet("sbx-9", 9)).await.is_err(), "no such sandbox");
}

#[tokio::test]
async fn a_token_ends_with_its_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).await.unwrap();
    for (id, hash) in [("sbx-1", 1), ("sbx-2", 2)] {
        store.sandboxes().put(&sandbox(id, "running")).await.unwrap();
        store.ratchets().put(&ratchet(id, hash)).await.unwrap();
    }
    store.sandboxes().put(&sandbox("sbx-1", "killed")).await.unwrap();
    assert_eq!(store.ratchets().by_hash(&[1; 32], "killed").await.unwrap(), None);
    assert!(store.ratchets().by_hash(&[2; 32], "killed").await.unwrap().is_some());
    store.sandboxes().delete("sbx-1").await.unwrap();
    assert_eq!(store.ratchets().revoke("sbx-1").await.unwrap(), None);
    assert!(store.ratchets().by_hash(&[2; 32], "killed").await.unwrap().is_some());
}

#[test]
fn the_hash_of_a_token_is_not_printed() {
    let printed = format!("{:?}", ratchet("sbx-1", 77));
    assert!(printed.contains("rat-77") && !printed.contains("77, 77"), "{printed}");
}
