//! System calls that nothing in a sandbox may make, tried to see that they are refused.
//!
//! The arguments are such that a call does no harm where it is not refused: null pointers, descriptors that are not
//! open, and namespaces for a thread that ends with the attempt.

use std::{io, ptr};

/// A system call to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `io_uring_setup`: sockets and files without the calls that are filtered.
    IoUring,
    /// `bpf`
    Bpf,
    /// `perf_event_open`
    PerfEvent,
    /// `userfaultfd`
    Userfaultfd,
    /// `add_key`
    AddKey,
    /// `keyctl`
    Keyctl,
    /// `request_key`
    RequestKey,
    /// `open_by_handle_at`: files by number, from outside of the tree.
    OpenByHandle,
    /// `init_module`
    InitModule,
    /// `unshare` of the user namespace.
    UnshareUser,
    /// `unshare` of the network namespace.
    UnshareNetwork,
    /// `unshare` of the mount namespace.
    UnshareMounts,
    /// `clone3`, whose flags no filter can read.
    Clone3,
    /// `setns`
    Setns,
    /// `mount`
    Mount,
    /// `open_tree`
    OpenTree,
    /// `fsopen`
    Fsopen,
    /// `pivot_root`
    PivotRoot,
    /// `syslog`
    Syslog,
    /// `swapon`
    Swapon,
    /// `ptrace` of the first process.
    TraceInit,
}

impl Call {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::IoUring,
        Self::Bpf,
        Self::PerfEvent,
        Self::Userfaultfd,
        Self::AddKey,
        Self::Keyctl,
        Self::RequestKey,
        Self::OpenByHandle,
        Self::InitModule,
        Self::UnshareUser,
        Self::UnshareNetwork,
        Self::UnshareMounts,
        Self::Clone3,
        Self::Setns,
        Self::Mount,
        Self::OpenTree,
        Self::Fsopen,
        Self::PivotRoot,
        Self::Syslog,
        Self::Swapon,
        Self::TraceInit,
    ];

    /// Its name, with what it is about where the name alone does not tell.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring_setup",
            Self::Bpf => "bpf",
            Self::PerfEvent => "perf_event_open",
            Self::Userfaultfd => "userfaultfd",
            Self::AddKey => "add_key",
            Self::Keyctl => "keyctl",
            Self::RequestKey => "request_key",
            Self::OpenByHandle => "open_by_handle_at",
            Self::InitModule => "init_module",
            Self::UnshareUser => "unshare(user)",
            Self::UnshareNetwork => "unshare(network)",
            Self::UnshareMounts => "unshare(mounts)",
            Self::Clone3 => "clone3",
            Self::Setns => "setns",
            Self::Mount => "mount",
            Self::OpenTree => "open_tree",
            Self::Fsopen => "fsopen",
            Self::PivotRoot => "pivot_root",
            Self::Syslog => "syslog",
            Self::Swapon => "swapon",
            Self::TraceInit => "ptrace(1)",
        }
    }

    /// The call with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.name() == name)
    }

    /// Makes the call, on a thread that ends with it.
    ///
    /// # Errors
    /// What the call says. `EPERM`, `EACCES` and `ENOSYS` are a refusal; anything else, as success, means that the
    /// kernel has looked at the (useless) arguments.
    ///
    /// # Panics
    /// When no thread can be started.
    pub fn attempt(self) -> io::Result<()> {
        let attempt = move || match self.call() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        };
        std::thread::scope(|scope| scope.spawn(attempt).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn call(self) -> libc::c_long {
        let null = ptr::null::<libc::c_void>();
        let long = |number: libc::c_int| libc::c_long::from(number);
        // Not open: descriptors are not negative.
        let closed = -1 as libc::c_long;
        // SAFETY: every pointer is null, which these calls answer with an error where they read it, and every
        // descriptor is none. `unshare` changes only namespaces of the calling thread, which ends after this.
        // `pivot_root`, `mount`, `swapon` fail on a null path. `PTRACE_SEIZE` (0x4206) does not
        // stop its process, and ends with the thread.
        unsafe {
            match self {
                Self::IoUring => libc::syscall(libc::SYS_io_uring_setup, 8, null),
                Self::Bpf => libc::syscall(libc::SYS_bpf, 5, null, 0),
                Self::PerfEvent => libc::syscall(libc::SYS_perf_event_open, null, 0, -1, -1, 0),
                Self::Userfaultfd => libc::syscall(libc::SYS_userfaultfd, 1),
                Self::AddKey => libc::syscall(libc::SYS_add_key, null, null, null, 0, 0),
                Self::Keyctl => libc::syscall(libc::SYS_keyctl, 0, -3, 0),
                Self::RequestKey => libc::syscall(libc::SYS_request_key, null, null, null, 0),
                Self::OpenByHandle => libc::syscall(libc::SYS_open_by_handle_at, closed, null, 0),
                Self::InitModule => libc::syscall(libc::SYS_init_module, null, 0, null),
                Self::UnshareUser => libc::syscall(libc::SYS_unshare, long(libc::CLONE_NEWUSER)),
                Self::UnshareNetwork => libc::syscall(libc::SYS_unshare, long(libc::CLONE_NEWNET)),
                Self::UnshareMounts => libc::syscall(libc::SYS_unshare, long(libc::CLONE_NEWNS)),
                Self::Clone3 => libc::syscall(libc::SYS_clone3, null, 0),
                Self::Setns => libc::syscall(libc::SYS_setns, closed, 0),
                Self::Mount => libc::syscall(libc::SYS_mount, null, null, null, 0, null),
                Self::OpenTree => libc::syscall(libc::SYS_open_tree, closed, null, 1),
                Self::Fsopen => libc::syscall(libc::SYS_fsopen, null, 0),
                Self::PivotRoot => libc::syscall(libc::SYS_pivot_root, null, null),
                Self::Syslog => libc::syscall(libc::SYS_syslog, 3, null, 0),
                Self::Swapon => libc::syscall(libc::SYS_swapon, null, 0),
                Self::TraceInit => libc::syscall(libc::SYS_ptrace, long(0x4206), 1, null, null),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_a_name_of_its_own() {
        for call in Call::ALL {
            assert_eq!(Call::named(call.name()), Some(call));
        }
        assert_eq!(Call::named("getpid"), None);
    }

    #[test]
    fn an_attempt_that_nothing_refuses_fails_on_its_arguments_only() {
        // The same is refused with EPERM by the filter of a sandbox.
        let error = Call::Setns.attempt().expect_err("there is no such descriptor");
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}
