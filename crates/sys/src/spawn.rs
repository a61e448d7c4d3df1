//! Starting processes: a fork into new namespaces, a program from a descriptor, a helper from a path.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    io,
    mem::{self, MaybeUninit, size_of},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    ptr,
};

use rustix::{process::Pid, thread::ThreadNameSpaceType};

/// A process just started.
#[derive(Debug)]
pub struct Child {
    /// Its id in the caller's pid namespace.
    pub pid: Pid,
    /// A descriptor of exactly this process, close-on-exec; readable when the process has ended.
    pub pidfd: OwnedFd,
}

/// Forks a child into `namespaces` and, when given, into the version 2 control group `cgroup`; `body` runs in the
/// child and must end it. A panic or a return of `body` ends the child with status 125.
///
/// Of this process's descriptors the child has 0, 1, 2 and `keep`; using another one fails with `EBADF`. So a child
/// that lives long does not keep open what its parent closes.
///
/// The child has a copy of this process's memory, so this is for a small process.
///
/// # Errors
/// `EBUSY` when this process has more than one thread: the child of such a fork could find locks held for ever.
pub fn fork_into(
    namespaces: ThreadNameSpaceType,
    cgroup: Option<BorrowedFd<'_>>,
    keep: &[BorrowedFd<'_>],
    body: impl FnOnce() -> Infallible,
) -> io::Result<Child> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let mut pidfd: RawFd = -1;
    let mut arguments = CloneArguments {
        flags: u64::from(namespaces.bits()) | CLONE_PIDFD,
        pidfd: ptr::from_mut(&mut pidfd).expose_provenance() as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child gets its own copy of the address space, and no other thread exists that
    // could have left a lock or the allocator in an intermediate state. `arguments` lives across the call and
    // names no stack, so the child continues on its copy of this one.
    let result = unsafe {
        libc::syscall(libc::SYS_clone3, ptr::from_mut(&mut arguments), size_of::<CloneArguments>())
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            if close_others(keep).is_ok() {
                let _ = catch_unwind(AssertUnwindSafe(body));
            }
            exit(CHILD_FAILED)
        }
        pid => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
            let pid = pid.ok_or_else(|| io::Error::other("the kernel gave a process id out of range"))?;
            // SAFETY: with CLONE_PIDFD the kernel has stored a new descriptor that nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid, pidfd })
        }
    }
}

/// Replaces this process by the program behind `program`; returns only on failure.
pub fn exec_fd(program: BorrowedFd<'_>, arguments: &[CString], environment: &[CString]) -> io::Error {
    let arguments = pointers(arguments);
    let environment = pointers(environment);
    // SAFETY: both arrays end with a null pointer and point to NUL-terminated strings that outlive the call; the
    // path is an empty string.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Makes `fds` the descriptors 0, 1, 2, … of this process and closes all others, except those that are
/// close-on-exec, which an exec will close. Meant for the last moments before [`exec_fd`].
pub fn arrange_fds(fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let count = RawFd::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // First out of the way of the target numbers, or one dup could overwrite a source that is still needed.
    let mut sources = Vec::with_capacity(fds.len());
    for fd in fds {
        // SAFETY: F_DUPFD_CLOEXEC on a live descriptor makes a new one at or above `count`.
        let copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, count) };
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        sources.push(copy);
    }
    for (target, source) in (0..count).zip(sources) {
        // SAFETY: replaces descriptor `target`; the caller gives up whatever was there by calling this function
        // just before it execs, and `source` is live.
        if unsafe { libc::dup2(source, target) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let first = count.unsigned_abs();
    // SAFETY: only sets a flag on descriptors; none is closed before the exec.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOSE_RANGE_CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts the program at `program` with descriptors 0, 1 and 2 of this process and `inherit` as descriptor 3.
/// Usable from any thread; the address space is not copied.
pub fn start_program(program: &Path, arguments: &[CString], inherit: BorrowedFd<'_>) -> io::Result<Pid> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = CString::new(program.as_os_str().as_bytes())?;
    let arguments = pointers(arguments);
    let mut actions = MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
    // SAFETY: initialises `actions`, which is destroyed below on every path.
    check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
    let mut pid = 0;
    // SAFETY: `actions` is initialised; the descriptor is live; the argument array ends with a null pointer, its
    // strings outlive the call, and `environ` is the process's environment, which this workspace never changes.
    let result = unsafe {
        let added = libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), inherit.as_raw_fd(), 3);
        let spawned = if added == 0 {
            libc::posix_spawn(
                &raw mut pid,
                path.as_ptr(),
                actions.as_ptr(),
                ptr::null(),
                arguments.as_ptr().cast(),
                environ.cast(),
            )
        } else {
            added
        };
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        spawned
    };
    check(result)?;
    Pid::from_raw(pid).ok_or_else(|| io::Error::other("the kernel gave a process id out of range"))
}

