//! Terminals in a sandbox.

use std::collections::BTreeMap;

use api::{Acknowledged, CommandStarted, Killed, PtySize};
use hyper::Method;
use serde::Serialize;
use serde_json::json;

use crate::{Client, ClientError, SessionEvents, http::Content, sandboxes::path};

/// A terminal to open, with a login shell in it. What is not given is up to the server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NewTerminal {
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<PtySize>,
    /// The user to run as; `None` is `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Variables besides those of the sandbox.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    /// The working directory; `None` is the user's home directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

impl Client {
    /// Opens a terminal, and gives the number by which it is used. It stays when nobody watches it.
    pub async fn open_terminal(&self, id: &str, terminal: &NewTerminal) -> Result<u32, ClientError> {
        let started: CommandStarted =
            self.call(Method::POST, &path(id, "/pty")?, Content::json(terminal)).await?;
        Ok(started.pid)
    }

    /// Watches a terminal from now on: what it shows is [`SessionEvent::Stdout`](crate::SessionEvent::Stdout). What it has
    /// shown while nobody watched comes first, the end of it.
    pub async fn watch_terminal(&self, id: &str, terminal: u32) -> Result<SessionEvents, ClientError> {
        let path = path(id, &format!("/pty/{terminal}/stream"))?;
        let response = self.send(Method::GET, &path, Content::none()).await?;
        Ok(SessionEvents::new(self, response, 0))
    }

    /// Types into a terminal.
    pub async fn type_into_terminal(&self, id: &str, terminal: u32, text: &str) -> Result<(), ClientError> {
        let body = Content::json(&json!({ "data": text }));
        let path = path(id, &format!("/pty/{terminal}/stdin"))?;
        let Acknowledged { .. } = self.call(Method::POST, &path, body).await?;
        Ok(())
    }

    /// Gives a terminal another size, and tells its programs.
    pub async fn resize_terminal(&self, id: &str, terminal: u32, size: PtySize) -> Result<(), ClientError> {
        let body = Content::json(&json!({ "size": size }));
        let path = path(id, &format!("/pty/{terminal}"))?;
        let Acknowledged { .. } = self.call(Method::PATCH, &path, body).await?;
        Ok(())
    }

    /// Kills the shell of a terminal with all it started; false if it had ended.
    pub async fn kill_terminal(&self, id: &str, terminal: u32) -> Result<bool, ClientError> {
        let path = path(id, &format!("/pty/{terminal}"))?;
        let Killed { killed } = self.call(Method::DELETE, &path, Content::none()).await?;
        Ok(killed)
    }
}
