//! Commands in a sandbox.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use init_protocol::{Bulk, ByteBuf, ClientFrame, Exit, InitFrame, MAX_CHUNK, Request, Stream};

use super::{Connection, Frames, InitClient, Input, Kept, ListRoom, unexpected};
use crate::error::SandboxError;

/// Most bytes of each output stream that a command run to its end gives back; the rest is dropped, as is what there is no
/// room for in [`OUTPUT_BUDGET`](super::OUTPUT_BUDGET).
pub const MAX_OUTPUT: usize = 64 << 20;

/// How much later than its timeout a command must at the latest have ended, by the time in which its sandbox runs.
const GRACE: Duration = Duration::from_secs(10);

/// Most entries of a listing of commands that are taken from init.
const MAX_COMMANDS: usize = 10_000;

/// A command to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exec {
    /// The command line, given to `/bin/sh -c`.
    pub command: String,
    /// The user it runs as; `None` is `user`.
    pub user: Option<String>,
    /// Variables that are added to the sandbox's environment, or replace it.
    pub envs: BTreeMap<String, String>,
    /// The working directory; `None` is the user's home.
    pub cwd: Option<String>,
    /// Whether it gets a standard input that can be written to; else it is empty.
    pub stdin: bool,
    /// When it is killed; `None` is never.
    pub timeout: Option<Duration>,
}

/// What a command has said and how it ended.
#[derive(Debug, Default)]
pub struct Output {
    /// Its standard output, at most [`MAX_OUTPUT`] bytes.
    pub stdout: Vec<u8>,
    /// Its standard error, at most [`MAX_OUTPUT`] bytes.
    pub stderr: Vec<u8>,
    /// Whether a part of its standard output is missing.
    pub stdout_truncated: bool,
    /// Whether a part of its standard error is missing.
    pub stderr_truncated: bool,
    /// 128 + n after death by signal n; 124 when its time was up.
    pub exit_code: i32,
    /// Whether it was killed because its time was up.
    pub timed_out: bool,
    /// The room that both streams take, to be kept for as long as they are.
    pub kept: Kept,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// 128 + n after death by signal n; 124 when its time was up.
    pub exit_code: i32,
    /// Whether it was killed because its time was up.
    pub timed_out: bool,
}

/// Something that a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CommandEvent {
    /// It wrote to its standard output.
    Stdout(Bytes),
    /// It wrote to its standard error.
    Stderr(Bytes),
    /// It ended; nothing follows.
    Exit(ExitStatus),
}

/// A command that runs in the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandInfo {
    /// Its process id inside.
    pub pid: u32,
    /// The command line.
    pub command: String,
    /// The variables that came with it.
    pub envs: BTreeMap<String, String>,
    /// Whether it outlives whoever started it.
    pub background: bool,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// A command in the foreground. Dropping it kills the command.
#[derive(Debug)]
pub struct Command {
    pid: u32,
    frames: Frames,
    input: Option<CommandInput>,
    ended: bool,
}

impl Command {
    /// Its process id inside the sandbox.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The other direction, once: to be used by another task than the one that reads.
    pub fn take_input(&mut self) -> Option<CommandInput> {
        self.input.take()
    }

    /// What the command does next; `None` after its exit. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// When the sandbox ends or its init breaks the protocol.
    pub async fn next(&mut self) -> Result<Option<CommandEvent>, SandboxError> {
        if self.ended {
            return Ok(None);
        }
        match self.frames.next().await? {
            InitFrame::Output { stream: Stream::Stdout, data } => {
                Ok(Some(CommandEvent::Stdout(data.into_vec().into())))
            }
            InitFrame::Output { stream: Stream::Stderr, data } => {
                Ok(Some(CommandEvent::Stderr(data.into_vec().into())))
            }
            InitFrame::Exit(exit) => {
                self.ended = true;
                Ok(Some(CommandEvent::Exit(exit.into())))
            }
            other => Err(unexpected(&other)),
        }
    }
}

/// What can be said to a command in the foreground.
#[derive(Debug)]
pub struct CommandInput {
    input: Input,
}

impl CommandInput {
    /// Writes to its standard input.
    pub async fn write(&mut self, data: &[u8]) -> Result<(), SandboxError> {
        for part in data.chunks(self.input.chunk()) {
            self.input.send_bytes(Bulk::Stdin, part).await?;
        }
        Ok(())
    }

    /// Ends its standard input.
    pub async fn close(&mut self) -> Result<(), SandboxError> {
        self.input.send(&ClientFrame::CloseStdin).await
    }

    /// Sends a signal, by its number, to the command and what it started.
    pub async fn signal(&mut self, signal: i32) -> Result<(), SandboxError> {
        self.input.send(&ClientFrame::Signal(signal)).await
    }
}

