//! The command that offers sandboxes to an agent.

use clap::Args;

use super::{ApiArgs, PolicySource};

/// Options of `bailiwick mcp`.
#[derive(Args, Debug)]
pub(crate) struct McpArgs {
    /// The daemon
    #[command(flatten)]
    pub api: ApiArgs,
    /// The policy of the sandboxes; nothing is permitted if none is given. The agent may ask for a narrower one, and for
    /// no wider
    #[command(flatten)]
    pub policy: PolicySource,
    /// Template of the sandboxes, by name [default: base]
    #[arg(long, short, value_name = "NAME")]
    pub template: Option<String>,
    /// Seconds until a sandbox ends by itself
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
    /// Environment variable of every command; without a value it is taken from this environment; repeatable
    #[arg(long, short, value_name = "K[=V]")]
    pub env: Vec<String>,
    /// A sandbox that is there already, for the agent to use; it is not killed at the end; repeatable
    #[arg(long, value_name = "ID", conflicts_with = "command")]
    pub sandbox: Vec<String>,
    /// How many sandboxes the agent may have at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 4, conflicts_with = "command")]
    pub max_sandboxes: usize,
    /// Leave the sandboxes that were created to their time-outs when this ends
    #[arg(long)]
    pub keep: bool,
    /// Copy a file of this machine to this path in the sandbox of CMD first; repeatable
    #[arg(long, value_name = "FILE:PATH", requires = "command")]
    pub file: Vec<String>,
    /// A server of the protocol to run in a sandbox of its own, in the place of the tools
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}
