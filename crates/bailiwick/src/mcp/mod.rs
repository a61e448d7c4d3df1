//! `bailiwick mcp`: sandboxes as tools for an agent, by the Model Context Protocol over standard input and output.
//!
//! The agent is not trusted: it uses the sandboxes that it has made here or that it was given, and no others of the
//! account; none of them reaches more than the options permit; and what it asks for is bounded in size and number. The
//! sandboxes end with the conversation.

mod message;
mod session;
mod tools;
mod wrap;

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, Stdout},
    signal::unix::{SignalKind, signal},
    sync::{Mutex, mpsc},
    task::{AbortHandle, JoinSet},
};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};

use self::{
    message::{
        BUSY, INVALID_PARAMS, INVALID_REQUEST, Id, METHOD_NOT_FOUND, Message, PARSE_ERROR, Request, RpcError,
        parse, result_line,
    },
    session::{Session, Settings},
};
use crate::{
    cli::McpArgs,
    exit,
    remote::{self, ApiFailure},
    run::environment,
};

/// The versions of the protocol that are spoken, the newest first. What differs between them is not used.
const VERSIONS: [&str; 3] = ["2025-11-25", "2025-06-18", "2024-11-05"];
/// The longest message, in bytes: a file of 1 MiB as JSON, escapes included.
const LONGEST_MESSAGE: usize = 8 << 20;
/// Tools that are called at the same time.
const CALLS: usize = 16;
/// How long what the agent has created may take to end.
const ENDING: Duration = Duration::from_secs(30);

/// Serves until standard input ends.
pub(crate) fn run(args: &McpArgs) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(args));
    // Whoever waits for standard input waits as long as there is any.
    runtime.shutdown_background();
    result
}

async fn serve(args: &McpArgs) -> Result<u8> {
    let (client, told) = (remote::client(&args.api)?, told_to_end()?);
    if !args.command.is_empty() {
        return wrap::run(client, args, told).await;
    }
    for id in &args.sandbox {
        client.get(id).await.map_err(ApiFailure).with_context(|| format!("--sandbox {id}"))?;
    }
    let settings = Settings {
        network: args.policy.network()?,
        template: args.template.clone(),
        timeout: args.timeout,
        envs: environment(&args.env)?,
        given: args.sandbox.iter().cloned().collect(),
        max_sandboxes: args.max_sandboxes,
    };
    let session = Arc::new(Session::new(client, settings)?);
    let mut conversation = Conversation::new(Arc::clone(&session));
    let ended = tokio::select! {
        ended = conversation.hold() => ended,
        () = told => Ok(()),
    };
    // Commands that still run are killed with their calls.
    drop(conversation);
    if !args.keep {
        tokio::time::timeout(ENDING, session.end())
            .await
            .context("the daemon does not end the sandboxes")??;
    }
    ended.map(|()| exit::OK)
}

/// Waits for a signal to end, from now on.
fn told_to_end() -> Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// A conversation with a client.
struct Conversation {
    session: Arc<Session>,
    output: Arc<Mutex<Stdout>>,
    calls: JoinSet<()>,
    /// Those that can be given up, by the id of their request.
    running: HashMap<Id, AbortHandle>,
    ended: (mpsc::UnboundedSender<Id>, mpsc::UnboundedReceiver<Id>),
}

