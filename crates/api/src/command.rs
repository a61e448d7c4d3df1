//! Commands in a sandbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    FieldError, Seconds,
    lenient::{check_envs, null_is_default},
};

/// A command to run.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct RunCommand {
    /// A line for the shell.
    pub cmd: String,
    /// Whether to answer at once with the process id, instead of waiting for the end.
    #[serde(default, deserialize_with = "null_is_default")]
    pub background: bool,
    /// The user to run as. Default `user`.
    #[serde(default)]
    pub user: Option<String>,
    /// Variables besides those of the sandbox, which they override.
    #[serde(default, deserialize_with = "null_is_default")]
    pub envs: BTreeMap<String, String>,
    /// The working directory. Default: the user's home directory.
    #[serde(default)]
    pub cwd: Option<String>,
    /// Whether standard input stays open for `stdin` requests; otherwise the command reads end of file. Default: as
    /// `background`, because two of the clients feed commands in the background and have no word for this.
    #[serde(default)]
    pub stdin: Option<bool>,
    /// Seconds after which the command is killed and answers with exit code 124. Absent or 0: no limit.
    #[serde(default)]
    pub timeout: Option<Seconds>,
}

impl RunCommand {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] naming the field.
    pub fn check(&self) -> Result<(), FieldError> {
        if self.cmd.contains('\0') {
            return Err(FieldError::invalid("cmd", "a command has no NUL"));
        }
        check_envs(&self.envs)
    }
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommandExit {
    /// What it wrote to standard output. Bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// What it wrote to standard error. Bytes that are not UTF-8 are replaced.
    pub stderr: String,
    /// Whether a part of standard output is missing because there was too much.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stdout_truncated: bool,
    /// Whether a part of standard error is missing because there was too much.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stderr_truncated: bool,
    /// Its exit code; 128 plus the signal's number if a signal ended it, 124 if its time was over.
    pub exit_code: i32,
}

/// A command that was started in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CommandStarted {
    /// Its process id inside the sandbox.
    pub pid: u32,
}

/// What running a command answers: how it ended, or, of one in the background, that it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum CommandRun {
    /// It ended.
    Exit(CommandExit),
    /// It runs in the background.
    Started(CommandStarted),
}

/// A running command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Command {
    /// Its process id inside the sandbox.
    pub pid: u32,
    /// The line that was given to the shell.
    pub cmd: String,
    /// Whether it has a terminal.
    pub is_pty: bool,
    /// Names of the variables given with the command; the values are masked.
    pub envs: BTreeMap<String, String>,
}

/// Whether something was killed; false if it had ended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Killed {
    /// See the type.
    pub killed: bool,
}

/// Text for a command's standard input.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct StdinData {
    /// The text.
    pub data: String,
}

/// A piece of a command's output, as an event of its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StreamedOutput<'a> {
    /// `stdout` or `stderr`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The same, under the name that the API's documentation uses.
    pub stream: &'static str,
    /// Text: a line with its line feed, or a part of a line. For clients that put line feeds between the pieces
    /// themselves (`python-httpx`) it is always a line without its line feed.
    pub data: &'a str,
}

/// How a command ended whose output was sent while it ran, as the last event of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StreamExit {
    /// Its exit code; 128 plus the signal's number if a signal ended it, 124 if its time was over.
    pub exit_code: i32,
}

/// Why a stream could not go on, as an event before its `exit`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct StreamFailure {
    /// The reason, for people.
    pub error: String,
}
