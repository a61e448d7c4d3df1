//! From a fork of the spawner to init: everything between clone and exec.

use std::{
    convert::Infallible,
    fs::File,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Resource, Rlimit, setrlimit},
    thread::{
        Gid, LinkNameSpaceType, Uid, move_into_link_name_space, set_thread_groups, set_thread_res_gid,
        set_thread_res_uid,
    },
};

use super::protocol::{Fds, Request};
use crate::{
    fault::{Context as _, Fault},
    rootfs,
};

/// Turns the calling process, fresh in its pid, mount, uts and ipc namespaces, into the init of a sandbox.
pub(super) fn become_init(request: &Request, fds: &Fds, userns: &OwnedFd) -> Result<Infallible, Fault> {
    rustix::process::setsid().during("start a session for", &request.hostname)?;
    rustix::process::umask(Mode::empty());
    move_into_link_name_space(fds.netns.as_fd(), Some(LinkNameSpaceType::Network))
        .during("join", "the network namespace")?;
    rustix::system::sethostname(request.hostname.as_bytes())
        .during("set the host name", &request.hostname)?;
    rootfs::assemble(&request.root, userns.as_fd(), request.first_id)?;
    rootfs::enter()?;
    wait_for_go(fds)?;
    // Only now is it in its control groups, and the namespace shows those as the root of each tree.
    sys::spawn::enter_new_cgroup_namespace().during("create", "the control group namespace")?;
    limit_resources(request)?;
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

/// Blocks until the daemon has put this process into its control groups.
fn wait_for_go(fds: &Fds) -> Result<(), Fault> {
    let mut byte = [0];
    match rustix::io::retry_on_intr(|| rustix::io::read(&fds.go, &mut byte))
        .during("wait for", "the daemon")?
    {
        0 => Err(Fault::new("become", "init: the daemon has given it up")),
        _ => Ok(()),
    }
}

fn limit_resources(request: &Request) -> Result<(), Fault> {
    let limits = [(Resource::Core, 0), (Resource::Nofile, request.max_open_files)];
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
