//! A shell: from a fork of the spawner to the init of a sandbox.

use std::{
    convert::Infallible,
    fs::File,
    io::Write as _,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    process::{Resource, Rlimit, setrlimit},
    thread::{
        Gid, LinkNameSpaceType, Uid, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

use super::{
    packet,
    protocol::{Plan, PlanFds, Start},
};
use crate::{
    fault::{Context as _, Fault},
    rootfs,
};

/// Waits for a plan and carries it out: the whole of the shell's process until it is init.
pub(super) fn run(start: &Start, control: &OwnedFd, userns: &OwnedFd) -> Infallible {
    let joined = join_groups(&start.groups);
    let received = packet::receive::<Plan>(control).ok().flatten();
    // Without a plan nobody waits for an answer: the daemon has given it up, or is gone.
    if let Some((plan, fds)) = received
        && let Some(fds) = PlanFds::from_received(fds)
    {
        let Err(fault) = joined.and_then(|()| become_init(&plan, &fds, userns, start.first_id));
        let text = serde_json::to_vec(&fault).unwrap_or_default();
        let _ = File::from(fds.status).write_all(&text);
    }
    sys::spawn::exit(1)
}

/// Moves the calling process, which has one thread, into version 1 control groups.
///
/// Only a thread that moves itself is spared the lock against all forks and exits of the machine, which takes a
/// grace period of RCU to get: up to a few tens of milliseconds during which nothing can be started.
fn join_groups(groups: &[PathBuf]) -> Result<(), Fault> {
    groups.iter().try_for_each(|group| {
        let tasks = openat(CWD, group.join("tasks"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        tasks.and_then(|tasks| rustix::io::write(tasks, b"0")).map(drop).during("join", group)
    })
}

/// Turns the calling process, fresh in its pid, mount, uts and ipc namespaces, into the init of a sandbox.
fn become_init(plan: &Plan, fds: &PlanFds, userns: &OwnedFd, first_id: u32) -> Result<Infallible, Fault> {
    rustix::process::setsid().during("start", "a session")?;
    rustix::process::umask(Mode::empty());
    move_into_link_name_space(fds.netns.as_fd(), Some(LinkNameSpaceType::Network))
        .during("join", "the network namespace")?;
    rustix::system::sethostname(plan.hostname.as_bytes()).during("set the host name", &plan.hostname)?;
    rootfs::assemble(&plan.root, userns.as_fd(), first_id)?;
    rootfs::enter()?;
    // It is in its control groups, and the namespace shows those as the root of each tree.
    sys::spawn::enter_new_cgroup_namespace().during("create", "the control group namespace")?;
    limit_resources(plan)?;
    become_root_inside(userns)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::spawn::reset_signals().during("reset", "the signals")?;
    let null = open_null()?;
    let null = null.as_fd();
    let arranged = [null, null, null, fds.socket.as_fd(), fds.boot.as_fd(), fds.status.as_fd()];
    sys::spawn::arrange_fds(&arranged).during("arrange", "the descriptors")?;
    let error = sys::spawn::exec_fd(fds.program.as_fd(), &[c"bailiwick-init".to_owned()], &[]);
    Err(error).during("execute", "init")
}

fn limit_resources(plan: &Plan) -> Result<(), Fault> {
    let limits = [(Resource::Core, 0), (Resource::Nofile, plan.max_open_files)];
    for (resource, most) in limits {
        // The machine's own hard limit stays the bound where it is lower.
        let most = rustix::process::getrlimit(resource).maximum.map_or(most, |hard| hard.min(most));
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
            .during("limit", format!("{resource:?}"))?;
    }
    Ok(())
}

/// Joins the user namespace, which gives all privileges inside it and takes those of the machine.
fn become_root_inside(userns: &OwnedFd) -> Result<(), Fault> {
    move_into_link_name_space(userns.as_fd(), Some(LinkNameSpaceType::User))
        .during("join", "the user namespace")?;
    set_thread_groups(&[]).during("drop", "the supplementary groups")?;
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).during("become", "group 0 inside")?;
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).during("become", "user 0 inside")
}

fn open_null() -> Result<File, Fault> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    null.map(File::from).during("open", "/dev/null")
}
