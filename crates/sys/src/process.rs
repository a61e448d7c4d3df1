//! Processes: spawning with another user's rights, per-thread credentials, waiting for children.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// Whose rights: ids as the current user namespace numbers them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

/// A program to start in a session of its own.
///
/// The child gets exactly the three descriptors named here, default signal dispositions and an empty signal
/// mask. Without capabilities of the file-system kind the credentials are taken on before the working
/// directory and the program are looked up.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// Path of the program; no search along `PATH`.
    pub program: &'a CStr,
    /// Arguments, the zeroth included.
    pub args: &'a [CString],
    /// The whole environment, `NAME=value` each.
    pub envs: &'a [CString],
    /// Whose rights the program has.
    pub credentials: &'a Credentials,
    /// Working directory.
    pub cwd: &'a CStr,
    /// Standard input.
    pub stdin: BorrowedFd<'a>,
    /// Standard output.
    pub stdout: BorrowedFd<'a>,
    /// Standard error.
    pub stderr: BorrowedFd<'a>,
    /// Resource limits (`RLIMIT_…`, soft, hard).
    pub limits: &'a [(u32, u64, u64)],
    /// Whether standard input is a terminal that the new session is to have as its own.
    pub terminal: bool,
}

/// A child of this process; whoever waits for children reaps it.
#[derive(Debug)]
pub struct Child {
    /// Its process id, also that of its session and process group.
    pub pid: u32,
    /// Becomes readable when it has ended.
    pub pidfd: OwnedFd,
}

/// Where a spawn failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// No process could be made.
    Clone,
    /// Session, descriptors or limits could not be set up.
    Prepare,
    /// The credentials could not be taken on.
    Credentials,
    /// The working directory could not be entered.
    WorkingDirectory,
    /// The program could not be executed.
    Exec,
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{step:?}: {source}")]
pub struct SpawnError {
    /// What failed.
    pub step: Step,
    /// The system's error.
    pub source: io::Error,
}

impl Spawn<'_> {
    /// Starts the program and returns when it is running (or has failed to).
    ///
    /// The child shares this process's memory until it executes the program (`CLONE_VM|CLONE_VFORK`): nothing
    /// is copied, however large this process is, and only the calling thread waits.
    ///
    /// # Errors
    /// [`SpawnError`] with the step that failed. A child that was made and failed has ended by then; it still
    /// has to be reaped like any other.
    pub fn spawn(&self) -> Result<Child, SpawnError> {
        let stdio = Stdio::above_standard([self.stdin, self.stdout, self.stderr])
            .map_err(|source| SpawnError { step: Step::Prepare, source })?;
        let args = pointers(self.args);
        let envs = pointers(self.envs);
        let plan = Plan {
            program: self.program.as_ptr(),
            args: args.as_ptr(),
            envs: envs.as_ptr(),
            cwd: self.cwd.as_ptr(),
            credentials: self.credentials,
            stdio: stdio.numbers,
            limits: self.limits,
            terminal: self.terminal,
            failed_step: AtomicI32::new(0),
            error: AtomicI32::new(0),
        };
        let child = clone_vfork(&plan).map_err(|source| SpawnError { step: Step::Clone, source })?;
        match plan.failed_step.load(Ordering::Acquire) {
            0 => Ok(child),
            step => Err(SpawnError {
                step: Step::from_code(step),
                source: io::Error::from_raw_os_error(plan.error.load(Ordering::Acquire)),
            }),
        }
    }
}

/// Runs `f` with the file-system rights of somebody else: new files belong to them, permissions are checked
/// for them. Only the calling thread changes, and only until `f` returns (or panics).
///
/// For a user other than 0 the kernel also takes the file-system capabilities away meanwhile.
///
/// # Errors
/// When the credentials cannot be taken on; `f` was not called then.
pub fn with_user<T>(credentials: &Credentials, f: impl FnOnce() -> T) -> io::Result<T> {
    let restore = Restore {
        uid: set_fs_id(libc::SYS_setfsuid, u32::MAX),
        gid: set_fs_id(libc::SYS_setfsgid, u32::MAX),
        groups: thread_groups()?,
    };
    set_thread_groups(&credentials.groups)?;
    // Group first: afterwards the thread may lack the right to change it.
    change_fs_id(libc::SYS_setfsgid, credentials.gid)?;
    change_fs_id(libc::SYS_setfsuid, credentials.uid)?;
    let result = f();
    drop(restore);
    Ok(result)
}

