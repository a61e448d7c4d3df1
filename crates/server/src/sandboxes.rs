//! What the routes need of the sandbox manager.
//!
//! The one implementation in the program is [`sandbox::Manager`]. The trait is here so that the routes can be
//! tested for every answer they give without a machine that runs sandboxes.

use std::{collections::BTreeMap, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use policy::{PolicyError, PolicySpec};
use store::SandboxRecord;
use tokio::io::AsyncRead;

/// A boxed future of a manager's answer.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, SandboxError>> + Send + 'a>>;
/// What is to be written to a file.
pub type Source = Pin<Box<dyn AsyncRead + Send>>;
/// What is in a file.
pub type Content = Pin<Box<dyn Stream<Item = Result<Bytes, SandboxError>> + Send>>;

/// Sandboxes of all accounts. Each call names the account; what belongs to another is not found.
pub trait Sandboxes: Send + Sync + 'static {
    /// Creates a sandbox and answers when commands can be run in it.
    fn create(&self, create: Create) -> Doing<'_, SandboxRecord>;
    /// The sandbox, in whatever state, killed ones too.
    fn get<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, SandboxRecord>;
    /// Sandboxes, newest first, and how many there are in all.
    fn list<'a>(&'a self, account: &'a str, filter: Filter) -> Doing<'a, (Vec<SandboxRecord>, u64)>;
    /// Kills, and answers when everything is gone; false if it was killed before.
    fn kill<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, bool>;
    /// Kills, and answers at once.
    fn kill_queued<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()>;
    /// Sets the time that is left; zero: no limit.
    fn set_timeout<'a>(&'a self, account: &'a str, id: &'a SandboxId, timeout: Duration) -> Doing<'a, ()>;
    /// Runs a command to its end. Dropping the future kills it.
    fn exec<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, Output>;
    /// Starts a command and answers with its process id.
    fn spawn<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, u32>;
    /// Waits for the end of a command that was started.
    fn wait<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, Output>;
    /// The commands that are running.
    fn commands<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Vec<CommandInfo>>;
    /// Kills a command; false if it had ended, or never was.
    fn kill_command<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, bool>;
    /// Writes to the standard input of a command that was started.
    fn send_stdin<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        data: Vec<u8>,
    ) -> Doing<'a, ()>;
    /// Closes the standard input of a command that was started.
    fn close_stdin<'a>(&'a self, account: &'a str, id: &'a SandboxId, pid: u32) -> Doing<'a, ()>;
    /// The files of a running sandbox.
    fn files<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Box<dyn Files>>;
}

/// The files of one sandbox, as a user inside it sees them. No user means `user`.
pub trait Files: Send + Sync {
    /// Opens a file to read: its size, and its content.
    fn read<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, (u64, Content)>;
    /// Writes a file of at most `limit` bytes, with its parent directories.
    fn write<'a>(
        &'a self,
        path: &'a str,
        user: Option<&'a str>,
        limit: u64,
        source: Source,
    ) -> Doing<'a, WriteInfo>;
    /// What is in a directory, down to `depth` levels.
    fn list<'a>(&'a self, path: &'a str, user: Option<&'a str>, depth: u32) -> Doing<'a, Vec<Entry>>;
    /// What a path is.
    fn info<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, Entry>;
    /// Whether a path is anything.
    fn exists<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool>;
    /// Removes a file, or a directory with all it holds; false if there was nothing.
    fn remove<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool>;
    /// Renames, and says what is there now.
    fn rename<'a>(&'a self, from: &'a str, to: &'a str, user: Option<&'a str>) -> Doing<'a, Entry>;
    /// Makes a directory with its parents; false if it was there.
    fn mkdir<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool>;
}

