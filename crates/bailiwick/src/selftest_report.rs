//! The report of a selftest, for people.

use std::io::Write;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use owo_colors::OwoColorize;
use selftest::{CaseReport, Group, Machine, Outcome, Report, SignatureError, SignedReport, Summary};
use serde::Serialize;

use crate::exit;

/// Prints it on standard output: what is wrong first, then a table of the kinds of attacks.
pub(crate) fn print(report: &Report) -> Result<()> {
    let mut out = anstream::stdout().lock();
    let Report { machine, .. } = report;
    writeln!(
        out,
        "{} {} on Linux {} ({}), template {}, policy: {}",
        "bailiwick selftest".bold(),
        machine.bailiwick,
        machine.kernel,
        machine.architecture,
        machine.template,
        report.policy_source,
    )?;
    if let Some(way) = &report.sabotage {
        writeln!(out, "{}", format!("the sandbox was broken on purpose: {way}").yellow())?;
    }
    writeln!(out)?;
    let mut wrong: Vec<&CaseReport> = report.cases.iter().filter(|case| !case.outcome.is_good()).collect();
    wrong.sort_by_key(|case| case.outcome);
    for case in wrong {
        print_case(&mut out, case)?;
    }
    writeln!(out, "{}", table(report))?;
    writeln!(out)?;
    writeln!(out, "{}", verdict(report))?;
    Ok(())
}

/// Says whether a report is genuine, and if it is, what it says; gives the exit code.
pub(crate) fn print_verified(
    signed: &SignedReport,
    verified: std::result::Result<(), SignatureError>,
) -> Result<u8> {
    let mut out = anstream::stdout().lock();
    let Report { started, machine, policy_source, .. } = &signed.report;
    Ok(match verified {
        Ok(()) => {
            writeln!(out, "{}  signed with {}", "genuine".green().bold(), signed.signature.public_key)?;
            writeln!(out, "  {started}, bailiwick {}, policy: {policy_source}", machine.bailiwick)?;
            writeln!(out, "  {}", verdict(&signed.report))?;
            exit::OK
        }
        Err(why) => {
            writeln!(out, "{}  {why}", "NOT GENUINE".red().bold())?;
            exit::FAILED
        }
    })
}

/// What `selftest verify --json` prints.
#[derive(Serialize)]
struct Verification<'a> {
    /// Whether the report is whole and signed with the trusted key.
    genuine: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    /// What a genuine report says. Of one that is not genuine nothing is told: anybody may have written it.
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<Verified<'a>>,
}

#[derive(Serialize)]
struct Verified<'a> {
    public_key: String,
    started: Timestamp,
    machine: &'a Machine,
    policy_source: &'a str,
    /// Whether nothing got out that the policy does not permit, all of it recorded.
    good: bool,
    summary: Summary,
}

/// As [`print_verified`], as JSON.
pub(crate) fn print_verified_json(
    signed: &SignedReport,
    verified: std::result::Result<(), SignatureError>,
) -> Result<u8> {
    let problem = verified.err().map(|why| why.to_string());
    let genuine = problem.is_none();
    let report = genuine.then(|| Verified {
        public_key: signed.signature.public_key.to_string(),
        started: signed.report.started,
        machine: &signed.report.machine,
        policy_source: &signed.report.policy_source,
        good: signed.report.is_good(),
        summary: signed.report.summary,
    });
    let verification = Verification { genuine, problem, report };
    anstream::println!("{}", serde_json::to_string_pretty(&verification)?);
    Ok(if genuine { exit::OK } else { exit::FAILED })
}

fn print_case(out: &mut impl Write, case: &CaseReport) -> Result<()> {
    writeln!(out, "{}  {}  {}", mark(case.outcome), case.id.bold(), case.title)?;
    for line in &case.evidence {
        writeln!(out, "      {line}")?;
    }
    writeln!(out)?;
    Ok(())
}

fn mark(outcome: Outcome) -> String {
    match outcome {
        Outcome::Hole => "HOLE".red().bold().to_string(),
        Outcome::FalselyBlocked => "BLOCKED".red().to_string(),
        Outcome::Unrecorded => "UNRECORDED".yellow().to_string(),
        Outcome::Failed => "FAILED".yellow().to_string(),
        Outcome::Held => "held".green().to_string(),
        Outcome::Permitted => "permitted by policy".to_string(),
        Outcome::Skipped => "skipped".dimmed().to_string(),
    }
}

/// A line for each attack, and one for each kind with the counts.
fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["", "ATTACK", "FORMS", "OUTCOME", "RULE"]);
    for group in Group::ALL {
        let cases: Vec<&CaseReport> = report.cases.iter().filter(|case| case.group == group).collect();
        if cases.is_empty() {
            continue;
        }
        let summary = Summary::of(cases.iter().copied());
        table.add_row([
            group.letter().bold().to_string(),
            group.word().bold().to_string(),
            summary.attempts.bold().to_string(),
            counts(summary),
            String::new(),
        ]);
        for case in cases {
            table.add_row([
                case.id.clone(),
                case.title.clone(),
                case.attempts.to_string(),
                outcome(case),
                case.rule.clone().unwrap_or_default(),
            ]);
        }
    }
    table
}

fn outcome(case: &CaseReport) -> String {
    let mixed = case.outcome == Outcome::Held && case.permitted > 0;
    let mark = mark(case.outcome);
    if mixed { format!("{mark}, {} permitted", case.permitted) } else { mark }
}

fn counts(summary: Summary) -> String {
    let parts = [
        (summary.hole, "holes"),
        (summary.falsely_blocked, "blocked"),
        (summary.unrecorded, "unrecorded"),
        (summary.failed, "failed"),
        (summary.held, "held"),
        (summary.permitted, "permitted"),
        (summary.skipped, "skipped"),
    ];
    let said = parts.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}"));
    said.collect::<Vec<_>>().join(", ")
}

fn verdict(report: &Report) -> String {
    let Summary { hole, falsely_blocked, unrecorded, failed, attempts, .. } = report.summary;
    let seconds = report.duration_ms / 1000;
    let tried = format!("{} attacks in {attempts} forms, {seconds} s", report.cases.len());
    if report.is_good() {
        return format!("{}  {tried}", "Nothing got out that the policy does not permit.".green().bold());
    }
    let mut wrong = Vec::new();
    for (count, what) in [
        (hole, "let something out"),
        (falsely_blocked, "blocked what is permitted"),
        (unrecorded, "are not recorded rightly"),
        (failed, "could not be tried"),
    ] {
        if count > 0 {
            wrong.push(format!("{count} {what}"));
        }
    }
    format!("{}  {tried}", format!("{}.", wrong.join(", ")).red().bold())
}
