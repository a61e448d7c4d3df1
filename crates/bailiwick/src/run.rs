//! `bailiwick run`: one command in a sandbox of its own, on the same code path as the daemon's.

use std::{collections::BTreeMap, io::Write, path::PathBuf, time::Duration};

use anyhow::{Context, Result, anyhow};
use owo_colors::OwoColorize;
use policy::Decision;
use sandbox::spawner::BindMount;
use sandbox::{Command, CommandEvent, CommandInput, Create, Exec, OnTimeout};
use store::{EventQuery, EventRecord};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};

use crate::{
    cli::RunArgs,
    config::{Config, DataArgs, ServeArgs},
    engine::Engine,
    exit::{self, BadInput},
    printable::{Output, printable},
};

/// The account of the one sandbox.
const ACCOUNT: &str = "run";
/// How much of standard input is handed on at a time.
const INPUT_CHUNK: usize = 64 * 1024;
/// Refusals that the summary names, before it only counts them.
const NAMED_REFUSALS: usize = 5;

/// Runs the command; gives its exit code.
pub(crate) fn run(data: &DataArgs, args: &RunArgs) -> Result<u8> {
    // Bad input is found before anything is made.
    let envs = environment(&args.env)?;
    let mounts = args.mount.iter().map(|text| parse_mount(text)).collect::<Result<Vec<_>>>()?;
    policy::Policy::compile(&args.policy.spec(), crate::node::floor()?)?;
    let serve = ServeArgs {
        templates_dir: args.templates_dir.clone(),
        dns: args.dns.clone(),
        ..ServeArgs::default()
    };
    let mut config = Config::load(data, &serve)?;
    let private = private_directory(&config)?;
    config.data_dir = private.path().join("data");
    crate::logging::start_quiet();
    let runtime = tokio::runtime::Runtime::new().context("starting the runtime")?;
    runtime.block_on(async {
        let engine = Engine::start(&config).await?;
        let done = in_sandbox(&engine, args, envs, mounts).await;
        engine.shutdown().await;
        done
    })
}

/// State of its own, removed afterwards: a daemon may have the machine's data directory.
fn private_directory(config: &Config) -> Result<tempfile::TempDir> {
    let parent = config.data_dir.join("runs");
    std::fs::create_dir_all(&parent).with_context(|| format!("creating {}", parent.display()))?;
    let made = tempfile::Builder::new().prefix("run-").tempdir_in(&parent);
    made.with_context(|| format!("creating a directory in {}", parent.display()))
}

async fn in_sandbox(
    engine: &Engine,
    args: &RunArgs,
    envs: BTreeMap<String, String>,
    mounts: Vec<BindMount>,
) -> Result<u8> {
    let manager = engine.manager();
    let sandbox = manager
        .create(Create {
            account: ACCOUNT.to_owned(),
            template: args.template.clone(),
            timeout: Duration::ZERO,
            metadata: BTreeMap::new(),
            envs,
            policy: args.policy.spec(),
            audit: true,
            on_timeout: OnTimeout::Kill,
            auto_resume: false,
            stored: serde_json::Value::Null,
            limits: None,
            mounts,
            idempotency_key: None,
        })
        .await?;
    let id = sandbox.id.parse().context("the sandbox's own id")?;
    let exec = Exec {
        command: command_line(&args.command),
        user: Some(args.user.clone()),
        envs: BTreeMap::new(),
        cwd: args.cwd.clone(),
        stdin: true,
        timeout: args.timeout,
    };
    let ended = match manager.exec_streaming(ACCOUNT, &id, exec).await {
        Ok(command) => attended(command).await,
        Err(error) => Err(error.into()),
    };
    let killed = manager.kill(ACCOUNT, &id).await;
    summary(engine, &sandbox.id, args.json).await?;
    killed?;
    ended
}

/// Passes standard streams and signals through until the command ends; gives its exit code.
async fn attended(mut command: Command) -> Result<u8> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (signals, to_send) = tokio::sync::mpsc::channel(4);
    if let Some(input) = command.take_input() {
        tokio::spawn(feed(input, to_send));
    }
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let (mut output, mut errors) = (Output::to(&std::io::stdout()), Output::to(&std::io::stderr()));
    loop {
        let event = tokio::select! {
            event = command.next() => event?,
            _ = terminate.recv() => { let _ended = signals.send(TERM).await; continue }
            _ = interrupt.recv() => { let _ended = signals.send(INT).await; continue }
        };
        match event {
            Some(CommandEvent::Stdout(bytes)) => {
                stdout.write_all(&output.next(&bytes)).await.context("writing to standard output")?;
                stdout.flush().await?;
            }
            Some(CommandEvent::Stderr(bytes)) => {
                stderr.write_all(&errors.next(&bytes)).await.context("writing to standard error")?;
                stderr.flush().await?;
            }
            Some(CommandEvent::Exit(status)) => {
                stdout.write_all(&output.end()).await.context("writing to standard output")?;
                stderr.write_all(&errors.end()).await.context("writing to standard error")?;
                stdout.flush().await?;
                stderr.flush().await?;
                return Ok(u8::try_from(status.exit_code).unwrap_or(exit::FAILED));
            }
            None => return Err(anyhow!("the command ended without saying how")),
        }
    }
}

const INT: i32 = 2;
const TERM: i32 = 15;

