//! Checks who depends on whom, and what else keeps the rooms apart.

mod dependencies;
mod edges;
mod sources;

use std::{
    fmt, fs,
    io::{Write, stdout},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use cargo_metadata::MetadataCommand;
use serde::{Deserialize, de::DeserializeOwned};

use self::{
    dependencies::{BuildGraph, DenyRules},
    edges::LayerRules,
};

/// The target whose dependencies are checked; the only one the program is built for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// `xtask/layers.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    #[serde(flatten)]
    layers: LayerRules,
    #[serde(default)]
    long_file: Vec<sources::LongFile>,
}

/// Something that is against the rules.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Which rule.
    rule: &'static str,
    /// Who broke it and what would mend it.
    text: String,
}

impl Finding {
    fn new(rule: &'static str, text: impl Into<String>) -> Self {
        Self { rule, text: text.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.text)
    }
}

/// Checks the repository at `root` and prints what is against the rules.
pub(crate) fn run(root: &Path) -> anyhow::Result<ExitCode> {
    let rules: Rules = read(&root.join("xtask/layers.toml"))?;
    let deny: DenyRules = read(&root.join("deny.toml"))?;
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .other_options(vec!["--filter-platform".to_owned(), TARGET.to_owned()])
        .exec()
        .context("cannot read the metadata of the workspace")?;
    let graph = BuildGraph::read(root, TARGET)?;
    let files = sources::read(root, &metadata.workspace_packages())?;

    let crates = edges::crates(&metadata);
    let mut findings = edges::check(&rules.layers, &crates);
    findings.extend(dependencies::check_bans(&deny, &graph));
    findings.extend(dependencies::check_duplicates(&deny, &graph));
    findings.extend(dependencies::check_licences(&deny, &graph, &metadata.packages)?);
    findings.extend(sources::check_unsafe(&files));
    findings.extend(sources::check_length(&files, &rules.long_file));

    let mut out = stdout().lock();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    let (crates, packages, files) = (crates.len(), graph.len(), files.len());
    if findings.is_empty() {
        writeln!(out, "{crates} crates, {packages} packages and {files} files keep to the rules")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(out, "{} findings in {crates} crates, {packages} packages and {files} files", findings.len())?;
    Ok(ExitCode::FAILURE)
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
}
