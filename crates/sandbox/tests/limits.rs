//! What a sandbox may use, and what happens when that is not enough.

mod support;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sandbox::{Create, Exec, SandboxError, SandboxId, cgroup::Limits};
use support::{ACCOUNT, Lab, possible, request};

async fn limited(lab: &Lab, limits: Limits) -> SandboxId {
    let record = lab.create_with(Create { limits: Some(limits), ..request() }).await.expect("sandbox");
    record.id.parse().expect("id")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_takes_too_much_memory_dies_and_the_sandbox_lives() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = limited(&lab, Limits { memory_bytes: 64 << 20, ..Limits::default() }).await;
    // Tail keeps its input in memory, because it has no line.
    let output =
        lab.run_as(&id, "user", "head -c 200000000 /dev/zero | exec tail -c 150000000 | wc -c").await;
    assert!(!String::from_utf8_lossy(&output.stdout).contains("150000000"));
    let greedy = r#"x=$(head -c 150000000 /dev/zero | tr "\0" x); echo ${#x}"#;
    let output = lab.run_as(&id, "user", greedy).await;
    assert_eq!(output.exit_code, 137);
    assert!(!output.timed_out);
    assert_eq!(lab.run(&id, "echo alive").await, "alive");
    assert!(lab.manager.usage(ACCOUNT, &id).await.expect("usage").out_of_memory_kills >= 2);
    // Twin: what fits is permitted.
    assert_eq!(lab.run(&id, "head -c 20000000 /dev/zero | tail -c 10000000 | wc -c").await, "10000000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_ends_at_the_limit_of_processes() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = limited(&lab, Limits { processes: 30, ..Limits::default() }).await;
    let bomb = "i=0; while [ $i -lt 100 ]; do sleep 100 & i=$((i + 1)); done; echo all";
    let output = lab.run_as(&id, "user", bomb).await;
    assert!(!String::from_utf8_lossy(&output.stdout).contains("all"));
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
    let id = limited(&lab, Limits::default()).await;
    let few = "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0 & done; wait; echo all";
    assert_eq!(lab.run(&id, few).await, "all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_sandbox_gets_the_processor_time_of_its_limit() {
    if !possible() {
        return;
    }
    let lab = Lab::new().await;
    let id = limited(&lab, Limits { cpu_millis: 100, ..Limits::default() }).await;
    let before = lab.manager.usage(ACCOUNT, &id).await.expect("usage").cpu_micros;
    let start = Instant::now();
    let spin = Exec {
        command: "while :; do :; done".to_owned(),
        timeout: Some(Duration::from_secs(2)),
        ..Exec::default()
    };
    let output = lab.manager.exec(ACCOUNT, &id, spin).await.expect("exec");
    assert!(output.timed_out && output.exit_code == 124);
    let used = lab.manager.usage(ACCOUNT, &id).await.expect("usage").cpu_micros - before;
    let elapsed = u64::try_from(start.elapsed().as_micros()).expect("a short time");
    assert!(used > 0 && used < elapsed / 4, "{used} of {elapsed} µs");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_to_be_full_and_the_sandbox_lives() {
    if !possible() {
        return;
    }
    let dir = Arc::new(tempfile::tempdir().expect("temporary directory"));
    let small = SmallDisk::mount(&dir.path().join("data"));
    let lab = Lab::on(dir).await;
    let id = lab.create().await;
    let files = lab.manager.files(ACCOUNT, &id).await.expect("files");
    let data = vec![7; 40 << 20];
    let refused = files.write("/home/user/large", None, 1 << 30, data.as_slice()).await;
    assert!(matches!(refused, Err(SandboxError::NoSpace(_))), "{refused:?}");
    let written = files.write("/home/user/small", None, 1 << 30, &data[..1000]).await.expect("small");
    assert_eq!(written.size, 1000);
    assert_eq!(lab.run(&id, "wc -c < ~/small").await, "1000");
    assert!(lab.manager.kill(ACCOUNT, &id).await.expect("kill"));
    drop(lab);
    small.unmount();
}

/// A file system of 32 MiB.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Self {
        std::fs::create_dir(path).expect("directory");
        mount("small", path, "tmpfs", MountFlags::empty(), c"size=32m,mode=700").expect("mount");
        Self(path.to_owned())
    }

    fn unmount(&self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("unmount");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // After a failed test; otherwise it is unmounted.
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}
