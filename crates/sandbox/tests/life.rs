//! The life of a sandbox, from its creation to the last trace of it.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use sandbox::{Create, Exec, Filter, SandboxError, SandboxId, State, cgroup::Limits, spawner::BindMount};
use store::Begin;
use support::{ACCOUNT, Lab, accept_records, eventually, possible, refuse_records, request, traces};

fn sleep() -> Exec {
    Exec { command: "sleep 1000".to_owned(), ..Exec::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_runs_commands_and_leaves_no_trace_when_killed() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    assert_eq!(lab.run(&id, "echo $GREETING from $(id -un) in $PWD").await, "hello from user in /home/user");
    assert_eq!(lab.run_as_root(&id, "id -u; hostname").await, format!("0\n{id}"));
    lab.manager.spawn_background(ACCOUNT, &id, sleep()).await.expect("background");
    assert!(traces(lab.dir.path(), &id).len() > 4, "directory, groups, processes");
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
    assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
    assert!(!lab.manager.kill(ACCOUNT, &id).await.expect("a second kill"));
    let record = lab.manager.get(ACCOUNT, &id).await.expect("record");
    assert_eq!(record.state, State::Killed.as_str());
    assert!(matches!(lab.manager.exec(ACCOUNT, &id, sleep()).await, Err(SandboxError::Killed)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_sandboxes_is_counted() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let states = || -> Vec<u64> { lab.manager.stats().sandboxes.into_values().collect() };
    assert_eq!(states(), [0, 0, 0]);
    let (killed, paused) = (lab.create().await, lab.create().await);
    lab.manager.pause(ACCOUNT, &paused).await.expect("pause");
    assert_eq!(lab.manager.stats().sandboxes, [("creating", 0), ("paused", 1), ("running", 1)].into());
    let unknown = Create { template: "no-such-template".to_owned(), ..request() };
    assert!(lab.manager.create(unknown).await.is_err());
    lab.manager.kill(ACCOUNT, &killed).await.expect("kill");
    assert!(!lab.manager.kill(ACCOUNT, &killed).await.expect("a second kill"));
    let short = Create { timeout: Duration::from_millis(1), ..request() };
    lab.manager.create(short).await.expect("a short one");
    eventually("its time is up", async || lab.manager.stats().ended["timeout"] == 1).await;
    let stats = lab.manager.stats();
    assert_eq!((stats.created, stats.adopted, states().iter().sum::<u64>()), (3, 0, 1));
    assert_eq!((stats.ended["requested"], stats.ended.values().sum::<u64>()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_of_somebody_else_does_not_exist() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    for account in ["other", ""] {
        assert!(matches!(lab.manager.get(account, &id).await, Err(SandboxError::NotFound)));
        assert!(matches!(lab.manager.exec(account, &id, sleep()).await, Err(SandboxError::NotFound)));
        assert!(matches!(lab.manager.kill(account, &id).await, Err(SandboxError::NotFound)));
        assert!(matches!(lab.manager.kill_queued(account, &id).await, Err(SandboxError::NotFound)));
    }
    let unknown: SandboxId = "sbx-00000000".parse().expect("id");
    assert!(matches!(lab.manager.kill(ACCOUNT, &unknown).await, Err(SandboxError::NotFound)));
    assert_eq!(lab.run(&id, "echo here").await, "here");
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("its owner may"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_killed_while_it_is_created_never_runs() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    for _ in 0..8 {
        let manager = lab.manager.clone();
        let creating = tokio::spawn(async move { manager.create(request()).await });
        let filter = || Filter { states: vec![State::Creating], ..Filter::default() };
        let mut found = None;
        eventually("it is listed", async || {
            let listed = lab.manager.list(ACCOUNT, filter()).await.expect("list").sandboxes;
            found = listed.first().map(|record| record.id.parse::<SandboxId>().expect("id"));
            found.is_some() || creating.is_finished()
        })
        .await;
        let made = match found {
            Some(id) => {
                assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
                let _ = creating.await.expect("task");
                id
            }
            None => {
                let id = creating.await.expect("task").expect("sandbox").id.parse().expect("id");
                assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
                id
            }
        };
        assert_eq!(traces(lab.dir.path(), &made), Vec::<String>::new());
        assert_eq!(lab.manager.get(ACCOUNT, &made).await.expect("record").state, "killed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_concurrent_kills_one_has_killed_and_all_wait() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    let kills: Vec<_> = (0..5)
        .map(|_| {
            let (manager, id) = (lab.manager.clone(), id.clone());
            tokio::spawn(async move { manager.kill(ACCOUNT, &id).await.expect("kill") })
        })
        .collect();
    let mut killers = 0;
    for kill in kills {
        killers += u32::from(kill.await.expect("task"));
        assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
    }
    assert_eq!(killers, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_kill_counts_at_once_and_is_carried_out() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    lab.manager.kill_queued(ACCOUNT, &id).await.expect("kill");
    assert_eq!(lab.manager.get(ACCOUNT, &id).await.expect("record").state, "killed");
    assert_eq!(lab.manager.list(ACCOUNT, Filter::default()).await.expect("list").total, 0);
    eventually("no trace is left", async || traces(lab.dir.path(), &id).is_empty()).await;
    lab.manager.kill_queued(ACCOUNT, &id).await.expect("a second time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_kill_is_carried_out_when_nobody_waits_for_its_answer() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    let mut kill = Box::pin(lab.manager.kill_queued(ACCOUNT, &id));
    // The client that asked goes away before it is answered.
    assert!(futures_util::poll!(kill.as_mut()).is_pending());
    drop(kill);
    eventually("no trace is left", async || traces(lab.dir.path(), &id).is_empty()).await;
    assert_eq!(lab.manager.get(ACCOUNT, &id).await.expect("record").state, "killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_end_cannot_be_stored_ends_is_said_to_have_and_is_recorded_later() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let (killed, queued, lives) = (lab.create().await, lab.create().await, lab.create().await);
    refuse_records(&lab).await;
    assert!(lab.manager.kill(ACCOUNT, &killed).await.expect("kill"));
    lab.manager.kill_queued(ACCOUNT, &queued).await.expect("kill");
    for id in [&killed, &queued] {
        // What cannot be stored is answered when it is done.
        assert_eq!(traces(lab.dir.path(), id), Vec::<String>::new());
        assert_eq!(
            lab.store.sandboxes().get(id.as_str()).await.expect("store").expect("row").state,
            "running"
        );
        assert_eq!(lab.manager.get(ACCOUNT, id).await.expect("record").state, "killed");
        assert!(!lab.manager.kill(ACCOUNT, id).await.expect("again"));
    }
    let listed = lab.manager.list(ACCOUNT, Filter::default()).await.expect("list");
    assert_eq!((listed.total, listed.sandboxes.len()), (1, 1));
    assert_eq!(listed.sandboxes[0].id, lives.as_str());

    accept_records(&lab).await;
    let stored = async |id: &SandboxId| {
        lab.store.sandboxes().get(id.as_str()).await.expect("store").expect("row").state
    };
    eventually("their ends are recorded", async || {
        stored(&killed).await == "killed" && stored(&queued).await == "killed"
    })
    .await;
    assert_eq!(stored(&lives).await, "running");
    assert_eq!(lab.run(&lives, "echo alive").await, "alive");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_ends_when_its_time_is_up_and_not_before() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let short = Create { timeout: Duration::from_secs(1), ..request() };
    let ends: SandboxId = lab.create_with(short.clone()).await.expect("sandbox").id.parse().expect("id");
    let extended: SandboxId = lab.create_with(short).await.expect("sandbox").id.parse().expect("id");
    let endless = Create { timeout: Duration::ZERO, ..request() };
    let endless = lab.create_with(endless).await.expect("sandbox");
    assert_eq!(endless.end_at, None);
    lab.manager.set_timeout(ACCOUNT, &extended, Duration::from_secs(600)).await.expect("extend");
    eventually("its time is up", async || traces(lab.dir.path(), &ends).is_empty()).await;
    assert_eq!(lab.manager.get(ACCOUNT, &ends).await.expect("record").state, "killed");
    assert_eq!(lab.run(&extended, "echo alive").await, "alive");
    assert_eq!(lab.run(&endless.id.parse().expect("id"), "echo alive").await, "alive");
    // A new time to live can also be shorter than the old one.
    lab.manager.set_timeout(ACCOUNT, &extended, Duration::from_millis(1)).await.expect("shorten");
    eventually("its time is up", async || traces(lab.dir.path(), &extended).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_init_dies_has_ended() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    let record = lab.manager.get(ACCOUNT, &id).await.expect("record");
    let pid = record.host["process"]["pid"].as_i64().expect("pid");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).expect("pid")).expect("pid");
    let command = lab.manager.exec(ACCOUNT, &id, sleep());
    let kill = async {
        eventually("the command runs", async || {
            !lab.manager.commands(ACCOUNT, &id).await.expect("commands").is_empty()
        })
        .await;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    };
    let (failed, ()) = tokio::join!(command, kill);
    assert!(matches!(failed, Err(SandboxError::InitUnreachable(_) | SandboxError::Killed)), "{failed:?}");
    eventually("it is noticed", async || traces(lab.dir.path(), &id).is_empty()).await;
    assert_eq!(lab.manager.get(ACCOUNT, &id).await.expect("record").state, "killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_cannot_be_made_leaves_nothing_and_says_why() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let unknown = Create { template: "no-such".to_owned(), ..request() };
    assert!(
        matches!(lab.create_with(unknown).await, Err(SandboxError::UnknownTemplate(name)) if name == "no-such")
    );
    let unbuilt = Create { template: "tpl-python".to_owned(), ..request() };
    assert!(matches!(lab.create_with(unbuilt).await, Err(SandboxError::TemplateNotReady(_))));
    let policy = policy::PolicySpec { allow_out: vec!["not a host".to_owned()], ..Default::default() };
    let invalid = Create { policy, ..request() };
    assert!(matches!(lab.create_with(invalid).await, Err(SandboxError::InvalidPolicy(_))));
    for (source, target) in [("/usr", "/../x"), ("usr", "/mnt"), ("/usr", "mnt"), ("/usr", "/")] {
        let mount = BindMount { source: source.into(), target: target.into(), read_only: true };
        let refused = lab.create_with(Create { mounts: vec![mount], ..request() }).await;
        assert!(matches!(refused, Err(SandboxError::InvalidPath(_))), "{source}:{target}");
    }
    // A target that goes wrong inside of the new root, as late as possible.
    let mount = BindMount { source: "/usr".into(), target: "/etc/hosts/below".into(), read_only: true };
    let failed = lab.create_with(Create { mounts: vec![mount], ..request() }).await;
    match failed {
        Err(SandboxError::Setup(fault)) => assert!(fault.object.contains("etc/hosts"), "{fault}"),
        other => panic!("{other:?}"),
    }
    let entries: Vec<PathBuf> = std::fs::read_dir(lab.dir.path().join("data/sandboxes"))
        .expect("directory")
        .map(|entry| entry.expect("entry").path())
        .collect();
    assert_eq!(entries, Vec::<PathBuf>::new());
    assert!(lab.manager.gc().await.expect("gc").is_empty());
    assert_eq!(lab.manager.list(ACCOUNT, Filter::default()).await.expect("list").total, 0);
    lab.create().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_takes_as_many_variables_as_the_api_takes() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    // 1024 of them, 256 KiB together.
    let envs: BTreeMap<_, _> = (0..1024).map(|n| (format!("V{n:04}"), "v".repeat(251))).collect();
    let record = lab.create_with(Create { envs, ..request() }).await.expect("sandbox");
    let id: SandboxId = record.id.parse().expect("id");
    assert_eq!(lab.run(&id, "env | grep -c '^V[0-9]*=v'").await, "1024");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_names_its_sandbox_in_the_claim_of_its_request() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let requests = lab.store.idempotency();
    assert_eq!(requests.begin(ACCOUNT, "key", b"hash").await.expect("begin"), Begin::New);
    let create = Create { idempotency_key: Some("key".to_owned()), ..request() };
    let id = lab.create_with(create).await.expect("sandbox").id;
    // As when nobody lived to answer.
    requests.release(ACCOUNT, "key");
    let again = requests.begin(ACCOUNT, "key", b"hash").await.expect("begin");
    assert_eq!(again, Begin::Interrupted { sandbox: id });
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_are_listed_by_state_and_metadata() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let tagged = |tag: &str| Create { metadata: [("tag".to_owned(), tag.to_owned())].into(), ..request() };
    let one = lab.create_with(tagged("one")).await.expect("sandbox");
    let two = lab.create_with(tagged("two")).await.expect("sandbox");
    lab.manager.kill(ACCOUNT, &two.id.parse().expect("id")).await.expect("kill");
    let ids = async |states: &[State], metadata: BTreeMap<String, String>| {
        let filter = Filter { states: states.to_vec(), metadata, ..Filter::default() };
        let listed = lab.manager.list(ACCOUNT, filter).await.expect("list").sandboxes;
        listed.into_iter().map(|record| record.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(&[], BTreeMap::new()).await, std::slice::from_ref(&one.id));
    assert_eq!(ids(&[State::Killed], BTreeMap::new()).await, std::slice::from_ref(&two.id));
    let tag = [("tag".to_owned(), "two".to_owned())];
    assert_eq!(ids(&[State::Running, State::Killed], tag.into()).await, [two.id]);
    assert_eq!(one.spec, serde_json::json!({ "as": "given" }));
    assert_eq!(one.template_id, "tpl-host");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sandboxes_at_once_share_nothing_and_leave_nothing() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let creating: Vec<_> = (0..12)
        .map(|_| {
            let manager = lab.manager.clone();
            tokio::spawn(async move { manager.create(request()).await.expect("sandbox") })
        })
        .collect();
    let mut ranges = std::collections::BTreeSet::new();
    let mut ids = Vec::new();
    for task in creating {
        let record = task.await.expect("task");
        assert!(ranges.insert(record.host["first_id"].as_u64().expect("first id")), "a range of their own");
        ids.push(record.id.parse::<SandboxId>().expect("id"));
    }
    for id in &ids {
        assert_eq!(lab.run(id, "hostname; ls ~; touch ~/mine").await, id.as_str(), "nothing of others");
    }
    for id in &ids {
        assert!(lab.manager.kill(ACCOUNT, id).await.expect("kill"));
        assert_eq!(traces(lab.dir.path(), id), Vec::<String>::new());
    }
    assert!(lab.manager.gc().await.expect("gc").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_kept_ready_become_sandboxes_and_are_gone_with_the_manager() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let shells = || shells(&lab);
    lab.manager.keep_ready(2);
    eventually("two are ready", async || shells().len() == 2).await;
    assert!(lab.manager.gc().await.expect("gc").is_empty(), "they are no remains");
    let ready = shells();
    let limits = Limits { processes: 77, ..Limits::default() };
    let limited = Create { limits: Some(limits), ..request() };
    let id: SandboxId = lab.create_with(limited).await.expect("sandbox").id.parse().expect("id");
    assert!(ready.contains(&id.to_string()));
    assert_eq!(lab.run(&id, "hostname; echo $GREETING").await, format!("{id}\nhello"));
    let record = lab.manager.get(ACCOUNT, &id).await.expect("record");
    let limit = |group: &serde_json::Value| {
        std::fs::read_to_string(Path::new(group["path"].as_str()?).join("pids.max")).ok()
    };
    let groups = record.host["cgroups"]["groups"].as_array().expect("groups");
    assert_eq!(groups.iter().find_map(limit).as_deref(), Some("77\n"));
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
    assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
    eventually("another one is ready", async || shells().len() == 2).await;
    lab.manager.shutdown();
    eventually("none is left", async || shells().is_empty()).await;
}

/// The names of control groups of this lab without a sandbox's directory.
fn shells(lab: &Lab) -> Vec<String> {
    let sandboxes = std::fs::metadata(lab.dir.path().join("data/sandboxes")).expect("directory");
    let name = format!("bailiwick-{:x}-{:x}", sandboxes.dev(), sandboxes.ino());
    let groups = support::groups(Path::new("/sys/fs/cgroup"), &name);
    let below = groups.iter().flat_map(|group| std::fs::read_dir(group).into_iter().flatten());
    let directories = below.filter_map(Result::ok).filter(|entry| entry.path().is_dir());
    let names: BTreeSet<_> =
        directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.into_iter().filter(|name| !lab.dir.path().join("data/sandboxes").join(name).exists()).collect()
}
