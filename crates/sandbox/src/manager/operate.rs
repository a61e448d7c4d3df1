//! What is done in a running sandbox.

use init_protocol::{FollowFrom, Request, TerminalSize};

use super::{Manager, blocking, living::Living};
use crate::{
    cgroup::Usage,
    client::{Command, CommandInfo, Exec, Files, Follower, Output},
    error::SandboxError,
    ids::SandboxId,
};

impl Manager {
    /// Runs a command to its end. Dropping the future kills it.
    pub async fn exec(&self, account: &str, id: &SandboxId, exec: Exec) -> Result<Output, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.exec(exec).await)
    }

    /// Starts a command whose output arrives as it is written.
    pub async fn exec_streaming(
        &self,
        account: &str,
        id: &SandboxId,
        exec: Exec,
    ) -> Result<Command, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.stream(exec).await)
    }

    /// Starts a command in the background and gives its process id inside. The last output is kept for
    /// [`Self::wait`].
    pub async fn spawn_background(
        &self,
        account: &str,
        id: &SandboxId,
        exec: Exec,
    ) -> Result<u32, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.background(exec).await)
    }

    /// Starts a session: a command in the background whose output is kept in order and can be followed, with a
    /// terminal of this size or with pipes.
    pub async fn start_session(
        &self,
        account: &str,
        id: &SandboxId,
        exec: Exec,
        terminal: Option<TerminalSize>,
    ) -> Result<u32, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.session(exec, terminal).await)
    }

    /// Follows a session. Several can at a time.
    pub async fn follow(
        &self,
        account: &str,
        id: &SandboxId,
        pid: u32,
        from: FollowFrom,
    ) -> Result<Follower, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.follow(pid, from).await)
    }

    /// Sets the size of a session's terminal.
    pub async fn resize(
        &self,
        account: &str,
        id: &SandboxId,
        pid: u32,
        size: TerminalSize,
    ) -> Result<(), SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.order(Request::Resize { pid, size }).await)
    }

    /// Waits for a command in the background. Can be repeated.
    pub async fn wait(&self, account: &str, id: &SandboxId, pid: u32) -> Result<Output, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.wait(pid).await)
    }

    /// The commands that run.
    pub async fn commands(&self, account: &str, id: &SandboxId) -> Result<Vec<CommandInfo>, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.commands().await)
    }

    /// Kills a command and what it started. `false` when it had ended.
    pub async fn kill_command(&self, account: &str, id: &SandboxId, pid: u32) -> Result<bool, SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.decide(Request::Kill { pid }).await)
    }

    /// Writes to the standard input of a command in the background.
    pub async fn send_stdin(
        &self,
        account: &str,
        id: &SandboxId,
        pid: u32,
        data: &[u8],
    ) -> Result<(), SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.write_stdin(pid, data).await)
    }

    /// Ends the standard input of a command in the background.
    pub async fn close_stdin(&self, account: &str, id: &SandboxId, pid: u32) -> Result<(), SandboxError> {
        let living = self.living(account, id).await?;
        or_killed(&living, living.init.order(Request::CloseStdin { pid }).await)
    }

    /// The files of a sandbox.
    pub async fn files(&self, account: &str, id: &SandboxId) -> Result<Files, SandboxError> {
        Ok(Files { init: self.living(account, id).await?.init.clone() })
    }

    /// What a sandbox uses of the machine.
    pub async fn usage(&self, account: &str, id: &SandboxId) -> Result<Usage, SandboxError> {
        let living = self.present(account, id).await?;
        let cgroups = living.parts.lock().await.cgroups.clone();
        blocking(move || cgroups.usage()).await
    }
}

/// An init that fell silent because its sandbox was killed is not the init's failure.
fn or_killed<T>(living: &Living, result: Result<T, SandboxError>) -> Result<T, SandboxError> {
    match result {
        Err(SandboxError::InitUnreachable(_)) if living.ending.is_cancelled() => Err(SandboxError::Killed),
        other => other,
    }
}
