//! The outer end of the probe: one program for each user inside the sandbox.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use sandbox::{Command, CommandEvent, CommandInput, Exec, Manager, SandboxId};

use crate::{
    cases::User,
    probe::{Action, Answer, Order, Outcome},
};

/// Where the probe is inside.
pub(crate) const PROBE: &str = "/opt/bailiwick-selftest";
/// The longest time an order may take.
const LIMIT: Duration = Duration::from_secs(40);
/// The longest line of an answer, in bytes.
const MAX_LINE: usize = 16 << 20;

/// A running probe.
pub(crate) struct Probe {
    command: Command,
    input: CommandInput,
    /// What was said and is not a whole line yet.
    said: Vec<u8>,
    /// What it complained of.
    complaints: Vec<u8>,
}

impl Probe {
    /// Starts the probe as `user`, with these arguments.
    pub(crate) async fn start(
        manager: &Manager,
        account: &str,
        id: &SandboxId,
        user: User,
        arguments: &[String],
    ) -> Result<Self> {
        let words: Vec<&str> = std::iter::once(PROBE).chain(arguments.iter().map(String::as_str)).collect();
        let exec = Exec {
            command: format!("exec {}", words.join(" ")),
            user: Some(if user == User::Root { "root" } else { "user" }.to_owned()),
            envs: BTreeMap::new(),
            cwd: Some("/".to_owned()),
            stdin: true,
            timeout: None,
        };
        let mut command = manager.exec_streaming(account, id, exec).await.context("starting the probe")?;
        let input = command.take_input().context("the probe has no standard input")?;
        Ok(Self { command, input, said: Vec::new(), complaints: Vec::new() })
    }

    /// Has it do these things; gives what came of each.
    pub(crate) async fn order(&mut self, actions: Vec<Action>) -> Result<Vec<Outcome>> {
        let count = actions.len();
        let mut line = serde_json::to_vec(&Order { actions })?;
        line.push(b'\n');
        let exchange = async {
            self.input.write(&line).await.context("telling the probe what to do")?;
            self.line().await
        };
        let line = tokio::time::timeout(LIMIT, exchange)
            .await
            .map_err(|_| anyhow!("the probe has not answered for {} s", LIMIT.as_secs()))??;
        let answer: Answer = serde_json::from_slice(&line).context("the probe's answer")?;
        anyhow::ensure!(answer.outcomes.len() == count, "the probe has answered something else");
        Ok(answer.outcomes)
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
                let rest = self.said.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.said, rest));
            }
            match self.command.next().await.context("listening to the probe")? {
                Some(CommandEvent::Stdout(bytes)) => self.said.extend_from_slice(&bytes),
                Some(CommandEvent::Stderr(bytes)) => self.complaints.extend_from_slice(&bytes),
                Some(CommandEvent::Exit(status)) => {
                    let why = String::from_utf8_lossy(&self.complaints);
                    bail!("the probe has ended with exit code {}: {}", status.exit_code, why.trim())
                }
                None => bail!("the probe has ended"),
            }
            anyhow::ensure!(self.said.len() <= MAX_LINE, "the probe says too much");
        }
    }
}

/// The probe's program as it is shown inside.
pub(crate) fn mount(program: &Path) -> sandbox::spawner::BindMount {
    sandbox::spawner::BindMount { source: program.to_owned(), target: PROBE.into(), read_only: true }
}
