//! The tools: what an agent can do with its sandboxes.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use api::EntryKind;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use client::NewCommand;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::io::AsyncWrite;

use super::{
    message::{INVALID_PARAMS, RpcError},
    session::{Session, ToolError},
};

/// The longest file that is read or written, in bytes.
const LONGEST_FILE: usize = 1 << 20;
/// How much of each output of a command is told, in bytes; of a longer one the beginning and the end.
const LONGEST_OUTPUT: usize = 64 << 10;
/// The most entries of a directory that are told.
const MOST_ENTRIES: usize = 1000;
/// How long a command may run unless the agent says otherwise, in seconds.
const COMMAND_TIMEOUT: f64 = 60.0;

/// The tools, as `tools/list` tells them.
pub(super) fn list() -> Value {
    let sandbox_id =
        json!({ "type": "string", "description": "The id of the sandbox, as create_sandbox gave it" });
    let path = json!({ "type": "string", "description": "Absolute, or below /home/user" });
    let encoding = json!({
        "type": "string", "enum": ["utf-8", "base64"], "default": "utf-8", "description": "base64 for what is not text",
    });
    let user = json!({ "type": "string", "enum": ["user", "root"], "default": "user" });
    let reads = json!({ "readOnlyHint": true, "openWorldHint": false });
    json!({ "tools": [
        {
            "name": "create_sandbox",
            "title": "Create a sandbox",
            "description": "Creates an isolated Linux sandbox and returns its id. It has files and processes of its own. \
                What it may reach over the network is limited; a refused connection fails at once.",
            "inputSchema": object(&[], json!({
                "allow_out": {
                    "type": "array", "items": { "type": "string" },
                    "description": "Reach no more than this: host, *.host, address or CIDR, each with an optional :port. \
                        Must be within what this session permits. Default: all that it permits; []: nothing.",
                },
            })),
            "annotations": { "readOnlyHint": false, "destructiveHint": false, "openWorldHint": false },
        },
        {
            "name": "run_command",
            "title": "Run a command",
            "description": "Runs a shell command in a sandbox to its end; returns its output and its exit code \
                (124: its time was up).",
            "inputSchema": object(&["sandbox_id", "command"], json!({
                "sandbox_id": sandbox_id,
                "command": { "type": "string", "description": "A line for sh" },
                "cwd": { "type": "string", "description": "The working directory; default /home/user" },
                "timeout_seconds": { "type": "number", "exclusiveMinimum": 0, "default": COMMAND_TIMEOUT },
                "user": user,
            })),
            "annotations": { "readOnlyHint": false, "destructiveHint": true, "openWorldHint": true },
        },
        {
            "name": "read_file",
            "title": "Read a file",
            "description": "Returns the content of a file in a sandbox, up to 1 MiB.",
            "inputSchema": object(&["sandbox_id", "path"], json!({
                "sandbox_id": sandbox_id, "path": path, "encoding": encoding,
            })),
            "annotations": reads,
        },
        {
            "name": "write_file",
            "title": "Write a file",
            "description": "Writes a file in a sandbox, up to 1 MiB, in the place of the one that is there; makes its \
                directories.",
            "inputSchema": object(&["sandbox_id", "path", "content"], json!({
                "sandbox_id": sandbox_id, "path": path, "content": { "type": "string" }, "encoding": encoding,
            })),
            "annotations": { "readOnlyHint": false, "destructiveHint": true, "idempotentHint": true, "openWorldHint": false },
        },
        {
            "name": "list_files",
            "title": "List a directory",
            "description": "Lists a directory in a sandbox, up to 1000 entries.",
            "inputSchema": object(&["sandbox_id", "path"], json!({
                "sandbox_id": sandbox_id, "path": path,
                "depth": { "type": "integer", "minimum": 1, "maximum": 16, "default": 1 },
            })),
            "annotations": reads,
        },
        {
            "name": "list_sandboxes",
            "title": "List the sandboxes",
            "description": "Lists the sandboxes of this session with their states.",
            "inputSchema": object(&[], json!({})),
            "annotations": reads,
        },
        {
            "name": "kill_sandbox",
            "title": "Kill a sandbox",
            "description": "Ends a sandbox; nothing of it is kept.",
            "inputSchema": object(&["sandbox_id"], json!({ "sandbox_id": sandbox_id })),
            "annotations": { "readOnlyHint": false, "destructiveHint": true, "openWorldHint": false },
        },
    ] })
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
}

