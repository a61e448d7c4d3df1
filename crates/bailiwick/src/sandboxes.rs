//! `bailiwick sandbox`: the sandboxes of a daemon, over its API.

mod copy;
mod exec;
mod logs;
mod shell;

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use api::{Sandbox, Timestamp};
use client::{Client, NewSandbox};
use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::{
    cli::{CreateArgs, IdsArgs, LsArgs, SandboxArgs, SandboxCommand, TimeoutArgs},
    exit::{self, BadInput},
    policies,
    printable::printable,
    remote::{self, ApiFailure},
};

/// Runs one of the commands.
pub(crate) fn run(args: &SandboxArgs) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(dispatch(args));
    // A terminal that takes no output must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn dispatch(args: &SandboxArgs) -> Result<u8> {
    let connect = || remote::client(&args.api);
    match &args.command {
        SandboxCommand::Ls(args) => list(&connect()?, args).await,
        SandboxCommand::Create(args) => {
            // Bad input is found before anything is asked for.
            let sandbox = new_sandbox(args)?;
            create(&connect()?, &sandbox, args.json).await
        }
        SandboxCommand::Exec(args) => exec::run(connect, args).await,
        SandboxCommand::Shell(args) => shell::run(connect, args).await,
        SandboxCommand::Cp(args) => copy::run(connect, args).await,
        SandboxCommand::Kill(args) => kill(&connect()?, args).await,
        SandboxCommand::Pause(args) => {
            connect()?.pause(&args.id).await.map_err(ApiFailure)?;
            done(args.json, &json!({ "sandbox_id": args.id, "state": "paused" }), "paused")
        }
        SandboxCommand::Resume(args) => {
            connect()?.resume(&args.id).await.map_err(ApiFailure)?;
            done(args.json, &json!({ "sandbox_id": args.id, "state": "running" }), "running")
        }
        SandboxCommand::SetTimeout(args) => set_timeout(&connect()?, args).await,
        SandboxCommand::Logs(args) => logs::run(&connect()?, args).await,
        SandboxCommand::Info(args) => {
            let sandbox = connect()?.get(&args.id).await.map_err(ApiFailure)?;
            info(&sandbox, args.json)
        }
    }
}

async fn list(client: &Client, args: &LsArgs) -> Result<u8> {
    let sandboxes = client.list(&args.state, &labels(&args.label)?).await.map_err(ApiFailure)?;
    if args.json {
        anstream::println!("{}", serde_json::to_string(&sandboxes)?);
        return Ok(exit::OK);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["ID", "TEMPLATE", "STATE", "CREATED", "ENDS", "LABELS"]);
    for sandbox in sandboxes {
        table.add_row([
            printable(&sandbox.sandbox_id),
            printable(&sandbox.template_id),
            sandbox.state.as_str().to_owned(),
            minute(sandbox.created_at),
            sandbox.end_at.map_or_else(|| "never".to_owned(), minute),
            pairs(&sandbox.metadata),
        ]);
    }
    anstream::println!("{table}");
    Ok(exit::OK)
}

fn new_sandbox(args: &CreateArgs) -> Result<NewSandbox> {
    let lifecycle = api::Lifecycle {
        on_timeout: args.on_timeout.map(Into::into).unwrap_or_default(),
        auto_resume: args.auto_resume,
    };
    Ok(NewSandbox {
        lifecycle: (lifecycle != api::Lifecycle::default()).then_some(lifecycle),
        template: args.template.clone(),
        timeout: args.timeout,
        metadata: labels(&args.label)?,
        envs: crate::run::environment(&args.env)?,
        network: args.policy.network()?,
    })
}

fn labels(given: &[String]) -> Result<BTreeMap<String, String>> {
    let label = |text: &String| match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(anyhow!(BadInput(format!("--label {text:?}: is not K=V")))),
    };
    given.iter().map(label).collect()
}

async fn create(client: &Client, sandbox: &NewSandbox, json: bool) -> Result<u8> {
    let created = client.create(sandbox).await.map_err(ApiFailure)?;
    if json {
        anstream::println!("{}", serde_json::to_string(&created)?);
    } else {
        anstream::println!("{}", printable(&created.sandbox_id));
        policies::warn(&created.warnings);
    }
    Ok(exit::OK)
}

/// Kills all of them, also behind one that cannot be; the first failure is told at the end, each where it happens.
async fn kill(client: &Client, args: &IdsArgs) -> Result<u8> {
    let mut results = Vec::new();
    let mut failure = None;
    for id in &args.ids {
        match client.kill(id).await {
            Ok(killed) => {
                results.push(json!({ "sandbox_id": id, "killed": killed }));
                if !args.json {
                    let what = if killed { "killed" } else { "was killed before" };
                    anstream::println!("{} {what}", printable(id));
                }
            }
            Err(error) => {
                let error = anyhow!(ApiFailure(error)).context(printable(id));
                results.push(json!({ "sandbox_id": id, "error": format!("{error:#}") }));
                if let Some(before) = failure.replace(error) {
                    anstream::eprintln!("{before:#}");
                }
            }
        }
    }
    if args.json {
        anstream::println!("{}", Value::from(results));
    }
    failure.map_or(Ok(exit::OK), Err)
}

async fn set_timeout(client: &Client, args: &TimeoutArgs) -> Result<u8> {
    client.set_timeout(&args.id, args.seconds).await.map_err(ApiFailure)?;
    let text = match args.seconds {
        0 => "has no time limit".to_owned(),
        seconds => format!("ends in {seconds} seconds"),
    };
    done(args.json, &json!({ "sandbox_id": args.id, "timeout": args.seconds }), &text)
}

fn done(json: bool, answer: &Value, text: &str) -> Result<u8> {
    if json {
        anstream::println!("{answer}");
    } else {
        anstream::println!("{text}");
    }
    Ok(exit::OK)
}

fn info(sandbox: &Sandbox, json: bool) -> Result<u8> {
    if json {
        anstream::println!("{}", serde_json::to_string_pretty(sandbox)?);
        return Ok(exit::OK);
    }
    let policy = match &sandbox.network {
        None => "none: the public internet is permitted".to_owned(),
        Some(network) => network.to_string(),
    };
    let timeout = match sandbox.timeout {
        0 => "no limit".to_owned(),
        seconds => format!("{seconds} s"),
    };
    let then = match (sandbox.lifecycle.on_timeout, sandbox.lifecycle.auto_resume) {
        (api::OnTimeout::Kill, false) => "it is killed",
        (api::OnTimeout::Kill, true) => "it is killed; a pause before that ends when it is used",
        (api::OnTimeout::Pause, false) => "it is paused",
        (api::OnTimeout::Pause, true) => "it is paused until it is used",
    };
    let variables = sandbox.envs.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    for (name, value) in [
        ("id", sandbox.sandbox_id.clone()),
        ("template", sandbox.template_id.clone()),
        ("state", sandbox.state.as_str().to_owned()),
        ("created", sandbox.created_at.to_string()),
        ("ends", sandbox.end_at.map_or_else(|| "never".to_owned(), |end| end.to_string())),
        ("time limit", timeout),
        ("then", then.to_owned()),
        ("labels", pairs(&sandbox.metadata)),
        ("variables", variables),
        ("policy", policy),
    ] {
        table.add_row([name.to_owned(), printable(&value)]);
    }
    anstream::println!("{table}");
    Ok(exit::OK)
}

fn minute(time: Timestamp) -> String {
    time.0.strftime("%Y-%m-%d %H:%M").to_string()
}

fn pairs(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    printable(&pairs.join(", "))
}
