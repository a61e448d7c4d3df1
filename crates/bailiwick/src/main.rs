//! The program: a daemon, and commands for the people who run it.

#![forbid(unsafe_code)]

mod audit;
mod cli;
mod config;
mod doctor;
mod engine;
mod exit;
mod explain;
mod gc;
mod keys;
mod limits;
mod logging;
mod manual;
mod mcp;
mod node;
mod policies;
mod printable;
mod remote;
mod residual;
mod run;
mod sandboxes;
mod selftest_report;
mod selftest_run;
mod serve;
mod template;

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory, Parser};
use owo_colors::OwoColorize;

use crate::cli::{Cli, Command, PolicyCommand, ReferencePage};

/// What one thread allocates another frees, an event for each connection among it: glibc's allocator is slow at that (a
/// twentieth of all that a connection costs).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The spawner is this program, started again before it has threads; users never name it.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == sandbox::spawner::ARGUMENT) {
        return sandbox::spawner::serve();
    }
    let cli = Cli::parse();
    match dispatch(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut stderr = anstream::stderr().lock();
            // Nobody can be told that standard error is closed.
            let _closed = writeln!(stderr, "{} {error:#}", "error:".red().bold());
            ExitCode::from(exit::code_of(&error))
        }
    }
}

fn dispatch(cli: &Cli) -> Result<u8> {
    match &cli.command {
        Command::Serve(args) => serve::run(&cli.data, args),
        Command::Run(args) => run::run(&cli.data, args),
        Command::Audit(args) => block_on(audit::run(&cli.data, args)),
        Command::Policy(PolicyCommand::Explain(args)) => explain::run(args),
        Command::Policy(PolicyCommand::Get(args)) => block_on(policies::get(args)),
        Command::Policy(PolicyCommand::Set(args)) => block_on(policies::set(args)),
        Command::Policy(PolicyCommand::Ratchet(args)) => block_on(policies::ratchet(args)),
        Command::Sandbox(args) => sandboxes::run(args),
        Command::Mcp(args) => mcp::run(args),
        Command::Selftest(args) => selftest_run::run(&cli.data, args),
        Command::SelftestProbe => selftest::serve_probe().map(|()| exit::OK),
        Command::Doctor(args) => doctor::run(&cli.data, args),
        Command::Gc(args) => gc::run(&cli.data, args),
        Command::Template(command) => template::run(&cli.data, command),
        Command::Keys(command) => block_on(keys::run(&cli.data, command)),
        Command::Reference { page } => reference(*page),
        Command::Completion { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "bailiwick", &mut std::io::stdout());
            Ok(exit::OK)
        }
        Command::Man { directory } => manual::run(directory.as_deref()),
    }
}

/// Prints what `cargo xtask gen` keeps below docs/reference.
fn reference(page: ReferencePage) -> Result<u8> {
    let text = match page {
        ReferencePage::Cli => {
            let options =
                clap_markdown::MarkdownOptions::new().show_footer(false).title("Command line".to_owned());
            clap_markdown::help_markdown_command_custom(&Cli::command(), &options)
        }
        ReferencePage::Openapi => server::openapi().to_pretty_json()?,
        ReferencePage::Residual => residual::markdown(),
    };
    anstream::println!("{}", text.trim_end());
    Ok(exit::OK)
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
