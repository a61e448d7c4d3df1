//! What sandboxes use is counted: each moment once, for the account whose they are, whatever becomes of the daemon.

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sandbox::{Config, Create, Exec, SandboxError, SandboxId, State};
use store::{Day, UsageDay};
use support::{ACCOUNT, Lab, eventually, possible, request};

/// What an account has used: milliseconds, and how many sandboxes.
async fn used(lab: &Lab, account: &str) -> (u64, u64) {
    lab.manager.settle_usage().await.expect("settled");
    let present = [State::Running, State::Paused].map(State::as_str);
    let days = lab.store.usage().days(account, Day(0), Day(i32::MAX), present).await.expect("days");
    let sum = |number: fn(&UsageDay) -> u64| days.iter().map(number).sum();
    (sum(|day| day.running_ms), sum(|day| day.sandboxes))
}

/// Waits until an account has used so much more.
async fn until_more(lab: &Lab, milliseconds: u64) {
    let enough = used(lab, ACCOUNT).await.0 + milliseconds;
    eventually("time passes", async || used(lab, ACCOUNT).await.0 >= enough).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_in_which_sandboxes_run_is_counted_once_and_pauses_are_not() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let begun = Instant::now();
    let elapsed = || u64::try_from(begun.elapsed().as_millis()).expect("milliseconds");
    let id = lab.create().await;
    assert_eq!(used(&lab, ACCOUNT).await.1, 1);
    until_more(&lab, 200).await;
    let first = used(&lab, ACCOUNT).await.0;
    assert!((200..=elapsed()).contains(&first), "{first} of {}", elapsed());

    match lab.manager.pause(ACCOUNT, &id).await {
        Ok(()) => {
            let paused = used(&lab, ACCOUNT).await;
            let other = Create { account: "other".to_owned(), ..request() };
            lab.create_with(other).await.expect("sandbox");
            eventually("time passes", async || used(&lab, "other").await.0 > 200).await;
            assert_eq!(used(&lab, ACCOUNT).await, paused);
            lab.manager.resume(ACCOUNT, &id).await.expect("resume");
        }
        Err(error) => assert!(matches!(error, SandboxError::Setup(_)), "{error:?}"),
    }
    until_more(&lab, 200).await;

    // A daemon that was stopped, or died, has lost nothing, and what ran meanwhile has run.
    let before = used(&lab, ACCOUNT).await.0;
    let dir = lab.stop();
    let away = Instant::now();
    eventually("nobody is there", async || away.elapsed() > Duration::from_millis(300)).await;
    let lab = Lab::on(dir).await;
    let after = used(&lab, ACCOUNT).await;
    assert!(after.0 >= before + 300 && after.0 <= elapsed(), "{before}, {after:?}, {}", elapsed());

    let second = lab.create().await;
    for id in [&id, &second] {
        lab.manager.kill(ACCOUNT, id).await.expect("kill");
    }
    let ended = used(&lab, ACCOUNT).await;
    assert!(ended.0 >= after.0 && ended.1 == 2, "{ended:?}");
    let lab = Lab::on(lab.stop()).await;
    assert_eq!(used(&lab, ACCOUNT).await, ended, "what has ended uses nothing, and is counted once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_so_many_sandboxes_at_a_time_and_another_account_has_its_own() {
    if !possible() {
        return;
    }
    let dir = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let lab = Lab::configured(dir, |config| Config { account_sandboxes: 3, ..config }).await;
    // Of many at the same time exactly so many are made.
    let lab = Arc::new(lab);
    let asked = (0..8).map(|_| {
        let lab = Arc::clone(&lab);
        tokio::spawn(async move { lab.create_with(request()).await })
    });
    let mut made = Vec::new();
    for done in asked.collect::<Vec<_>>() {
        match done.await.expect("no panic") {
            Ok(record) => made.push(record.id.parse::<SandboxId>().expect("id")),
            Err(SandboxError::Limit(why)) => assert!(why.contains("3 sandboxes"), "{why}"),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(made.len(), 3);
    let other = Create { account: "other".to_owned(), ..request() };
    lab.create_with(other).await.expect("the other account has none");
    lab.manager.kill(ACCOUNT, &made[0]).await.expect("kill");
    lab.create_with(request()).await.expect("there is room again");
    // One that cannot be made takes no place.
    lab.manager.kill(ACCOUNT, &made[1]).await.expect("kill");
    let wrong = Create { template: "no-such".to_owned(), ..request() };
    assert!(matches!(lab.create_with(wrong).await, Err(SandboxError::UnknownTemplate(_))));
    lab.create_with(request()).await.expect("there is room still");
    assert!(matches!(lab.create_with(request()).await, Err(SandboxError::Limit(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_sandbox_is_measured_and_the_next_daemon_knows_what_was_measured() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let (busy, idle) = (lab.create().await, lab.create().await);
    let work = Exec { command: "while :; do :; done".to_owned(), ..Exec::default() };
    lab.manager.spawn_background(ACCOUNT, &busy, work).await.expect("background");
    let history = async |lab: &Lab, id| lab.manager.history(ACCOUNT, id).await.expect("history");
    assert_eq!(history(&lab, &busy).await, []);
    let file = lab.sandbox_dir(&busy).join("measurements");
    eventually("it is looked at", async || file.exists()).await;
    eventually("it is measured", async || !history(&lab, &busy).await.is_empty()).await;
    let measured = history(&lab, &busy).await[0];
    assert!(measured.processors > 0.05 && measured.memory_bytes > 0, "{measured:?}");
    assert!(history(&lab, &idle).await.iter().all(|one| one.processors < measured.processors));

    let lab = Lab::on(lab.stop()).await;
    assert_eq!(history(&lab, &busy).await.first(), Some(&measured));
    lab.manager.kill(ACCOUNT, &busy).await.expect("kill");
    assert!(matches!(lab.manager.history(ACCOUNT, &busy).await, Err(SandboxError::Killed)));
    assert!(!file.exists());
}
