//! Child processes, started inside a namespace and ended with their handle.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Write},
    process::{ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context, Result, bail};
use netns::NetNs;
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;

#[expect(clippy::disallowed_types, reason = "peers and load generators are programs of their own")]
pub(crate) type Command = std::process::Command;

/// A process with pipes on its standard input and output. Dropping it ends it.
pub(crate) struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Child {
    /// Starts `command` in `namespace`.
    pub(crate) fn start(namespace: &NetNs, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process =
            namespace.run(|| command.spawn())?.with_context(|| format!("starting {command:?}"))?;
        let input = process.stdin.take();
        let output = process.stdout.take().context("a child without its output")?;
        Ok(Self { process, input, output: BufReader::new(output) })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Sends a line.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().context("the child's input is closed")?;
        writeln!(input, "{line}").context("speaking to a child")
    }

    /// The next line it says.
    pub(crate) fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line).context("listening to a child")? == 0 {
            bail!("a child ended without the answer that was expected");
        }
        Ok(line.trim().to_owned())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The end of its input is how children of this program are told; others need the signal.
        self.input = None;
        let _gone_already = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _gone_already = self.process.wait();
    }
}

/// This program again, with these arguments.
pub(crate) fn own<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.args(arguments);
    Ok(command)
}

/// Raises this process, and with it all that it starts from now on, above ordinary ones.
pub(crate) fn above_others() -> Result<()> {
    let own = std::process::id().to_string();
    let raised = Command::new("chrt").args(["--all-tasks", "--rr", "--pid", "1", &own]).status();
    let raised = raised.context("starting chrt")?;
    anyhow::ensure!(raised.success(), "chrt: {raised}");
    Ok(())
}

/// Runs a command in `namespace` to its end and reads the JSON that it prints.
pub(crate) fn json<T: DeserializeOwned>(namespace: &NetNs, mut command: Command) -> Result<T> {
    let ended = namespace
        .run(|| command.stdin(Stdio::null()).stderr(Stdio::inherit()).output())?
        .with_context(|| format!("starting {command:?}"))?;
    if !ended.status.success() {
        bail!("{command:?}: {}", ended.status);
    }
    serde_json::from_slice(&ended.stdout).with_context(|| format!("reading what {command:?} printed"))
}