pub use temporary::*;
/// TEMPORARY
pub mod temporary {
    #![allow(missing_docs)]
    use super::*;
    #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct SandboxId(String);
    impl std::str::FromStr for SandboxId {
        type Err = String;
        fn from_str(t: &str) -> Result<Self, String> {
            if t.len() == 12
                && t.starts_with("sbx-")
                && t[4..].bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            {
                Ok(Self(t.to_owned()))
            } else {
                Err("no".to_owned())
            }
        }
    }
    impl std::fmt::Display for SandboxId {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(&self.0)
        }
    }
    #[derive(Clone, Debug)]
    pub struct Create {
        pub account: String,
        pub template: String,
        pub timeout: Duration,
        pub metadata: BTreeMap<String, String>,
        pub envs: BTreeMap<String, String>,
        pub policy: PolicySpec,
        pub audit: bool,
        pub stored: serde_json::Value,
    }
    #[derive(Clone, Debug)]
    pub struct Filter {
        pub states: Vec<String>,
        pub metadata: BTreeMap<String, String>,
        pub limit: u32,
        pub offset: u32,
    }
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Exec {
        pub command: String,
        pub user: Option<String>,
        pub envs: BTreeMap<String, String>,
        pub cwd: Option<String>,
        pub stdin: bool,
        pub timeout: Option<Duration>,
    }
    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Output {
        pub stdout: Vec<u8>,
        pub stderr: Vec<u8>,
        pub stdout_truncated: bool,
        pub stderr_truncated: bool,
        pub exit_code: i32,
        pub timed_out: bool,
    }
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CommandInfo {
        pub pid: u32,
        pub command: String,
        pub envs: BTreeMap<String, String>,
        pub background: bool,
    }
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Entry {
        pub name: String,
        pub path: String,
        pub kind: EntryKind,
        pub size: u64,
        pub mode: u32,
        pub modified: i64,
    }
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum EntryKind {
        File,
        Directory,
    }
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct WriteInfo {
        pub path: String,
        pub size: u64,
    }
    //
    #[derive(Debug, thiserror::Error)]
    #[non_exhaustive]
    pub enum SandboxError {
        /// No sandbox of this account has the name.
        #[error("no such sandbox")]
        NotFound,
        /// The sandbox is paused.
        #[error("the sandbox is paused")]
        Paused,
        /// The sandbox has ended.
        #[error("the sandbox has been killed")]
        Killed,
        /// The sandbox is still being made.
        #[error("the sandbox is being created")]
        Creating,
        /// No template has the name.
        #[error("no such template: {0}")]
        UnknownTemplate(String),
        /// The template has not been built, or its build failed.
        #[error("the template {0} is not ready; build it first")]
        TemplateNotReady(String),
        /// The network policy does not compile.
        #[error("invalid network policy: {0}")]
        InvalidPolicy(#[from] PolicyError),
        /// The path is empty, too long, relative where it may not be, or not a regular file.
        #[error("invalid path: {0}")]
        InvalidPath(String),
        /// The sandbox has no such user.
        #[error("{0}")]
        UnknownUser(String),
        /// No such file or directory.
        #[error("{0}")]
        FileNotFound(String),
        /// The path is a directory.
        #[error("{0}")]
        IsDirectory(String),
        /// The path, or a component of it, is no directory.
        #[error("{0}")]
        NotDirectory(String),
        /// The path exists already.
        #[error("{0}")]
        AlreadyExists(String),
        /// The user may not do that inside the sandbox.
        #[error("{0}")]
        PermissionDenied(String),
        /// The disk is full.
        #[error("{0}")]
        NoSpace(String),
        /// More than the limit.
        #[error("{0}")]
        TooLarge(String),
        /// No running or remembered command has this process id.
        #[error("{0}")]
        NoSuchCommand(String),
        /// The command's standard input is closed, or was never a pipe.
        #[error("{0}")]
        StdinClosed(String),
        /// What was to be sent into the sandbox could not be read from its source.
        #[error("cannot read what is to be written")]
        Source(#[source] std::io::Error),
        /// A limit of the machine or of the sandbox is reached; may be tried again.
        #[error("limit reached: {0}")]
        Limit(String),
        /// The sandbox's init does not answer, or not as it should.
        #[error("the sandbox does not answer: {0}")]
        InitUnreachable(String),
        /// The operation failed inside the sandbox for another reason.
        #[error("{0}")]
        Inside(String),
        /// The sandbox could not be set up.
        #[error("cannot create the sandbox")]
        Setup(String),
        /// A file of the daemon's could not be worked on.
        #[error("cannot {action} {}", path.display())]
        Io {
            /// What was being done.
            action: &'static str,
            /// To what.
            path: std::path::PathBuf,
            /// Why not.
            source: std::io::Error,
        },
        /// The sandbox's network could not be set up or changed.
        #[error("cannot {action} the sandbox's network")]
        Network {
            /// What was being done.
            action: &'static str,
            /// Why not.
            source: std::io::Error,
        },
        /// State could not be written or read.
        #[error(transparent)]
        Store(#[from] store::StoreError),
        /// The manager is shutting down.
        #[error("the daemon is shutting down")]
        ShuttingDown,
    }
}