#[derive(Deserialize)]
struct Call {
    name: String,
    #[serde(default)]
    arguments: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateSandbox {
    #[serde(default)]
    allow_out: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunCommand {
    sandbox_id: String,
    command: String,
    cwd: Option<String>,
    timeout_seconds: Option<f64>,
    user: Option<User>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum User {
    User,
    Root,
}

#[derive(Clone, Copy, Default, Deserialize)]
enum Encoding {
    #[default]
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadFile {
    sandbox_id: String,
    path: String,
    #[serde(default)]
    encoding: Encoding,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteFile {
    sandbox_id: String,
    path: String,
    content: String,
    #[serde(default)]
    encoding: Encoding,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListFiles {
    sandbox_id: String,
    path: String,
    #[serde(default = "one")]
    depth: u32,
}

fn one() -> u32 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OneSandbox {
    sandbox_id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// Calls a tool. What goes wrong with what it does is a result, too: it is for the agent to read.
///
/// # Errors
/// When there is no such tool, or it does not take such arguments.
pub(super) async fn call(session: &Arc<Session>, params: Value) -> Result<Value, RpcError> {
    let Call { name, arguments } = serde_json::from_value(params)
        .map_err(|error| RpcError::new(INVALID_PARAMS, format!("params: {error}")))?;
    let told = match name.as_str() {
        "create_sandbox" => create_sandbox(session, take(arguments)?).await,
        "run_command" => run_command(session, take(arguments)?).await,
        "read_file" => read_file(session, take(arguments)?).await,
        "write_file" => write_file(session, take(arguments)?).await,
        "list_files" => list_files(session, take(arguments)?).await,
        "list_sandboxes" => {
            let Nothing {} = take(arguments)?;
            list_sandboxes(session).await
        }
        "kill_sandbox" => {
            let OneSandbox { sandbox_id } = take(arguments)?;
            session.kill(&sandbox_id).await.map(|killed| Told::Object(json!({ "killed": killed })))
        }
        _ => return Err(RpcError::new(INVALID_PARAMS, format!("there is no tool {name:?}"))),
    };
    Ok(match told {
        Ok(Told::Text(text)) => json!({ "content": [{ "type": "text", "text": text }] }),
        Ok(Told::Object(object)) => json!({
            "content": [{ "type": "text", "text": object.to_string() }], "structuredContent": object,
        }),
        Err(error) => json!({ "content": [{ "type": "text", "text": error.to_string() }], "isError": true }),
    })
}

/// What a tool has to tell.
enum Told {
    Text(String),
    Object(Value),
}

/// The arguments of a tool.
fn take<T: DeserializeOwned>(arguments: Value) -> Result<T, RpcError> {
    let arguments = if arguments.is_null() { json!({}) } else { arguments };
    serde_json::from_value(arguments)
        .map_err(|error| RpcError::new(INVALID_PARAMS, format!("arguments: {error}")))
}

async fn create_sandbox(session: &Arc<Session>, asked: CreateSandbox) -> Result<Told, ToolError> {
    let (id, network) = session.create(asked.allow_out).await?;
    Ok(Told::Object(json!({
        "sandbox_id": id, "allow_out": network.allow_out, "deny_out": network.deny_out,
    })))
}

async fn run_command(session: &Session, asked: RunCommand) -> Result<Told, ToolError> {
    let timeout = asked.timeout_seconds.unwrap_or(COMMAND_TIMEOUT);
    if !(timeout.is_finite() && timeout > 0.0) {
        return Err(ToolError::Unfit(format!("timeout_seconds: {timeout} is not more than 0")));
    }
    let command = NewCommand {
        cmd: asked.command,
        user: asked.user.map(|user| match user {
            User::User => "user".to_owned(),
            User::Root => "root".to_owned(),
        }),
        cwd: asked.cwd,
        timeout: Some(timeout),
        ..NewCommand::default()
    };
    let ended = session.client.run(session.own(&asked.sandbox_id)?, &command).await?;
    let mut told = json!({
        "exit_code": ended.exit_code, "stdout": shortened(&ended.stdout), "stderr": shortened(&ended.stderr),
    });
    if ended.stdout_truncated || ended.stderr_truncated {
        told["note"] = "there was more output than the daemon keeps".into();
    }
    Ok(Told::Object(told))
}

/// A text with its middle left out, if it is long.
fn shortened(text: &str) -> String {
    if text.len() <= LONGEST_OUTPUT {
        return text.to_owned();
    }
    let head = text.floor_char_boundary(LONGEST_OUTPUT / 2);
    let tail = text.ceil_char_boundary(text.len() - LONGEST_OUTPUT / 2);
    let (first, last) = (text.get(..head).unwrap_or_default(), text.get(tail..).unwrap_or_default());
    format!("{first}\n… {} bytes are left out …\n{last}", tail - head)
}

async fn read_file(session: &Session, asked: ReadFile) -> Result<Told, ToolError> {
    let id = session.own(&asked.sandbox_id)?;
    let mut content = Bounded::default();
    let read = session.client.read_file(id, &asked.path, None, &mut content).await;
    if content.is_full {
        return Err(ToolError::Unfit(format!(
            "{}: the file is longer than 1 MiB; read a part of it",
            asked.path
        )));
    }
    read?;
    match asked.encoding {
        Encoding::Base64 => Ok(Told::Text(STANDARD.encode(content.bytes))),
        Encoding::Utf8 => String::from_utf8(content.bytes).map(Told::Text).map_err(|_| {
            ToolError::Unfit(format!("{}: the file is not text; read it as base64", asked.path))
        }),
    }
}

async fn write_file(session: &Session, asked: WriteFile) -> Result<Told, ToolError> {
    let id = session.own(&asked.sandbox_id)?;
    let content = match asked.encoding {
        Encoding::Utf8 => asked.content.into_bytes(),
        Encoding::Base64 => STANDARD
            .decode(asked.content)
            .map_err(|error| ToolError::Unfit(format!("content: is not base64: {error}")))?,
    };
    if content.len() > LONGEST_FILE {
        return Err(ToolError::Unfit("content: is longer than 1 MiB".to_owned()));
    }
    let written = session.client.write_file(id, &asked.path, None, io::Cursor::new(content)).await?;
    Ok(Told::Object(json!({ "path": written.path, "size": written.size })))
}

async fn list_files(session: &Session, asked: ListFiles) -> Result<Told, ToolError> {
    let id = session.own(&asked.sandbox_id)?;
    let entries = session.client.list_files(id, &asked.path, None, asked.depth).await?;
    let told: Vec<_> = entries
        .iter()
        .take(MOST_ENTRIES)
        .map(|entry| {
            let kind = if entry.kind == EntryKind::Dir { "dir" } else { "file" };
            json!({ "path": entry.path, "type": kind, "size": entry.size })
        })
        .collect();
    Ok(Told::Object(json!({ "entries": told, "left_out": entries.len().saturating_sub(MOST_ENTRIES) })))
}

async fn list_sandboxes(session: &Session) -> Result<Told, ToolError> {
    let mut told = Vec::new();
    for id in session.all() {
        let state = match session.client.get(&id).await {
            Ok(sandbox) => sandbox.state.as_str().to_owned(),
            Err(error) if error.status() == Some(404) => "killed".to_owned(),
            Err(error) => return Err(error.into()),
        };
        told.push(json!({ "sandbox_id": id, "state": state }));
    }
    Ok(Told::Object(json!({ "sandboxes": told })))
}

/// Takes so many bytes, and then no more.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() + bytes.len() > LONGEST_FILE {
            self.is_full = true;
            return Poll::Ready(Err(io::ErrorKind::FileTooLarge.into()));
        }
        self.bytes.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_a_name_and_a_closed_schema() {
        let listed = list();
        let tools = listed["tools"].as_array().unwrap();
        let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
        assert_eq!(names.len(), 7);
        for tool in tools {
            let schema = &tool["inputSchema"];
            assert_eq!((&schema["type"], &schema["additionalProperties"]), (&json!("object"), &json!(false)));
            for required in schema["required"].as_array().unwrap() {
                assert!(schema["properties"][required.as_str().unwrap()].is_object(), "{tool}");
            }
        }
    }

    #[test]
    fn of_a_long_output_the_beginning_and_the_end_are_told() {
        assert_eq!(shortened("größe"), "größe");
        let long = format!("begin{}end", "ö".repeat(LONGEST_OUTPUT));
        let short = shortened(&long);
        assert!(short.starts_with("begin") && short.ends_with("end") && short.contains("are left out"));
        assert!(short.len() < LONGEST_OUTPUT + 100);
    }
}
