//! What the frames say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// First frame of each side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The sender's [`VERSION`](crate::VERSION).
    pub version: u16,
    /// The sender's [`REVISION`](crate::REVISION). Builds from before there was one do not say it: 0.
    #[serde(default)]
    pub revision: u16,
}

impl Hello {
    /// The greeting of this build.
    pub const CURRENT: Self = Self { version: crate::VERSION, revision: crate::REVISION };

    /// Whether the sender reads bulk frames.
    pub fn reads_bulk(self) -> bool {
        self.revision >= crate::BULK_REVISION
    }
}

/// What init needs before it can serve: the one frame on [`BOOT_FD`](crate::BOOT_FD).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Identity and environment; [`Request::Configure`] can replace it later (a sandbox from a warm pool).
    pub configure: Configure,
    /// System call filters in the kernel's BPF encoding (8 bytes an instruction, native byte order), installed
    /// in this order: where several refuse a call, the error number of the last one counts. Init does not start
    /// without a filter.
    pub seccomp: Vec<ByteBuf>,
}

/// Identity and environment of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configure {
    /// Value of `DECLAW_SANDBOX_ID` in every command's environment.
    pub sandbox_id: String,
    /// Environment of every command; a command's own entries win.
    pub envs: BTreeMap<String, String>,
}

/// Frames from the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientFrame {
    /// Always first.
    Hello(Hello),
    /// Always second, exactly once.
    Request(Request),
    /// Bytes for the standard input of a foreground command.
    Stdin(ByteBuf),
    /// End of file on the standard input of a foreground command.
    CloseStdin,
    /// Sends a signal (its number) to the process group of a foreground command.
    Signal(i32),
    /// A part of the file being written.
    Data(ByteBuf),
    /// The file being written is complete.
    End,
}

/// The operation of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Is init there?
    Ping,
    /// The sandbox is about to be paused: the time of commands stands still from now on. Can be repeated. Since
    /// revision 3.
    StopClock,
    /// The sandbox has been resumed: the time of commands goes on. Can be repeated. Since revision 3.
    StartClock,
    /// Replaces identity and environment for the commands started from now on.
    Configure(Configure),
    /// Starts a command.
    Exec(Exec),
    /// Waits for a background command and gives its kept output and its exit; can be repeated.
    Wait {
        /// Pid from [`InitFrame::Started`].
        pid: u32,
    },
    /// Lists the commands that are running, foreground ones included.
    Commands,
    /// Kills a command with everything in its session (SIGKILL).
    Kill {
        /// Pid from [`InitFrame::Started`].
        pid: u32,
    },
    /// Writes to the standard input of a running command that was started with `stdin`.
    Stdin {
        /// Pid from [`InitFrame::Started`].
        pid: u32,
        /// What to write; `Done` is sent when the pipe has taken all of it.
        data: ByteBuf,
    },
    /// End of file on the standard input of a command. Closing it twice is no failure, nor closing that of a session
    /// that has ended and is remembered.
    CloseStdin {
        /// Pid from [`InitFrame::Started`].
        pid: u32,
    },
    /// Starts a command in the background whose output is kept in order, both streams together, for those who
    /// follow it. Since revision 1.
    Session(Session),
    /// Follows the output of a session until its end. Several can at a time. Since revision 1.
    Follow {
        /// Pid from [`InitFrame::Started`].
        pid: u32,
        /// Where to begin.
        from: FollowFrom,
    },
    /// Sets the size of a session's terminal; its programs are told (SIGWINCH). Since revision 1.
    Resize {
        /// Pid from [`InitFrame::Started`].
        pid: u32,
        /// The new size.
        size: TerminalSize,
    },
    /// Reads a regular file.
    Read(Target),
    /// Writes a regular file. Missing parent directories are made; nothing is visible under the path until the
    /// last byte is there. An existing file keeps its owner and mode.
    Write {
        /// The file.
        target: Target,
        /// Most bytes taken; one more fails with [`FailureKind::TooLarge`].
        limit: u64,
    },
    /// Watches a directory until the daemon gives up, or the directory is gone. Since revision 2.
    Watch {
        /// The directory.
        target: Target,
        /// Whether directories in it are watched too, at most [`MAX_WATCHED`](crate::MAX_WATCHED), those made later
        /// included. Symbolic links are not followed below the first.
        recursive: bool,
    },
    /// Describes a file or directory; symbolic links are followed.
    Stat(Target),
    /// Is there anything? Symbolic links are followed; a broken one is still there, as a file.
    Exists(Target),
    /// Lists a directory.
    List {
        /// The directory.
        target: Target,
        /// 1 lists the directory itself, 2 its subdirectories too, and so on; 0 counts as 1. Symbolic links to
        /// directories are listed as directories and not descended into.
        depth: u32,
    },
    /// Makes a directory and its missing parents.
    Mkdir(Target),
    /// Removes a file, or a directory with all it contains. Symbolic links are removed, not followed.
    Remove(Target),
    /// Renames a file or directory; replaces an existing file.
    Rename {
        /// What to rename.
        from: Target,
        /// Its new path, for the same user. Its directory must exist.
        to: String,
    },
}

