//! The spawner is a process of its own, and may die like any other. Alone in its file, because it looks for the
//! spawner among all children of the test process.

mod support;

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use support::{ACCOUNT, Lab, eventually, possible};

/// The spawners that this process has started.
fn spawners() -> Vec<Pid> {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").expect("proc").filter_map(Result::ok);
    processes
        .filter_map(|process| {
            let pid = Pid::from_raw(process.file_name().to_str()?.parse().ok()?)?;
            let stat = fs::read_to_string(process.path().join("stat")).ok()?;
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            (parent == own && stat.contains("(sandbox-spawner")).then_some(pid)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spawner_that_dies_is_replaced_and_sandboxes_do_not_notice() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let earlier = lab.create().await;
    let first = spawners();
    assert_eq!(first.len(), 1);
    kill_process(first[0], Signal::KILL).expect("kill");
    assert_eq!(lab.run(&earlier, "echo alive").await, "alive");
    // The request that meets the broken connection may fail; the next one may not.
    let mut created = Vec::new();
    eventually("another spawner", async || {
        created.extend(lab.create_with(support::request()).await);
        !created.is_empty()
    })
    .await;
    let later = created[0].id.parse().expect("id");
    assert_eq!(lab.run(&later, "echo alive").await, "alive");
    for id in [earlier, later] {
        assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
        assert_eq!(support::traces(lab.dir.path(), &id), Vec::<String>::new());
    }
    drop(lab);
    eventually("the spawner ends with its manager", async || {
        // It is a zombie until this process, its parent, waits for it.
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        spawners().is_empty()
    })
    .await;
}