/// Blocks `SIGCHLD` in the calling thread and in those it starts, so that [`wait_sigchld`] sees it.
///
/// # Errors
/// None known.
pub fn block_sigchld() -> io::Result<()> {
    mask(libc::SIG_BLOCK, &signal_set(&[libc::SIGCHLD])).map(|_| ())
}

/// Waits until a child has changed its state. One call can stand for several children.
///
/// # Errors
/// `Interrupted`.
pub fn wait_sigchld() -> io::Result<()> {
    let set = signal_set(&[libc::SIGCHLD]);
    // SAFETY: `set` is initialised; a null pointer means that nothing about the signal is wanted.
    match unsafe { libc::sigwaitinfo(&raw const set, ptr::null_mut()) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Takes over a descriptor that this process was started with. It gets another number, and programs started
/// later do not inherit it.
///
/// # Errors
/// `EBADF` when the descriptor is not open, in particular when it was taken before.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for one call, which fails if the number is not open.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let taken = rustix::io::fcntl_dupfd_cloexec(inherited, number + 1)?;
    // SAFETY: nothing in this process owns an inherited number, and from now on `taken` stands for it.
    unsafe { rustix::io::try_close(number) }?;
    Ok(taken)
}

/// Closes every descriptor from `first` on: what this process inherited and was not meant to have. Only for the
/// start of a program, before anything of its own is open.
///
/// # Errors
/// None known (Linux 5.9).
pub fn close_inherited_from(first: u32) -> io::Result<()> {
    // SAFETY: touches no memory; see above for the descriptors.
    match unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes all threads allocate from one heap. By default every thread gets its own, which costs a small program
/// with many short-lived threads more memory than it saves in waiting. Call it before the first thread starts.
pub fn share_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number inside the allocator; no other thread exists that could be using it.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

impl Step {
    const fn code(self) -> i32 {
        match self {
            Self::Clone => 1,
            Self::Prepare => 2,
            Self::Credentials => 3,
            Self::WorkingDirectory => 4,
            Self::Exec => 5,
        }
    }

    const fn from_code(code: i32) -> Self {
        match code {
            1 => Self::Clone,
            2 => Self::Prepare,
            3 => Self::Credentials,
            4 => Self::WorkingDirectory,
            _ => Self::Exec,
        }
    }
}

/// Everything the child needs, made before it exists: it must not allocate.
struct Plan<'a> {
    program: *const libc::c_char,
    args: *const *const libc::c_char,
    envs: *const *const libc::c_char,
    cwd: *const libc::c_char,
    credentials: &'a Credentials,
    stdio: [RawFd; 3],
    limits: &'a [(u32, u64, u64)],
    terminal: bool,
    /// [`Step::code`] of the step that failed, or 0; written by the child.
    failed_step: AtomicI32,
    /// Its error number.
    error: AtomicI32,
}

/// Three descriptors above 2, so that placing one of them cannot overwrite another.
struct Stdio {
    numbers: [RawFd; 3],
    _copies: Vec<OwnedFd>,
}

impl Stdio {
    fn above_standard(given: [BorrowedFd<'_>; 3]) -> io::Result<Self> {
        let mut numbers = given.map(|fd| fd.as_raw_fd());
        let mut copies = Vec::new();
        for (number, fd) in numbers.iter_mut().zip(given) {
            if *number <= libc::STDERR_FILENO {
                let copy = rustix::io::fcntl_dupfd_cloexec(fd, libc::STDERR_FILENO + 1)?;
                *number = copy.as_raw_fd();
                copies.push(copy);
            }
        }
        Ok(Self { numbers, _copies: copies })
    }
}

/// Stack of the child until it executes the program. It makes a dozen system calls, nothing else.
const CHILD_STACK: usize = 32 << 10;

fn clone_vfork(plan: &Plan<'_>) -> io::Result<Child> {
    let mut stack: Box<[MaybeUninit<u128>]> = Box::new_uninit_slice(CHILD_STACK / size_of::<u128>());
    let top = stack.as_mut_ptr_range().end;
    let mut pidfd: libc::c_int = -1;
    // A signal handler of ours must not run in the child, which has our memory.
    let before = mask(libc::SIG_SETMASK, &all_signals())?;
    // SAFETY: `in_child` gets a pointer to `plan`, which outlives the child's use of it because CLONE_VFORK
    // suspends this thread until the child has executed a program or ended. The child runs on a stack of its
    // own, 16-byte aligned, that is freed only after that; it touches no memory but that stack, `plan` and
    // the (thus unused) errno of this thread. `pidfd` is a valid place for CLONE_PIDFD's result.
    let pid = unsafe {
        libc::clone(
            in_child,
            top.cast(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD,
            ptr::from_ref(plan).cast_mut().cast(),
            &raw mut pidfd,
        )
    };
    let result = if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) };
    mask(libc::SIG_SETMASK, &before)?;
    drop(stack);
    let pid = result?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid: pid.unsigned_abs(), pidfd })
}

