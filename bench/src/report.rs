//! The table, and the history.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::{Settings, child::Command, figure::Figure};

/// The table on standard output.
pub(crate) fn print(figures: &[Figure]) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["what", "ours", "peer", "ratio", "target", "met?"]);
    for figure in figures {
        let unit = figure.unit.as_str();
        let peer = match (&figure.peer, figure.peer_median()) {
            (Some(peer), Some(value)) => format!("{} {unit} {}", number(value), peer.name),
            _ => String::new(),
        };
        let met = match figure.is_met() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "–",
        };
        table.add_row([
            figure.what.clone(),
            format!("{} {unit}", number(figure.our_median())),
            peer,
            figure.ratio().map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            figure.target_text(),
            met.to_owned(),
        ]);
    }
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    anstream::println!("{table}");
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// Appends the figures to the history, as one JSON line.
pub(crate) fn append_history(figures: &[Figure], settings: &Settings) -> Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("results/history.jsonl");
    let line = json!({
        "time": jiff::Timestamp::now().to_string(),
        "commit": commit(),
        "kernel": first_line("/proc/sys/kernel/osrelease"),
        "cpu": cpu_model(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "quick": settings.quick,
        "realtime": settings.realtime,
        "figures": figures.iter().map(entry).collect::<Vec<_>>(),
    });
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = fs::File::options().create(true).append(true).open(&path);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("opening {}: {error}", path.display()))?;
    writeln!(file, "{line}").with_context(|| format!("writing {}", path.display()))
}

fn entry(figure: &Figure) -> Value {
    json!({
        "name": figure.name,
        "unit": figure.unit,
        "ours": rounded(figure.our_median()),
        "peer": figure.peer.as_ref().map(|peer| peer.name),
        "peer_value": figure.peer_median().map(rounded),
        "ratio": figure.ratio().map(rounded),
        "target": figure.target_text(),
        "met": figure.is_met(),
        "rounds": few(&figure.ours),
        "peer_rounds": figure.peer.as_ref().map(|peer| few(&peer.values)),
    })
}

/// The rounds, if they are rounds and not single measurements by the hundred.
fn few(values: &[f64]) -> Option<Vec<f64>> {
    (values.len() <= 30).then(|| values.iter().copied().map(rounded).collect())
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn commit() -> Option<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let asked = Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(directory).output();
    let text = String::from_utf8(asked.ok().filter(|asked| asked.status.success())?.stdout).ok()?;
    Some(text.trim().to_owned())
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
