//! The commands about sandboxes of a daemon.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{ApiArgs, PolicySource};

/// Options of `bailiwick sandbox`.
#[derive(Args, Debug)]
pub(crate) struct SandboxArgs {
    /// The daemon
    #[command(flatten)]
    pub api: ApiArgs,
    /// What to do
    #[command(subcommand)]
    pub command: SandboxCommand,
}

/// Commands about sandboxes.
#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// List the sandboxes
    Ls(LsArgs),
    /// Create a sandbox and print its id
    Create(CreateArgs),
    /// Run a command in a sandbox, with its output and its exit code
    ///
    /// The output comes when the command has ended. The command reads nothing from standard input, and is killed if
    /// this is interrupted.
    Exec(ExecArgs),
    /// Open a terminal in a sandbox with a shell in it, and be there until the shell ends
    ///
    /// Every key goes to the shell, also the ones that interrupt; end it with `exit` or Ctrl-D. The exit code of this is
    /// that of the shell. If this is ended by a signal, or its terminal goes away, the shell is killed with all it started.
    Shell(ShellArgs),
    /// Copy a file into a sandbox or out of it
    Cp(CopyArgs),
    /// Kill sandboxes; nothing of them is kept but their events
    Kill(IdsArgs),
    /// Stop the processes of a sandbox where they are
    Pause(IdArgs),
    /// Let a paused sandbox go on
    Resume(IdArgs),
    /// Set how long a sandbox has from now
    SetTimeout(TimeoutArgs),
    /// Show what happened in a sandbox: every decision about its network, and the steps of its life
    Logs(LogsArgs),
    /// Describe a sandbox
    Info(IdArgs),
}

/// Options of `bailiwick sandbox ls`.
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// Only in this state (running, paused, creating, killed, or all); repeatable [default: all but killed]
    #[arg(long, value_name = "STATE", value_parser = ["running", "paused", "creating", "killed", "all"])]
    pub state: Vec<String>,
    /// Only with this label; repeatable
    #[arg(long, value_name = "K=V")]
    pub label: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `bailiwick sandbox create`.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The policy; the public internet is permitted if none is given
    #[command(flatten)]
    pub policy: PolicySource,
    /// Template by name [default: base]
    #[arg(long, short, value_name = "NAME")]
    pub template: Option<String>,
    /// Seconds until it ends by itself; 0: never [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// What happens then
    #[arg(long, value_name = "WHAT")]
    pub on_timeout: Option<WhenTimeIsUp>,
    /// Let it go on when it is paused and used
    #[arg(long)]
    pub auto_resume: bool,
    /// Environment variable of every command; without a value it is taken from this environment; repeatable
    #[arg(long, short, value_name = "K[=V]")]
    pub env: Vec<String>,
    /// Label to find it by; repeatable
    #[arg(long, value_name = "K=V")]
    pub label: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What happens to a sandbox whose time is up.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum WhenTimeIsUp {
    /// It is killed
    Kill,
    /// It is paused
    Pause,
}

impl From<WhenTimeIsUp> for api::OnTimeout {
    fn from(what: WhenTimeIsUp) -> Self {
        match what {
            WhenTimeIsUp::Kill => Self::Kill,
            WhenTimeIsUp::Pause => Self::Pause,
        }
    }
}

/// Options of `bailiwick sandbox exec`.
#[derive(Args, Debug)]
pub(crate) struct ExecArgs {
    /// The sandbox
    pub id: String,
    /// User inside: `user` or `root` [default: user]
    #[arg(long, short, value_name = "NAME")]
    pub user: Option<String>,
    /// Working directory inside [default: the user's home]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub cwd: Option<String>,
    /// Environment variable; without a value it is taken from this environment; repeatable
    #[arg(long, short, value_name = "K[=V]")]
    pub env: Vec<String>,
    /// Kill the command after this many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    pub timeout: Option<Duration>,
    /// Print output and exit code as JSON; the exit code of this is that of the command all the same
    #[arg(long)]
    pub json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Options of `bailiwick sandbox shell`.
#[derive(Args, Debug)]
pub(crate) struct ShellArgs {
    /// The sandbox
    pub id: String,
    /// User inside: `user` or `root` [default: user]
    #[arg(long, short, value_name = "NAME")]
    pub user: Option<String>,
    /// Working directory inside [default: the user's home]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub cwd: Option<String>,
    /// Environment variable; without a value it is taken from this environment; repeatable. TERM is xterm-256color unless
    /// given
    #[arg(long, short, value_name = "K[=V]")]
    pub env: Vec<String>,
}

/// Options of `bailiwick sandbox cp`.
#[derive(Args, Debug)]
pub(crate) struct CopyArgs {
    /// File to copy: ID:PATH in a sandbox, or a file of this machine, or - for standard input
    pub source: String,
    /// Where to: ID:PATH in a sandbox, or a file or directory of this machine, or - for standard output
    pub target: String,
    /// User inside: `user` or `root` [default: user]
    #[arg(long, short, value_name = "NAME")]
    pub user: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of commands about one sandbox.
#[derive(Args, Debug)]
pub(crate) struct IdArgs {
    /// The sandbox
    pub id: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of commands about several sandboxes.
#[derive(Args, Debug)]
pub(crate) struct IdsArgs {
    /// The sandboxes
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `bailiwick sandbox set-timeout`.
#[derive(Args, Debug)]
pub(crate) struct TimeoutArgs {
    /// The sandbox
    pub id: String,
    /// Seconds from now; 0: no limit
    pub seconds: u64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `bailiwick sandbox logs`.
#[derive(Args, Debug)]
pub(crate) struct LogsArgs {
    /// The sandbox
    pub id: String,
    /// Only events after this time (RFC 3339), or this long ago (such as `15m` or `2h`)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only events of this type, such as egress_blocked; repeatable
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Vec<String>,
    /// Only this decision
    #[arg(long, value_parser = ["allow", "deny"])]
    pub decision: Option<String>,
    /// Only this host
    #[arg(long)]
    pub host: Option<String>,
    /// Print JSON, one object a line
    #[arg(long)]
    pub json: bool,
}
