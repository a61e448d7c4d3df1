//! `bailiwick sandbox exec`: one command, its output and its exit code.

use std::io::Write;

use anyhow::{Context, Result};
use client::{Client, NewCommand};

use crate::{cli::ExecArgs, exit, printable::Output, remote::ApiFailure, run};

/// Runs the command; gives its exit code. The daemon kills it when this program is gone.
pub(super) async fn run(connect: impl FnOnce() -> Result<Client>, args: &ExecArgs) -> Result<u8> {
    let command = NewCommand {
        cmd: run::command_line(&args.command),
        user: args.user.clone(),
        envs: run::environment(&args.env)?,
        cwd: args.cwd.clone(),
        timeout: args.timeout.map(|timeout| timeout.as_secs_f64()),
    };
    let ended = connect()?.run(&args.id, &command).await.map_err(ApiFailure)?;
    if args.json {
        anstream::println!("{}", serde_json::to_string(&ended)?);
    } else {
        let (mut stdout, mut stderr) = (std::io::stdout(), std::io::stderr());
        stdout.write_all(&shown(Output::to(&stdout), &ended.stdout)).context("writing to standard output")?;
        stderr.write_all(&shown(Output::to(&stderr), &ended.stderr)).context("writing to standard error")?;
        for (truncated, stream) in [(ended.stdout_truncated, "output"), (ended.stderr_truncated, "error")] {
            if truncated {
                writeln!(stderr, "bailiwick: there was more on standard {stream} than the daemon keeps")?;
            }
        }
    }
    Ok(u8::try_from(ended.exit_code).unwrap_or(exit::FAILED))
}

fn shown(mut output: Output, printed: &str) -> Vec<u8> {
    let mut shown = output.next(printed.as_bytes());
    shown.extend(output.end());
    shown
}
