//! The daemon's side of the protocol with a sandbox's init.
//!
//! Init runs in the sandbox and is not trusted: what it says is bounded in length and checked in kind, and one
//! that says nothing delays only whoever asked.

mod command;
mod files;
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
    time::timeout,
};

pub use command::{Command, CommandEvent, CommandInfo, CommandInput, Exec, ExitStatus, MAX_OUTPUT, Output};
pub use files::{Entry, EntryKind, FileReader, Files, MAX_FILE, Watcher, WriteInfo};
pub use session::{Follower, SessionEvent};

use crate::error::SandboxError;

/// How long init may take to accept a connection and greet.
const GREETING: Duration = Duration::from_secs(10);

/// How much is read from init at once.
const READ: usize = 64 << 10;

/// Speaks with the init behind one socket. A connection carries one operation, so this is only an address.
#[derive(Clone, Debug)]
pub(crate) struct InitClient {
    socket: PathBuf,
}

impl InitClient {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
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
        let stream = timeout(GREETING, connect)
            .await
            .map_err(|_| silent())?
            .map_err(|error: io::Error| SandboxError::InitUnreachable(error.to_string()))?;
        let (reader, writer) = stream.into_split();
        let mut connection = Connection {
            frames: Frames { reader, buffer: FrameBuffer::default(), read: vec![0; READ] },
            input: Input { writer },
        };
        match timeout(GREETING, connection.frames.next()).await.map_err(|_| silent())?? {
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
    with_short_path(path, |path| UnixListener::bind(path))
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

async fn connect(path: &Path) -> io::Result<UnixStream> {
    let stream = with_short_path(path, |path| std::os::unix::net::UnixStream::connect(path))?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

/// The address of a unix socket holds 107 bytes, and data directories may be anywhere: a longer path is
/// shortened through a descriptor of its directory.
fn with_short_path<T>(path: &Path, call: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    const LONGEST: usize = 107;
    match (path.as_os_str().len() > LONGEST, path.parent(), path.file_name()) {
        (true, Some(parent), Some(name)) => {
            let directory = File::open(parent)?;
            call(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
        }
        _ => call(path),
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