/// The child's life before its program. Shares the parent's memory: only system calls, no allocation, no
/// locks, no library call that would touch the other threads (hence the raw numbers for credentials).
extern "C" fn in_child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: see `clone_vfork`: a valid `Plan`, not written by anybody else meanwhile.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let step = take_on(plan);
    // SAFETY: reads the errno of the suspended parent thread, which the failed call has just set.
    plan.error.store(unsafe { *libc::__errno_location() }, Ordering::Release);
    plan.failed_step.store(step.code(), Ordering::Release);
    // SAFETY: leaves without the exit handlers of the process whose memory this is.
    unsafe { libc::_exit(127) }
}

/// Becomes the program, or returns the step that failed.
fn take_on(plan: &Plan<'_>) -> Step {
    // SAFETY: (for all calls) pointers come from `plan`: NUL-terminated strings and NULL-terminated arrays of
    // them made by `Spawn::spawn`, slices with their own lengths, or objects on this stack.
    unsafe {
        if libc::setsid() < 0 {
            return Step::Prepare;
        }
        for (source, target) in plan.stdio.into_iter().zip(0..) {
            if libc::dup2(source, target) < 0 {
                return Step::Prepare;
            }
        }
        if plan.terminal && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) < 0 {
            return Step::Prepare;
        }
        if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) < 0 {
            return Step::Prepare;
        }
        for &(resource, soft, hard) in plan.limits {
            let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
            if libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, 0) < 0 {
                return Step::Prepare;
            }
        }
        let Credentials { uid, gid, groups } = plan.credentials;
        if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
            || libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) < 0
            || libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) < 0
        {
            return Step::Credentials;
        }
        if libc::chdir(plan.cwd) < 0 {
            return Step::WorkingDirectory;
        }
        default_signals();
        libc::execve(plan.program, plan.args, plan.envs);
    }
    Step::Exec
}

/// Default dispositions (an ignored signal would stay ignored in the program) and an empty mask.
fn default_signals() {
    // The kernel's own struct, all zero: SIG_DFL, no flags, no restorer, empty mask.
    let default = [0u64; 4];
    let empty = 0u64;
    for signal in 1..=64 {
        // SAFETY: `default` is as large as the kernel's sigaction; SIGKILL and SIGSTOP are refused, harmlessly.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, size_of::<u64>()) };
    }
    // SAFETY: `empty` is a signal set of the size given.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const empty, 0, size_of::<u64>())
    };
}

/// The strings' addresses, NULL at the end.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// Credentials a thread had before [`with_user`].
struct Restore {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // The user first: it brings the capabilities back that the rest needs.
        let restored = change_fs_id(libc::SYS_setfsuid, self.uid)
            .and_then(|()| change_fs_id(libc::SYS_setfsgid, self.gid))
            .and_then(|()| set_thread_groups(&self.groups));
        if restored.is_err() {
            // Nothing may go on with rights it should not have.
            std::process::abort();
        }
    }
}

/// Sets a file-system id of the calling thread and gives the one before. An invalid id changes nothing.
fn set_fs_id(call: libc::c_long, id: u32) -> u32 {
    // SAFETY: setfsuid and setfsgid take a number and touch no memory.
    let before = unsafe { libc::syscall(call, id) };
    u32::try_from(before).unwrap_or(u32::MAX)
}

/// The calls do not report failure: they have succeeded if the id is the new one afterwards.
fn change_fs_id(call: libc::c_long, id: u32) -> io::Result<()> {
    set_fs_id(call, id);
    if set_fs_id(call, u32::MAX) == id { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EPERM)) }
}

/// Supplementary groups of the calling thread.
fn thread_groups() -> io::Result<Vec<u32>> {
    Ok(rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect())
}

/// Sets the supplementary groups of the calling thread only (the C library's function changes all threads).
fn set_thread_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: a slice with its length.
    match unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn signal_set(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, sigaddset adds valid signals to it.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

fn all_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Changes the calling thread's signal mask and gives the one before.
fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = MaybeUninit::uninit();
    // SAFETY: `set` is initialised, `before` a place for a set, which the call fills when it succeeds.
    match unsafe { libc::pthread_sigmask(how, set, before.as_mut_ptr()) } {
        // SAFETY: filled, see above.
        0 => Ok(unsafe { before.assume_init() }),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests;
