//! What the routes need of the sandbox manager.
//!
//! The one implementation in the program is [`sandbox::Manager`]. The trait is here so that the routes can be
//! tested for every answer they give without a machine that runs sandboxes.

use std::{num::NonZeroU16, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use sandbox::{
    Change, CommandEvent, CommandInfo, Create, Entry, Exec, Filter, FollowFrom, Measurement, Output,
    PolicyChange, PortConnection, SandboxError, SandboxId, SessionEvent, Stats, TerminalSize, WriteInfo,
    cgroup::{Limits, Usage},
};
use store::{SandboxPage, SandboxRecord};
use tokio::io::AsyncBufRead;

/// A boxed future of a manager's answer.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, SandboxError>> + Send + 'a>>;
/// What is to be written to a file.
pub type Source = Pin<Box<dyn AsyncBufRead + Send>>;
/// What is in a file.
pub type Content = Pin<Box<dyn Stream<Item = Result<Bytes, SandboxError>> + Send>>;

/// What a command does, in order; its last is its exit. Dropping it kills the command.
pub type CommandEvents = Pin<Box<dyn Stream<Item = Result<CommandEvent, SandboxError>> + Send>>;

/// What happens in a session, in order; its last is its exit. Dropping it changes nothing for the session.
pub type SessionEvents = Pin<Box<dyn Stream<Item = Result<SessionEvent, SandboxError>> + Send>>;

/// Changes in a directory, until it is gone. Dropping it ends the watch.
pub type Changes = Pin<Box<dyn Stream<Item = Result<Change, SandboxError>> + Send>>;

/// Sandboxes of all accounts. Each call names the account; what belongs to another is not found.
pub trait Sandboxes: Send + Sync + 'static {
    /// What has been done since the start, and what there is now, of all accounts together.
    fn stats(&self) -> Stats;
    /// Creates a sandbox and answers when commands can be run in it.
    fn create(&self, create: Create) -> Doing<'_, SandboxRecord>;
    /// The sandbox, in whatever state, killed ones too.
    fn get<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, SandboxRecord>;
    /// Sandboxes, newest first.
    fn list<'a>(&'a self, account: &'a str, filter: Filter) -> Doing<'a, SandboxPage>;
    /// Kills, and answers when everything is gone; false if it was killed before.
    fn kill<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, bool>;
    /// Kills, and answers at once.
    fn kill_queued<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()>;
    /// Sets the time that is left; zero: no limit.
    fn set_timeout<'a>(&'a self, account: &'a str, id: &'a SandboxId, timeout: Duration) -> Doing<'a, ()>;
    /// Stops the processes of a sandbox where they are.
    fn pause<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()>;
    /// Lets them go on, with the time to live that the sandbox had.
    fn resume<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, ()>;
    /// Puts another policy in force, as a whole or not at all.
    fn set_policy<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        change: PolicyChange,
    ) -> Doing<'a, SandboxRecord>;
    /// Brings what the store says of the usage of accounts up to now.
    fn settle_usage(&self) -> Doing<'_, ()>;
    /// What an account can have at a time: how many sandboxes, and what each of them may use.
    fn capacity(&self) -> (u32, Limits);
    /// What a sandbox used during the last hour, oldest first.
    fn history<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Vec<Measurement>>;
    /// What a sandbox uses of the machine now.
    fn usage<'a>(&'a self, account: &'a str, id: &'a SandboxId) -> Doing<'a, Usage>;
    /// Runs a command to its end. Dropping the future kills it.
    fn exec<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, Output>;
    /// Starts a command whose output arrives as it is written.
    fn exec_streaming<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        exec: Exec,
    ) -> Doing<'a, CommandEvents>;
    /// Starts a command and answers with its process id.
    fn spawn<'a>(&'a self, account: &'a str, id: &'a SandboxId, exec: Exec) -> Doing<'a, u32>;
    /// Starts a command whose output can be followed, with a terminal of this size or with pipes, and answers with
    /// its process id.
    fn start_session<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        exec: Exec,
        terminal: Option<TerminalSize>,
    ) -> Doing<'a, u32>;
    /// Follows a session. Several can at a time.
    fn follow<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        from: FollowFrom,
    ) -> Doing<'a, SessionEvents>;
    /// Sets the size of a session's terminal.
    fn resize<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        pid: u32,
        size: TerminalSize,
    ) -> Doing<'a, ()>;
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
    /// Connects to a port inside a running sandbox.
    fn connect_port<'a>(
        &'a self,
        account: &'a str,
        id: &'a SandboxId,
        port: NonZeroU16,
    ) -> Doing<'a, PortConnection>;
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
    /// Watches a directory, and if `recursive` those in it.
    fn watch<'a>(&'a self, path: &'a str, user: Option<&'a str>, recursive: bool) -> Doing<'a, Changes>;
    /// Makes a directory with its parents; false if it was there.
    fn mkdir<'a>(&'a self, path: &'a str, user: Option<&'a str>) -> Doing<'a, bool>;
}
