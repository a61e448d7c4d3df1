//! Daemons die and start again; sandboxes do not.

mod support;

use std::{fs, sync::Arc, time::Duration};

use policy::Floor;
use rustix::process::{Pid, Signal, kill_process};
use sandbox::{
    Attachment, BoxFuture, Create, Exec, Filter, Network, NetworkError, NetworkRequest, SandboxId, State,
};
use support::{ACCOUNT, Isolated, Lab, eventually, possible, request, traces};

fn pid(record: &store::SandboxRecord) -> Pid {
    let pid = record.host["process"]["pid"].as_i64().expect("pid");
    Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_starts_again_takes_its_sandboxes_over() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    let sleep = Exec { command: "sleep 1000".to_owned(), ..Exec::default() };
    let command = lab.manager.spawn_background(ACCOUNT, &id, sleep).await.expect("background");
    lab.run(&id, "echo kept > ~/file").await;
    let before = lab.manager.get(ACCOUNT, &id).await.expect("record");

    let lab = Lab::on(lab.stop()).await;
    let after = lab.manager.get(ACCOUNT, &id).await.expect("record");
    assert_eq!((&before.state, &before.host, &before.envs), (&after.state, &after.host, &after.envs));
    assert_eq!(before.end_at.map(|end| end.as_millisecond()), after.end_at.map(|end| end.as_millisecond()));
    assert_eq!(lab.run(&id, "cat ~/file; echo $GREETING").await, "kept\nhello");
    let commands = lab.manager.commands(ACCOUNT, &id).await.expect("commands");
    assert_eq!(commands.iter().map(|info| info.pid).collect::<Vec<_>>(), [command]);
    // Its range of ids is still its own.
    let other = lab.create().await;
    let other = lab.manager.get(ACCOUNT, &other).await.expect("record");
    assert_ne!(other.host["first_id"], after.host["first_id"]);
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
    assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_time_was_up_meanwhile_ends_and_one_with_time_left_does_not() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let short = Create { timeout: Duration::from_secs(2), ..request() };
    let ends: SandboxId = lab.create_with(short).await.expect("sandbox").id.parse().expect("id");
    let lives = lab.create().await;
    let record = lab.manager.get(ACCOUNT, &ends).await.expect("record");
    let dir = lab.stop();
    assert!(rustix::process::test_kill_process(pid(&record)).is_ok(), "nobody ends it meanwhile");
    let end = record.end_at.expect("an end");
    eventually("its time is up", async || jiff::Timestamp::now() > end).await;
    let lab = Lab::on(dir).await;
    eventually("it has ended", async || traces(lab.dir.path(), &ends).is_empty()).await;
    assert_eq!(lab.manager.get(ACCOUNT, &ends).await.expect("record").state, "killed");
    assert_eq!(lab.run(&lives, "echo alive").await, "alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_died_while_no_daemon_ran_is_cleared_away() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    let record = lab.manager.get(ACCOUNT, &id).await.expect("record");
    let dir = lab.stop();
    kill_process(pid(&record), Signal::KILL).expect("kill");
    let lab = Lab::on(dir).await;
    assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
    assert_eq!(lab.manager.get(ACCOUNT, &id).await.expect("record").state, "killed");
    assert_eq!(lab.manager.list(ACCOUNT, Filter::default()).await.expect("list").total, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_creation_was_cut_short_is_cleared_away() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    // As the store has it when the daemon dies between starting the process and telling so.
    let mut record = lab.store.sandboxes().get(id.as_str()).await.expect("store").expect("record");
    let process = pid(&record);
    record.state = State::Creating.as_str().to_owned();
    record.host["process"] = serde_json::Value::Null;
    lab.store.sandboxes().put(&record).await.expect("store");
    let lab = Lab::on(lab.stop()).await;
    assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
    eventually("its process is gone", async || rustix::process::test_kill_process(process).is_err()).await;
    assert_eq!(lab.manager.get(ACCOUNT, &id).await.expect("record").state, "killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_removes_what_nobody_owns_and_nothing_else() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let lives = lab.create().await;
    let record = lab.manager.get(ACCOUNT, &lives).await.expect("record");
    assert!(lab.manager.gc().await.expect("gc").is_empty());

    let orphan = "sbx-orphan00";
    let dir = lab.dir.path().join("data/sandboxes").join(orphan);
    fs::create_dir_all(dir.join("fs/upper/some/where")).expect("directory");
    for group in record.host["cgroups"]["groups"].as_array().expect("groups") {
        let own = std::path::Path::new(group["path"].as_str().expect("path"));
        fs::create_dir(own.with_file_name(orphan)).expect("group");
    }
    let mut ghost = record.clone();
    ghost.id = "sbx-ghost000".to_owned();
    lab.store.sandboxes().put(&ghost).await.expect("store");
    fs::create_dir_all(lab.dir.path().join("templates/.building-x-1/rootfs")).expect("directory");

    let report = lab.manager.gc().await.expect("gc");
    assert_eq!(report.failures, Vec::<String>::new());
    assert_eq!(report.directories, [orphan]);
    assert_eq!(report.cgroups, [orphan]);
    assert_eq!(report.records, ["sbx-ghost000"]);
    assert_eq!(report.templates.len(), 1);
    assert_eq!(traces(lab.dir.path(), &orphan.parse().expect("id")), Vec::<String>::new());
    assert_eq!(lab.run(&lives, "echo alive").await, "alive");
    assert!(lab.manager.gc().await.expect("gc").is_empty());
}

/// Networks that are given only when so many ask for them at the same time.
struct Together(tokio::sync::Barrier);

impl Network for Together {
    fn floor(&self) -> Arc<Floor> {
        Isolated.floor()
    }

    fn attach(&self, request: NetworkRequest) -> BoxFuture<'_, Result<Box<dyn Attachment>, NetworkError>> {
        Box::pin(async move {
            self.0.wait().await;
            Isolated.attach(request).await
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_takes_its_time_does_not_keep_others_from_being_taken_over() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let ids = [lab.create().await, lab.create().await, lab.create().await];
    let together = Arc::new(Together(tokio::sync::Barrier::new(ids.len())));
    let taking_over = Lab::with(lab.stop(), together);
    let lab = tokio::time::timeout(Duration::from_secs(30), taking_over).await.expect("taken over");
    for id in ids {
        assert_eq!(lab.run(&id, "echo alive").await, "alive");
    }
}
