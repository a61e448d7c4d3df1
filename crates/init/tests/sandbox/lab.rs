//! A sandbox with nothing but init, and a daemon's side of the protocol.

#![expect(clippy::disallowed_types, reason = "tests start programs")]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use init_protocol::{
    Boot, Bulk, ByteBuf, ClientFrame, Configure, Entry, Exec, Exit, Failure, FailureKind, Hello, InitFrame,
    MAX_BULK, Request, Stream, Target, encode, read_frame, write_frame,
};

/// How long anything may take that is expected to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000:user:/home/user:/bin/sh\n\
    homeless:x:1001:1001::/nowhere:/bin/sh\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\nhomeless:x:1001:\nextra:x:2000:user\n";

/// What runs before init: the file systems the tests may write to. `/media` is small, and
/// something is mounted on a file.
const SET_UP: &str = r#"
set -e
exec 9>>"$LAB/log"
mount -t tmpfs -o mode=0755 tmpfs /mnt
touch /mnt/init && mount --bind "$INIT" /mnt/init
mount --bind "$LAB/passwd" /etc/passwd
mount --bind "$LAB/group" /etc/group
mount -t tmpfs -o mode=0755 tmpfs /home
mount -t tmpfs -o mode=0700 tmpfs /root
mount -t tmpfs -o mode=1777,size=1m tmpfs /media
mount -t tmpfs -o mode=1777 tmpfs /tmp
mkdir /home/user && chown 1000:1000 /home/user
mount -t tmpfs -o mode=1777 tmpfs /srv
touch /srv/mounted && chown 1000:1000 /srv/mounted && mount --bind /srv/mounted /srv/mounted
exec env -i /mnt/init 3<&0 4<&1 5<&2 0</dev/null 1>/dev/null 2>&9
"#;

/// A running init. Dropping it ends everything inside.
pub(crate) struct Lab {
    directory: tempfile::TempDir,
    holder: Child,
    outer: Child,
}

impl Lab {
    /// Starts init under the sandbox's filter.
    pub(crate) fn start() -> Self {
        Self::start_with(BTreeMap::new())
    }

    /// Starts init with an environment for all commands.
    pub(crate) fn start_with(envs: BTreeMap<String, String>) -> Self {
        let seccomp = crate::seccomp::programs().unwrap().into_iter().map(ByteBuf::from).collect();
        let boot = Boot { configure: Configure { sandbox_id: "sbx-test0001".into(), envs }, seccomp };
        let mut log = String::new();
        Self::try_start(&boot, &mut log).unwrap_or_else(|| panic!("init did not start: {log}"))
    }