impl Request {
    /// The lowest [`REVISION`](crate::REVISION) of an init that knows this request.
    pub fn revision(&self) -> u16 {
        match self {
            Self::StopClock | Self::StartClock => 3,
            Self::Watch { .. } => 2,
            Self::Session(_) | Self::Follow { .. } | Self::Resize { .. } => 1,
            _ => 0,
        }
    }
}

/// A path, and the user with whose rights it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Name in the sandbox's `/etc/passwd`; `None` is [`DEFAULT_USER`](crate::DEFAULT_USER).
    pub user: Option<String>,
    /// Absolute, or relative to the user's home directory.
    pub path: String,
}

/// A command to start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Given to `/bin/sh -c`; at most [`MAX_COMMAND`](crate::MAX_COMMAND) bytes.
    pub command: String,
    /// Name in the sandbox's `/etc/passwd`; `None` is [`DEFAULT_USER`](crate::DEFAULT_USER).
    pub user: Option<String>,
    /// Working directory; `None` is the user's home. Relative ones are relative to the home.
    pub cwd: Option<String>,
    /// Environment; wins over the sandbox's.
    pub envs: BTreeMap<String, String>,
    /// Whether standard input is a pipe (else `/dev/null`).
    pub stdin: bool,
    /// Time until the command is killed, in milliseconds; `None` is without end.
    pub timeout_ms: Option<u64>,
    /// Whether the command outlives the connection; its output is then kept for [`Request::Wait`].
    pub background: bool,
}

/// A command to start as a session. Its output is kept up to [`KEPT_SESSION`](crate::KEPT_SESSION) bytes (of a
/// terminal: [`KEPT_TERMINAL`](crate::KEPT_TERMINAL)). When that is full, the oldest goes if somebody who follows has
/// taken it, or if nobody follows; otherwise the command waits, as for a pipe that nobody reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The command. `stdin` and `background` are as if they were set.
    pub exec: Exec,
    /// A terminal of this size as its input and output; `None` is three pipes.
    pub terminal: Option<TerminalSize>,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters in a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// Where to begin following a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FollowFrom {
    /// Of a session with pipes: after the piece with this number; 0 is the beginning.
    Piece(u64),
    /// Of a session with a terminal: with what is put out from now on; and where nobody follows, with what was put
    /// out since the last one who followed left.
    Now,
}

