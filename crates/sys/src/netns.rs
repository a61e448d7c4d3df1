//! Network namespaces as file descriptors.
//!
//! A namespace belongs to a thread, so work inside one is done on a thread of its own that ends afterwards: no
//! thread of the caller (and none of an async runtime's) ever changes its namespace. Sockets keep the namespace
//! they were created in and can be used from any thread.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    thread,
};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// A network namespace. It exists at least as long as this descriptor is open.
#[derive(Debug)]
pub struct NetNs(OwnedFd);

impl NetNs {
    /// Creates a namespace (owned by the caller's user namespace) and runs `work` inside it on a fresh thread.
    ///
    /// The new namespace has a loopback interface, down, and nothing else. Needs `CAP_SYS_ADMIN`.
    ///
    /// # Errors
    /// Fails when the thread cannot be started, with what `unshare(2)` says, or when `/proc` is not mounted.
    pub fn create_and<T, F>(work: F) -> io::Result<(Self, T)>
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        on_fresh_thread(|| {
            // SAFETY: only CLONE_NEWNET is unshared, which changes what sockets and sysctls of this thread refer
            // to and neither memory, descriptors nor file system state that other code may rely on.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
            let namespace = Self::current()?;
            Ok((namespace, work()))
        })?
    }

    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// Fails when `/proc/thread-self/ns/net` cannot be opened.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// The namespace of a process, by its id. The caller makes sure that the id still means that process.
    ///
    /// # Errors
    /// Fails when the process does not exist or may not be inspected.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(Path::new(&format!("/proc/{pid}/ns/net")))
    }

    /// The namespace that `path` (of a `/proc/<pid>/ns/net` kind, or a bind mount of one) refers to.
    ///
    /// # Errors
    /// Fails when the file cannot be opened; a file that is no namespace is noticed on first use.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(File::open(path)?.into()))
    }

    /// A second descriptor for the same namespace.
    ///
    /// # Errors
    /// Fails when the process is out of descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Runs `work` inside the namespace, on a fresh thread, and waits for it.
    ///
    /// # Errors
    /// Fails when the thread cannot be started or with what `setns(2)` says; `work` has not run then.
    ///
    /// # Panics
    /// Panics when `work` panicked.
    pub fn run<T, F>(&self, work: F) -> io::Result<T>
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        on_fresh_thread(|| {
            move_into_link_name_space(self.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        })?
    }

    /// Device and inode of the namespace: equal for two descriptors exactly when they are the same namespace.
    ///
    /// # Errors
    /// Fails with what `fstat(2)` says.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.0)?;
        Ok((stat.st_dev, stat.st_ino))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for NetNs {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

fn on_fresh_thread<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned()).spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::NetNs;

    #[test]
    fn a_created_namespace_is_not_the_callers_and_the_caller_stays_where_it_was() {
        let before = NetNs::current().unwrap().identity().unwrap();
        let (namespace, inside) =
            NetNs::create_and(|| NetNs::current().unwrap().identity().unwrap()).unwrap();
        assert_eq!(namespace.identity().unwrap(), inside);
        assert_ne!(inside, before);
        assert_eq!(NetNs::current().unwrap().identity().unwrap(), before);
    }

    #[test]
    fn work_runs_inside_and_its_sockets_stay_inside() {
        let (namespace, ()) = NetNs::create_and(|| ()).unwrap();
        // Loopback is down in a new namespace, so a connection there cannot succeed, while here it does.
        let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0")).unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        assert!(std::net::TcpStream::connect(address).is_err());
        let here = namespace.run(|| NetNs::current().unwrap().identity().unwrap()).unwrap();
        assert_eq!(here, namespace.identity().unwrap());
        assert!(UdpSocket::bind("127.0.0.1:0").is_ok());
    }
}
