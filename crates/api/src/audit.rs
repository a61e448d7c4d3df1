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

/// One recorded event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AuditEvent {
    /// Identifies the event. Later events have greater ids.
    pub id: String,
    /// When it was decided, or began.
    pub time: Timestamp,
    /// The sandbox.
    pub sandbox_id: String,
    /// `network`, `lifecycle`, …
    pub category: String,
    /// `egress_allowed`, `egress_blocked`, `egress_revoked`, `dns_blocked`, `sandbox_created`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `allow` or `deny`, of a network event.
    pub decision: Option<String>,
    /// Why, as a stable word, of a network event.
    pub reason: Option<String>,
    /// The rule that fired, of a network event.
    pub rule: Option<AuditRule>,
    /// The host name, where one is known.
    pub host: Option<String>,
    /// How the name was learned: `sni`, `host`, `dns` or `none`.
    pub host_source: Option<String>,
    /// The destination address.
    pub address: Option<String>,
    /// The destination port.
    pub port: Option<u16>,
    /// `tcp`, `udp`, `icmp`, or a number.
    pub protocol: Option<String>,
    /// The generation of the policy that decided.
    pub generation: Option<u64>,
    /// How many identical refusals this event stands for.
    pub count: u64,
    /// Bytes from the sandbox, once the flow has ended.
    pub bytes_up: Option<u64>,
    /// Bytes to the sandbox, once the flow has ended.
    pub bytes_down: Option<u64>,
    /// How long the flow was open, once it has ended.
    pub duration_ms: Option<u64>,
    /// What else belongs to an event of this type.
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
    /// `allow_out` or `deny_out`, of an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<String>,
    /// Its position, from 0, of an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The entry as written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
}
