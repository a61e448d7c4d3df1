//! The daemon's side of the protocol with a sandbox's init.
//!
//! Init runs in the sandbox and is not trusted: what it says is bounded in length and checked in kind, and one
//! that says nothing delays only whoever asked.

mod command;
mod files;
mod kept;
mod running_time;
mod session;

use std::{
    fs::File,
    io::{self, IoSlice},
    os::{fd::AsRawFd as _, unix::net::UnixListener},
    path::{Path, PathBuf},
    time::Duration,
};

use init_protocol::{
    Bulk, ClientFrame, Frame as _, FrameBuffer, Hello, InitFrame, MAX_BULK, MAX_CHUNK, Request, SEND_BUFFER,
    VERSION, encode,
};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

pub use command::{Command, CommandEvent, CommandInfo, CommandInput, Exec, ExitStatus, MAX_OUTPUT, Output};
pub use files::{Entry, EntryKind, FileReader, Files, MAX_FILE, Watcher, WriteInfo};
pub use kept::{Kept, OUTPUT_BUDGET};
pub(crate) use running_time::RunningTime;
pub use session::{Follower, SessionEvent};

use crate::error::SandboxError;

/// How long init may take to accept a connection and greet, while the sandbox is not paused.
const GREETING: Duration = Duration::from_secs(10);

/// Most bytes of a list that are taken from init: about as many as its JSON has.
const MAX_LIST: usize = 16 << 20;

/// Speaks with the init behind one socket. A connection carries one operation, so this is only an address.
#[derive(Clone, Debug)]
pub(crate) struct InitClient {
    socket: PathBuf,
    running_time: RunningTime,
    output: kept::Share,
}

impl InitClient {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket, running_time: RunningTime::default(), output: kept::Share::default() }
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
        // What was asked just before a pause waits for its end: given up, it could be done then and asked for twice.
        let connected =
            self.running_time.timeout(GREETING, connect(&self.socket)).await.ok_or_else(silent)?;
        self.open(connected.map_err(unreachable)?, &opening, needed).await
    }

    /// Says what is wanted, and hears whether init knows that.
    async fn open(
        &self,
        mut stream: UnixStream,
        opening: &[u8],
        needed: u16,
    ) -> Result<Connection, SandboxError> {
        let time = &self.running_time;
        // An init that has no room for it says so and closes, without having read it.
        let written = time.timeout(GREETING, stream.write_all(opening)).await.ok_or_else(silent)?;
        let (reader, writer) = stream.into_split();
        let mut connection = Connection {
            frames: Frames { reader, buffer: FrameBuffer::default() },
            input: Input { writer, bulk: false },
        };
        let answer = time.timeout(GREETING, connection.frames.next()).await.ok_or_else(silent)?;
        match answer.map_err(|error| written.err().map_or(error, unreachable))? {
            // It cannot have begun: it does not know the request.
            InitFrame::Hello(Hello { version: VERSION, revision }) if revision < needed => {
                Err(SandboxError::InitTooOld)
            }
            InitFrame::Hello(hello @ Hello { version: VERSION, .. }) => {
                connection.input.bulk = hello.reads_bulk();
                Ok(connection)
            }
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
            match self.reader.read_buf(self.buffer.room()).await {
                Ok(0) => return Err(SandboxError::InitUnreachable("it closed the connection".to_owned())),
                Ok(_) => {}
                Err(error) => return Err(SandboxError::InitUnreachable(error.to_string())),
            }
        }
    }
}

/// What is said to init after the request.
#[derive(Debug)]
pub(crate) struct Input {
    writer: OwnedWriteHalf,
    /// Whether init reads bulk frames.
    bulk: bool,
}

impl Input {
    pub(crate) async fn send(&mut self, frame: &ClientFrame) -> Result<(), SandboxError> {
        let bytes = encode(frame).map_err(protocol)?;
        self.write_both(&bytes, &[]).await
    }

    /// Most bytes that [`Self::send_bytes`] takes.
    pub(crate) fn chunk(&self) -> usize {
        if self.bulk { MAX_BULK } else { MAX_CHUNK }
    }

    /// Sends bytes, at most [`Self::chunk`] of them. To an init that reads bulk frames they go without being copied.
    pub(crate) async fn send_bytes(&mut self, kind: Bulk, data: &[u8]) -> Result<(), SandboxError> {
        if self.bulk {
            return self.write_both(&kind.header(data.len()).map_err(protocol)?, data).await;
        }
        match ClientFrame::from_bulk(kind, data.to_vec()) {
            Some(frame) => self.send(&frame).await,
            None => Err(SandboxError::InitUnreachable(format!("{kind:?} is not for an init"))),
        }
    }

