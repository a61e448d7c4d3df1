//! Sandboxes that stand still, and go on.

#![expect(clippy::print_stderr, reason = "a test that is skipped says so")]

mod support;

use std::{sync::Arc, time::Duration};

use sandbox::{Create, Exec, OnTimeout, SandboxError, SandboxId, State};
use store::SandboxRecord;
use support::{ACCOUNT, Lab, eventually, groups, possible, request, traces};

/// Whether sandboxes can be paused here.
async fn can_pause(lab: &Lab) -> bool {
    let pausing = Create { on_timeout: OnTimeout::Pause, ..request() };
    match lab.create_with(pausing).await {
        Ok(_) => true,
        Err(SandboxError::CannotPause) => {
            assert!(std::env::var_os("STRICT").is_none(), "needs version 2 control groups");
            eprintln!("SKIP: sandboxes cannot be paused on this machine");
            false
        }
        Err(error) => panic!("{error:?}"),
    }
}

async fn made(lab: &Lab, create: Create) -> SandboxId {
    lab.create_with(create).await.expect("sandbox").id.parse().expect("id")
}

async fn record(lab: &Lab, id: &SandboxId) -> SandboxRecord {
    lab.manager.get(ACCOUNT, id).await.expect("record")
}

/// A command in the background that counts, and what it has counted.
async fn ticking(lab: &Lab, id: &SandboxId) -> impl Fn() -> u64 + use<> {
    let count =
        Exec { command: "while :; do echo >> ~/ticks; sleep 0.01; done".to_owned(), ..Exec::default() };
    lab.manager.spawn_background(ACCOUNT, id, count).await.expect("background");
    let ticks = lab.sandbox_dir(id).join("fs/upper/home/user/ticks");
    let size = move || std::fs::metadata(&ticks).map_or(0, |file| file.len());
    eventually("it ticks", async || size() > 0).await;
    size
}

