//! Replacing a sandbox's policy: the whole new one or the whole old one, whatever happens meanwhile.

#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::{
    future::Future as _,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    task::{Context, Waker},
};

use policy::{Floor, List, Policy, PolicySpec, Widening};
use sandbox::{
    Attachment, BoxFuture, ChangedBy, Network, NetworkError, NetworkRequest, PolicyChange, SandboxError,
    SandboxId,
};
use serde_json::{Value, json};
use store::{EventQuery, SandboxRecord};
use support::{ACCOUNT, Isolated, Lab, eventually, possible, request};
use tokio::sync::Semaphore;

/// A network that remembers the policy in force.
#[derive(Clone, Default)]
struct Watched(Arc<State>);

struct State {
    in_force: Mutex<Option<(PolicySpec, u64)>>,
    refuses: Mutex<bool>,
    /// A change takes one of these.
    permits: Semaphore,
}

impl Default for State {
    fn default() -> Self {
        Self { in_force: Mutex::default(), refuses: Mutex::default(), permits: Semaphore::new(1000) }
    }
}

impl Watched {
    fn in_force(&self) -> (PolicySpec, u64) {
        self.0.in_force.lock().unwrap().clone().expect("a sandbox")
    }

    fn refuse(&self, refuses: bool) {
        *self.0.refuses.lock().unwrap() = refuses;
    }
}

impl Network for Watched {
    fn floor(&self) -> Arc<Floor> {
        Isolated.floor()
    }

    fn attach(&self, request: NetworkRequest) -> BoxFuture<'_, Result<Box<dyn Attachment>, NetworkError>> {
        Box::pin(async move {
            *self.0.in_force.lock().unwrap() = Some((request.policy.spec().clone(), request.generation));
            let isolated = Isolated.attach(request).await?;
            Ok(Box::new(WatchedAttachment(self.clone(), isolated)) as Box<dyn Attachment>)
        })
    }
}

struct WatchedAttachment(Watched, Box<dyn Attachment>);

impl Attachment for WatchedAttachment {
    fn namespace(&self) -> Result<OwnedFd, NetworkError> {
        self.1.namespace()
    }

    fn set_policy(&self, policy: Arc<Policy>) -> BoxFuture<'_, Result<u64, NetworkError>> {
        Box::pin(async move {
            self.0.0.permits.acquire().await?.forget();
            if *self.0.0.refuses.lock().unwrap() {
                return Err("the kernel said no".into());
            }
            let mut in_force = self.0.0.in_force.lock().unwrap();
            let (now, generation) = in_force.as_mut().expect("attached");
            (*now, *generation) = (policy.spec().clone(), *generation + 1);
            Ok(*generation)
        })
    }

    fn broken(&self) -> BoxFuture<'static, gate::Broken> {
        self.1.broken()
    }

    fn detach(&self) -> BoxFuture<'_, ()> {
        self.1.detach()
    }
}

async fn lab() -> (Lab, Watched, SandboxId) {
    let network = Watched::default();
    let lab = on(Arc::new(tempfile::tempdir().unwrap()), &network).await;
    let first = change(&["a.x.test", "b.x.test"]);
    let create = sandbox::Create { policy: first.policy, stored: first.stored, ..request() };
    let id = lab.create_with(create).await.unwrap().id.parse().unwrap();
    (lab, network, id)
}

async fn on(dir: Arc<tempfile::TempDir>, network: &Watched) -> Lab {
    Lab::with(dir, Arc::new(network.clone())).await
}

fn change(allow: &[&str]) -> PolicyChange {
    let allow_out = allow.iter().map(ToString::to_string).collect();
    PolicyChange {
        policy: PolicySpec { allow_out, ..PolicySpec::default() },
        stored: json!({ "shown": allow }),
        only_narrower: false,
        by: ChangedBy::Key("key-1".to_owned()),
    }
}

fn narrower(allow: &[&str]) -> PolicyChange {
    PolicyChange { only_narrower: true, by: ChangedBy::Ratchet("rat-1".to_owned()), ..change(allow) }
}