impl Conversation {
    fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            output: Arc::new(Mutex::new(tokio::io::stdout())),
            calls: JoinSet::new(),
            running: HashMap::new(),
            ended: mpsc::unbounded_channel(),
        }
    }

    /// Reads and answers until there is nothing more to read.
    async fn hold(&mut self) -> Result<()> {
        let codec = LinesCodec::new_with_max_length(LONGEST_MESSAGE);
        let mut lines = FramedRead::new(tokio::io::stdin(), codec);
        // After an error the stream says once that it is over, and goes on.
        let mut has_failed = false;
        loop {
            let line = tokio::select! {
                biased;
                Some(id) = self.ended.1.recv() => {
                    self.running.remove(&id);
                    continue;
                }
                Some(_done) = self.calls.join_next() => continue,
                line = lines.next() => line,
            };
            let has_just_failed = std::mem::replace(&mut has_failed, matches!(line, Some(Err(_))));
            match line {
                None if has_just_failed => {}
                None => return Ok(()),
                Some(Ok(line)) if line.trim().is_empty() => {}
                Some(Ok(line)) => self.take(&line).await?,
                Some(Err(LinesCodecError::MaxLineLengthExceeded)) => {
                    let problem = format!("the message is longer than {} MiB", LONGEST_MESSAGE >> 20);
                    self.say(RpcError::new(INVALID_REQUEST, problem).line(None)).await?;
                }
                Some(Err(LinesCodecError::Io(error))) if error.kind() == std::io::ErrorKind::InvalidData => {
                    self.say(RpcError::new(PARSE_ERROR, "the message is not UTF-8").line(None)).await?;
                }
                Some(Err(LinesCodecError::Io(error))) => {
                    return Err(error).context("reading standard input");
                }
            }
        }
    }

    async fn take(&mut self, line: &str) -> Result<()> {
        match parse(line) {
            Err((id, error)) => self.say(error.line(id.as_ref())).await,
            Ok(Message::Answer) => Ok(()),
            Ok(Message::Notification { method, params }) => {
                if method == "notifications/cancelled" {
                    self.give_up(&params);
                }
                Ok(())
            }
            Ok(Message::Request(request)) if request.method == "tools/call" => self.call(request).await,
            Ok(Message::Request(Request { id, method, params })) => {
                let line = match answer(&method, &params) {
                    Ok(result) => result_line(&id, &result),
                    Err(error) => error.line(Some(&id)),
                };
                self.say(line).await
            }
        }
    }

    /// Calls a tool, and goes on reading meanwhile.
    async fn call(&mut self, Request { id, params, .. }: Request) -> Result<()> {
        let refusal = if self.running.contains_key(&id) {
            Some(RpcError::new(INVALID_REQUEST, "id: a request with this id is being worked on"))
        } else if self.running.len() >= CALLS {
            Some(RpcError::new(BUSY, format!("{CALLS} calls are being worked on; wait for one of them")))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return self.say(refusal.line(Some(&id))).await;
        }
        let (session, output) = (Arc::clone(&self.session), Arc::clone(&self.output));
        let (key, ended) = (id.clone(), self.ended.0.clone());
        let handle = self.calls.spawn(async move {
            let line = match tools::call(&session, params).await {
                Ok(result) => result_line(&id, &result),
                Err(error) => error.line(Some(&id)),
            };
            // If nobody reads it, nobody writes either, and the conversation ends.
            let _gone = write(&output, line).await;
            let _over = ended.send(id);
        });
        self.running.insert(key, handle);
        Ok(())
    }

    /// Gives a call up: its command is killed, and there is no answer.
    fn give_up(&mut self, params: &Value) {
        let id = params.get("requestId").cloned().and_then(|id| serde_json::from_value::<Id>(id).ok());
        if let Some(call) = id.and_then(|id| self.running.remove(&id)) {
            call.abort();
        }
    }

    async fn say(&self, line: String) -> Result<()> {
        write(&self.output, line).await.context("writing to standard output")
    }
}

async fn write(output: &Mutex<Stdout>, mut line: String) -> std::io::Result<()> {
    line.push('\n');
    let mut output = output.lock().await;
    output.write_all(line.as_bytes()).await?;
    output.flush().await
}

/// Answers what needs no sandbox.
fn answer(method: &str, params: &Value) -> Result<Value, RpcError> {
    match method {
        "initialize" => initialize(params),
        "ping" => Ok(json!({})),
        "tools/list" => Ok(tools::list()),
        _ => Err(RpcError::new(METHOD_NOT_FOUND, format!("there is no method {method:?}"))),
    }
}

fn initialize(params: &Value) -> Result<Value, RpcError> {
    let asked = params.get("protocolVersion").and_then(Value::as_str);
    let asked = asked.ok_or_else(|| RpcError::new(INVALID_PARAMS, "protocolVersion: missing"))?;
    let [newest, ..] = VERSIONS;
    let version = VERSIONS.into_iter().find(|version| *version == asked).unwrap_or(newest);
    Ok(json!({
        "protocolVersion": version,
        "capabilities": { "tools": {} },
        "serverInfo": { "name": "bailiwick", "title": "Bailiwick sandboxes", "version": env!("CARGO_PKG_VERSION") },
        "instructions": "Run code and commands in sandboxes: create_sandbox first, then the other tools with its id.",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_that_is_known_is_spoken_and_for_another_the_newest_is_offered() {
        for (asked, spoken) in
            [("2024-11-05", "2024-11-05"), ("2025-06-18", "2025-06-18"), ("2099-01-01", "2025-11-25")]
        {
            let answered = answer("initialize", &json!({ "protocolVersion": asked })).unwrap();
            assert_eq!(answered["protocolVersion"], spoken);
            assert!(answered["capabilities"]["tools"].is_object());
        }
        assert_eq!(answer("initialize", &Value::Null).unwrap_err().code, INVALID_PARAMS);
        assert_eq!(answer("resources/list", &Value::Null).unwrap_err().code, METHOD_NOT_FOUND);
        assert_eq!(answer("ping", &Value::Null).unwrap(), json!({}));
    }
}