/// Takes descriptor 3, where [`start_program`] puts the inherited one.
///
/// # Errors
/// `EBADF` when the descriptor is not open or was taken before.
pub fn take_inherited_fd() -> io::Result<OwnedFd> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static TAKEN: AtomicBool = AtomicBool::new(false);
    // SAFETY: only asks for flags.
    let open = unsafe { libc::fcntl(INHERITED_FD, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    if !open || TAKEN.swap(true, Ordering::SeqCst) {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open and, by the flag above, given out once only.
    Ok(unsafe { OwnedFd::from_raw_fd(INHERITED_FD) })
}

/// Moves this process into a new control group namespace, whose root is the control groups it is in now.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter_new_cgroup_namespace() -> io::Result<()> {
    // SAFETY: this flag changes how control groups are named to the process, and nothing that memory,
    // descriptors or other code in this process depends on.
    Ok(unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWCGROUP) }?)
}

/// Lets the kernel reap the children of this process: none becomes a zombie, and none can be waited for.
pub fn reap_children_automatically() -> io::Result<()> {
    set_signal(libc::SIGCHLD, libc::SIG_IGN)
}

/// Gives every signal its default action and unblocks all: what a program expects to find when it starts.
pub fn reset_signals() -> io::Result<()> {
    for signal in 1..=libc::SIGRTMAX() {
        // Fails for SIGKILL, SIGSTOP and the two that the C library keeps for itself; they need no reset.
        let _ = set_signal(signal, libc::SIG_DFL);
    }
    // SAFETY: the set is initialised by sigemptyset before it is read.
    let result = unsafe {
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets the ids that the calling thread uses towards file systems, nothing else.
///
/// # Errors
/// `EPERM` when the ids did not change (the call itself reports nothing).
pub fn set_fs_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain integers; affects the calling thread only. The second call of each pair changes nothing
    // (an invalid id) and returns the id now in force.
    let (now_uid, now_gid) = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(libc::uid_t::MAX), libc::setfsgid(libc::gid_t::MAX))
    };
    let same = |now: libc::c_int, wanted: u32| now.cast_unsigned() == wanted;
    if same(now_uid, uid) && same(now_gid, gid) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Ends this process at once, without running destructors or flushing anything.
pub fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// The status of a child whose body returned or panicked.
const CHILD_FAILED: i32 = 125;
const INHERITED_FD: RawFd = 3;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

unsafe extern "C" {
    static environ: *const *const libc::c_char;
}

/// The kernel's `struct clone_args`, as of Linux 5.7.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Closes every descriptor from 3 on that is not in `keep`.
fn close_others(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<_> = keep.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first: libc::c_uint = 3;
    for end in kept.into_iter().chain([libc::c_uint::MAX]) {
        if first < end {
            // SAFETY: the caller is a forked child that only uses the descriptors it keeps and never returns to
            // code of its parent's, so nothing that owns one of these here is used or dropped again.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
            if closed != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = end.saturating_add(1);
    }
    Ok(())
}

fn thread_count() -> io::Result<usize> {
    // The link count of the task directory is two more than the number of threads: one call, no listing.
    let tasks = rustix::fs::stat("/proc/self/task")?;
    usize::try_from(tasks.st_nlink).map(|links| links.saturating_sub(2)).map_err(io::Error::other)
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| CStr::as_ptr(string)).chain([ptr::null()]).collect()
}

fn set_signal(signal: libc::c_int, action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: an all-zero sigaction is valid, and `action` is SIG_DFL or SIG_IGN, so no handler code is involved.
    let result = unsafe {
        let mut new: libc::sigaction = mem::zeroed();
        new.sa_sigaction = action;
        libc::sigaction(signal, &raw const new, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// For the functions that return an error number instead of setting `errno`.
fn check(number: libc::c_int) -> io::Result<()> {
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(number)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // The test harness has at least this thread and the main one.
        let refused =
            fork_into(ThreadNameSpaceType::empty(), None, &[], || exit(0)).expect_err("threads exist");
        assert_eq!(refused.raw_os_error(), Some(libc::EBUSY));
    }

    #[test]
    fn a_program_that_does_not_exist_is_an_error_of_the_caller() {
        let null = std::fs::File::open("/dev/null").expect("/dev/null");
        let error = start_program(Path::new("/nonexistent/program"), &[], std::os::fd::AsFd::as_fd(&null));
        assert_eq!(error.expect_err("no such program").raw_os_error(), Some(libc::ENOENT));
    }
}
