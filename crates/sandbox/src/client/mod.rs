//! The daemon's side of the protocol with a sandbox's init.
//!
//! Init runs in the sandbox and is not trusted: what it says is bounded in length and checked in kind, and one
//! that says nothing delays only whoever asked.

mod command;
mod files;
mod running_time;
mod session;

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd as _, unix::net::UnixListener},
    path::{Path, PathBuf},
    time::Duration,
};

use init_protocol::{ClientFrame, FrameBuffer, Hello, InitFrame, Request, VERSION, encode};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

pub use command::{Command, CommandEvent, CommandInfo, CommandInput, Exec, ExitStatus, MAX_OUTPUT, Output};
pub use files::{Entry, EntryKind, FileReader, Files, MAX_FILE, Watcher, WriteInfo};
pub(crate) use running_time::RunningTime;
pub use session::{Follower, SessionEvent};

use crate::error::SandboxError;

/// How long init may take to accept a connection and greet, while the sandbox is not paused.
const GREETING: Duration = Duration::from_secs(10);

/// How much is read from init at once.
const READ: usize = 64 << 10;

/// Speaks with the init behind one socket. A connection carries one operation, so this is only an address.
#[derive(Clone, Debug)]
pub(crate) struct InitClient {
    socket: PathBuf,
    running_time: RunningTime,
}