    /// Lets more bytes wait in the kernel for init, so that the two take turns less often.
    pub(crate) fn widen(&self) {
        // Where so much is not granted there are more turns, and nothing else is different.
        let _ = set_socket_send_buffer_size(self.writer.as_ref(), SEND_BUFFER);
    }

    /// Writes both, as if they were one.
    async fn write_both(&mut self, mut first: &[u8], mut second: &[u8]) -> Result<(), SandboxError> {
        let lost = |error: io::Error| SandboxError::InitUnreachable(error.to_string());
        while !first.is_empty() || !second.is_empty() {
            let parts = [IoSlice::new(first), IoSlice::new(second)];
            let count = self.writer.write_vectored(&parts).await.map_err(lost)?;
            if count == 0 {
                return Err(lost(io::ErrorKind::WriteZero.into()));
            }
            let of_first = count.min(first.len());
            first = first.get(of_first..).unwrap_or_default();
            second = second.get(count - of_first..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Makes init's listening socket.
pub(crate) fn listen(path: &Path) -> io::Result<UnixListener> {
    let (path, _directory) = short(path)?;
    UnixListener::bind(path)
}

/// Room in a list, which code in the sandbox makes as long as it likes.
#[derive(Debug)]
struct ListRoom {
    left: usize,
}

impl ListRoom {
    fn new() -> Self {
        Self { left: MAX_LIST }
    }

    /// Takes the room of an entry with these texts.
    fn take<'a>(&mut self, what: &str, texts: impl IntoIterator<Item = &'a str>) -> Result<(), SandboxError> {
        // What surrounds them; control characters take six bytes in JSON.
        let cost = |text: &str| text.len() + 5 * text.bytes().filter(u8::is_ascii_control).count();
        let bytes = 100 + texts.into_iter().map(cost).sum::<usize>();
        let left = self.left.checked_sub(bytes);
        self.left = left
            .ok_or_else(|| SandboxError::TooLarge(format!("{what} have more than {} MiB", MAX_LIST >> 20)))?;
        Ok(())
    }
}

pub(crate) fn unexpected(frame: &InitFrame) -> SandboxError {
    let mut text = format!("{frame:?}");
    text.truncate(text.char_indices().nth(80).map_or(text.len(), |(end, _)| end));
    SandboxError::InitUnreachable(format!("an answer out of place: {text}"))
}

fn protocol(error: init_protocol::CodecError) -> SandboxError {
    SandboxError::InitUnreachable(error.to_string())
}

fn unreachable(error: io::Error) -> SandboxError {
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
    use init_protocol::BULK_REVISION;

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

    #[tokio::test]
    async fn an_init_that_refuses_before_it_has_read_what_is_wanted_is_heard() {
        let client = InitClient::new("/nowhere".into());
        let closed_after = async |frames: &[InitFrame]| {
            let (ours, mut theirs) = UnixStream::pair().expect("sockets");
            for frame in frames {
                theirs.write_all(&encode(frame).expect("frame")).await.expect("write");
            }
            drop(theirs);
            ours
        };
        let busy =
            InitFrame::Failed(init_protocol::Failure::new(init_protocol::FailureKind::Busy, "it is full"));
        let refusing = closed_after(&[InitFrame::Hello(Hello::CURRENT), busy]).await;
        let mut connection = client.open(refusing, b"opening", 0).await.expect("it has said hello");
        let refused = connection.frames.next().await;
        assert!(matches!(&refused, Err(SandboxError::Limit(_))), "{refused:?}");
        // One that says nothing before it closes is none.
        let refused = client.open(closed_after(&[]).await, b"opening", 0).await.err();
        assert!(matches!(refused, Some(SandboxError::InitUnreachable(_))), "{refused:?}");
    }

    /// An init that answers with frames until nobody wants them.
    fn init_that_goes_on(
        frame: impl Fn(usize) -> InitFrame + Send + 'static,
    ) -> (tempfile::TempDir, InitClient) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("init.sock");
        let listener = listen(&path).expect("listen");
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("accept");
            init_protocol::write_frame(&mut socket, &InitFrame::Hello(Hello::CURRENT)).expect("write");
            for number in 0.. {
                if init_protocol::write_frame(&mut socket, &frame(number)).is_err() {
                    return;
                }
            }
        });
        (directory, InitClient::new(path))
    }

