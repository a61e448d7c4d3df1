//! Recorded events.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::Timestamp;

/// A page of events, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditPage {
    /// The events.
    pub events: Vec<AuditEvent>,
    /// What to send as `cursor` to get the next page; null at the end.
    pub next_cursor: Option<String>,
}

/// One recorded event. What does not apply to it is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEvent {
    /// Identifies the event. Later events have greater ids, all below 2^53.
    pub id: u64,
    /// When it happened; of several identical refusals, when the first did.
    pub time: Timestamp,
    /// The sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// `network`, `lifecycle`, …
    pub category: String,
    /// `egress_allowed`, `egress_blocked`, `egress_revoked`, `dns_blocked`, `sandbox_created`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `allow` or `deny`, of a network event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
    /// Why, as a stable word, of a network event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The rule that fired, of a network event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<AuditRule>,
    /// The host name, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// How the name was learned: `sni`, `host`, `dns` or `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_source: Option<String>,
    /// The destination address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The generation of the policy that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// How many identical refusals this event stands for.
    pub count: u64,
    /// When the last of them was, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_time: Option<Timestamp>,
    /// Bytes from the sandbox, once the flow has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    /// Bytes to the sandbox, once the flow has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    /// How long the flow was open, once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// What else belongs to an event of this type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub detail: Option<Value>,
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditRule {
    /// `entry`, `floor` or `default`.
    pub kind: String,
    /// The rule in words, as in `allow_out[0] api.example.com`.
    pub text: String,
    /// Of an entry: `allow_out` or `deny_out`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Of an entry: its position, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// Of an entry: as it was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Of the floor: which part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<String>,
}