impl InitClient {
    /// Runs a command to its end.
    pub(crate) async fn exec(&self, exec: Exec) -> Result<Output, SandboxError> {
        let limit = exec.timeout.map(|limit| limit.saturating_add(GRACE));
        let run = async {
            let Connection { mut frames, input } = self.begin(Request::Exec(request(exec, false))).await?;
            started(frames.next().await?)?;
            let output = collect(&mut frames, self.output.room()).await;
            // Closing it earlier would mean that the command is to be killed.
            drop(input);
            output
        };
        match limit {
            // By the same clock as init: a pause does not make it late.
            Some(limit) => self.running_time().timeout(limit, run).await.unwrap_or_else(|| {
                Err(SandboxError::InitUnreachable("the command did not end with its time".to_owned()))
            }),
            None => run.await,
        }
    }

    /// Starts a command whose output arrives as it is written.
    pub(crate) async fn stream(&self, exec: Exec) -> Result<Command, SandboxError> {
        let Connection { mut frames, input } = self.begin(Request::Exec(request(exec, false))).await?;
        let pid = started(frames.next().await?)?;
        Ok(Command { pid, frames, input: Some(CommandInput { input }), ended: false })
    }

    /// Starts a command that outlives the connection.
    pub(crate) async fn background(&self, exec: Exec) -> Result<u32, SandboxError> {
        started(self.ask(Request::Exec(request(exec, true))).await?)
    }

    /// Waits for a command in the background.
    pub(crate) async fn wait(&self, pid: u32) -> Result<Output, SandboxError> {
        let Connection { mut frames, input: _input } = self.begin(Request::Wait { pid }).await?;
        collect(&mut frames, self.output.room()).await
    }

    /// The commands that run.
    ///
    /// # Errors
    /// [`SandboxError::TooLarge`] when the list is over 10 000 commands or 16 MiB.
    pub(crate) async fn commands(&self) -> Result<Vec<CommandInfo>, SandboxError> {
        let mut connection = self.begin(Request::Commands).await?;
        let (mut commands, mut room) = (Vec::new(), ListRoom::new());
        loop {
            match connection.frames.next().await? {
                InitFrame::Command(_) if commands.len() >= MAX_COMMANDS => {
                    return Err(SandboxError::TooLarge(format!("more than {MAX_COMMANDS} commands to list")));
                }
                InitFrame::Command(command) => {
                    let envs = command.envs.iter().flat_map(|(name, value)| [name.as_str(), value]);
                    room.take("the commands", [command.command.as_str()].into_iter().chain(envs))?;
                    commands.push(command.into());
                }
                InitFrame::Done => return Ok(commands),
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Writes to the standard input of a command in the background. Nothing to write is asked for too: it tells
    /// whether the command is there.
    pub(crate) async fn write_stdin(&self, pid: u32, data: &[u8]) -> Result<(), SandboxError> {
        let mut rest = data;
        loop {
            let (part, after) = rest.split_at(rest.len().min(MAX_CHUNK));
            self.order(Request::Stdin { pid, data: ByteBuf::from(part) }).await?;
            if after.is_empty() {
                return Ok(());
            }
            rest = after;
        }
    }
}

impl From<Exit> for ExitStatus {
    fn from(exit: Exit) -> Self {
        Self { exit_code: exit.code, timed_out: exit.timed_out }
    }
}

impl From<init_protocol::CommandInfo> for CommandInfo {
    fn from(info: init_protocol::CommandInfo) -> Self {
        let init_protocol::CommandInfo { pid, command, envs, background, terminal } = info;
        Self { pid, command, envs, background, terminal }
    }
}

pub(super) fn request(exec: Exec, background: bool) -> init_protocol::Exec {
    init_protocol::Exec {
        command: exec.command,
        user: exec.user,
        cwd: exec.cwd,
        envs: exec.envs,
        stdin: exec.stdin,
        timeout_ms: exec.timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        background,
    }
}

pub(super) fn started(frame: InitFrame) -> Result<u32, SandboxError> {
    match frame {
        InitFrame::Started { pid } => Ok(pid),
        other => Err(unexpected(&other)),
    }
}

/// Reads until the command has ended. What is too much is read and dropped: the command must not stand still.
async fn collect(frames: &mut Frames, kept: Kept) -> Result<Output, SandboxError> {
    let mut output = Output { kept, ..Output::default() };
    loop {
        match frames.next().await? {
            InitFrame::Output { stream: Stream::Stdout, data } => {
                append(&mut output.stdout, &mut output.stdout_truncated, &mut output.kept, &data);
            }
            InitFrame::Output { stream: Stream::Stderr, data } => {
                append(&mut output.stderr, &mut output.stderr_truncated, &mut output.kept, &data);
            }
            InitFrame::Exit(exit) => {
                output.exit_code = exit.code;
                output.timed_out = exit.timed_out;
                output.stdout_truncated |= exit.stdout_truncated;
                output.stderr_truncated |= exit.stderr_truncated;
                return Ok(output);
            }
            other => return Err(unexpected(&other)),
        }
    }
}

/// Appends what there is room for. Once something was left out, so is all that follows.
fn append(to: &mut Vec<u8>, truncated: &mut bool, kept: &mut Kept, data: &[u8]) {
    if *truncated {
        return;
    }
    let room = MAX_OUTPUT.saturating_sub(to.len()).min(data.len());
    let room = kept.grow(room);
    to.extend_from_slice(data.get(..room).unwrap_or_default());
    *truncated = room < data.len();
}
