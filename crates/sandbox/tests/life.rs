//! The life of a sandbox, from its creation to the last trace of it.

mod support;

use sandbox::{SandboxError, State};
use support::{ACCOUNT, Lab, possible, traces};

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_runs_commands_and_leaves_no_trace_when_killed() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = lab.create().await;
    assert_eq!(lab.run(&id, "echo $GREETING from $(id -un) in $PWD").await, "hello from user in /home/user");
    assert_eq!(lab.run_as_root(&id, "id -u; hostname").await, format!("0\n{id}"));
    assert!(!traces(lab.dir.path(), &id).is_empty());
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
    assert_eq!(traces(lab.dir.path(), &id), Vec::<String>::new());
    assert!(!lab.manager.kill(ACCOUNT, &id).await.expect("a second kill"));
    let record = lab.manager.get(ACCOUNT, &id).await.expect("record");
    assert_eq!(record.state, State::Killed.as_str());
    let exec = sandbox::Exec { command: "true".to_owned(), ..Default::default() };
    assert!(matches!(lab.manager.exec(ACCOUNT, &id, exec).await, Err(SandboxError::Killed)));
}