fn frozen(id: &SandboxId) -> bool {
    let found = groups("/sys/fs/cgroup".as_ref(), id.as_str());
    found.iter().any(|group| {
        let events = std::fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "frozen 1")
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_stands_still_and_goes_on_when_resumed() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    if !can_pause(&lab).await {
        return;
    }
    let size = ticking(&lab, &id).await;
    lab.manager.pause(ACCOUNT, &id).await.expect("pause");
    // Nothing runs from the moment in which the call returns.
    assert!(frozen(&id));
    let before = size();
    assert!(matches!(lab.manager.exec(ACCOUNT, &id, Exec::default()).await, Err(SandboxError::Paused)));
    assert!(matches!(lab.manager.pause(ACCOUNT, &id).await, Err(SandboxError::Paused)));
    let record = record(&lab, &id).await;
    assert_eq!((record.state.as_str(), record.end_at), ("paused", None));
    assert_eq!(size(), before);
    lab.manager.resume(ACCOUNT, &id).await.expect("resume");
    eventually("it ticks again", async || size() > before).await;
    lab.manager.pause(ACCOUNT, &id).await.expect("pause");
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("a paused one can be killed"));
    assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_wants_it_is_paused_when_its_time_is_up_and_has_all_of_it_when_it_goes_on() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    let pausing = Create { timeout: Duration::from_secs(1), on_timeout: OnTimeout::Pause, ..request() };
    let id = made(&lab, pausing.clone()).await;
    let killed = made(&lab, Create { on_timeout: OnTimeout::Kill, ..pausing }).await;
    lab.run(&id, "echo kept > ~/file").await;
    eventually("its time is up", async || record(&lab, &id).await.state == "paused").await;
    eventually("the other's, too", async || record(&lab, &killed).await.state == "killed").await;
    // What is set while it stands still counts from when it goes on.
    lab.manager.set_timeout(ACCOUNT, &id, Duration::from_secs(500)).await.expect("timeout");
    assert_eq!(record(&lab, &id).await.end_at, None);
    lab.manager.resume(ACCOUNT, &id).await.expect("resume");
    assert_eq!(lab.run(&id, "cat ~/file").await, "kept");
    let left = record(&lab, &id).await.end_at.expect("an end").duration_since(jiff::Timestamp::now());
    assert!((400..=500).contains(&left.as_secs()), "{left}");
    // One that runs is left as it is.
    lab.manager.resume(ACCOUNT, &id).await.expect("resume");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_wants_it_goes_on_when_it_is_used_and_not_when_it_is_looked_at() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    let waking = made(&lab, Create { auto_resume: true, ..request() }).await;
    let sleeping = lab.create().await;
    for id in [&waking, &sleeping] {
        lab.manager.pause(ACCOUNT, id).await.expect("pause");
        lab.manager.set_timeout(ACCOUNT, id, Duration::from_secs(500)).await.expect("timeout");
        lab.manager.usage(ACCOUNT, id).await.expect("usage");
        assert_eq!(record(&lab, id).await.state, "paused");
        assert!(matches!(lab.manager.pause(ACCOUNT, id).await, Err(SandboxError::Paused)));
    }
    // Several at once resume it once.
    let lab = Arc::new(lab);
    let uses = (0..8).map(|n| {
        let (lab, id) = (Arc::clone(&lab), waking.clone());
        tokio::spawn(async move { lab.run(&id, &format!("echo {n}")).await })
    });
    for (n, done) in uses.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(done.await.expect("no panic"), n.to_string());
    }
    assert_eq!(record(&lab, &waking).await.state, "running");
    assert!(matches!(lab.manager.commands(ACCOUNT, &sleeping).await, Err(SandboxError::Paused)));
    lab.manager.pause(ACCOUNT, &waking).await.expect("pause");
    assert!(lab.manager.files(ACCOUNT, &waking).await.is_ok());
    assert!(!frozen(&waking) && frozen(&sleeping));
    assert!(lab.manager.kill(ACCOUNT, &sleeping).await.expect("kill"));
    assert!(matches!(lab.manager.resume(ACCOUNT, &sleeping).await, Err(SandboxError::Killed)));
    assert!(matches!(lab.manager.pause(ACCOUNT, &sleeping).await, Err(SandboxError::Killed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_commands_stands_still_too() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    let id = lab.create().await;
    let time = Duration::from_secs(3);
    let ends = |command: &str| Exec { command: command.to_owned(), timeout: Some(time), ..Exec::default() };
    // It ends by itself soon after it is told to go on, and does so within its time only if the pause does not count.
    let waits = ends("touch ~/begun; until test -e ~/go; do sleep 0.01; done; echo done");
    let kept = lab.manager.spawn_background(ACCOUNT, &id, waits).await.expect("background");
    let endless = lab.manager.spawn_background(ACCOUNT, &id, ends("sleep 1000")).await.expect("background");
    let home = lab.sandbox_dir(&id).join("fs/upper/home/user");
    eventually("it has begun", async || home.join("begun").exists()).await;
    lab.manager.pause(ACCOUNT, &id).await.expect("pause");
    let over = tokio::time::Instant::now() + time;
    eventually("its time would be up", async || tokio::time::Instant::now() > over).await;
    let lab = Lab::on(lab.stop()).await;
    lab.manager.resume(ACCOUNT, &id).await.expect("resume");
    lab.run(&id, "touch ~/go").await;
    let done = lab.manager.wait(ACCOUNT, &id, kept).await.expect("exit");
    assert_eq!((done.stdout.as_slice(), done.timed_out), (b"done\n".as_slice(), false));
    // Time that runs again runs out.
    assert!(lab.manager.wait(ACCOUNT, &id, endless).await.expect("exit").timed_out);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_stands_still_until_the_next_daemon_is_told_otherwise() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    let id = made(&lab, Create { auto_resume: true, timeout: Duration::from_secs(500), ..request() }).await;
    let size = ticking(&lab, &id).await;
    lab.manager.pause(ACCOUNT, &id).await.expect("pause");
    let before = size();
    let lab = Lab::on(lab.stop()).await;
    let after = record(&lab, &id).await;
    assert_eq!((after.state.as_str(), after.end_at, after.auto_resume), ("paused", None, true));
    assert!(frozen(&id));
    assert_eq!(size(), before);
    assert_eq!(lab.run(&id, "echo back").await, "back");
    eventually("it ticks again", async || size() > before).await;
    assert!(record(&lab, &id).await.end_at.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_between_the_store_and_the_kernel_leaves_what_the_next_one_brings_in_line() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    let (pausing, resuming) = (lab.create().await, lab.create().await);
    lab.manager.pause(ACCOUNT, &resuming).await.expect("pause");
    // As it is when it dies after the first of the two steps.
    for (id, state) in [(&pausing, State::Paused), (&resuming, State::Running)] {
        let stored = lab.store.sandboxes().get(id.as_str()).await.expect("store").expect("record");
        let changed = SandboxRecord { state: state.as_str().to_owned(), ..stored };
        lab.store.sandboxes().put(&changed).await.expect("store");
    }
    assert!(!frozen(&pausing) && frozen(&resuming));
    let lab = Lab::on(lab.stop()).await;
    assert!(frozen(&pausing) && !frozen(&resuming));
    assert_eq!(record(&lab, &pausing).await.state, "paused");
    assert_eq!(lab.run(&resuming, "echo alive").await, "alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_to_costs_no_sandbox_that_is_to_be_paused() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    let pausing = Create { timeout: Duration::from_secs(2), on_timeout: OnTimeout::Pause, ..request() };
    let (timed, asked) = (made(&lab, pausing).await, lab.create().await);
    lab.run(&timed, "echo kept > ~/file").await;
    lab.store.close().await;
    // Whoever asks for it is told that it was not done.
    assert!(matches!(lab.manager.pause(ACCOUNT, &asked).await, Err(SandboxError::Store(_))));
    assert_eq!(lab.run(&asked, "echo alive").await, "alive");
    eventually("its time is up", async || frozen(&timed)).await;
    assert!(!frozen(&asked));

    let lab = Lab::on(lab.stop()).await;
    eventually("it is paused again", async || record(&lab, &timed).await.state == "paused").await;
    lab.manager.resume(ACCOUNT, &timed).await.expect("resume");
    assert_eq!(lab.run(&timed, "cat ~/file").await, "kept");
    assert_eq!(lab.run(&asked, "echo alive").await, "alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_while_it_is_paused_or_resumed_stays_killed_and_has_an_end() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    for paused in [false, true].repeat(8) {
        let id = lab.create().await;
        if paused {
            lab.manager.pause(ACCOUNT, &id).await.expect("pause");
        }
        let change = async {
            if paused {
                lab.manager.resume(ACCOUNT, &id).await
            } else {
                lab.manager.pause(ACCOUNT, &id).await
            }
        };
        let (changed, killed) = tokio::join!(change, lab.manager.kill(ACCOUNT, &id));
        assert!(matches!(changed, Ok(()) | Err(SandboxError::Killed)), "{changed:?}");
        assert!(killed.expect("kill"));
        let record = record(&lab, &id).await;
        let end = record.end_at.map(|end| end <= jiff::Timestamp::now());
        assert_eq!((record.state.as_str(), end), ("killed", Some(true)));
        assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_the_kernel_does_not_let_go_on_is_paused_in_the_store_too() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    if !can_pause(&lab).await {
        return;
    }
    let id = lab.create().await;
    lab.manager.pause(ACCOUNT, &id).await.expect("pause");
    // The next daemon finds its group by another way, which can be blocked.
    let stored = lab.store.sandboxes().get(id.as_str()).await.expect("store").expect("record");
    let way = lab.dir.path().join("group");
    let group = groups("/sys/fs/cgroup".as_ref(), id.as_str());
    let group = group.into_iter().find(|group| group.join("cgroup.freeze").exists()).expect("group");
    std::os::unix::fs::symlink(&group, &way).expect("link");
    let host = stored.host.to_string().replace(&*group.to_string_lossy(), &way.to_string_lossy());
    let host = host.parse().expect("JSON");
    lab.store.sandboxes().put(&SandboxRecord { host, ..stored }).await.expect("store");
    let lab = Lab::on(lab.stop()).await;
    std::fs::rename(&way, lab.dir.path().join("elsewhere")).expect("block");

    let refused = lab.manager.resume(ACCOUNT, &id).await;
    assert!(matches!(refused, Err(SandboxError::Setup(_))), "{refused:?}");
    let in_store = lab.store.sandboxes().get(id.as_str()).await.expect("store").expect("record");
    let in_memory = record(&lab, &id).await;
    assert_eq!((in_store.state.as_str(), in_memory.state.as_str()), ("paused", "paused"));
    assert!(frozen(&id));
    std::fs::rename(lab.dir.path().join("elsewhere"), &way).expect("unblock");
    lab.manager.resume(ACCOUNT, &id).await.expect("resume");
    assert_eq!(lab.run(&id, "echo alive").await, "alive");
}
