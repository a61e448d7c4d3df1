//! `bailiwick audit verify`: whether the stored events are those that were recorded.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, anyhow};
use comfy_table::{Cell, Color, Table, presets};
use jiff::Timestamp;
use sandbox::SandboxId;
use serde::Serialize;
use store::{ChainHash, ChainReport, Finding, Problem, Store};

use crate::{
    cli::VerifyArgs,
    exit::{self, BadInput},
    printable::printable,
};

/// How the service's own chain is called where that of a sandbox has its id.
const SERVICE: &str = "(service)";

/// What was checked and found.
#[derive(Debug, Serialize)]
struct Verification {
    intact: bool,
    /// The service's own chain first: it says which others there are.
    chains: Vec<Chain>,
    /// Expected hashes that are no links of these chains.
    unmet: BTreeSet<ChainHash>,
}

#[derive(Debug, Serialize)]
struct Chain {
    intact: bool,
    #[serde(flatten)]
    report: ChainReport,
}

/// Checks and prints; gives the exit code. A daemon may be running and writing meanwhile.
pub(super) async fn run(directory: &Path, args: &VerifyArgs) -> Result<u8> {
    let sandbox = args.sandbox.as_deref().map(parse_sandbox).transpose()?;
    let expected = args.expect.iter().map(|text| parse_hash(text)).collect::<Result<BTreeSet<_>>>()?;
    let store = Store::open_read_only(directory)
        .await
        .with_context(|| format!("opening the events in {}", directory.display()))?;
    let verification = verify(&store, sandbox.as_ref(), &expected).await?;
    if args.json {
        anstream::println!("{}", serde_json::to_string_pretty(&verification)?);
    } else {
        print(&verification);
    }
    Ok(if verification.intact { exit::OK } else { exit::FAILED })
}

/// Of one sandbox or all, always with the service's own chain: who removes all of a sandbox's leaves a trace there only.
async fn verify(
    store: &Store,
    only: Option<&SandboxId>,
    expected: &BTreeSet<ChainHash>,
) -> Result<Verification> {
    let streams = match only {
        Some(sandbox) => vec![None, Some(sandbox.to_string())],
        None => store.events().chains().await.context("listing the chains of events")?,
    };
    let mut chains = Vec::with_capacity(streams.len());
    for stream in &streams {
        let report = store.events().verify(stream.as_deref(), expected).await;
        // What is not there any more was deleted in order since it was listed, or the service's chain tells of it.
        let report = report.with_context(|| format!("checking {}", shown(stream.as_deref())))?;
        chains.extend(report.map(|report| Chain { intact: report.is_intact(), report }));
    }
    if let Some(sandbox) = only {
        let is_known = |chain: &Chain| {
            let gone = |finding: &Finding| matches!(&finding.problem, Problem::ChainMissing { sandbox_id } if sandbox_id == sandbox.as_str());
            chain.report.sandbox_id.is_some() || chain.report.findings.iter().any(gone)
        };
        if !chains.iter().any(is_known) {
            return Err(anyhow!(BadInput(format!(
                "there are no events of {sandbox}: it never was, or they were deleted when they were too old"
            ))));
        }
    }
    let met: BTreeSet<ChainHash> = chains.iter().flat_map(|chain| chain.report.met.iter().copied()).collect();
    let unmet: BTreeSet<ChainHash> = expected.difference(&met).copied().collect();
    Ok(Verification { intact: unmet.is_empty() && chains.iter().all(|chain| chain.intact), chains, unmet })
}

fn parse_sandbox(text: &str) -> Result<SandboxId> {
    text.parse().map_err(|error| anyhow!(BadInput(format!("{error}"))))
}

fn parse_hash(text: &str) -> Result<ChainHash> {
    text.parse().map_err(|error| anyhow!(BadInput(format!("--expect: {error}"))))
}

fn print(verification: &Verification) {
    let mut chains = new_table(["SANDBOX", "EVENTS", "LINKS", "DELETED", "HEAD", "RESULT"]);
    let mut findings = new_table(["SANDBOX", "SEQUENCE", "EVENT", "TIME", "FOUND"]);
    for Chain { intact, report } in &verification.chains {
        let sandbox = shown(report.sandbox_id.as_deref());
        let result =
            if *intact { Cell::new("intact").fg(Color::Green) } else { Cell::new("BROKEN").fg(Color::Red) };
        let [events, links, pruned] = [report.events, report.links, report.pruned].map(Cell::new);
        chains.add_row([Cell::new(&sandbox), events, links, pruned, Cell::new(report.head), result]);
        for finding in &report.findings {
            findings.add_row(row(&sandbox, finding));
        }
        if report.more_findings > 0 {
            let more = format!("{} more", report.more_findings);
            findings.add_row([sandbox, String::new(), String::new(), String::new(), more]);
        }
    }
    anstream::println!("{chains}");
    if !findings.is_empty() {
        anstream::println!("\n{findings}");
    }
    for hash in &verification.unmet {
        anstream::println!("{hash} is no link of these chains: events were written anew, or deleted since");
    }
}

fn new_table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(header);
    table
}

fn row(sandbox: &str, finding: &Finding) -> [String; 5] {
    [
        sandbox.to_owned(),
        sequence(finding),
        finding.event.map(|event| event.to_string()).unwrap_or_default(),
        time(finding),
        printable(&finding.problem.to_string()),
    ]
}

/// The numbers that it is about: of what is gone, theirs.
fn sequence(finding: &Finding) -> String {
    let Some(at) = finding.sequence else { return String::new() };
    let (first, last) = match finding.problem {
        Problem::Missing { count } => (at.saturating_sub(count), at.saturating_sub(1)),
        Problem::EndMissing { count } => (at, at.saturating_add(count).saturating_sub(1)),
        _ => (at, at),
    };
    if first == last { first.to_string() } else { format!("{first}..{last}") }
}

/// When that was: of what is gone, between which times.
fn time(finding: &Finding) -> String {
    let after = finding.after.map(|after| format!("after {}", precise(after)));
    match finding.problem {
        Problem::Missing { .. } => {
            let before = finding.time.map(|before| format!("before {}", precise(before)));
            [after, before].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
        Problem::EndMissing { .. } => after.unwrap_or_default(),
        _ => finding.time.map(precise).unwrap_or_default(),
    }
}

fn precise(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn shown(sandbox: Option<&str>) -> String {
    sandbox.map_or_else(|| SERVICE.to_owned(), printable)
}
