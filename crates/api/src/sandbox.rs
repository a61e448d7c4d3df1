//! Sandboxes: creating, describing and ending them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{
    FieldError, Network, Seconds, Security, Timestamp,
    lenient::{check_envs, check_size, null_is_default},
};

/// A sandbox to create. Everything has a default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
pub struct CreateSandbox {
    /// Name or id of the template. Default `base`.
    #[serde(default)]
    pub template: Option<String>,
    /// Seconds until the sandbox ends by itself. Default 300; 0: never.
    #[serde(default)]
    pub timeout: Option<Seconds>,
    /// Whether traffic is inspected where the security policy asks for it. The network policy holds in any case.
    #[serde(default, deserialize_with = "null_is_default")]
    pub secure: Option<bool>,
    /// Labels, to find the sandbox by: at most 256, of 64 KiB together.
    #[serde(default, deserialize_with = "null_is_default")]
    pub metadata: BTreeMap<String, String>,
    /// Variables in the environment of every command: at most 1024, of 256 KiB together, each of less than 128 KiB.
    #[serde(default, deserialize_with = "null_is_default")]
    pub envs: BTreeMap<String, String>,
    /// Secrets by reference. Not implemented.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub vault_refs: BTreeMap<String, Value>,
    /// What the sandbox may reach. Absent: the public internet, unless `security.network` says otherwise.
    #[serde(default)]
    pub network: Option<Network>,
    /// The security policy.
    #[serde(default)]
    pub security: Option<Security>,
    /// What happens when the time is over.
    #[serde(default)]
    pub lifecycle: Option<Lifecycle>,
    /// Volumes to attach. Not implemented.
    #[serde(default, deserialize_with = "null_is_default")]
    #[schema(value_type = Vec<VolumeAttachment>)]
    pub volumes: Vec<Value>,
    /// Refused: sizes come from the template and the server's configuration.
    #[serde(default)]
    #[schema(ignore)]
    pub resources: Option<Value>,
    /// Creating from a snapshot. Not implemented.
    #[serde(default)]
    #[schema(ignore)]
    pub snapshot_id: Option<Value>,
}

impl CreateSandbox {
    /// The most labels, and the most bytes of their names and values together.
    pub const LABELS: usize = 256;
    /// See [`Self::LABELS`].
    pub const LABELS_BYTES: usize = 64 << 10;

    /// Checks everything outside of network and security policy, and refuses what this server cannot do.
    ///
    /// # Errors
    /// [`FieldError::NotImplemented`] or [`FieldError::Forbidden`] for the first field that asks for it.
    /// [`FieldError::Invalid`] for a variable that no environment can have, and for more variables or labels than a
    /// sandbox can have.
    pub fn check(&self) -> Result<(), FieldError> {
        check_size("metadata", &self.metadata, Self::LABELS, Self::LABELS_BYTES)?;
        check_envs(&self.envs)?;
        if self.resources.is_some() {
            let problem =
                "the size of a sandbox comes from its template and cannot be set in a request".to_owned();
            return Err(FieldError::Forbidden { field: "resources".to_owned(), problem });
        }
        if !self.vault_refs.is_empty() {
            return Err(FieldError::not_implemented("vault_refs", "the vault"));
        }
        if !self.volumes.is_empty() {
            return Err(FieldError::not_implemented("volumes", "attaching volumes"));
        }
        if self.snapshot_id.is_some() {
            return Err(FieldError::not_implemented("snapshot_id", "creating a sandbox from a snapshot"));
        }
        Ok(())
    }
}

/// A volume to attach.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct VolumeAttachment {
    /// The volume.
    pub volume_id: String,
    /// Where it appears in the sandbox.
    pub mount_path: String,
    /// `copy`, `mount` or `mount-ro`.
    pub mode: Option<String>,
    /// A directory inside the volume.
    pub subpath: Option<String>,
}

/// What happens when a sandbox's time is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Lifecycle {
    /// Kill or pause. Default `kill`.
    #[serde(default, deserialize_with = "null_is_default")]
    pub on_timeout: OnTimeout,
    /// Whether a paused sandbox goes on when its commands, sessions, terminals or files are used. Default false.
    #[serde(default, deserialize_with = "null_is_default")]
    pub auto_resume: bool,
}