/// Hands standard input and signals on; ends with either the command or this program.
async fn feed(mut input: CommandInput, mut signals: tokio::sync::mpsc::Receiver<i32>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; INPUT_CHUNK];
    let mut open = true;
    loop {
        let sent = tokio::select! {
            read = stdin.read(&mut buffer), if open => match read {
                Ok(length) if length > 0 => input.write(buffer.get(..length).unwrap_or_default()).await,
                _ => { open = false; input.close().await }
            },
            number = signals.recv() => match number {
                Some(number) => input.signal(number).await,
                None => return,
            },
        };
        if sent.is_err() {
            // The command does not read any more, or has ended; how it ended is read elsewhere.
            open = false;
        }
    }
}

/// Says on standard error what was refused: a line for people, or every decision as JSON.
async fn summary(engine: &Engine, sandbox: &str, json: bool) -> Result<()> {
    engine.audit().flush().await?;
    let decision = if json { None } else { Some(Decision::Deny) };
    let query = EventQuery {
        sandbox: Some(sandbox.to_owned()),
        decision,
        limit: Some(1000),
        ..EventQuery::default()
    };
    let page = engine.store().events().query(&query).await?;
    let mut stderr = anstream::stderr().lock();
    if json {
        for event in page.events {
            writeln!(stderr, "{}", serde_json::to_string(&event)?)?;
        }
    } else if let Some(line) = refusals(&page.events) {
        writeln!(stderr, "{} {line}", "bailiwick:".bold())?;
    }
    Ok(())
}

/// `refused 3: tcp evil.com:443 (default), …`, or nothing if nothing was refused.
fn refusals(events: &[EventRecord]) -> Option<String> {
    let total: u64 = events.iter().map(|event| event.count).sum();
    if total == 0 {
        return None;
    }
    let mut named: Vec<String> = Vec::new();
    for event in events {
        let rule = event.rule.as_ref().map_or("", |rule| rule.text.as_str());
        let text = format!("{} ({})", crate::audit::destination(event), printable(rule));
        if !named.contains(&text) {
            named.push(text);
        }
    }
    let more = named.len().saturating_sub(NAMED_REFUSALS);
    named.truncate(NAMED_REFUSALS);
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    Some(format!("refused {total}: {}{more}", named.join(", ")))
}

/// `K=V`, or `K` with this environment's value.
pub(crate) fn environment(entries: &[String]) -> Result<BTreeMap<String, String>> {
    let parse = |entry: &String| {
        if let Some((name, value)) = entry.split_once('=') {
            return Ok((name.to_owned(), value.to_owned()));
        }
        let value = std::env::var(entry).map_err(|_| {
            anyhow!(BadInput(format!(
                "--env {entry}: there is no such variable here; give --env {entry}=VALUE"
            )))
        })?;
        Ok((entry.clone(), value))
    };
    entries.iter().map(parse).collect()
}

/// `SRC:DST`, `SRC:DST:ro`.
fn parse_mount(text: &str) -> Result<BindMount> {
    let bad = |why: &str| anyhow!(BadInput(format!("--mount {text:?}: {why}")));
    let mut parts = text.split(':');
    let (source, target, mode) = (parts.next(), parts.next(), parts.next());
    let (Some(source), Some(target)) = (source.filter(|s| !s.is_empty()), target) else {
        return Err(bad("is not SRC:DST[:ro]"));
    };
    if !target.starts_with('/') {
        return Err(bad("the place inside must be an absolute path"));
    }
    let read_only = match (mode, parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(bad("after the second colon only ro or rw may stand")),
    };
    let source = PathBuf::from(source).canonicalize().map_err(|error| bad(&format!("{source}: {error}")))?;
    Ok(BindMount { source, target: target.into(), read_only })
}

/// One word is a command line for the shell; several are a program and its arguments, each quoted.
pub(crate) fn command_line(words: &[String]) -> String {
    match words {
        [one] => one.clone(),
        many => many.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "@%_-+=:,./".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_reach_the_program_as_they_were_given() {
        let words =
            |words: &[&str]| command_line(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert_eq!(words(&["echo $HOME | wc"]), "echo $HOME | wc");
        assert_eq!(words(&["echo", "$HOME", "it's", ""]), r"echo '$HOME' 'it'\''s' ''");
    }

    #[test]
    fn mounts_are_read_or_refused_by_name() {
        let mount = parse_mount("/tmp:/data:ro").unwrap();
        assert!(mount.read_only);
        assert_eq!(mount.target, std::path::Path::new("/data"));
        assert!(!parse_mount("/tmp:/data").unwrap().read_only);
        for bad in ["", "/tmp", "/tmp:data", "/tmp:/data:xx", "/tmp:/data:ro:ro", "/no/such/place:/data"] {
            let error = parse_mount(bad).unwrap_err();
            assert_eq!(exit::code_of(&error), exit::BAD_INPUT, "{bad}: {error}");
        }
    }

    #[test]
    fn a_missing_variable_is_bad_input() {
        assert_eq!(environment(&["A=b=c".to_owned()]).unwrap()["A"], "b=c");
        let error = environment(&["BAILIWICK_NO_SUCH_VARIABLE".to_owned()]).unwrap_err();
        assert_eq!(exit::code_of(&error), exit::BAD_INPUT);
    }
}
