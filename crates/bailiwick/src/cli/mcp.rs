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
    #[arg(long, value_name = "ID")]
    pub sandbox: Vec<String>,
    /// How many sandboxes the agent may have at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    pub max_sandboxes: usize,
    /// Leave the sandboxes that the agent has created to their time-outs when this ends
    #[arg(long)]
    pub keep: bool,
}
