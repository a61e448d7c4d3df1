//! What comes over all sandboxes of a gate at once, and what happens in the middle of making one.

use std::net::IpAddr;

use netns::{Connection, LinkIndex};
use policy::{Decision, Flow, Protocol};
use tokio::time::timeout;

use super::*;
use crate::{
    fixture::{Fixture, PATIENCE, allow, on_a_machine, resolver, sandboxes},
    member::Broken,
};

const ENTRIES: [&str; 2] = ["10.9.8.7", "10.9.8.8"];

/// Gives the machine an address, and the gate the news.
async fn move_machine_to(gate: &Gate, address: &str) {
    let mut connection = Connection::open().unwrap();
    connection.add_address(LinkIndex::LOOPBACK, address.parse::<IpAddr>().unwrap().into()).unwrap();
    refresh(gate).await;
}

async fn refresh(gate: &Gate) {
    let shared = Arc::clone(&gate.shared);
    blocking(move || shared.refresh()).await.unwrap();
}

/// What the policy in force says of an address.
fn decision(sandbox: &Sandbox, address: &str) -> Decision {
    let address = Some(address.parse().unwrap());
    let flow = Flow { protocol: Protocol::Tcp, name: None, address, port: Some(80) };
    sandbox.force().now.policy.judge(&flow).decision
}

fn assert_only_the_other_passes(sandbox: &Sandbox) {
    let decisions = ENTRIES.map(|entry| decision(sandbox, entry));
    assert_eq!(decisions, [Decision::Deny, Decision::Allow]);
}

#[test]
fn a_policy_from_before_a_change_of_the_machines_addresses_is_put_in_force_over_the_new_floor() {
    on_a_machine(|directory| async move {
        let fixture = Fixture::start(directory.path()).await;
        let before = fixture.gate.floor();
        let present = fixture.attach("sbx-present", &["good.test"]).await;
        move_machine_to(&fixture.gate, ENTRIES[0]).await;
        let request = fixture.request("sbx-attached", &ENTRIES, Arc::clone(&before));
        let attached = fixture.gate.attach(request).await.unwrap();
        assert_only_the_other_passes(&attached.member().sandbox);
        let stale = Arc::new(Policy::compile(&allow(&ENTRIES), before).unwrap());
        present.set_policy(stale).await.unwrap();
        assert_only_the_other_passes(&present.member().sandbox);
    });
}

#[test]
fn a_change_of_the_machines_addresses_while_a_sandbox_is_attached_reaches_it() {
    on_a_machine(|directory| async move {
        let fixture = Fixture::start(directory.path()).await;
        let request = fixture.request("sbx-late", &ENTRIES, fixture.gate.floor());
        let shared = Arc::clone(&fixture.gate.shared);
        let member = blocking(move || {
            let (namespace, interior) = namespace::create()?;
            let (sandbox, listeners) = shared.sandbox(namespace, interior, request);
            let member = Arc::new(Member::new(Arc::new(sandbox)));
            member.start(&shared)?;
            Ok((member, listeners))
        });
        let (member, _listeners) = member.await.unwrap();
        assert_eq!(ENTRIES.map(|entry| decision(&member.sandbox, entry)), [Decision::Allow; 2]);
        // It has its first policy, and is not yet among the gate's sandboxes.
        move_machine_to(&fixture.gate, ENTRIES[0]).await;
        assert_eq!(decision(&member.sandbox, ENTRIES[0]), Decision::Allow);
        let (shared, late) = (Arc::clone(&fixture.gate.shared), Arc::clone(&member));
        blocking(move || shared.join(&late)).await.unwrap();
        assert_only_the_other_passes(&member.sandbox);
        let shared = Arc::clone(&fixture.gate.shared);
        tokio::task::spawn_blocking(move || member.release(&shared)).await.unwrap();
    });
}

#[test]
fn a_change_of_the_machines_network_that_is_tried_again_touches_only_who_is_behind() {
    on_a_machine(|directory| async move {
        let (fixture, [one, two]) = sandboxes(directory.path(), "good.test").await;
        let generations = || [&one, &two].map(|attachment| attachment.info().generation);
        move_machine_to(&fixture.gate, ENTRIES[0]).await;
        assert_eq!(generations(), [2, 2]);
        // As if the change had failed for one of them.
        one.member().fall_behind();
        fixture.gate.shared.is_behind.store(true, Ordering::SeqCst);
        refresh(&fixture.gate).await;
        assert_eq!(generations(), [3, 2]);
    });
}

