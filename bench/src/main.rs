//! Measures against the named peers: medians, side by side, in one run on one machine.
//!
//! It prints a table and appends a line to `results/history.jsonl`. It never fails because a figure is missed:
//! whether one is met is for whoever reads the table. Everything runs in network namespaces of its own; the load is
//! bounded and stops by itself.

#![forbid(unsafe_code)]

mod answer;
mod api;
mod child;
mod fairness;
mod figure;
mod gate_node;
mod hello;
mod judge;
mod load;
mod memory;
mod network;
mod peers;
mod policy_change;
mod relay;
mod report;
mod resolver;
mod statistics;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures against the named peers, side by side in one run.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What to measure, and how long.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    /// Only figures of this name, such as `relay` or `relay.streams8.up`; repeatable
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Short and few rounds: to see whether it works
    #[arg(long)]
    pub(crate) quick: bool,
    /// How many rounds of each, ours and the peer's in turn [default: 5, quick: 1]; of new connections there are eight
    /// times as many, of a quarter of the time
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each round of load lasts [default: 2000, quick: 400]
    #[arg(long)]
    milliseconds: Option<u64>,
    /// Templates for whole sandboxes; `python` is used if it is there, otherwise `host`
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/templates"))]
    pub(crate) templates: PathBuf,
    /// Run the relay figures above the machine's other work (SCHED_RR), where there is some that would blur them
    #[arg(long)]
    pub(crate) realtime: bool,
    /// Leave the history alone
    #[arg(long)]
    no_history: bool,
}

/// Parts of a measurement that are processes of their own.
#[derive(Clone, Debug, Subcommand)]
enum Part {
    /// The servers of the world
    #[command(hide = true)]
    World,
    /// A gate on the node
    #[command(hide = true)]
    Gate {
        /// For its state
        directory: PathBuf,
    },
    /// A load generator
    #[command(hide = true, subcommand)]
    Load(load::Load),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::World) => answer::run(),
        Some(Part::Gate { directory }) => gate_node::run(&directory),
        Some(Part::Load(load)) => load.generate(),
        None => measure(&arguments.settings),
    }
}

fn measure(settings: &Settings) -> Result<()> {
    let mut figures = api::measure(settings)?;
    figures.extend(judge::measure(settings)?);
    figures.extend(relay::measure(settings)?);
    report::print(&figures);
    if !settings.no_history && !figures.is_empty() {
        report::append_history(&figures, settings)?;
    }
    Ok(())
}

impl Settings {
    /// Whether a figure, or any figure of a group, is asked for.
    pub(crate) fn wants(&self, name: &str) -> bool {
        let below =
            |name: &str, group: &str| name.strip_prefix(group).is_some_and(|rest| rest.starts_with('.'));
        self.only.is_empty()
            || self.only.iter().any(|only| only == name || below(name, only) || below(only, name))
    }

    /// How many rounds.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    /// How long a round of load lasts.
    pub(crate) fn milliseconds(&self) -> u64 {
        self.milliseconds.unwrap_or(if self.quick { 400 } else { 2000 })
    }

    /// How many single measurements, `many` in a full run.
    pub(crate) fn times(&self, many: usize) -> usize {
        if self.quick { (many / 10).max(2) } else { many }
    }
}
