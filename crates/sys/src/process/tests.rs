use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

use super::*;

/// Ids that exist in any namespace the tests may run in, and the rights to take them on.
fn someone() -> Credentials {
    Credentials { uid: 1000, gid: 1001, groups: vec![1002, 1003] }
}

fn myself() -> Credentials {
    Credentials { uid: 0, gid: 0, groups: vec![] }
}

/// Runs a shell command and gives how it ended and what it wrote.
fn shell(command: &str, credentials: &Credentials, cwd: &CStr) -> (WaitStatus, String) {
    let (mut read, write) = std::io::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let args = ["sh", "-c", command].map(|arg| CString::new(arg).unwrap());
    let child = Spawn {
        program: c"/bin/sh",
        args: &args,
        envs: &[c"PATH=/usr/bin:/bin".to_owned(), c"GREETING=hello".to_owned()],
        credentials,
        cwd,
        stdin: null.as_fd(),
        stdout: write.as_fd(),
        stderr: write.as_fd(),
        limits: &[(libc::RLIMIT_CORE, 0, 0)],
        terminal: false,
    }
    .spawn()
    .unwrap();
    drop(write);
    let mut output = String::new();
    read.read_to_string(&mut output).unwrap();
    (reap(child.pid), output)
}

fn reap(pid: u32) -> WaitStatus {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1
}

fn failing(program: &CStr, credentials: &Credentials, cwd: &CStr) -> SpawnError {
    let null = File::open("/dev/null").unwrap();
    Spawn {
        program,
        args: &[c"x".to_owned()],
        envs: &[],
        credentials,
        cwd,
        stdin: null.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        limits: &[],
        terminal: false,
    }
    .spawn()
    .unwrap_err()
}

#[test]
fn a_program_gets_its_environment_directory_and_limits() {
    let (status, output) = shell("echo $GREETING; pwd; ulimit -c; exit 3", &myself(), c"/usr");
    assert_eq!(output, "hello\n/usr\n0\n");
    assert_eq!(status.exit_status(), Some(3));
}

#[test]
fn a_program_leads_its_own_session() {
    let (_, output) = shell("cat /proc/$$/stat", &myself(), c"/");
    let fields: Vec<&str> = output.rsplit(") ").next().unwrap().split(' ').collect();
    let pid = output.split(' ').next().unwrap();
    assert_eq!((fields[2], fields[3]), (pid, pid), "group and session of {output}");
}

#[test]
fn a_program_has_the_users_ids_and_nothing_else() {
    let (_, output) =
        shell("id -u; id -g; id -G; grep -c ^Cap.*[1-9a-f]$ /proc/self/status", &someone(), c"/");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..3], ["1000", "1001", "1001 1002 1003"]);
    let (_, output) = shell("grep ^CapEff /proc/self/status", &someone(), c"/");
    assert_eq!(output.trim(), "CapEff:\t0000000000000000");
}

#[test]
fn a_program_inherits_three_descriptors_and_default_signals() {
    let leak = File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let (_, output) = shell("ls /proc/self/fd; grep -E '^Sig(Blk|Ign)' /proc/self/status", &myself(), c"/");
    // 3 is the directory that ls has open.
    assert_eq!(output, "0\n1\n2\n3\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn death_by_a_signal_is_told_from_an_exit() {
    let (status, _) = shell("kill -9 $$", &myself(), c"/");
    assert_eq!((status.exit_status(), status.terminating_signal()), (None, Some(9)));
}

#[test]
fn the_pidfd_becomes_readable_when_the_program_has_ended() {
    let null = File::open("/dev/null").unwrap();
    let child = Spawn {
        program: c"/bin/true",
        args: &[c"true".to_owned()],
        envs: &[],
        credentials: &myself(),
        cwd: c"/",
        stdin: null.as_fd(),
        stdout: null.as_fd(),
        stderr: null.as_fd(),
        limits: &[],
        terminal: false,
    }
    .spawn()
    .unwrap();
    let mut fds = [rustix::event::PollFd::new(&child.pidfd, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, None).unwrap(), 1);
    assert_eq!(reap(child.pid).exit_status(), Some(0));
}

#[test]
fn the_failing_step_is_named() {
    let error = failing(c"/nowhere/program", &myself(), c"/");
    assert_eq!((error.step, error.source.kind()), (Step::Exec, io::ErrorKind::NotFound));
    let error = failing(c"/bin/true", &myself(), c"/nowhere");
    assert_eq!((error.step, error.source.kind()), (Step::WorkingDirectory, io::ErrorKind::NotFound));
    let error = failing(c"/bin/true", &someone(), c"/proc/1/root");
    assert_eq!((error.step, error.source.kind()), (Step::WorkingDirectory, io::ErrorKind::PermissionDenied));
}

#[test]
fn files_made_for_a_user_belong_to_them_and_those_made_afterwards_do_not() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (theirs, ours) = (directory.path().join("theirs"), directory.path().join("ours"));
    with_user(&someone(), || File::create(&theirs)).unwrap().unwrap();
    File::create(&ours).unwrap();
    let owner = |path: &std::path::Path| {
        let metadata = path.metadata().unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(owner(&theirs), (1000, 1001));
    assert_eq!(owner(&ours), (0, 0));
}

#[test]
fn a_users_permissions_are_checked_and_root_s_come_back() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "s").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let refused = with_user(&someone(), || std::fs::read(&secret)).unwrap();
    assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(std::fs::read(&secret).unwrap(), b"s");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    assert_eq!(std::fs::read(&secret).unwrap(), b"s", "root's capabilities are back");
}

#[test]
fn a_panic_does_not_leave_the_thread_with_the_users_rights() {
    let panicked = std::panic::catch_unwind(|| with_user(&someone(), || panic!("on purpose")));
    assert!(panicked.is_err());
    assert_eq!(set_fs_id(libc::SYS_setfsuid, u32::MAX), 0);
}

#[test]
fn ids_that_do_not_exist_are_refused_before_anything_is_done() {
    let nobody = Credentials { uid: u32::MAX, gid: 0, groups: vec![] };
    let mut called = false;
    // The invalid id is also what asks for the current one, so it can never read as set.
    assert!(with_user(&nobody, || called = true).is_err());
    assert!(!called);
    assert_eq!(set_fs_id(libc::SYS_setfsuid, u32::MAX), 0);
}
