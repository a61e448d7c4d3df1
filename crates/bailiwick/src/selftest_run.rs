//! `bailiwick selftest`: attacks on a throw-away sandbox.

use std::{io::Read, path::Path};

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use policy::PolicySpec;
use selftest::{Options, Progress};

use crate::{
    cli::SelftestArgs,
    config::{Config, DataArgs, ServeArgs},
    engine, exit,
    exit::BadInput,
    selftest_report,
};

/// The largest policy that is read, in bytes.
const MAX_POLICY: u64 = 16 << 20;

/// Runs the attacks and prints the report; gives the exit code.
pub(crate) fn run(data: &DataArgs, args: &SelftestArgs) -> Result<u8> {
    let (policy, policy_source) = policy(args)?;
    // What is not valid is said before anything else is asked for.
    policy::Policy::compile(&policy, crate::node::floor()?)?;
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "not root: run it as root, the sandbox needs namespaces, mounts and firewall rules"
    );
    let serve = ServeArgs { templates_dir: args.templates_dir.clone(), ..ServeArgs::default() };
    let config = Config::load(data, &serve)?;
    crate::logging::start_quiet();
    let options = Options {
        policy,
        policy_source,
        groups: args.only.clone(),
        template: args.template.clone(),
        templates_dir: config.templates_dir.clone(),
        directory: config.data_dir.join("runs"),
        init_binary: engine::init_binary()?,
        probe: std::env::current_exe().context("finding this program")?,
        probe_arguments: vec!["selftest-probe".to_owned()],
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sabotage: args.sabotage.map(Into::into),
    };
    let bar = progress_bar();
    let report = selftest::run(&options, &mut |progress| match progress {
        Progress::Step(step) => bar.set_message(step.to_owned()),
        Progress::Trying { group, attempts } => {
            bar.set_message(format!("{}: {attempts} attacks", group.word()));
        }
    });
    bar.finish_and_clear();
    let report = report?;
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "report": report }))?);
    } else {
        selftest_report::print(&report)?;
    }
    Ok(if report.is_good() { exit::OK } else { exit::FAILED })
}

/// What is being done, on standard error if that is a terminal.
fn progress_bar() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>3} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

/// The policy, and where it is from.
fn policy(args: &SelftestArgs) -> Result<(PolicySpec, String)> {
    match &args.policy {
        Some(path) => Ok((read(path)?, path.display().to_string())),
        None => Ok((selftest::default_policy(), "default".to_owned())),
    }
}

fn read(path: &Path) -> Result<PolicySpec> {
    let bad = |why: String| anyhow!(BadInput(format!("--policy {}: {why}", path.display())));
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_POLICY).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_POLICY).read_to_string(&mut text))
    };
    read.map_err(|error| bad(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| bad(format!("this is not a policy: {error}")))
}