/// What happens when a sandbox's time is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnTimeout {
    /// It is killed.
    #[default]
    Kill,
    /// It is paused.
    Pause,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// `sbx-` and eight characters.
    pub sandbox_id: String,
    /// The id of its template.
    pub template_id: String,
    /// Its name, often empty.
    pub name: String,
    /// Its state.
    pub state: SandboxState,
    /// Seconds it was given; 0: no limit.
    pub timeout: u64,
    /// Its labels.
    pub metadata: BTreeMap<String, String>,
    /// Names of its variables; the values are masked.
    pub envs: BTreeMap<String, String>,
    /// The network policy in force, as it was given; null if none was.
    #[schema(value_type = Option<Network>)]
    pub network: Option<Value>,
    /// The security policy, as it was given; null if none was.
    #[schema(value_type = Option<Object>)]
    pub security: Option<Value>,
    /// What happens when its time is over.
    pub lifecycle: Lifecycle,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was ready.
    pub started_at: Option<Timestamp>,
    /// When it ends, or ended; null if it has no limit.
    pub end_at: Option<Timestamp>,
    /// What was accepted but is probably not meant; in the answer to a create request only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The states a sandbox can be in. There are no others: one client fails on any it does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Another word for running; accepted in filters, never sent.
    Live,
    /// Commands can be run.
    Running,
    /// Frozen.
    Paused,
    /// Not ready yet.
    Creating,
    /// Gone.
    Killed,
}

impl SandboxState {
    /// The word for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Creating => "creating",
            Self::Killed => "killed",
        }
    }
}

impl std::str::FromStr for SandboxState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Live, Self::Running, Self::Paused, Self::Creating, Self::Killed]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not live, running, paused, creating, killed or all"))
    }
}

/// A page of sandboxes, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxList {
    /// The sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// What to send as `next_token` to get the next page; null at the end. Pages that are fetched one after the other have
    /// each sandbox once, whatever is created and killed meanwhile.
    pub next_token: Option<String>,
    /// How many match in all.
    pub total: u64,
}

/// Sandboxes to kill.
#[derive(Clone, Debug, Deserialize, ToSchema)]
pub struct KillMany {
    /// Their ids, at most 1000.
    #[schema(max_items = 1000)]
    pub sandbox_ids: Vec<String>,
}

impl KillMany {
    /// The most sandboxes of one request.
    pub const MOST: usize = 1000;

    /// Checks how many they are.
    ///
    /// # Errors
    /// [`FieldError::Invalid`] if they are too many.
    pub fn check(&self) -> Result<(), FieldError> {
        match self.sandbox_ids.len() {
            0..=Self::MOST => Ok(()),
            more => Err(FieldError::invalid("sandbox_ids", format!("{more} are more than {}", Self::MOST))),
        }
    }
}

/// What became of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KillManyResults {
    /// By sandbox id.
    pub results: BTreeMap<String, KillOutcome>,
}

/// What became of one sandbox that was to be killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KillOutcome {
    /// Whether it was running; everything of it is gone.
    Killed(bool),
    /// It is being torn down.
    Queued(bool),
    /// It could not be killed.
    Error(String),
}

/// A kill that was accepted and goes on in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Queued {
    /// Always true.
    pub queued: bool,
}

/// Whether a sandbox is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Running {
    /// See the type.
    pub is_running: bool,
}

/// A new time limit.
#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
pub struct SetTimeout {
    /// Seconds from now, or from when it is resumed if it is paused; 0: no limit.
    pub timeout: Seconds,
}

/// Done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Acknowledged {
    /// Always true.
    pub ok: bool,
}

/// What a sandbox uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// When it was measured.
    pub timestamp: Timestamp,
    /// Of one processor, in percent.
    pub cpu_usage_percent: f64,
    /// In MiB.
    pub memory_usage_mb: f64,
    /// In MiB; absent where it is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_usage_mb: Option<f64>,
}

