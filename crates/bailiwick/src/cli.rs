//! The command line.

mod keys;
mod mcp;
mod policy;
mod sandbox;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

pub(crate) use self::{
    keys::{CreateKeyArgs, KeysCommand},
    mcp::McpArgs,
    policy::{ExplainArgs, GetPolicyArgs, PolicyCommand, PolicySource, RatchetArgs, SetPolicyArgs},
    sandbox::{
        CopyArgs, CreateArgs, ExecArgs, IdsArgs, LogsArgs, LsArgs, SandboxArgs, SandboxCommand, ShellArgs,
        TimeoutArgs,
    },
};
use crate::config::{DataArgs, ServeArgs};

/// A sandbox for an agent's code, and a firewall that decides, connection by connection, what it may reach.
#[derive(Debug, Parser)]
#[command(name = "bailiwick", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// Where the state is
    #[command(flatten)]
    pub data: DataArgs,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon: the REST API, the sandboxes and their gates
    Serve(ServeArgs),
    /// Run one command in a sandbox of its own, without a daemon
    Run(RunArgs),
    /// Show what was permitted and what was refused, and why
    Audit(AuditArgs),
    /// Ask what a policy means; show and replace that of a sandbox
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Create sandboxes, use and end them, through a daemon
    Sandbox(SandboxArgs),
    /// Offer sandboxes to an agent: a server of the Model Context Protocol on standard input and output
    ///
    /// The agent can create sandboxes, run commands in them, read and write their files, and end them. It sees no other
    /// sandboxes of the account than those and the ones given with --sandbox, and none reaches more than the policy
    /// permits, which is nothing if none is given. The sandboxes end with this program.
    ///
    /// With `-- CMD`, the server is CMD, in a sandbox under the policy: what is written to this program goes to it, and what
    /// it writes comes out of this one.
    Mcp(McpArgs),
    /// Attack a throw-away sandbox on this machine, and report what got out: exit 0 nothing, 1 something, 2 bad input
    Selftest(SelftestArgs),
    /// The program inside the sandbox of a selftest
    #[command(hide = true)]
    SelftestProbe,
    /// Check whether this machine can run sandboxes, and say what to do if not
    ///
    /// With --json the answer has `checks`, and as `limits` what is not stopped whatever the policy says: see the threat
    /// model.
    Doctor(DoctorArgs),
    /// Find and remove what sandboxes left behind and no record owns
    Gc(GcArgs),
    /// Build, import and list templates (root file systems)
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Create, list and revoke API keys, of any account
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Print a page of the reference documentation
    #[command(hide = true)]
    Reference {
        /// Which page
        page: ReferencePage,
    },
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page of this program, or write those of all commands
    ///
    /// `bailiwick man ~/.local/share/man/man1` puts them where man(1) finds them: `man bailiwick-sandbox-exec`.
    Man {
        /// Directory to write the pages of all commands to; made if it is not there [default: print that of the program]
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

/// The generated pages of the reference.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum ReferencePage {
    /// The command line, as Markdown
    Cli,
    /// The REST API, as an OpenAPI 3.1 document
    Openapi,
    /// What is not stopped: a section of the threat model, as Markdown
    Residual,
}

/// Options that make a policy.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct PolicyArgs {
    /// Permit this destination: host, *.host, ~REGEX, address or CIDR, each with an optional :port; repeatable
    #[arg(long, value_name = "ENTRY")]
    pub allow_out: Vec<String>,
    /// Refuse this destination, in the same forms; repeatable
    #[arg(long, value_name = "ENTRY")]
    pub deny_out: Vec<String>,
}

impl PolicyArgs {
    /// The policy these options ask for.
    pub(crate) fn spec(&self) -> ::policy::PolicySpec {
        ::policy::PolicySpec {
            allow_out: self.allow_out.clone(),
            deny_out: self.deny_out.clone(),
            ..::policy::PolicySpec::default()
        }
    }
}

/// Which daemon to talk to, and as whom.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ApiArgs {
    /// Address of the daemon's API [default: what DECLAW_API_URL or DECLAW_DOMAIN say, else http://127.0.0.1:8080]
    #[arg(long, env = "BAILIWICK_API_URL", value_name = "URL", global = true)]
    pub api_url: Option<String>,
    /// File with the API key [default: the key is in BAILIWICK_API_KEY or DECLAW_API_KEY]
    #[arg(long, env = "BAILIWICK_API_KEY_FILE", value_name = "FILE", global = true)]
    pub api_key_file: Option<PathBuf>,
    /// Authorities (PEM) that the daemon's certificate is checked by [default: those the system trusts]
    #[arg(long, env = "BAILIWICK_API_CA", value_name = "FILE", global = true)]
    pub api_ca: Option<PathBuf>,
}

