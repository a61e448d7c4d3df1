//! `bailiwick mcp -- CMD`: a server of the protocol, or any program that is spoken to by pipes, in a sandbox of its own.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use client::{Client, ClientError, NewCommand, NewSandbox, SessionEvent};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt, stderr, stdin, stdout},
    time::{Instant, sleep, timeout},
};

use crate::{
    cli::McpArgs,
    exit::{self, BadInput},
    remote::ApiFailure,
    run::{command_line, environment},
};

use super::session::nothing;

/// How much is read from standard input at once, in bytes.
const PIECE: usize = 256 << 10;
/// How long the program may take to end when there is nothing more to read for it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long the daemon may be away: it may be started again meanwhile, and the program runs on.
const AWAY: Duration = Duration::from_secs(30);
/// How long is waited before it is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// A file to put into the sandbox.
struct Upload {
    source: PathBuf,
    target: String,
}

impl Upload {
    fn parse(text: &str) -> Result<Self> {
        match text.rsplit_once(':') {
            Some((source, target)) if !source.is_empty() && target.starts_with('/') => {
                Ok(Self { source: source.into(), target: target.to_owned() })
            }
            _ => Err(anyhow!(BadInput(format!("--file {text:?}: is not FILE:PATH with an absolute PATH")))),
        }
    }
}

/// Runs the program until it ends, nobody speaks to it any more, or this one is `told` to end; gives its exit code.
pub(super) async fn run(client: Client, args: &McpArgs, told: impl Future<Output = ()>) -> Result<u8> {
    let uploads = args.file.iter().map(|text| Upload::parse(text)).collect::<Result<Vec<_>>>()?;
    let sandbox = NewSandbox {
        template: args.template.clone(),
        timeout: Some(args.timeout),
        envs: environment(&args.env)?,
        network: Some(args.policy.network()?.unwrap_or_else(nothing)),
        ..NewSandbox::default()
    };
    let created = client.create(&sandbox).await.map_err(ApiFailure)?;
    crate::policies::warn(&created.warnings);
    let id = created.sandbox_id;
    let line = command_line(&args.command);
    let ended = tokio::select! {
        ended = serve(&client, &id, &uploads, &line) => ended,
        () = told => Ok(exit::OK),
    };
    let killed = if args.keep { Ok(true) } else { client.kill(&id).await };
    let ended = ended?;
    killed.map_err(ApiFailure).with_context(|| format!("killing the sandbox {id}"))?;
    Ok(ended)
}

async fn serve(client: &Client, id: &str, uploads: &[Upload], line: &str) -> Result<u8> {
    for Upload { source, target } in uploads {
        let failed = || format!("--file {}:{target}", source.display());
        let file = File::open(source).await.with_context(failed)?;
        client.write_file(id, target, None, file).await.map_err(ApiFailure).with_context(failed)?;
    }
    let command = NewCommand { cmd: line.to_owned(), ..NewCommand::default() };
    let command = client.start_stdio(id, &command).await.map_err(ApiFailure)?;
    let mut output = std::pin::pin!(pass_output(client, id, &command));
    tokio::select! {
        ended = &mut output => return ended,
        passed = pass_input(client, id, &command) => passed?,
    }
    // It is told that there is nothing more, and may say what it has still to say.
    match timeout(FAREWELL, output).await {
        Ok(ended) => ended,
        Err(_) => Ok(exit::OK),
    }
}

/// Passes on what is written to this program, to its end. If the other does not take it any more, it ends.
async fn pass_input(client: &Client, id: &str, command: &str) -> Result<()> {
    let (mut input, mut piece) = (stdin(), vec![0; PIECE]);
    loop {
        let length = input.read(&mut piece).await.context("reading standard input")?;
        let bytes = piece.get(..length).unwrap_or_default();
        let begun = Instant::now();
        let passed = loop {
            let passed = if bytes.is_empty() {
                client.close_stdio(id, command).await
            } else {
                client.write_stdio(id, command, bytes).await
            };
            match passed {
                // Nothing has been sent, so it can be sent again.
                Err(ClientError::Connect { .. }) if begun.elapsed() < AWAY => sleep(AGAIN).await,
                passed => break passed,
            }
        };
        match passed {
            // Its input is closed, or it has ended, which its output tells.
            Err(error) if matches!(error.status(), Some(404 | 409)) => std::future::pending().await,
            other => other.map_err(ApiFailure)?,
        }
        if bytes.is_empty() {
            return Ok(());
        }
    }
}

/// Passes on what the program writes, to its end; gives its exit code.
async fn pass_output(client: &Client, id: &str, command: &str) -> Result<u8> {
    let (mut out, mut err) = (stdout(), stderr());
    let (mut last, mut seen) = (0, Instant::now());
    loop {
        let failure = match client.follow_stdio(id, command, last).await {
            Err(error) => Some(error),
            Ok(mut events) => loop {
                let next = events.next().await;
                (last, seen) = (events.last(), Instant::now());
                match next {
                    Ok(Some(SessionEvent::Stdout(bytes))) => {
                        out.write_all(&bytes).await.context("writing to standard output")?;
                        out.flush().await.context("writing to standard output")?;
                    }
                    Ok(Some(SessionEvent::Stderr(bytes))) => {
                        err.write_all(&bytes).await.context("writing to standard error")?;
                        err.flush().await.context("writing to standard error")?;
                    }
                    Ok(Some(SessionEvent::Exit(code))) => {
                        return Ok(u8::try_from(code).unwrap_or(exit::FAILED));
                    }
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            },
        };
        let is_final = failure.as_ref().is_some_and(|error| !may_pass(error));
        if is_final || seen.elapsed() > AWAY {
            return Err(match failure {
                Some(error) => ApiFailure(error).into(),
                None => anyhow!("the daemon has lost the program"),
            });
        }
        sleep(AGAIN).await;
    }
}

/// Whether a failure may pass by itself.
fn may_pass(error: &ClientError) -> bool {
    match error {
        ClientError::Connect { .. } | ClientError::Transport { .. } => true,
        other => other.status().is_some_and(|status| status == 429 || status >= 500),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_to_an_absolute_path() {
        let upload = Upload::parse("./a:b.py:/tmp/b.py").unwrap();
        assert_eq!((upload.source, upload.target.as_str()), (PathBuf::from("./a:b.py"), "/tmp/b.py"));
        for text in ["a", "a:b", ":/b", "a:", "/a"] {
            assert_eq!(exit::code_of(&Upload::parse(text).err().unwrap()), exit::BAD_INPUT, "{text}");
        }
    }
}
