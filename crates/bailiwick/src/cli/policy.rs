//! The commands about policies.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ApiArgs, PolicyArgs};

/// Commands about policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say whether a policy permits a destination, and which rule decides: exit 0 permitted, 3 refused, 2 bad input
    Explain(ExplainArgs),
    /// Print the policy of a sandbox
    Get(GetPolicyArgs),
    /// Replace the policy of a sandbox, running or paused; what is no longer permitted is cut within a second
    ///
    /// The new policy takes the place of the whole old one. If an entry of it is wrong, nothing changes. A ratchet
    /// token may stand where the API key does; it can only make the policy narrower.
    Set(SetPolicyArgs),
    /// Make a token that can narrow the policy of a sandbox and do nothing else; it is printed this once
    ///
    /// A sandbox has at most one, which ends with it: a new one takes the place of the one before.
    Ratchet(RatchetArgs),
}

/// Options of `bailiwick policy explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// The policy
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Transport protocol
    #[arg(long, default_value = "tcp", value_parser = ["tcp", "udp"])]
    pub protocol: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The destination: HOST:PORT, ADDRESS:PORT or [V6]:PORT
    #[arg(value_name = "HOST:PORT")]
    pub destination: String,
}

/// A policy for a sandbox: from options, or from a file.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicySource {
    /// The policy, entry by entry
    #[command(flatten)]
    pub entries: PolicyArgs,
    /// Take the policy from this file (JSON, the `network` of the API); - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["allow_out", "deny_out"])]
    pub policy: Option<PathBuf>,
    /// Permit the public internet: a policy without entries
    #[arg(long, conflicts_with_all = ["allow_out", "deny_out", "policy"])]
    pub open: bool,
}

/// Options of `bailiwick policy get`.
#[derive(Args, Debug)]
pub(crate) struct GetPolicyArgs {
    /// The daemon
    #[command(flatten)]
    pub api: ApiArgs,
    /// The sandbox
    pub id: String,
    /// Print JSON, as `policy set --policy` takes it
    #[arg(long)]
    pub json: bool,
}

/// Options of `bailiwick policy set`.
#[derive(Args, Debug)]
pub(crate) struct SetPolicyArgs {
    /// The daemon
    #[command(flatten)]
    pub api: ApiArgs,
    /// The sandbox
    pub id: String,
    /// The new policy
    #[command(flatten)]
    pub policy: PolicySource,
    /// Print JSON: the policy that is now in force, and warnings
    #[arg(long)]
    pub json: bool,
}

/// Options of `bailiwick policy ratchet`.
#[derive(Args, Debug)]
pub(crate) struct RatchetArgs {
    /// The daemon
    #[command(flatten)]
    pub api: ApiArgs,
    /// The sandbox
    pub id: String,
    /// Revoke the token instead
    #[arg(long)]
    pub revoke: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
