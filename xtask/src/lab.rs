//! `cargo xtask lab up`: a small internet with the built daemon in it, for any client on this machine.

use std::{io::Write, net::SocketAddr, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use testkit::{Lab, LabConfig, Zone};
use tokio::signal::unix::{SignalKind, signal};

/// Commands of the lab.
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start a lab; it stays up until it is interrupted
    Up(UpArgs),
}

/// Options of `lab up`.
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    /// Zone file of the world: lines of NAME [TTL] TYPE VALUE [default: the hosts of the worked examples]
    #[arg(long, value_name = "FILE")]
    zone: Option<PathBuf>,
    /// A name of the world and its address; repeatable
    #[arg(long, value_name = "NAME=ADDR")]
    policy_host: Vec<String>,
    /// Templates to use, as `bailiwick template build --templates-dir` made them
    #[arg(long, value_name = "DIR")]
    templates: Option<PathBuf>,
    /// Where the API is reachable from this machine
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR:PORT")]
    listen: SocketAddr,
    /// Directory for logs and data, kept afterwards [default: a temporary one, removed afterwards]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

/// Runs one of the commands.
pub(crate) fn run(command: LabCommand) -> Result<()> {
    match command {
        LabCommand::Up(args) => up(&args),
    }
}

fn up(args: &UpArgs) -> Result<()> {
    let temporary = match &args.directory {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("bailiwick-lab-").tempdir()?),
    };
    let directory = match (&args.directory, &temporary) {
        (Some(directory), _) => directory.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => unreachable!("one of the two is there by the match above"),
    };
    std::fs::create_dir_all(&directory)?;
    let mut lab = Lab::start(LabConfig {
        zone: zone(args)?,
        program: testkit::sibling("bailiwick")?,
        templates: args.templates.clone(),
        directory,
        listen: args.listen,
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(stay(&mut lab))
}

/// Says that the lab is up, and keeps it up until SIGINT or SIGTERM. SIGUSR1 kills the daemon without warning,
/// SIGUSR2 starts it again: for tests of what happens meanwhile.
async fn stay(lab: &mut Lab) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut kill = signal(SignalKind::user_defined1())?;
    let mut restart = signal(SignalKind::user_defined2())?;
    say(lab, "ready")?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = kill.recv() => {
                lab.daemon().kill()?;
                say(lab, "killed")?;
            }
            _ = restart.recv() => {
                lab.daemon().restart()?;
                say(lab, "ready")?;
            }
        }
    }
}

fn say(lab: &Lab, state: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    for (name, value) in lab.variables() {
        writeln!(out, "export {name}={value}")?;
    }
    writeln!(out, "{state}")?;
    Ok(out.flush()?)
}

fn zone(args: &UpArgs) -> Result<Zone> {
    let mut zone = match &args.zone {
        Some(path) => std::fs::read_to_string(path)
            .with_context(|| format!("reading {}", path.display()))?
            .parse()
            .with_context(|| format!("in {}", path.display()))?,
        None => Zone::standard(),
    };
    for entry in &args.policy_host {
        let (name, address) =
            entry.split_once('=').with_context(|| format!("--policy-host {entry:?} is not NAME=ADDR"))?;
        let address = address.parse().with_context(|| format!("--policy-host {entry:?}: {address:?}"))?;
        zone.add_address(name, address);
    }
    Ok(zone)
}
