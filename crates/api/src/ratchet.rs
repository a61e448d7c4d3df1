//! Tokens that narrow the policy of one sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A new ratchet token.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct Ratchet {
    /// Its id, by which events name it.
    pub ratchet_id: String,
    /// The sandbox whose policy it narrows.
    pub sandbox_id: String,
    /// The token, which is shown only here. It goes where an API key would.
    pub token: String,
}

/// What became of a request to revoke a ratchet token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RatchetRevoked {
    /// Whether the sandbox had one.
    pub revoked: bool,
}
