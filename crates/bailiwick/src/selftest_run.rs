//! `bailiwick selftest`: attacks on a throw-away sandbox.

use std::{io::Read, path::Path};

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use policy::PolicySpec;
use selftest::{Options, Progress, PublicKey, SignedReport, SigningKey};
use store::Store;

use crate::{
    block_on,
    cli::{SelftestArgs, SelftestCommand},
    config::{Config, DataArgs, ServeArgs},
    engine, exit,
    exit::BadInput,
    selftest_report,
};

/// The largest policy or report that is read, in bytes.
const MAX_INPUT: u64 = 16 << 20;

/// Runs the attacks and prints the report; gives the exit code.
pub(crate) fn run(data: &DataArgs, args: &SelftestArgs) -> Result<u8> {
    if let Some(SelftestCommand::Verify { file, key, json }) = &args.command {
        return verify(data, file, key.as_deref(), *json);
    }
    let serve = ServeArgs { templates_dir: args.templates_dir.clone(), ..ServeArgs::default() };
    let config = Config::load(data, &serve)?;
    let (policy, policy_source) = policy(&config, args)?;
    // What is not valid is said before anything else is asked for.
    policy::Policy::compile(&policy, crate::node::floor()?)?;
    anyhow::ensure!(
        rustix::process::geteuid().is_root(),
        "not root: run it as root, the sandbox needs namespaces, mounts and firewall rules"
    );
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
    let key = SigningKey::open_or_create(&config.data_dir)?;
    let signed = key.sign(report?)?;
    let text = serde_json::to_string_pretty(&signed)?;
    if let Some(path) = &args.output {
        std::fs::write(path, format!("{text}\n"))
            .with_context(|| format!("writing the report to {}", path.display()))?;
    }
    if args.json {
        anstream::println!("{text}");
    } else {
        selftest_report::print(&signed.report)?;
    }
    Ok(if signed.report.is_good() { exit::OK } else { exit::FAILED })
}

/// Checks the signature of a report; gives the exit code.
fn verify(data: &DataArgs, file: &Path, key: Option<&str>, json: bool) -> Result<u8> {
    let config = Config::load(data, &ServeArgs::default())?;
    let trusted: PublicKey = match key {
        Some(text) => text.parse().map_err(|error| anyhow!(BadInput(format!("--key: {error}"))))?,
        None if config.data_dir.join(selftest::KEY_FILE).exists() => {
            SigningKey::open(&config.data_dir)?.public()
        }
        None => anyhow::bail!(BadInput(format!(
            "there is no key in {}: name the one that is trusted with --key, or the directory with --data-dir",
            config.data_dir.display()
        ))),
    };
    let text = read(file)?;
    let signed: SignedReport = serde_json::from_str(&text).map_err(|error| {
        anyhow!(BadInput(format!("{}: this is not a signed report: {error}", file.display())))
    })?;
    let verified = signed.verify(trusted);
    if json {
        selftest_report::print_verified_json(&signed, verified)
    } else {
        selftest_report::print_verified(&signed, verified)
    }
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
fn policy(config: &Config, args: &SelftestArgs) -> Result<(PolicySpec, String)> {
    match (&args.policy, &args.sandbox) {
        (Some(path), _) => {
            let policy = serde_json::from_str(&read(path)?).map_err(|error| {
                anyhow!(BadInput(format!("--policy {}: this is not a policy: {error}", path.display())))
            })?;
            Ok((policy, path.display().to_string()))
        }
        (None, Some(id)) => block_on(of_sandbox(config, id)),
        (None, None) => Ok((selftest::default_policy(), "default".to_owned())),
    }
}

/// The policy in force of a sandbox, from the store beside the daemon, which is only read.
async fn of_sandbox(config: &Config, id: &str) -> Result<(PolicySpec, String)> {
    let directory = &config.data_dir;
    let missing =
        || anyhow!(BadInput(format!("--sandbox {id}: there is no such sandbox in {}", directory.display())));
    if !directory.join(store::DATABASE).exists() {
        return Err(missing());
    }
    let store = Store::open_read_only(directory)
        .await
        .with_context(|| format!("opening the store in {}", directory.display()))?;
    let record = store.sandboxes().get(id).await?;
    store.close().await;
    let record = record.ok_or_else(missing)?;
    let policy = sandbox::stored_policy(&record)
        .with_context(|| format!("the policy of {id} is not one that this version understands"))?;
    Ok((policy, format!("{id}, generation {}", record.generation)))
}

/// What is in a file, or comes from standard input.
fn read(path: &Path) -> Result<String> {
    let bad = |error: std::io::Error| anyhow!(BadInput(format!("{}: {error}", path.display())));
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_INPUT).read_to_string(&mut text))
    };
    read.map_err(bad)?;
    Ok(text)
}