/// Options of `bailiwick run`.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// The policy
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Root file system: `host` (this machine's /usr and nothing else of it), or a template by name
    #[arg(long, short, default_value = "host", value_name = "NAME")]
    pub template: String,
    /// Directory of the templates [default: templates/ in the data directory]
    #[arg(long, env = "BAILIWICK_TEMPLATES", value_name = "DIR")]
    pub templates_dir: Option<PathBuf>,
    /// Environment variable; without a value it is taken from this environment; repeatable
    #[arg(long, short, value_name = "K[=V]")]
    pub env: Vec<String>,
    /// Directory of this machine to show inside, read-write unless `:ro`; repeatable
    #[arg(long, value_name = "SRC:DST[:ro]")]
    pub mount: Vec<String>,
    /// Working directory inside [default: the user's home]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub cwd: Option<String>,
    /// User inside: `user` or `root`
    #[arg(long, short, default_value = "user", value_name = "NAME")]
    pub user: String,
    /// Kill the command after this many seconds (exit code 124)
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// DNS server that permitted names are looked up at; may be repeated [default: those of /etc/resolv.conf]
    #[arg(long, env = "BAILIWICK_DNS", value_name = "ADDR[:PORT]", value_delimiter = ',', value_parser = crate::config::dns_server)]
    pub dns: Vec<std::net::SocketAddr>,
    /// Print every decision as a JSON line on stderr when the command has ended
    #[arg(long)]
    pub json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// Options of `bailiwick audit`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct AuditArgs {
    /// Something else than showing them
    #[command(subcommand)]
    pub command: Option<AuditCommand>,
    /// Sandbox to show; all of them if omitted
    pub sandbox: Option<String>,
    /// Keep showing events as they happen
    #[arg(long, short)]
    pub follow: bool,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Only events after this time (RFC 3339), or this long ago (such as `15m` or `2h`)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only this decision
    #[arg(long, value_parser = ["allow", "deny"])]
    pub decision: Option<String>,
    /// Only this host
    #[arg(long)]
    pub host: Option<String>,
    /// At most this many events (the newest)
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// Commands about events.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no event was removed, changed, moved or inserted: exit 0 intact, 1 not, 2 bad input
    Verify(VerifyArgs),
}

/// Options of `bailiwick audit verify`.
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    /// Sandbox whose events to check; all of them, and the service's own, if omitted
    pub sandbox: Option<String>,
    /// Hash that an earlier check printed and that was kept elsewhere: it must still be a link of what is checked,
    /// so that it was not all written anew; repeatable
    #[arg(long, value_name = "HASH")]
    pub expect: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `bailiwick doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// The options the daemon would have
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `bailiwick selftest`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SelftestArgs {
    /// What else to do
    #[command(subcommand)]
    pub command: Option<SelftestCommand>,
    /// Policy to test, as JSON in the form of the API, `{"allow_out": […], "deny_out": […]}`; `-` is standard input
    /// [default: one permitted name]
    #[arg(long, value_name = "FILE", conflicts_with = "sandbox")]
    pub policy: Option<PathBuf>,
    /// Test the policy that this sandbox of the daemon has now; the sandbox itself is left alone
    #[arg(long, value_name = "ID")]
    pub sandbox: Option<String>,
    /// Only attacks of this kind, by its name or letter: destinations, tls, http, tunnels, dns, machine, state; repeatable
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub only: Vec<selftest::Group>,
    /// Root file system: `host` (this machine's /usr and nothing else of it), or a template by name
    #[arg(long, short, default_value = "host", value_name = "NAME")]
    pub template: String,
    /// Directory of the templates [default: templates/ in the data directory]
    #[arg(long, env = "BAILIWICK_TEMPLATES", value_name = "DIR")]
    pub templates_dir: Option<PathBuf>,
    /// Break the sandbox's network first, to see that this is found
    #[arg(long, value_name = "WAY")]
    pub sabotage: Option<SabotageWay>,
    /// Print the signed report as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the signed report to this file, too
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Commands about reports of selftests.
#[derive(Debug, Subcommand)]
pub(crate) enum SelftestCommand {
    /// Check that a report is one that this machine signed, and unchanged: exit 0 genuine, 1 not, 2 bad input
    Verify {
        /// The signed report; `-` is standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The public key that is trusted [default: that of the data directory]
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Ways to break the network of the sandbox of a selftest.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum SabotageWay {
    /// Remove the rules of its packet filter
    Rules,
    /// Remove them, and lay a wire past the gate
    Wire,
}

impl From<SabotageWay> for selftest::Sabotage {
    fn from(way: SabotageWay) -> Self {
        match way {
            SabotageWay::Rules => Self::Rules,
            SabotageWay::Wire => Self::Wire,
        }
    }
}

/// Options of `bailiwick gc`.
#[derive(Args, Debug)]
pub(crate) struct GcArgs {
    /// End every sandbox of the data directory, too (the daemon must not be running)
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Commands about templates.
#[derive(Debug, Subcommand)]
pub(crate) enum TemplateCommand {
    /// List the templates
    Ls(TemplateArgs),
    /// Build templates from the distribution's packages (with mmdebstrap); one that is there already is kept
    Build {
        /// Options common to template commands
        #[command(flatten)]
        common: TemplateArgs,
        /// Build anew even if it is there
        #[arg(long)]
        force: bool,
        /// Names: base, python
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Make a template from a root tarball or an OCI image layout
    Import {
        /// Options common to template commands
        #[command(flatten)]
        common: TemplateArgs,
        /// Its name
        name: String,
        /// The tarball (.tar, .tar.gz) or the directory of the layout
        path: PathBuf,
    },
    /// Remove a template
    Rm {
        /// Options common to template commands
        #[command(flatten)]
        common: TemplateArgs,
        /// Its name
        name: String,
    },
}

/// Options common to template commands.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TemplateArgs {
    /// Directory of the templates [default: templates/ in the data directory]
    #[arg(long, env = "BAILIWICK_TEMPLATES", value_name = "DIR")]
    pub templates_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn group(text: &str) -> Result<selftest::Group, String> {
    let all = selftest::Group::ALL.map(selftest::Group::word).join(", ");
    selftest::Group::parse(text).ok_or_else(|| format!("there is no such kind of attack; there are {all}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
