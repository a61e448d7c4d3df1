//! What an agent may have: its sandboxes, and the policy that none of them may be wider than.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context, Result};
use api::Network;
use client::{Client, ClientError, NewSandbox};
use parking_lot::Mutex;
use policy::{Floor, Policy, PolicyError, PolicySpec, Widening};
use tokio_util::task::TaskTracker;

/// The sandboxes of an agent, and how more are made.
pub(super) struct Session {
    pub(super) client: Client,
    bounds: Bounds,
    template: Option<String>,
    timeout: u64,
    envs: BTreeMap<String, String>,
    max_sandboxes: usize,
    own: Mutex<Own>,
    /// Creations under way: they are carried out to their end, so that what is made is known.
    creations: TaskTracker,
}

#[derive(Debug, Default)]
struct Own {
    /// Those that were there before.
    given: BTreeSet<String>,
    created: BTreeSet<String>,
    /// How many are being made.
    coming: usize,
}

/// How a session is made.
pub(super) struct Settings {
    pub(super) network: Option<Network>,
    pub(super) template: Option<String>,
    pub(super) timeout: u64,
    pub(super) envs: BTreeMap<String, String>,
    pub(super) given: BTreeSet<String>,
    pub(super) max_sandboxes: usize,
}

/// Why an agent does not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    /// It is not one of its sandboxes.
    #[error("sandbox_id: {0:?} is not a sandbox of this session; list_sandboxes tells which are")]
    NotOwn(String),
    /// It has as many as it may.
    #[error("there are {0} sandboxes already, and there may be no more; kill one of them first")]
    TooMany(usize),
    /// An entry is not one.
    #[error("{0}")]
    Policy(#[from] PolicyError),
    /// It asks for more than it may.
    #[error("this session does not permit it: {0}")]
    Widens(#[from] Widening),
    /// The daemon refused or failed.
    #[error("{}", chain(.0))]
    Api(#[from] ClientError),
    /// It does not fit.
    #[error("{0}")]
    Unfit(String),
}

fn chain(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

impl Session {
    /// # Errors
    /// When the policy is none.
    pub(super) fn new(client: Client, settings: Settings) -> Result<Self> {
        let Settings { network, template, timeout, envs, given, max_sandboxes } = settings;
        Ok(Self {
            client,
            bounds: Bounds::new(network)?,
            template,
            timeout,
            envs,
            max_sandboxes,
            own: Mutex::new(Own { given, ..Own::default() }),
            creations: TaskTracker::new(),
        })
    }

    /// Makes a sandbox, which may reach what is permitted, or no more than `allow_out` of it.
    pub(super) async fn create(
        self: &Arc<Self>,
        allow_out: Option<Vec<String>>,
    ) -> Result<(String, Network), ToolError> {
        let network = self.bounds.narrowed(allow_out)?;
        {
            let mut own = self.own.lock();
            if own.created.len() + own.coming >= self.max_sandboxes {
                return Err(ToolError::TooMany(self.max_sandboxes));
            }
            own.coming += 1;
        }
        let (session, asked) = (Arc::clone(self), network.clone());
        let creation = self.creations.spawn(async move {
            let sandbox = NewSandbox {
                template: session.template.clone(),
                timeout: Some(session.timeout),
                envs: session.envs.clone(),
                network: Some(asked),
                ..NewSandbox::default()
            };
            let created = session.client.create(&sandbox).await;
            let mut own = session.own.lock();
            own.coming -= 1;
            created.map(|created| {
                own.created.insert(created.sandbox_id.clone());
                created.sandbox_id
            })
        });
        let id = creation.await.map_err(|_| ToolError::Unfit("the sandbox was not created".to_owned()))??;
        Ok((id, network))
    }

    /// The id, if it is of one of the agent's sandboxes.
    pub(super) fn own<'a>(&self, id: &'a str) -> Result<&'a str, ToolError> {
        let own = self.own.lock();
        if own.given.contains(id) || own.created.contains(id) {
            Ok(id)
        } else {
            Err(ToolError::NotOwn(id.to_owned()))
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<String> {
        let own = self.own.lock();
        own.given.union(&own.created).cloned().collect()
    }

    /// Kills a sandbox of the agent.
    pub(super) async fn kill(&self, id: &str) -> Result<bool, ToolError> {
        let killed = self.client.kill(self.own(id)?).await?;
        let mut own = self.own.lock();
        own.given.remove(id);
        own.created.remove(id);
        Ok(killed)
    }

    /// Kills what the agent has created.
    ///
    /// # Errors
    /// When the daemon does not; its time-out is left then.
    pub(super) async fn end(&self) -> Result<()> {
        self.creations.close();
        self.creations.wait().await;
        let created = std::mem::take(&mut self.own.lock().created);
        let mut failure = None;
        for id in created {
            match self.client.kill(&id).await {
                Ok(_) => {}
                Err(error) if error.status() == Some(404) => {}
                Err(error) => failure = Some((id, error)),
            }
        }
        match failure {
            None => Ok(()),
            Some((id, error)) => Err(error).with_context(|| format!("killing the sandbox {id}")),
        }
    }
}

/// What no sandbox of the agent may be wider than.
struct Bounds {
    network: Network,
    policy: Policy,
}

impl Bounds {
    fn new(network: Option<Network>) -> Result<Self, PolicyError> {
        let network = network.unwrap_or_else(nothing);
        Ok(Self { policy: compile(&network)?, network })
    }

    /// The policy of a sandbox that is to reach no more than this.
    fn narrowed(&self, allow_out: Option<Vec<String>>) -> Result<Network, ToolError> {
        let network = match allow_out {
            None => return Ok(self.network.clone()),
            // A policy without entries would permit everything.
            Some(entries) if entries.is_empty() => {
                Network { allow_out: Vec::new(), deny_out: nothing().deny_out, ..self.network.clone() }
            }
            Some(allow_out) => Network { allow_out, ..self.network.clone() },
        };
        compile(&network)?.check_within(&self.policy)?;
        Ok(network)
    }
}

/// A policy that permits nothing.
pub(super) fn nothing() -> Network {
    Network { deny_out: vec!["*".to_owned()], ..Network::default() }
}

/// The lists of a policy. What else there is in one is the same in all policies of a session, and the daemon adds to the
/// floor what the machine has.
fn compile(network: &Network) -> Result<Policy, PolicyError> {
    let spec = PolicySpec {
        allow_out: network.allow_out.clone(),
        deny_out: network.deny_out.clone(),
        ..PolicySpec::default()
    };
    Policy::compile(&spec, Arc::new(Floor::new([])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(allow_out: &[&str], deny_out: &[&str]) -> Bounds {
        let list = |entries: &[&str]| entries.iter().map(ToString::to_string).collect();
        let network = Network { allow_out: list(allow_out), deny_out: list(deny_out), ..Network::default() };
        Bounds::new(Some(network)).unwrap()
    }

    fn ask(bounds: &Bounds, entries: &[&str]) -> Result<Network, ToolError> {
        bounds.narrowed(Some(entries.iter().map(ToString::to_string).collect()))
    }

    #[test]
    fn an_agent_gets_what_is_permitted_or_less_and_never_more() {
        let bounds = bounds(&["api.example.com", "*.example.org:443"], &[]);
        assert_eq!(bounds.narrowed(None).unwrap().allow_out, ["api.example.com", "*.example.org:443"]);
        for within in [&["api.example.com"][..], &["api.example.com:443", "a.example.org:443"]] {
            assert_eq!(ask(&bounds, within).unwrap().allow_out, within);
        }
        for wider in ["evil.test", "*", "*.example.com", "a.example.org", "0.0.0.0/0", "10.0.0.1"] {
            let refused = ask(&bounds, &["api.example.com", wider]).unwrap_err();
            assert!(matches!(refused, ToolError::Widens(_)), "{wider}");
            assert!(refused.to_string().contains(wider), "{refused}");
        }
        assert!(matches!(ask(&bounds, &["not a host"]), Err(ToolError::Policy(_))));
    }

    #[test]
    fn nothing_is_permitted_unless_it_is_said_and_nothing_can_be_asked_for() {
        let none = Bounds::new(None).unwrap();
        assert_eq!(none.narrowed(None).unwrap().deny_out, ["*"]);
        assert!(matches!(ask(&none, &["api.example.com"]), Err(ToolError::Widens(_))));
        for bounds in [none, bounds(&["api.example.com"], &[]), bounds(&[], &["evil.test"])] {
            let nothing = ask(&bounds, &[]).unwrap();
            assert_eq!((nothing.allow_out.len(), nothing.deny_out), (0, vec!["*".to_owned()]));
        }
    }

    #[test]
    fn under_an_open_policy_what_it_denies_stays_denied() {
        let open = bounds(&[], &["evil.test"]);
        assert_eq!(ask(&open, &["api.example.com"]).unwrap().deny_out, ["evil.test"]);
        assert!(ask(&open, &["evil.test"]).is_err());
    }
}