#[test]
fn a_panic_while_a_sandbox_is_made_leaves_nothing_of_it_and_others_go_on() {
    on_a_machine(|directory| async move {
        let (fixture, [one, _two]) = sandboxes(directory.path(), "10.1.2.3").await;
        let request = || fixture.request("sbx-unlucky", &["10.1.2.3"], fixture.gate.floor());
        let early = fixture.gate.bring_up(request(), || panic!("on purpose")).await;
        assert!(matches!(early, Err(GateError::Fault)));
        // In the middle of its first policy: the wire lies already.
        let (shared, late) = (Arc::clone(&fixture.gate.shared), request());
        let wires = || fixture.gate.shared.uplink.lock().as_ref().map(|uplink| uplink.slots().len());
        assert_eq!(wires(), Some(2));
        let started = blocking(move || {
            let (namespace, interior) = namespace::create()?;
            let (sandbox, _listeners) = shared.sandbox(namespace, interior, late);
            let member = Arc::new(Member::new(Arc::new(sandbox)));
            let started = member.start_and_panic(&shared);
            assert!(!member.is_wired());
            assert_eq!(*member.broken.borrow(), Some(Broken::Service));
            assert!(matches!(member.refresh(&shared), Ok(()) | Err(GateError::Detached)));
            member.release(&shared);
            started
        });
        assert!(matches!(started.await, Err(GateError::Fault)));
        assert_eq!(wires(), Some(2));
        assert_eq!(fixture.gate.stats().sandboxes, 2);
        assert_eq!(resolver(&one).await, Ok(()));
        fixture.attach("sbx-after", &["10.1.2.3"]).await.detach().await;
    });
}

#[test]
fn a_panic_while_a_policy_is_changed_cuts_that_sandbox_off_and_no_other() {
    on_a_machine(|directory| async move {
        let (fixture, [one, two]) = sandboxes(directory.path(), "good.test").await;
        let (shared, member) = (Arc::clone(&fixture.gate.shared), Arc::clone(one.member()));
        let changed = blocking(move || member.start_and_panic(&shared));
        assert!(matches!(changed.await, Err(GateError::Fault)));
        assert_eq!(timeout(PATIENCE, one.broken()).await.unwrap(), Broken::Service);
        let policy = Arc::new(Policy::compile(&allow(&ENTRIES), fixture.gate.floor()).unwrap());
        assert!(matches!(one.set_policy(Arc::clone(&policy)).await, Err(GateError::Detached)));
        assert!(!one.member().is_wired());
        two.set_policy(policy).await.unwrap();
        assert_eq!(resolver(&two).await, Ok(()));
        assert!(timeout(Duration::ZERO, two.broken()).await.is_err());
    });
}

#[test]
fn when_what_records_the_wires_ends_all_who_have_one_are_cut_off_and_nobody_gets_one() {
    for ending in ["panic", "failure", "end"] {
        on_a_machine(|directory| async move {
            let fixture = Fixture::start(directory.path()).await;
            let wired = fixture.attach("sbx-wired", &["10.1.2.3"]).await;
            let named = fixture.attach("sbx-named", &["good.test"]).await;
            assert_eq!((wired.member().is_wired(), named.member().is_wired()), (true, false));
            fixture.gate.shared.follow("the uplink's log", async move {
                match ending {
                    "panic" => panic!("on purpose"),
                    "failure" => Err(std::io::Error::other("on purpose")),
                    _ => Ok(()),
                }
            });
            assert_eq!(timeout(PATIENCE, wired.broken()).await.unwrap(), Broken::Service);
            assert!(!wired.member().is_wired());
            let wires = fixture.gate.shared.uplink.lock().as_ref().map(|uplink| uplink.slots().len());
            assert_eq!(wires, Some(0));
            let request = fixture.request("sbx-next", &["10.1.2.3"], fixture.gate.floor());
            assert!(matches!(fixture.gate.attach(request).await, Err(GateError::Fault)));
            assert_eq!(resolver(&named).await, Ok(()));
            assert!(timeout(Duration::ZERO, named.broken()).await.is_err());
            fixture.attach("sbx-named-too", &["good.test"]).await.detach().await;
        });
    }
}

#[test]
fn changes_of_the_machines_addresses_are_followed_also_when_the_kernel_does_not_tell_of_them_any_more() {
    for ending in ["panic", "failure", "end"] {
        on_a_machine(|directory| async move {
            let fixture = Fixture::start(directory.path()).await;
            let sandbox = fixture.attach("sbx-one", &ENTRIES).await;
            let shared = &fixture.gate.shared;
            // Nothing of the gate's own looks from here on.
            shared.stop.cancel();
            let ended = async move {
                match ending {
                    "panic" => panic!("on purpose"),
                    "failure" => Err(std::io::Error::other("on purpose")),
                    _ => Ok(()),
                }
            };
            let period = Duration::from_millis(10);
            let stop = CancellationToken::new();
            let watching = tokio::spawn(watch(Arc::downgrade(shared), ended, period, stop.clone()));
            let mut connection = Connection::open().unwrap();
            let moved: IpAddr = ENTRIES[0].parse().unwrap();
            connection.add_address(LinkIndex::LOOPBACK, moved.into()).unwrap();
            let followed = async {
                while decision(&sandbox.member().sandbox, ENTRIES[0]) == Decision::Allow {
                    tokio::time::sleep(period).await;
                }
            };
            timeout(PATIENCE, followed).await.unwrap();
            assert_only_the_other_passes(&sandbox.member().sandbox);
            stop.cancel();
            timeout(PATIENCE, watching).await.unwrap().unwrap();
        });
    }
}

