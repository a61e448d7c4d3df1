//! The daemon's side of the spawner: a task that owns the socket to it.

mod packet;
mod protocol;
mod server;
mod shell;

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::process::{Pid, WaitOptions};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot},
};

pub use protocol::BindMount;
pub(crate) use protocol::{Plan, PlanFds};
pub use server::serve;

use crate::{
    cgroup::Cgroups,
    fault::{Context as _, Fault},
};
use protocol::{Start, Started};

/// The first argument with which a program is to call [`serve`] and nothing else.
pub const ARGUMENT: &str = "__spawner";

/// The program that runs as the spawner.
#[derive(Clone, Debug)]
pub struct SpawnerProgram {
    /// Its path.
    pub path: PathBuf,
    /// Its arguments, the zeroth not included.
    pub arguments: Vec<String>,
}

impl SpawnerProgram {
    /// This program itself, run again with [`ARGUMENT`].
    pub fn this_program() -> Self {
        Self { path: PathBuf::from("/proc/self/exe"), arguments: vec![ARGUMENT.to_owned()] }
    }
}

/// A handle to the spawner process, which ends when the last handle is gone.
#[derive(Clone, Debug)]
pub(crate) struct Spawner {
    orders: mpsc::Sender<Order>,
}

/// A shell: a process that waits to be told what to become. Dropping its control socket ends it.
#[derive(Debug)]
pub(crate) struct Shell {
    /// Its process id.
    pub pid: Pid,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
    /// What it is told by.
    pub control: Control,
}

/// The daemon's end of the control socket of a shell.
#[derive(Debug)]
pub(crate) struct Control(OwnedFd);

impl Control {
    /// Says what to become.
    pub(crate) fn plan(self, plan: &Plan, fds: &PlanFds) -> io::Result<()> {
        packet::send(&self.0, plan, &fds.borrow())
    }
}

impl Spawner {
    /// Starts the program. A spawner that dies is started again with the next request.
    pub(crate) fn start(program: SpawnerProgram) -> Result<Self, Fault> {
        let connection = Connection::open(&program)?;
        let (orders, queue) = mpsc::channel(64);
        tokio::spawn(carry_out(program, connection, queue));
        Ok(Self { orders })
    }

    /// Starts a shell whose id 0 inside is `first_id` on the machine, in these control groups.
    pub(crate) async fn shell(&self, first_id: u32, cgroups: &Cgroups) -> Result<Shell, Fault> {
        let gone = || Fault::new("ask", "the spawner: it has ended");
        let (ours, theirs) = packet::pair().during("make", "a control socket")?;
        rustix::io::ioctl_fionbio(&ours, true).during("make", "a control socket")?;
        let fds = std::iter::once(theirs).chain(cgroups.open_version_2()?).collect();
        let start = Start { first_id, groups: cgroups.version_1() };
        let (answer, answered) = oneshot::channel();
        let order = Order { start, fds, answer };
        self.orders.send(order).await.map_err(|_| gone())?;
        let (pid, pidfd) = answered.await.map_err(|_| gone())??;
        Ok(Shell { pid, pidfd, control: Control(ours) })
    }
}

#[derive(Debug)]
struct Order {
    start: Start,
    fds: Vec<OwnedFd>,
    answer: oneshot::Sender<Result<(Pid, OwnedFd), Fault>>,
}

async fn carry_out(program: SpawnerProgram, first: Connection, mut queue: mpsc::Receiver<Order>) {
    let mut connection = Some(first);
    while let Some(Order { start, fds, answer }) = queue.recv().await {
        let result = match connection.take().map_or_else(|| Connection::open(&program), Ok) {
            Ok(open) => match open.exchange(&start, &fds).await {
                Ok(result) => {
                    connection = Some(open);
                    result
                }
                // The connection is in an unknown state: without it the spawner ends.
                Err(error) => Err(error).during("ask", "the spawner"),
            },
            Err(fault) => Err(fault),
        };
        // Whoever asked may be gone; with the other end of its control socket closed the shell ends then.
        let _ = answer.send(result);
    }
}

#[derive(Debug)]
struct Connection {
    /// A sequence of packets in truth; it is only used through `async_io`.
    socket: UnixStream,
    spawner: Pid,
}

impl Drop for Connection {
    /// The spawner ends when the socket is closed, which is next, and is waited for, so that it is no zombie.
    fn drop(&mut self) {
        let spawner = self.spawner;
        let wait = move || rustix::process::waitpid(Some(spawner), WaitOptions::empty());
        // Without a thread it stays a zombie until this process ends.
        let _ = std::thread::Builder::new().name("spawner-wait".to_owned()).spawn(wait);
    }
}

impl Connection {
    fn open(program: &SpawnerProgram) -> Result<Self, Fault> {
        let (ours, theirs) = packet::pair().during("connect to", "the spawner")?;
        rustix::io::ioctl_fionbio(&ours, true).during("connect to", "the spawner")?;
        let name = program.path.display().to_string();
        let arguments =
            std::iter::once(&name).chain(&program.arguments).map(|text| CString::new(text.as_str()));
        let arguments: Vec<_> = arguments.collect::<Result<_, _>>().during("start", &program.path)?;
        let socket = UnixStream::from_std(ours.into()).during("connect to", "the spawner")?;
        let started = sys::spawn::start_program(&program.path, &arguments, theirs.as_fd());
        Ok(Self { socket, spawner: started.during("start", &program.path)? })
    }

    async fn exchange(&self, start: &Start, fds: &[OwnedFd]) -> io::Result<Result<(Pid, OwnedFd), Fault>> {
        let fds: Vec<_> = fds.iter().map(OwnedFd::as_fd).collect();
        self.socket.async_io(Interest::WRITABLE, || packet::send(&self.socket, start, &fds)).await?;
        let answer = self.socket.async_io(Interest::READABLE, || packet::receive(&self.socket)).await?;
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended");
        let (started, mut fds) = answer.ok_or_else(ended)?;
        match (started, fds.pop()) {
            (Started::Started { pid }, Some(pidfd)) => {
                let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
                Ok(Ok((pid, pidfd)))
            }
            (Started::Started { .. }, None) => Err(io::ErrorKind::InvalidData.into()),
            (Started::Failed(fault), _) => Ok(Err(fault)),
        }
    }
}
