//! `bailiwick gc`: removes what sandboxes left behind and no record owns.

use anyhow::{Context, Result};

use sandbox::{GcReport, State};
use store::SandboxFilter;

use crate::{
    cli::GcArgs,
    config::{Config, DataArgs, ServeArgs},
    engine::Engine,
    exit,
};

/// Finds and removes; with `--all` ends every sandbox first.
pub(crate) fn run(data: &DataArgs, args: &GcArgs) -> Result<u8> {
    let config = Config::load(data, &ServeArgs::default())?;
    crate::logging::start_quiet();
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(async {
        // Taking the directory's lock: a daemon that is running tidies up by itself.
        let engine = Engine::start(&config).await?;
        let ended = if args.all { end_all(&engine).await? } else { 0 };
        let report = engine.manager().gc().await?;
        engine.shutdown().await;
        if args.json {
            anstream::println!("{}", serde_json::json!({ "ended": ended, "collected": report }));
        } else {
            print(&report, args.all.then_some(ended));
        }
        if !report.failures.is_empty() {
            return Ok(exit::FAILED);
        }
        Ok(exit::OK)
    })
}

/// Ends every sandbox of the directory, of whatever account; gives how many there were.
async fn end_all(engine: &Engine) -> Result<usize> {
    let filter = SandboxFilter {
        states: [State::Creating, State::Running, State::Paused]
            .map(|state| state.as_str().to_owned())
            .to_vec(),
        ..SandboxFilter::default()
    };
    let found = engine.store().sandboxes().list(&filter).await.context("listing the sandboxes")?;
    let mut failed = None;
    for record in &found.sandboxes {
        let id = record.id.parse().with_context(|| format!("the id {:?} in the store", record.id))?;
        // One that cannot be recorded as ended (a full disk) has ended all the same, and the others are to end, too.
        if let Err(error) = engine.manager().kill(&record.account, &id).await {
            failed = Some(anyhow::Error::new(error).context(format!("ending {}", record.id)));
        }
    }
    failed.map_or(Ok(found.sandboxes.len()), Err)
}

fn print(report: &GcReport, ended: Option<usize>) {
    if let Some(ended) = ended {
        anstream::println!("ended {ended} sandboxes");
    }
    let found = [
        ("directory", &report.directories),
        ("control group", &report.cgroups),
        ("record", &report.records),
        ("template", &report.templates),
    ];
    for (kind, names) in found {
        for name in names {
            anstream::println!("removed {kind} {name}");
        }
    }
    for failure in &report.failures {
        anstream::eprintln!("could not remove {failure}");
    }
    if report.is_empty() && ended.is_none() {
        anstream::println!("nothing was left behind");
    }
}