impl InitClient {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, running_time: RunningTime::default() }
    }

    /// The time by which init may be late.
    pub(crate) fn running_time(&self) -> &RunningTime {
        &self.running_time
    }

    /// Begins an operation.
    pub(crate) async fn begin(&self, request: Request) -> Result<Connection, SandboxError> {
        let needed = request.revision();
        let mut opening = encode(&ClientFrame::Hello(Hello::CURRENT)).map_err(protocol)?;
        opening.extend(encode(&ClientFrame::Request(request)).map_err(|error| match error {
            init_protocol::CodecError::TooLong(length) => {
                SandboxError::TooLarge(format!("the request of {length} bytes is too long"))
            }
            other => protocol(other),
        })?);
        let connect = async {
            let mut stream = connect(&self.socket).await?;
            stream.write_all(&opening).await?;
            Ok(stream)
        };
        // What was asked just before a pause waits for its end: given up, it could be done then and asked for twice.
        let time = &self.running_time;
        let stream = time
            .timeout(GREETING, connect)
            .await
            .ok_or_else(silent)?
            .map_err(|error: io::Error| SandboxError::InitUnreachable(error.to_string()))?;
        let (reader, writer) = stream.into_split();
        let mut connection = Connection {
            frames: Frames { reader, buffer: FrameBuffer::default(), read: vec![0; READ] },
            input: Input { writer },
        };
        match time.timeout(GREETING, connection.frames.next()).await.ok_or_else(silent)?? {
            // It cannot have begun: it does not know the request.
            InitFrame::Hello(Hello { version: VERSION, revision }) if revision < needed => {
                Err(SandboxError::InitTooOld)
            }
            InitFrame::Hello(Hello { version: VERSION, .. }) => Ok(connection),
            InitFrame::Hello(Hello { version, .. }) => {
                Err(SandboxError::InitUnreachable(format!("it speaks version {version} of the protocol")))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Carries out an operation that is answered with one frame.
    pub(crate) async fn ask(&self, request: Request) -> Result<InitFrame, SandboxError> {
        self.begin(request).await?.frames.next().await
    }

    /// Carries out an operation that is answered with `Done`.
    pub(crate) async fn order(&self, request: Request) -> Result<(), SandboxError> {
        match self.ask(request).await? {
            InitFrame::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Carries out an operation that is answered with yes or no.
    pub(crate) async fn decide(&self, request: Request) -> Result<bool, SandboxError> {
        match self.ask(request).await? {
            InitFrame::Bool(answer) => Ok(answer),
            other => Err(unexpected(&other)),
        }
    }
}

/// One operation under way. Dropping it gives the operation up.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) frames: Frames,
    pub(crate) input: Input,
}

/// What init says.
#[derive(Debug)]
pub(crate) struct Frames {
    reader: OwnedReadHalf,
    buffer: FrameBuffer,
    read: Vec<u8>,
}

impl Frames {
    /// The next frame; a failure that init reports is an error. Nothing is lost when the future is dropped.
    pub(crate) async fn next(&mut self) -> Result<InitFrame, SandboxError> {
        loop {
            match self.buffer.next().map_err(protocol)? {
                Some(InitFrame::Failed(failure)) => return Err(failure.into()),
                Some(frame) => return Ok(frame),
                None => {}
            }
            match self.reader.read(&mut self.read).await {
                Ok(0) => return Err(SandboxError::InitUnreachable("it closed the connection".to_owned())),
                Ok(length) => self.buffer.extend(self.read.get(..length).unwrap_or_default()),
                Err(error) => return Err(SandboxError::InitUnreachable(error.to_string())),
            }
        }
    }
}

/// What is said to init after the request.
#[derive(Debug)]
pub(crate) struct Input {
    writer: OwnedWriteHalf,
}

impl Input {
    pub(crate) async fn send(&mut self, frame: &ClientFrame) -> Result<(), SandboxError> {
        let bytes = encode(frame).map_err(protocol)?;
        let written = self.writer.write_all(&bytes).await;
        written.map_err(|error| SandboxError::InitUnreachable(error.to_string()))
    }
}

/// Makes init's listening socket.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let (path, _directory) = short(path)?;
    UnixListener::bind(path)
}

pub(crate) fn unexpected(frame: &InitFrame) -> SandboxError {
    let mut text = format!("{frame:?}");
    text.truncate(text.char_indices().nth(80).map_or(text.len(), |(end, _)| end));
    SandboxError::InitUnreachable(format!("an answer out of place: {text}"))
}

fn protocol(error: init_protocol::CodecError) -> SandboxError {
    SandboxError::InitUnreachable(error.to_string())
}

fn silent() -> SandboxError {
    SandboxError::InitUnreachable(format!("no answer in {} s", GREETING.as_secs()))
}

/// How long is waited before init's queue of connections is tried again when it is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(10);

/// Connects without holding up the thread, for as long as it takes: whoever calls it has the deadline.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    let (path, _directory) = short(path)?;
    loop {
        match UnixStream::connect(&path).await {
            // Not like for other sockets: the kernel tells nobody when there is room.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::time::sleep(QUEUE_PAUSE).await,
            other => return other,
        }
    }
}

/// The address of a unix socket holds 107 bytes, and data directories may be anywhere: a longer path is
/// shortened through a descriptor of its directory, which must stay open while it is used.
fn short(path: &Path) -> io::Result<(PathBuf, Option<File>)> {
    const LONGEST: usize = 107;
    match (path.as_os_str().len() > LONGEST, path.parent(), path.file_name()) {
        (true, Some(parent), Some(name)) => {
            let directory = File::open(parent)?;
            let here = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string());
            Ok((here.join(name), Some(directory)))
        }
        _ => Ok((path.to_owned(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_in_a_directory_with_a_long_name_can_be_used() {
        let outer = tempfile::tempdir().expect("temporary directory");
        let deep = outer.path().join("a".repeat(120));
        std::fs::create_dir(&deep).expect("directory");
        let path = deep.join("init.sock");
        let _listener = listen(&path).expect("listen");
        connect(&path).await.expect("connect");
        let short = outer.path().join("init.sock");
        let _listener = listen(&short).expect("listen");
        connect(&short).await.expect("connect");
    }

    /// An init that greets with this revision and answers the one request with `Done`.
    fn init_of(revision: u16) -> (tempfile::TempDir, InitClient) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("init.sock");
        let listener = listen(&path).expect("listen");
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("accept");
            for frame in [InitFrame::Hello(Hello { version: VERSION, revision }), InitFrame::Done] {
                init_protocol::write_frame(&mut socket, &frame).expect("write");
            }
            // Closing before everything is read would be a reset.
            let _ = io::Read::read_to_end(&mut socket, &mut Vec::new());
        });
        (directory, InitClient::new(path))
    }

    #[tokio::test(start_paused = true)]
    async fn an_init_that_takes_no_connections_holds_up_nobody_else() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("init.sock");
        let listener = listen(&path).expect("listen");
        rustix::net::listen(&listener, 0).expect("a queue for one");
        let first = connect(&path).await.expect("there is room for one");
        let client = InitClient::new(path);
        // The runtime's one thread stays free: its clock goes on until the time of the greeting is over.
        let refused = client.begin(Request::Ping).await.err();
        assert!(matches!(refused, Some(SandboxError::InitUnreachable(_))), "{refused:?}");
        // One that waits gets its turn.
        let (second, accepted) = tokio::join!(connect(&client.socket), async { listener.accept() });
        assert!(second.is_ok() && accepted.is_ok());
        drop(first);
    }

    /// An init that says that it has started a command, and an hour later, if ever, that it has ended.
    fn init_with_a_command(ends: bool) -> (tempfile::TempDir, InitClient) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("init.sock");
        let listener = listen(&path).expect("listen");
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = tokio::net::UnixListener::from_std(listener).expect("listener");
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("accept");
            for frame in [InitFrame::Hello(Hello::CURRENT), InitFrame::Started { pid: 7 }] {
                socket.write_all(&encode(&frame).expect("frame")).await.expect("write");
            }
            tokio::time::sleep(Duration::from_secs(3600)).await;
            let exit = init_protocol::Exit { code: 3, ..init_protocol::Exit::default() };
            if ends {
                socket.write_all(&encode(&InitFrame::Exit(exit)).expect("frame")).await.expect("write");
            }
            let _ = socket.read_to_end(&mut Vec::new()).await;
        });
        (directory, InitClient::new(path))
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_does_not_end_a_command_in_the_foreground_that_has_a_timeout() {
        let exec = || Exec { timeout: Some(Duration::from_secs(1)), ..Exec::default() };
        let (_directory, client) = init_with_a_command(true);
        client.running_time().stop();
        assert_eq!(client.exec(exec()).await.expect("it ends when it can").exit_code, 3);
        // One that does not end although it could is given up.
        let (_directory, client) = init_with_a_command(false);
        client.running_time().stop();
        let resumed = async {
            tokio::time::sleep(Duration::from_secs(600)).await;
            client.running_time().start();
        };
        let (given_up, ()) = tokio::join!(client.exec(exec()), resumed);
        assert!(matches!(given_up, Err(SandboxError::InitUnreachable(_))), "{given_up:?}");
    }

    #[tokio::test]
    async fn an_init_from_before_an_update_is_asked_only_for_what_it_knows() {
        let resize = || {
            let size = init_protocol::TerminalSize { columns: 80, rows: 24 };
            Request::Resize { pid: 7, size }
        };
        let (_directory, older) = init_of(0);
        assert!(matches!(older.order(resize()).await, Err(SandboxError::InitTooOld)));
        let (_directory, older) = init_of(0);
        older.order(Request::Ping).await.expect("what it has had all along works");
        let (_directory, current) = init_of(init_protocol::REVISION);
        current.order(resize()).await.expect("a current one does it");
    }
}