/// A gate whose sandboxes may move 1000 bytes, and two of them with wires.
async fn frugal(directory: &std::path::Path) -> (Fixture, [Attachment; 2]) {
    let mut limits = Limits::default();
    limits.flows.bytes.total = 1000;
    let fixture = Fixture::with(directory, limits).await;
    let both =
        [fixture.attach("sbx-one", &["10.1.2.3"]).await, fixture.attach("sbx-two", &["10.1.2.3"]).await];
    (fixture, both)
}

/// As if a sandbox had moved so many bytes in another way than by its wire.
fn spend(gate: &Gate, attachment: &Attachment, bytes: u64) -> bool {
    attachment.member().sandbox.flows.spend(&gate.shared.config.limits.flows.bytes, bytes, 0, 1)
}

fn with_uplink(gate: &Gate, work: fn(&mut Uplink)) {
    let worked = gate.shared.with_existing_uplink(|uplink| {
        work(uplink);
        Ok(())
    });
    worked.unwrap();
}

async fn count_bytes(gate: &Gate) {
    let shared = Arc::clone(&gate.shared);
    tokio::task::spawn_blocking(move || shared.count_bytes()).await.unwrap();
}

#[test]
fn a_wire_that_cannot_be_cut_at_its_limit_is_cut_as_soon_as_it_can_be() {
    on_a_machine(|directory| async move {
        let (fixture, [one, two]) = frugal(directory.path()).await;
        let gate = &fixture.gate;
        with_uplink(gate, Uplink::lose_rules);
        assert!(!spend(gate, &one, 2000) && spend(gate, &two, 2));
        count_bytes(gate).await;
        with_uplink(gate, Uplink::regain_rules);
        count_bytes(gate).await;
        let is_full = |attachment: &Attachment| {
            let slot = attachment.member().slot().unwrap();
            // Only what is there can be deleted.
            let batch = crate::uplink_rules::room(slot, crate::wired::Room::Free).unwrap();
            let mut is_full = false;
            let asked = gate.shared.with_existing_uplink(|uplink| {
                is_full = uplink.try_commit(batch);
                Ok(())
            });
            asked.map(|()| is_full).unwrap()
        };
        assert_eq!((is_full(&one), is_full(&two)), (true, false));
        assert!(timeout(Duration::ZERO, one.broken()).await.is_err());
    });
}

#[test]
fn a_sandbox_whose_wire_cannot_be_cut_at_its_limit_is_cut_off_and_no_other() {
    on_a_machine(|directory| async move {
        let (fixture, [one, two]) = frugal(directory.path()).await;
        with_uplink(&fixture.gate, Uplink::lose_rules);
        assert!(!spend(&fixture.gate, &one, 2000) && spend(&fixture.gate, &two, 2));
        for _ in 0..5 {
            count_bytes(&fixture.gate).await;
        }
        assert_eq!(timeout(Duration::ZERO, one.broken()).await.unwrap(), Broken::Service);
        assert!(!one.member().is_wired());
        assert!(timeout(Duration::ZERO, two.broken()).await.is_err());
        assert_eq!(resolver(&two).await, Ok(()));
    });
}

#[test]
fn when_it_cannot_be_read_which_flows_have_ended_all_who_have_a_wire_are_cut_off() {
    on_a_machine(|directory| async move {
        let fixture = Fixture::start(directory.path()).await;
        let wired = fixture.attach("sbx-wired", &["10.1.2.3"]).await;
        let named = fixture.attach("sbx-named", &["good.test"]).await;
        let tracking = Arc::clone(fixture.gate.shared.tracking.get().unwrap());
        assert!(tracking.take(usize::MAX, || Ok(None)));
        let mut none = vec![Ok(None), Err(nft::Error::Receive(std::io::ErrorKind::ConnectionReset.into()))];
        assert!(tracking.take(usize::MAX, || none.pop().unwrap()));
        assert_eq!(timeout(PATIENCE, wired.broken()).await.unwrap(), Broken::Service);
        assert!(!wired.member().is_wired());
        let request = fixture.request("sbx-next", &["10.1.2.3"], fixture.gate.floor());
        assert!(matches!(fixture.gate.attach(request).await, Err(GateError::Fault)));
        assert!(timeout(Duration::ZERO, named.broken()).await.is_err());
        assert_eq!(resolver(&named).await, Ok(()));
    });
}
