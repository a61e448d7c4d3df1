//! `bailiwick template`: build, import, list and remove root file systems.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressStyle};
use sandbox::template::{Builtin, Manifest, Progress, Templates};

use crate::{
    cli::{TemplateArgs, TemplateCommand},
    config::{Config, DataArgs, ServeArgs},
    exit::{self, BadInput},
};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Runs one of the commands.
pub(crate) fn run(data: &DataArgs, command: &TemplateCommand) -> Result<u8> {
    match command {
        TemplateCommand::Ls(common) => list(&open(data, common)?, common.json)?,
        TemplateCommand::Build { common, force, names } => build(&open(data, common)?, names, *force)?,
        TemplateCommand::Import { common, name, path } => {
            let templates = open(data, common)?;
            let manifest = with_progress(name, |progress| templates.import(name, path, progress))?;
            anstream::println!("{}", manifest.name);
        }
        TemplateCommand::Rm { common, name } => {
            if !open(data, common)?.remove(name)? {
                return Err(anyhow!(BadInput(format!(
                    "there is no template {name:?}; see `bailiwick template ls`"
                ))));
            }
        }
    }
    Ok(exit::OK)
}

fn open(data: &DataArgs, common: &TemplateArgs) -> Result<Templates> {
    let serve = ServeArgs { templates_dir: common.templates_dir.clone(), ..ServeArgs::default() };
    let directory: PathBuf = Config::load(data, &serve)?.templates_dir;
    Templates::open(&directory).with_context(|| format!("opening the templates in {}", directory.display()))
}

fn build(templates: &Templates, names: &[String], force: bool) -> Result<()> {
    // All names before the first build: a typing mistake in the second must not cost the first's time.
    let wanted = names.iter().map(|name| builtin(name)).collect::<Result<Vec<_>>>()?;
    let existing = templates.list()?;
    for builtin in wanted {
        let there = existing.iter().any(|manifest| manifest.name == builtin.name());
        if there && !force {
            anstream::println!("{} (there already; --force builds it anew)", builtin.name());
            continue;
        }
        let manifest = with_progress(builtin.name(), |progress| templates.build(builtin, progress))?;
        anstream::println!("{}", manifest.name);
    }
    Ok(())
}

fn builtin(name: &str) -> Result<Builtin> {
    Builtin::named(name).ok_or_else(|| {
        let known = Builtin::ALL.map(Builtin::name).join(", ");
        anyhow!(BadInput(format!("{name:?} cannot be built; these can: {known}; others are imported")))
    })
}

/// Shows the lines of long work: as a spinner on a terminal, as lines elsewhere.
fn with_progress<T, E>(name: &str, work: impl FnOnce(Progress<'_>) -> Result<T, E>) -> Result<T>
where
    anyhow::Error: From<E>,
{
    let bar = ProgressBar::new_spinner().with_prefix(name.to_owned());
    let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}");
    bar.set_style(style.context("the template of the progress line")?);
    if bar.is_hidden() {
        return Ok(work(&mut |line| anstream::eprintln!("{name}: {line}"))?);
    }
    bar.enable_steady_tick(TICK);
    let result = work(&mut |line| bar.set_message(line.to_owned()));
    bar.finish_and_clear();
    Ok(result?)
}

fn list(templates: &Templates, json: bool) -> Result<()> {
    let all = templates.list()?;
    if json {
        anstream::println!("{}", serde_json::to_string(&all)?);
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["NAME", "SOURCE", "CREATED"]);
    for Manifest { name, source, created_at, .. } in all {
        table.add_row([name, source, created_at.strftime("%Y-%m-%d %H:%M").to_string()]);
    }
    anstream::println!("{table}");
    Ok(())
}