    #[tokio::test]
    async fn lists_that_a_sandbox_makes_long_are_refused_and_not_kept() {
        let entry = |name: String| init_protocol::Entry {
            path: format!("/{name}"),
            name,
            kind: init_protocol::EntryKind::File,
            size: 0,
            mode: 0,
            modified: 0,
        };
        // Few entries, with names that JSON makes six times as long.
        let (_directory, client) = init_that_goes_on(move |_| InitFrame::Entry(entry("\u{1}".repeat(1500))));
        let list = Files { init: client }.list("/", None, 9).await;
        assert!(matches!(&list, Err(SandboxError::TooLarge(_))), "{list:?}");
        let command = |number: usize| init_protocol::CommandInfo {
            pid: u32::try_from(number).unwrap_or_default(),
            command: "x".repeat(100_000),
            envs: Default::default(),
            background: true,
            terminal: false,
        };
        let (_directory, client) = init_that_goes_on(move |number| InitFrame::Command(command(number)));
        assert!(matches!(client.commands().await, Err(SandboxError::TooLarge(_))));
        // As many as a busy sandbox has are listed.
        let few =
            move |number| if number < 50 { InitFrame::Command(command(number)) } else { InitFrame::Done };
        let (_directory, client) = init_that_goes_on(few);
        assert_eq!(client.commands().await.expect("commands").len(), 50);
        let many = move |number| match number {
            ..50_000 => InitFrame::Entry(entry(format!("file-{number}"))),
            _ => InitFrame::Done,
        };
        let (_directory, client) = init_that_goes_on(many);
        assert_eq!(Files { init: client }.list("/", None, 1).await.expect("entries").len(), 50_000);
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

    /// An init that greets with this revision and then says these bytes; it gives what it was told, each frame with
    /// whether it was a bulk frame.
    fn init_that_says(
        revision: u16,
        says: Vec<u8>,
    ) -> (tempfile::TempDir, InitClient, std::thread::JoinHandle<Vec<(bool, ClientFrame)>>) {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("init.sock");
        let listener = listen(&path).expect("listen");
        let told = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("accept");
            let hello = InitFrame::Hello(Hello { version: VERSION, revision });
            init_protocol::write_frame(&mut socket, &hello).expect("greet");
            io::Write::write_all(&mut socket, &says).expect("say");
            socket.shutdown(std::net::Shutdown::Write).expect("say no more");
            let mut told = Vec::new();
            io::Read::read_to_end(&mut socket, &mut told).expect("listen");
            let mut rest = told.as_slice();
            let next = || Some((*rest.get(3)? != 0, init_protocol::read_frame(&mut rest).expect("frame")?));
            std::iter::from_fn(next).collect()
        });
        (directory, InitClient::new(path), told)
    }

    #[tokio::test]
    async fn bytes_go_in_bulk_frames_to_an_init_that_reads_them_and_as_before_to_an_older_one() {
        let content: Vec<u8> = (0..600_000u32).map(|index| (index % 251) as u8).collect();
        for (revision, bulk) in [(BULK_REVISION, true), (BULK_REVISION - 1, false), (0, false)] {
            let (_directory, client, told) = init_that_says(revision, Vec::new());
            let mut connection = client.begin(Request::Ping).await.expect("begin");
            files::feed(&mut connection.input, content.as_slice()).await.expect("feed");
            drop(connection);
            let told = told.join().expect("init");
            let mut received = Vec::new();
            for (in_bulk, frame) in told {
                if let ClientFrame::Data(data) = frame {
                    assert_eq!(in_bulk, bulk, "revision {revision}");
                    assert!(data.len() <= if bulk { MAX_BULK } else { MAX_CHUNK });
                    received.extend(data.into_vec());
                }
            }
            assert!(received == content, "revision {revision}");
        }
    }

    #[tokio::test]
    async fn a_bulk_frame_of_init_that_is_too_long_or_cut_or_out_of_place_is_an_error_and_a_right_one_is_read()
     {
        let read = async |says: Vec<u8>| {
            let (_directory, client, _told) = init_that_says(BULK_REVISION, says);
            client.begin(Request::Ping).await.expect("begin").frames.next().await
        };
        let data = InitFrame::Data(init_protocol::ByteBuf::from("abc"));
        assert_eq!(read(vec![3, 0, 0, 1, b'a', b'b', b'c']).await.expect("a right one"), data);
        let cut = vec![3, 0, 0, 1, b'a', b'b'];
        let too_long = vec![1, 0, 0x10, 1, b'a'];
        let of_no_kind = vec![1, 0, 0, 9, b'a'];
        let of_the_daemon = vec![1, 0, 0, 2, b'a'];
        for says in [cut, too_long, of_no_kind, of_the_daemon] {
            assert!(matches!(read(says).await, Err(SandboxError::InitUnreachable(_))));
        }
    }
}