/// The server is up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok`
    pub status: String,
    /// The server's version.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::from_json;

    fn create(value: Value) -> Result<CreateSandbox, FieldError> {
        from_json(value.to_string().as_bytes())
    }

    #[test]
    fn what_every_client_sends_is_read() {
        let python = create(json!({"template": "base", "timeout": 300, "secure": true})).unwrap();
        assert_eq!(python.template.as_deref(), Some("base"));
        let full = create(json!({
            "template": "base", "timeout": 60, "secure": true, "metadata": {"a": "b"}, "envs": {"A": "1"},
            "network": {"deny_out": ["0.0.0.0/0"]}, "security": {"policy_json": "{}"},
            "lifecycle": {"on_timeout": "kill", "auto_resume": false}, "volumes": [], "future": {"x": [1]}
        }))
        .unwrap();
        full.check().unwrap();
        let nulls = create(json!({
            "template": null, "timeout": null, "secure": null, "metadata": null, "envs": null, "vault_refs": null,
            "network": null, "security": null, "lifecycle": null, "volumes": null, "resources": null,
            "snapshot_id": null
        }));
        nulls.unwrap().check().unwrap();
    }

    #[test]
    fn a_wrong_type_is_refused_by_name() {
        for (value, field) in [
            (json!({"template": 5}), "template"),
            (json!({"timeout": "300"}), "timeout"),
            (json!({"timeout": -1}), "timeout"),
            (json!({"metadata": {"a": 1}}), "metadata.a"),
            (json!({"envs": ["A"]}), "envs"),
            (json!({"network": {"allow_out": ["a", 1]}}), "network.allow_out[1]"),
            (json!({"lifecycle": {"on_timeout": "sleep"}}), "lifecycle.on_timeout"),
            (json!({"volumes": {}}), "volumes"),
            (json!({"envs": {"A=B": "1"}}), "envs"),
            (json!({"envs": {"": "1"}}), "envs"),
            (json!({"envs": {"A": "\0"}}), "envs.A"),
        ] {
            let error = create(value).and_then(|create| create.check()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
        }
    }

    #[test]
    fn labels_are_refused_beyond_their_limits_and_taken_up_to_them() {
        let labelled = |count: usize, bytes: usize| CreateSandbox {
            metadata: (0..count).map(|n| (format!("k{n:03}"), "v".repeat(bytes))).collect(),
            ..CreateSandbox::default()
        };
        let (most, bytes) = (CreateSandbox::LABELS, CreateSandbox::LABELS_BYTES);
        labelled(most, bytes / most - 4).check().unwrap();
        labelled(1, bytes - 4).check().unwrap();
        for over in [labelled(most + 1, 0), labelled(most, bytes / most - 3), labelled(1, bytes - 3)] {
            let error = over.check().unwrap_err().to_string();
            assert!(error.starts_with("metadata: "), "{error}");
        }
    }

    #[test]
    fn what_is_not_there_is_refused_by_name() {
        for (value, field) in [
            (json!({"vault_refs": {"A": "vault://t/prod/a"}}), "vault_refs"),
            (json!({"volumes": [{"volume_id": "vol-1", "mount_path": "/d"}]}), "volumes"),
            (json!({"snapshot_id": "snap-1"}), "snapshot_id"),
        ] {
            let error = create(value).unwrap().check().unwrap_err();
            assert!(
                matches!(&error, FieldError::NotImplemented { field: named, .. } if named == field),
                "{error}"
            );
        }
        let sized = create(json!({"resources": {"vcpus": 2}})).unwrap().check();
        assert!(matches!(sized, Err(FieldError::Forbidden { .. })));
    }

    #[test]
    fn kill_outcomes_are_objects_of_one_key() {
        let results = KillManyResults {
            results: BTreeMap::from([
                ("a".to_owned(), KillOutcome::Killed(true)),
                ("b".to_owned(), KillOutcome::Queued(true)),
                ("c".to_owned(), KillOutcome::Error("sandbox not found".to_owned())),
            ]),
        };
        let expected = json!({"results": {
            "a": {"killed": true}, "b": {"queued": true}, "c": {"error": "sandbox not found"}
        }});
        assert_eq!(serde_json::to_value(results).unwrap(), expected);
    }
}
