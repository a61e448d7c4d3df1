//! The proof that the rules hold, after each change of the policy.
#![expect(clippy::unwrap_used, reason = "a test may fail")]

mod lab;

use std::{io::ErrorKind::ConnectionRefused, net::TcpListener, time::Duration};

use gate::GateError;
use nft::{Batch, Chain, ChainType, Hook, Table};
use policy::PolicySpec;
use tokio::time::timeout;

use crate::lab::{allow, kind};

#[test]
fn a_sandbox_whose_rules_do_not_hold_is_cut_off_and_others_are_not() {
    lab::run(|lab| async move {
        let mut proofs = (0, 0);
        for spec in [allow(&["api.github.com"]), PolicySpec::default()] {
            let (sandbox, other) = (lab.attach(&spec).await, lab.attach(&spec).await);
            sandbox.0.set_policy(lab.policy(&spec)).await.unwrap();
            // Somebody on the machine puts a table of his own before ours.
            sandbox.run(intrude).await;
            let changed = sandbox.0.set_policy(lab.policy(&spec)).await;
            assert!(matches!(changed, Err(GateError::Unproven(_))), "{changed:?}");
            timeout(lab::PATIENCE, sandbox.0.broken()).await.unwrap();
            let again = sandbox.0.set_policy(lab.policy(&spec)).await;
            assert!(matches!(again, Err(GateError::Detached)), "{again:?}");
            other.0.set_policy(lab.policy(&spec)).await.unwrap();
            assert!(timeout(Duration::ZERO, other.0.broken()).await.is_err());
            let stats = lab.gate.stats();
            // When both came up, and each of three changes.
            proofs.0 += 5;
            proofs.1 += 1;
            assert_eq!((stats.proofs, stats.failed_proofs), proofs);
        }
    });
}

#[test]
fn a_sandbox_that_has_taken_all_ports_is_proven_all_the_same_and_found_out_all_the_same() {
    lab::run(|lab| async move {
        let spec = allow(&["api.github.com"]);
        let sandbox = lab.attach(&spec).await;
        let taken = sandbox
            .run(|| {
                // So that they are not tens of thousands.
                netns::sysctl::set("ipv4/ip_local_port_range", "40000 40019").unwrap();
                let sockets: Vec<_> = (40_000..40_020)
                    .flat_map(|port| ["0.0.0.0", "::"].map(|address| (address, port)))
                    .map(TcpListener::bind)
                    .collect();
                // Where one for IPv6 is for both.
                assert!(sockets.iter().filter(|socket| socket.is_ok()).count() >= 20);
                assert!(TcpListener::bind("0.0.0.0:0").is_err() && TcpListener::bind("[::]:0").is_err());
                sockets
            })
            .await;
        for _ in 0..3 {
            sandbox.0.set_policy(lab.policy(&spec)).await.unwrap();
            sandbox.0.prove().await.unwrap();
        }
        assert!(timeout(Duration::ZERO, sandbox.0.broken()).await.is_err());
        sandbox.run(intrude).await;
        let changed = sandbox.0.set_policy(lab.policy(&spec)).await;
        assert!(matches!(changed, Err(GateError::Unproven(_))), "{changed:?}");
        drop(taken);
    });
}

#[test]
fn what_the_daemon_tries_is_no_event_and_the_same_from_the_sandbox_is() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        assert!(lab.events(&sandbox).await.is_empty());
        for _ in 0..2 {
            let refused = sandbox.connect("169.254.169.254:80").await;
            assert_eq!(kind(refused), ConnectionRefused);
        }
        let events = lab.events(&sandbox).await;
        assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 2, "{events:?}");
    });
}

#[test]
fn what_the_daemon_tries_and_the_log_loses_hides_no_attempt_of_the_sandbox() {
    lab::run(|lab| async move {
        let sandbox = lab.allowing(&["api.github.com"]).await;
        // Somebody refuses what is refused anyway, before it can be logged.
        sandbox.run(|| refuse_unlogged(true)).await;
        sandbox.0.prove().await.unwrap();
        sandbox.run(|| refuse_unlogged(false)).await;
        assert!(lab.events(&sandbox).await.is_empty());
        assert_eq!(kind(sandbox.connect("169.254.169.254:80").await), ConnectionRefused);
        let events = lab.events(&sandbox).await;
        assert_eq!(events.iter().map(|event| event.count).sum::<u64>(), 1, "{events:?}");
    });
}

/// Adds a table that does so, or deletes it.
fn refuse_unlogged(is_added: bool) {
    let table = Table::inet("unlogged");
    let chain = Chain::base("output", ChainType::Filter, Hook::Output, -300, nft::Policy::Accept);
    let mut batch = Batch::new();
    if is_added {
        batch.add_table(&table).add_chain(&table, &chain).add_rule(
            &table,
            "output",
            nft::rule().tcp().dport(80).reset(),
        );
    } else {
        batch.del_table(&table);
    }
    nft::Connection::open().unwrap().commit(batch).unwrap();
}

fn intrude() {
    let table = Table::inet("intruder");
    let chain = Chain::base("output", ChainType::Filter, Hook::Output, -300, nft::Policy::Drop);
    let mut batch = Batch::new();
    batch.add_table(&table).add_chain(&table, &chain);
    nft::Connection::open().unwrap().commit(batch).unwrap();
}