    /// Starts init; `None` and what it said if it refuses to.
    pub(crate) fn try_start(boot: &Boot, log: &mut String) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        fs::write(directory.path().join("passwd"), PASSWD).unwrap();
        fs::write(directory.path().join("group"), GROUP).unwrap();
        fs::write(directory.path().join("log"), "").unwrap();
        fs::set_permissions(directory.path().join("log"), Permissions::from_mode(0o666)).unwrap();
        let listener = UnixListener::bind(directory.path().join("init.sock")).unwrap();
        let (boot_read, mut boot_write) = std::io::pipe().unwrap();
        let (mut ready_read, ready_write) = std::io::pipe().unwrap();
        let holder = user_namespace();
        let outer = Command::new("nsenter")
            .arg(format!("--user=/proc/{}/ns/user", holder.id()))
            .args(["-S", "0", "-G", "0", "unshare", "--mount", "--pid", "--net", "--uts", "--ipc"])
            .args(["--fork", "--kill-child", "--mount-proc", "sh", "-c", SET_UP])
            .env("LAB", directory.path())
            .env("INIT", env!("CARGO_BIN_EXE_bailiwick-init"))
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .stdout(boot_read)
            .stderr(ready_write)
            .spawn()
            .unwrap();
        let lab = Self { directory, holder, outer };
        boot_write.write_all(&encode(boot).unwrap()).unwrap();
        drop(boot_write);
        let mut ready = vec![0];
        // To its end only in the bad case: `unshare` holds the pipe as long as init lives.
        if ready_read.read_exact(&mut ready).is_ok() && ready == [init_protocol::READY] {
            return Some(lab);
        }
        ready_read.read_to_end(&mut ready).unwrap();
        log.push_str(&String::from_utf8_lossy(&ready));
        log.push_str(&fs::read_to_string(lab.directory.path().join("log")).unwrap());
        None
    }

    /// A connection that has said nothing yet.
    pub(crate) fn socket(&self) -> UnixStream {
        let socket = UnixStream::connect(self.directory.path().join("init.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// A connection with a request.
    pub(crate) fn request(&self, request: Request) -> Client {
        self.request_as(Hello::CURRENT, request)
    }

    /// A connection with a request of a daemon that greets so.
    pub(crate) fn request_as(&self, hello: Hello, request: Request) -> Client {
        let mut bytes = encode(&ClientFrame::Hello(hello)).unwrap();
        bytes.extend(encode(&ClientFrame::Request(request)).unwrap());
        let mut socket = self.socket();
        // Init may refuse before it has read all of it; what it says then is there to be read.
        if let Err(error) = socket.write_all(&bytes) {
            assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        }
        let mut client = Client { socket };
        assert_eq!(client.next(), InitFrame::Hello(Hello::CURRENT));
        client
    }

    /// Runs a command to its end.
    pub(crate) fn exec(&self, exec: Exec) -> Outcome {
        self.try_exec(exec).unwrap()
    }

    pub(crate) fn try_exec(&self, exec: Exec) -> Result<Outcome, Failure> {
        let mut client = self.request(Request::Exec(exec));
        client.started()?;
        Ok(client.outcome())
    }

    /// Runs a command line as the default user.
    pub(crate) fn sh(&self, command: &str) -> Outcome {
        self.exec(Exec { command: command.into(), ..Exec::default() })
    }

    /// Runs a command line as root, and gives what it puts out; it must succeed.
    pub(crate) fn root(&self, command: &str) -> String {
        let outcome =
            self.exec(Exec { command: command.into(), user: Some("root".into()), ..Exec::default() });
        assert_eq!(outcome.exit.code, 0, "{command}: {outcome:?}");
        outcome.stdout
    }

    /// Starts a background command.
    pub(crate) fn spawn(&self, command: &str) -> u32 {
        let exec = Exec { command: command.into(), background: true, stdin: true, ..Exec::default() };
        self.request(Request::Exec(exec)).started().unwrap()
    }

    /// Waits for a background command.
    pub(crate) fn wait(&self, pid: u32) -> Outcome {
        self.request(Request::Wait { pid }).outcome()
    }

    /// Gives init so many descriptors more than it has now; `None`: as many as it may have.
    pub(crate) fn limit_descriptors(&self, more: Option<usize>) {
        let outer = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap();
        let init: i32 = children.split_whitespace().next().unwrap().parse().unwrap();
        let open = fs::read_dir(format!("/proc/{init}/fd")).unwrap().count();
        let limits = fs::read_to_string(format!("/proc/{init}/limits")).unwrap();
        let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let maximum: Option<u64> = files.split_whitespace().nth(1).unwrap().parse().ok();
        let current = more.map_or(maximum, |more| Some(u64::try_from(open + more).unwrap()));
        let pid = rustix::process::Pid::from_raw(init);
        let limit = rustix::process::Rlimit { current, maximum };
        rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit).unwrap();
    }

    /// Whether a process of this name lives.
    pub(crate) fn lives(&self, name: &str) -> bool {
        let command = format!("grep -lx {name} /proc/[0-9]*/comm >/dev/null");
        self.sh(&command).exit.code == 0
    }

    /// Peak of init's resident memory, in KiB.
    pub(crate) fn init_memory(&self, field: &str) -> u64 {
        let status = self.sh("cat /proc/1/status").stdout;
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn read(&self, user: &str, path: &str) -> Result<Vec<u8>, Failure> {
        let mut client = self.request(Request::Read(target(user, path)));
        let mut content = Vec::new();
        loop {
            match client.next() {
                InitFrame::Opened { .. } => {}
                InitFrame::Data(data) => content.extend(data.into_vec()),
                InitFrame::End => return Ok(content),
                InitFrame::Failed(failure) => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) fn write(&self, user: &str, path: &str, content: &[u8]) -> Result<u64, Failure> {
        self.write_limited(user, path, content, u64::MAX)
    }

    pub(crate) fn write_limited(
        &self,
        user: &str,
        path: &str,
        content: &[u8],
        limit: u64,
    ) -> Result<u64, Failure> {
        let mut client = self.request(Request::Write { target: target(user, path), limit });
        for chunk in content.chunks(MAX_BULK) {
            // Init may have refused already; the reason is waiting.
            if client.try_send_bytes(Bulk::File, chunk).is_err() {
                break;
            }
        }
        let _ = client.try_send(&ClientFrame::End);
        match client.next() {
            InitFrame::Written { size, path: written } => {
                assert!(written.ends_with(path), "{written}");
                Ok(size)
            }
            InitFrame::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// A request that is answered with an entry.
    pub(crate) fn entry(&self, request: Request) -> Result<Entry, Failure> {
        match self.request(request).next() {
            InitFrame::Entry(entry) => Ok(entry),
            InitFrame::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// A request that is answered with yes or no.
    pub(crate) fn bool(&self, request: Request) -> Result<bool, Failure> {
        match self.request(request).next() {
            InitFrame::Bool(answer) => Ok(answer),
            InitFrame::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn list(&self, user: &str, path: &str, depth: u32) -> Result<Vec<Entry>, Failure> {
        let mut client = self.request(Request::List { target: target(user, path), depth });
        let mut entries = Vec::new();
        loop {
            match client.next() {
                InitFrame::Entry(entry) => entries.push(entry),
                InitFrame::Done => return Ok(entries),
                InitFrame::Failed(failure) => return Err(failure),
                other => panic!("{other:?}"),
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in [&mut self.outer, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process that holds a user namespace with ids 0 to 65535 open.
fn user_namespace() -> Child {
    let mut holder = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    for map in ["uid_map", "gid_map"] {
        let mut file = File::options().write(true).open(format!("/proc/{}/{map}", holder.id())).unwrap();
        file.write_all(b"0 100000 65536").unwrap();
    }
    holder
}

pub(crate) fn target(user: &str, path: &str) -> Target {
    Target { user: Some(user.into()), path: path.into() }
}

/// A connection with a request under way.
pub(crate) struct Client {
    socket: UnixStream,
}

impl Client {
    pub(crate) fn next(&mut self) -> InitFrame {
        self.try_next().expect("init closed the connection")
    }

    /// `None` when init has closed the connection.
    pub(crate) fn try_next(&mut self) -> Option<InitFrame> {
        read_frame(&mut self.socket).unwrap()
    }

    pub(crate) fn send(&mut self, frame: &ClientFrame) {
        self.try_send(frame).unwrap();
    }

    pub(crate) fn try_send(&mut self, frame: &ClientFrame) -> Result<(), init_protocol::CodecError> {
        write_frame(&mut self.socket, frame)
    }

    /// Sends a bulk frame.
    pub(crate) fn try_send_bytes(&mut self, kind: Bulk, data: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(&kind.header(data.len()).unwrap())?;
        self.socket.write_all(data)
    }

    /// Sends bytes that are not a frame.
    pub(crate) fn send_part(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The frames until init closes the connection, each with whether it was a bulk frame.
    pub(crate) fn rest(mut self) -> Vec<(bool, InitFrame)> {
        let mut bytes = Vec::new();
        self.socket.read_to_end(&mut bytes).unwrap();
        let mut rest = bytes.as_slice();
        let next = || Some((*rest.get(3)? != 0, read_frame(&mut rest).unwrap()?));
        std::iter::from_fn(next).collect()
    }

    pub(crate) fn started(&mut self) -> Result<u32, Failure> {
        match self.next() {
            InitFrame::Started { pid } => Ok(pid),
            InitFrame::Failed(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn failure(&mut self) -> Failure {
        match self.next() {
            InitFrame::Failed(failure) => failure,
            other => panic!("{other:?}"),
        }
    }

    /// The rest of a command.
    pub(crate) fn outcome(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        loop {
            match self.next() {
                InitFrame::Output { stream: Stream::Stdout, data } => outcome.out.extend(data.into_vec()),
                InitFrame::Output { stream: Stream::Stderr, data } => outcome.err.extend(data.into_vec()),
                InitFrame::Exit(exit) => {
                    outcome.exit = exit;
                    outcome.stdout = String::from_utf8_lossy(&outcome.out).into_owned();
                    outcome.stderr = String::from_utf8_lossy(&outcome.err).into_owned();
                    return outcome;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A second handle on the same connection.
    pub(crate) fn sender(&self) -> Self {
        Self { socket: self.socket.try_clone().unwrap() }
    }
}

#[derive(Default)]
pub(crate) struct Outcome {
    out: Vec<u8>,
    err: Vec<u8>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: Exit,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}, stdout {:?}, stderr {:?}", self.exit, self.stdout, self.stderr)
    }
}

/// Asks again and again until the answer is yes.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        std::thread::yield_now();
    }
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, Failure>) -> FailureKind {
    result.unwrap_err().kind
}