/// Checks that everything that knows the policy of a sandbox knows this one.
#[track_caller]
fn assert_is(record: &SandboxRecord, network: &Watched, allow: &[&str]) {
    let expected = change(allow);
    let (in_force, generation) = network.in_force();
    assert_eq!(in_force, expected.policy);
    assert_eq!(record.generation, generation);
    assert_eq!(record.spec, expected.stored);
    assert_eq!(record.host["policy"], serde_json::to_value(&expected.policy).unwrap());
}

/// As [`assert_is`], for what the manager says and what is stored.
async fn assert_everywhere(lab: &Lab, network: &Watched, id: &SandboxId, allow: &[&str]) {
    assert_is(&lab.manager.get(ACCOUNT, id).await.unwrap(), network, allow);
    assert_is(&lab.store.sandboxes().get(id.as_str()).await.unwrap().unwrap(), network, allow);
}

async fn events(lab: &Lab, id: &SandboxId, kind: &str) -> Vec<Value> {
    lab.audit.flush().await.unwrap();
    let kinds = vec![kind.to_owned()];
    let query = EventQuery { sandbox: Some(id.to_string()), kinds, ..EventQuery::default() };
    let page = lab.store.events().query(&query).await.unwrap();
    page.events.into_iter().filter_map(|event| event.detail).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_stored_before_it_is_answered_and_survives_the_daemon() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    assert_everywhere(&lab, &network, &id, &["a.x.test", "b.x.test"]).await;
    let record = lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])).await.unwrap();
    assert_is(&record, &network, &["c.x.test"]);
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
    assert_eq!(
        events(&lab, &id, "policy_changed").await,
        [json!({ "by": { "key": "key-1" }, "from": 1, "to": 2 })]
    );

    let network = Watched::default();
    let lab = on(lab.stop(), &network).await;
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_is_updated_too_and_a_killed_one_is_not() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    lab.manager.pause(ACCOUNT, &id).await.unwrap();
    lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])).await.unwrap();
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
    let network = Watched::default();
    let lab = on(lab.stop(), &network).await;
    lab.manager.resume(ACCOUNT, &id).await.unwrap();
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;

    lab.manager.kill(ACCOUNT, &id).await.unwrap();
    let refused = lab.manager.set_policy(ACCOUNT, &id, change(&["d.x.test"])).await;
    assert!(matches!(refused, Err(SandboxError::Killed)), "{refused:?}");
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_update_changes_nothing_and_names_the_entry() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    let refused =
        lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test", "not a host"])).await.unwrap_err();
    assert!(refused.to_string().contains(r#"allow_out[1]: "not a host""#), "{refused}");
    assert_everywhere(&lab, &network, &id, &["a.x.test", "b.x.test"]).await;
    let refusals = events(&lab, &id, "policy_change_refused").await;
    assert_eq!((refusals.len(), &refusals[0]["generation"]), (1, &json!(1)));
    lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])).await.unwrap();
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_updates_end_in_one_of_them_as_a_whole() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    let names: Vec<[String; 2]> =
        (0..20).map(|i| [format!("first{i}.x.test"), format!("second{i}.x.test")]).collect();
    let updates: Vec<_> = names
        .iter()
        .map(|names| {
            let (manager, id) = (lab.manager.clone(), id.clone());
            let change = change(&[&names[0], &names[1]]);
            tokio::spawn(async move { manager.set_policy(ACCOUNT, &id, change).await.unwrap().generation })
        })
        .collect();
    let mut generations = Vec::new();
    for update in updates {
        generations.push(update.await.unwrap());
    }
    let last = generations.iter().position(|generation| *generation == 21).expect("20 updates");
    generations.sort_unstable();
    assert_eq!(generations, (2..=21).collect::<Vec<_>>());
    let [first, second] = &names[last];
    assert_everywhere(&lab, &network, &id, &[first, second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_the_network_refuses_leaves_the_old_policy_and_says_so() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    network.refuse(true);
    let refused = lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])).await.unwrap_err();
    assert!(matches!(refused, SandboxError::PolicyKept(_)), "{refused:?}");
    assert_everywhere(&lab, &network, &id, &["a.x.test", "b.x.test"]).await;
    assert_eq!(events(&lab, &id, "policy_change_refused").await.len(), 1);
    assert_eq!(events(&lab, &id, "policy_changed").await.len(), 0);
    network.refuse(false);
    lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])).await.unwrap();
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_cannot_be_stored_is_taken_back() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    lab.store.close().await;
    let refused = lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])).await.unwrap_err();
    assert!(matches!(refused, SandboxError::PolicyKept(_)), "{refused:?}");
    assert_eq!(network.in_force().1, 3, "there and back");
    assert_is(&lab.manager.get(ACCOUNT, &id).await.unwrap(), &network, &["a.x.test", "b.x.test"]);

    let network = Watched::default();
    let lab = on(lab.stop(), &network).await;
    assert_eq!(network.in_force().0, change(&["a.x.test", "b.x.test"]).policy);
    lab.manager.kill(ACCOUNT, &id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_whose_client_is_gone_is_carried_out_to_the_end() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    network.0.permits.forget_permits(1000);
    {
        let mut update = Box::pin(lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])));
        let mut context = Context::from_waker(Waker::noop());
        assert!(update.as_mut().poll(&mut context).is_pending());
    }
    network.0.permits.add_permits(1);
    eventually("it is carried out", async || lab.manager.get(ACCOUNT, &id).await.unwrap().generation == 2)
        .await;
    eventually("it is recorded", async || events(&lab, &id, "policy_changed").await.len() == 1).await;
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_may_only_narrow_is_refused_by_the_entry_that_widens() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    let refused =
        lab.manager.set_policy(ACCOUNT, &id, narrower(&["a.x.test", "c.x.test"])).await.unwrap_err();
    let SandboxError::PolicyWidens(widening) = &refused else { panic!("{refused:?}") };
    assert_eq!(widening.entry(), Some((List::AllowOut, 1, "c.x.test")));
    let open = PolicyChange { policy: PolicySpec::default(), ..narrower(&[]) };
    let refused = lab.manager.set_policy(ACCOUNT, &id, open).await.unwrap_err();
    assert!(matches!(refused, SandboxError::PolicyWidens(Widening::Default)), "{refused:?}");
    assert_everywhere(&lab, &network, &id, &["a.x.test", "b.x.test"]).await;

    lab.manager.set_policy(ACCOUNT, &id, narrower(&["b.x.test:443"])).await.unwrap();
    assert_everywhere(&lab, &network, &id, &["b.x.test:443"]).await;
    let back = lab.manager.set_policy(ACCOUNT, &id, narrower(&["a.x.test", "b.x.test"])).await;
    assert!(matches!(back, Err(SandboxError::PolicyWidens(_))), "{back:?}");
    let by = json!({ "ratchet": "rat-1" });
    let refusals = events(&lab, &id, "policy_change_refused").await;
    let generations: Vec<_> = refusals.iter().map(|refusal| refusal["generation"].as_u64()).collect();
    assert_eq!(generations, [Some(1), Some(1), Some(2)]);
    assert!(refusals.iter().all(|refusal| refusal["by"] == by), "{refusals:?}");
    assert!(refusals[0]["message"].as_str().unwrap().contains(r#"allow_out[1]: "c.x.test""#), "{refusals:?}");
    assert_eq!(events(&lab, &id, "policy_changed").await, [json!({ "by": by, "from": 1, "to": 2 })]);

    lab.manager.set_policy(ACCOUNT, &id, change(&["c.x.test"])).await.unwrap();
    assert_everywhere(&lab, &network, &id, &["c.x.test"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_narrowings_at_once_that_exclude_each_other_one_is_refused() {
    if !possible() {
        return;
    }
    let (lab, network, id) = lab().await;
    for _ in 0..20 {
        lab.manager.set_policy(ACCOUNT, &id, change(&["a.x.test", "b.x.test"])).await.unwrap();
        let [first, second] = ["a.x.test", "b.x.test"].map(|name| {
            let (manager, id) = (lab.manager.clone(), id.clone());
            tokio::spawn(async move { manager.set_policy(ACCOUNT, &id, narrower(&[name])).await })
        });
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        let (winner, refused) = match (&first, &second) {
            (Ok(_), Err(refused)) => ("a.x.test", refused),
            (Err(refused), Ok(_)) => ("b.x.test", refused),
            both => panic!("{both:?}"),
        };
        assert!(matches!(refused, SandboxError::PolicyWidens(_)), "{refused:?}");
        assert_everywhere(&lab, &network, &id, &[winner]).await;
    }
}