/// Frames from init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitFrame {
    /// Always first.
    Hello(Hello),
    /// The operation failed; last frame.
    Failed(Failure),
    /// The command runs, or the session is there.
    Started {
        /// Its process id inside the sandbox, also that of its session and process group.
        pid: u32,
    },
    /// The command wrote something.
    Output {
        /// Where.
        stream: Stream,
        /// At most [`MAX_CHUNK`](crate::MAX_CHUNK) bytes; in a bulk frame [`MAX_BULK`](crate::MAX_BULK).
        data: ByteBuf,
    },
    /// The session put something out.
    Piece {
        /// Its number: the first is 1, and each is one more than the one before. Pieces that are missing were too
        /// old to be kept.
        id: u64,
        /// Where; of a terminal always [`Stream::Stdout`].
        stream: Stream,
        /// At most [`MAX_CHUNK`](crate::MAX_CHUNK) bytes.
        data: ByteBuf,
    },
    /// The command has ended; last frame.
    Exit(Exit),
    /// A running command.
    Command(CommandInfo),
    /// The file to be read is open.
    Opened {
        /// Its size when it was opened, in bytes; it may grow or shrink meanwhile (0 for files of procfs).
        size: u64,
    },
    /// A part of the file: at most [`MAX_CHUNK`](crate::MAX_CHUNK) bytes; in a bulk frame
    /// [`MAX_BULK`](crate::MAX_BULK).
    Data(ByteBuf),
    /// The file was read to its end; last frame.
    End,
    /// The file was written; last frame.
    Written {
        /// Its absolute path.
        path: String,
        /// Its size, in bytes.
        size: u64,
    },
    /// The directory is watched from now on.
    Watching,
    /// Something has changed in a watched directory.
    Change(Change),
    /// A file or directory.
    Entry(Entry),
    /// Answer to a yes-or-no request; last frame.
    Bool(bool),
    /// Done, and nothing to tell; last frame.
    Done,
}

/// An output stream of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit status; 128 + n after death by signal n; 124 when its time was up.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Whether it was killed because its time was up.
    pub timed_out: bool,
    /// Whether the beginning of its standard output is missing from what was kept.
    pub stdout_truncated: bool,
    /// Whether the beginning of its standard error is missing from what was kept.
    pub stderr_truncated: bool,
}

/// A running command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandInfo {
    /// Its process id inside the sandbox.
    pub pid: u32,
    /// The command line, as given.
    pub command: String,
    /// The environment, as given with the command.
    pub envs: BTreeMap<String, String>,
    /// Whether it runs in the background.
    pub background: bool,
    /// Whether it has a terminal.
    #[serde(default)]
    pub terminal: bool,
}

/// A file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Last component of the path. Bytes that are not UTF-8 show as U+FFFD.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// What it is; of a symbolic link, what it leads to.
    pub kind: EntryKind,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last modification, in seconds since 1970.
    pub modified: i64,
}

/// A change in a watched directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// Absolute path; empty for [`ChangeKind::Lost`].
    pub path: String,
    /// Whether it is, or was, a directory.
    pub directory: bool,
}

/// What happened to a file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It was made, or moved here. What was in a new directory before it was watched may be told twice.
    Create,
    /// Its content changed.
    Write,
    /// It was removed.
    Remove,
    /// It was moved away.
    Rename,
    /// Its mode, owner or times changed.
    Chmod,
    /// Changes came faster than they were taken (the kernel's `fs.inotify.max_queued_events`), and some are lost.
    Lost,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A directory, or a symbolic link to one.
    Directory,
    /// Everything else, broken symbolic links included.
    File,
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For programs.
    pub kind: FailureKind,
    /// For people; names the object.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// Kinds of failures. A command line whose program does not exist is none: the shell exits with 127.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// No such file or directory (also the working directory of a command).
    NotFound,
    /// The path is a directory.
    IsDirectory,
    /// The path, or a component of it, is not a directory.
    NotDirectory,
    /// The path exists already.
    AlreadyExists,
    /// No such user in the sandbox.
    UnknownUser,
    /// The user may not do that.
    Permission,
    /// The file system is full, or the quota used up.
    NoSpace,
    /// More than the limit.
    TooLarge,
    /// Empty, too long, containing NUL, or not a regular file.
    InvalidPath,
    /// No running or remembered command has this pid.
    NoSuchCommand,
    /// The command's standard input is closed, or was never a pipe.
    StdinClosed,
    /// Too many connections, commands or processes; may be tried again.
    Busy,
    /// The request breaks the protocol.
    BadRequest,
    /// The other side speaks another version.
    Version,
    /// Any other error of the system.
    #[serde(other)]
    Io,
}
