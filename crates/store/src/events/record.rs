//! One audit event, as the API shows it.

use std::{borrow::Cow, net::IpAddr};

use jiff::Timestamp;
use policy::{Decision, List};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One audit event. Its JSON form is that of the API; what does not apply is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Grows from event to event, over restarts too. At least the event's `time` in microseconds since 1970, and
    /// small enough for a JSON number (below 2^53) until the year 2255.
    pub id: u64,
    /// When it happened; of a folded event, when it first happened.
    pub time: Timestamp,
    /// The sandbox it concerns; absent for what concerns the service itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The kind of activity.
    pub category: Category,
    /// What happened, as a stable word: `egress_blocked`, `sandbox_created`, …
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// What was decided, if this is a decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Why, as a stable word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Cow<'static, str>>,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<EventRule>,
    /// The host name concerned, if one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How the name was learned: `sni`, `host`, `dns` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_source: Option<Cow<'static, str>>,
    /// The destination address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The transport protocol: `tcp`, `udp`, `icmp`, or its IP protocol number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Cow<'static, str>>,
    /// The policy generation that judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How many identical occurrences this event stands for.
    pub count: u64,
    /// When the last of them was, if there are more than one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
    /// Bytes from the sandbox, known when the flow has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    /// Bytes to the sandbox, known when the flow has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    /// How long the flow was open, in milliseconds, known when it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What else belongs to an event of this type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Value>,
}

impl EventRecord {
    /// An event of which only the common fields are set.
    pub fn new(id: u64, time: Timestamp, category: Category, kind: impl Into<Cow<'static, str>>) -> Self {
        Self {
            id,
            time,
            sandbox_id: None,
            category,
            kind: kind.into(),
            decision: None,
            reason: None,
            rule: None,
            host: None,
            host_source: None,
            address: None,
            port: None,
            protocol: None,
            generation: None,
            count: 1,
            last_time: None,
            bytes_up: None,
            bytes_down: None,
            duration_ms: None,
            detail: None,
        }
    }
}

/// The kinds of activity, by their names in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// A sandbox was made, ended, … Always recorded.
    Lifecycle,
    /// Something about the service itself. Always recorded.
    Admin,
    /// A decision about the network.
    Network,
    /// A command in a sandbox.
    Command,
    /// A file operation in a sandbox.
    Filesystem,
    /// A snapshot.
    Snapshot,
    /// A terminal session.
    Pty,
    /// A finding in content.
    Security,
}

impl Category {
    /// The name in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lifecycle => "lifecycle",
            Self::Admin => "admin",
            Self::Network => "network",
            Self::Command => "command",
            Self::Filesystem => "filesystem",
            Self::Snapshot => "snapshot",
            Self::Pty => "pty",
            Self::Security => "security",
        }
    }

    /// Whether it is recorded for sandboxes whose audit is switched off, too.
    pub fn is_always_recorded(self) -> bool {
        matches!(self, Self::Lifecycle | Self::Admin)
    }
}

/// The rule that decided, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRule {
    /// The rule in one line: `allow_out[0] api.github.com`, `floor:metadata`, `default`.
    pub text: String,
    /// Its parts.
    #[serde(flatten)]
    pub kind: RuleKind,
}

/// The kinds of rules and their parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RuleKind {
    /// No entry matched.
    Default,
    /// An entry of the policy.
    Entry {
        /// The list it stands in.
        list: List,
        /// Its position there, from 0.
        index: usize,
        /// The entry as the user wrote it.
        entry: String,
    },
    /// A part of the floor, which no policy can change.
    Floor {
        /// Which part.
        floor: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_category_is_stored_by_its_name_in_the_api() {
        for category in [
            Category::Lifecycle,
            Category::Admin,
            Category::Network,
            Category::Command,
            Category::Filesystem,
            Category::Snapshot,
            Category::Pty,
            Category::Security,
        ] {
            assert_eq!(serde_json::to_value(category).unwrap(), category.as_str());
        }
    }
}
