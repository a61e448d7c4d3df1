//! The daemon's side of the spawner: a task that owns the socket to it.

mod child;
mod protocol;
mod server;

use std::{
    ffi::CString,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::{
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::{Pid, WaitOptions},
};
use tokio::{
    io::Interest,
    net::UnixStream,
    sync::{mpsc, oneshot},
};

pub use protocol::BindMount;
pub(crate) use protocol::{Fds, Request};
pub use server::serve;

use crate::fault::{Context as _, Fault};
use protocol::{MAX_PACKET, Reply};

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

/// A process that was started and waits to be told to go on.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// Its process id.
    pub pid: Pid,
    /// A descriptor of it.
    pub pidfd: OwnedFd,
}

impl Spawner {
    /// Starts the program. A spawner that dies is started again with the next request.
    pub(crate) fn start(program: SpawnerProgram) -> Result<Self, Fault> {
        let connection = Connection::open(&program)?;
        let (orders, queue) = mpsc::channel(64);
        tokio::spawn(carry_out(program, connection, queue));
        Ok(Self { orders })
    }

    /// Starts the first process of a sandbox.
    pub(crate) async fn spawn(&self, request: Request, fds: Fds) -> Result<Spawned, Fault> {
        let gone = || Fault::new("ask", "the spawner: it has ended");
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order { request, fds, answer }).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

#[derive(Debug)]
struct Order {
    request: Request,
    fds: Fds,
    answer: oneshot::Sender<Result<Spawned, Fault>>,
}

async fn carry_out(program: SpawnerProgram, first: Connection, mut queue: mpsc::Receiver<Order>) {
    let mut connection = Some(first);
    while let Some(Order { request, fds, answer }) = queue.recv().await {
        let result = match connection.take().map_or_else(|| Connection::open(&program), Ok) {
            Ok(open) => match open.exchange(&request, &fds).await {
                Ok(result) => {
                    connection = Some(open);
                    result
                }
                // The connection is in an unknown state: without it the spawner ends.
                Err(error) => Err(error).during("ask the spawner for", &request.hostname),
            },
            Err(fault) => Err(fault),
        };
        // Whoever asked may be gone; dropping the other end of its go pipe has ended the process then.
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
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .during("connect to", "the spawner")?;
        rustix::io::ioctl_fionbio(&ours, true).during("connect to", "the spawner")?;
        let name = program.path.display().to_string();
        let arguments =
            std::iter::once(&name).chain(&program.arguments).map(|text| CString::new(text.as_str()));
        let arguments: Vec<_> = arguments.collect::<Result<_, _>>().during("start", &program.path)?;
        let socket = UnixStream::from_std(ours.into()).during("connect to", "the spawner")?;
        let started = sys::spawn::start_program(&program.path, &arguments, theirs.as_fd());
        Ok(Self { socket, spawner: started.during("start", &program.path)? })
    }

    async fn exchange(&self, request: &Request, fds: &Fds) -> io::Result<Result<Spawned, Fault>> {
        let bytes = serde_json::to_vec(request)?;
        let fds = fds.borrow();
        self.socket
            .async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(Fds::MAX))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                control.push(SendAncillaryMessage::ScmRights(&fds));
                Ok(sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?)
            })
            .await?;
        let (reply, pidfd) = self.socket.async_io(Interest::READABLE, || receive(&self.socket)).await?;
        Ok(match (reply, pidfd) {
            (Reply::Started { pid }, Some(pidfd)) => {
                let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
                Ok(Spawned { pid, pidfd })
            }
            (Reply::Started { .. }, None) => return Err(io::ErrorKind::InvalidData.into()),
            (Reply::Failed(fault), _) => Err(fault),
        })
    }
}

fn receive(socket: &UnixStream) -> io::Result<(Reply, Option<OwnedFd>)> {
    let mut packet = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket.as_fd(), &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended"));
    }
    let mut pidfd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            pidfd = fds.last();
        }
    }
    let reply = serde_json::from_slice(packet.get(..received.bytes).unwrap_or_default())?;
    Ok((reply, pidfd))
}
