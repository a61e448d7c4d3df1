//! Sandboxes, their policies, commands and events.

use std::collections::BTreeMap;

use api::{
    Acknowledged, AuditPage, CommandExit, Killed, Lifecycle, Network, Ratchet, RatchetRevoked, Sandbox,
    SandboxList,
};
use form_urlencoded::Serializer;
use hyper::Method;
use serde::Serialize;

use crate::{Client, ClientError, http::Content};

/// A sandbox to create. What is not given is up to the server.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NewSandbox {
    /// Name or id of the template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Seconds until it ends by itself; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Variables in the environment of every command.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    /// What it may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// What happens when its time is over, and when it is used after that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
}

/// A command to run to its end.
#[derive(Clone, Debug, Default, Serialize)]
pub struct NewCommand {
    /// A line for the shell.
    pub cmd: String,
    /// The user to run as; `None` is `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Variables besides those of the sandbox.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    /// The working directory; `None` is the user's home directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Seconds after which it is killed, with exit code 124.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
}

/// Which events of a sandbox to list.
#[derive(Clone, Debug, Default)]
pub struct EventFilter {
    /// Only at or after this time (RFC 3339).
    pub since: Option<String>,
    /// Only of these types; none means all.
    pub kinds: Vec<String>,
    /// Only `allow`, or only `deny`.
    pub decision: Option<String>,
    /// Only about this host, or `*.` and a domain.
    pub host: Option<String>,
    /// At most this many on the page.
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl Client {
    /// Creates a sandbox; answers when commands can be run in it.
    pub async fn create(&self, sandbox: &NewSandbox) -> Result<Sandbox, ClientError> {
        self.call(Method::POST, "/sandboxes", Content::json(sandbox)).await
    }

    /// A sandbox, whatever its state.
    pub async fn get(&self, id: &str) -> Result<Sandbox, ClientError> {
        self.call(Method::GET, &path(id, "")?, Content::none()).await
    }

    /// All sandboxes in one of `states` that have all of `labels`, newest first. Without states all but killed ones; `all`
    /// is a state, too.
    pub async fn list(
        &self,
        states: &[String],
        labels: &BTreeMap<String, String>,
    ) -> Result<Vec<Sandbox>, ClientError> {
        let (mut sandboxes, mut next) = (Vec::new(), None::<String>);
        loop {
            let mut query = Serializer::new(String::new());
            query.append_pair("limit", "1000").extend_pairs(states.iter().map(|state| ("state", state)));
            query.extend_pairs(labels.iter().map(|(key, value)| (format!("metadata[{key}]"), value)));
            query.extend_pairs(next.iter().map(|next| ("next_token", next)));
            let page: SandboxList =
                self.call(Method::GET, &format!("/sandboxes?{}", query.finish()), Content::none()).await?;
            let is_last = page.sandboxes.is_empty();
            sandboxes.extend(page.sandboxes);
            next = page.next_token;
            if is_last || next.is_none() {
                return Ok(sandboxes);
            }
        }
    }

    /// Kills a sandbox, and answers when everything is gone; false if it was killed before.
    pub async fn kill(&self, id: &str) -> Result<bool, ClientError> {
        let Killed { killed } = self.call(Method::DELETE, &path(id, "")?, Content::none()).await?;
        Ok(killed)
    }

    /// Stops the processes of a sandbox where they are.
    pub async fn pause(&self, id: &str) -> Result<(), ClientError> {
        let Acknowledged { .. } = self.call(Method::POST, &path(id, "/pause")?, Content::none()).await?;
        Ok(())
    }

    /// Lets them go on.
    pub async fn resume(&self, id: &str) -> Result<(), ClientError> {
        let Acknowledged { .. } = self.call(Method::POST, &path(id, "/resume")?, Content::none()).await?;
        Ok(())
    }

    /// Sets how many seconds a sandbox has from now; 0: no limit.
    pub async fn set_timeout(&self, id: &str, seconds: u64) -> Result<(), ClientError> {
        let body = Content::json(&BTreeMap::from([("timeout", seconds)]));
        let Acknowledged { .. } = self.call(Method::PATCH, &path(id, "/timeout")?, body).await?;
        Ok(())
    }

    /// Replaces the policy of a sandbox.
    pub async fn set_network(&self, id: &str, network: &Network) -> Result<Sandbox, ClientError> {
        self.call(Method::PUT, &path(id, "/network")?, Content::json(network)).await
    }

    /// Makes a token that narrows the policy of a sandbox and does nothing else, in the place of the one it has.
    pub async fn create_ratchet(&self, id: &str) -> Result<Ratchet, ClientError> {
        self.call(Method::POST, &path(id, "/ratchet")?, Content::none()).await
    }

    /// Revokes that token; false if there is none.
    pub async fn revoke_ratchet(&self, id: &str) -> Result<bool, ClientError> {
        let RatchetRevoked { revoked } =
            self.call(Method::DELETE, &path(id, "/ratchet")?, Content::none()).await?;
        Ok(revoked)
    }

    /// Runs a command to its end. It is killed when the future is dropped.
    pub async fn run(&self, id: &str, command: &NewCommand) -> Result<CommandExit, ClientError> {
        self.call(Method::POST, &path(id, "/commands")?, Content::json(command)).await
    }

    /// A page of a sandbox's events, oldest first.
    pub async fn events(&self, id: &str, filter: &EventFilter) -> Result<AuditPage, ClientError> {
        let mut query = Serializer::new(String::new());
        query.extend_pairs(filter.kinds.iter().map(|kind| ("type", kind)));
        let single = [
            ("since", &filter.since),
            ("decision", &filter.decision),
            ("host", &filter.host),
            ("limit", &filter.limit.map(|limit| limit.to_string())),
            ("cursor", &filter.cursor),
        ];
        query.extend_pairs(single.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))));
        let path = path(id, &format!("/audit?{}", query.finish()))?;
        self.call(Method::GET, &path, Content::none()).await
    }
}

/// The path of something of a sandbox. An id with other characters would lead elsewhere.
pub(crate) fn path(id: &str, rest: &str) -> Result<String, ClientError> {
    let is_id =
        !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_id { Ok(format!("/sandboxes/{id}{rest}")) } else { Err(ClientError::Id(id.to_owned())) }
}
