//! A policy as the user wrote it.

use serde::{Deserialize, Serialize};

/// A policy before it is compiled: the entries are still text.
///
/// This is what is stored and shown back to the user; [`crate::Policy::compile`] gives it meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicySpec {
    /// Entries that are permitted. They beat `deny_out`, whatever the order.
    pub allow_out: Vec<String>,
    /// Entries that are refused.
    pub deny_out: Vec<String>,
    /// Whether ports inside the sandbox may be reached through the API's port proxy. Says nothing about egress.
    pub allow_public_traffic: bool,
    /// Replaces the `Host` header of forwarded HTTP requests where the proxy can see them.
    pub mask_request_host: Option<String>,
    /// What to do with a ClientHello that carries the Encrypted Client Hello extension.
    pub ech: EchMode,
    /// How the resolver answers for a name that an allowlist does not permit.
    pub refused_names: RefusedNames,
}

impl Default for PolicySpec {
    fn default() -> Self {
        Self {
            allow_out: Vec::new(),
            deny_out: Vec::new(),
            allow_public_traffic: true,
            mask_request_host: None,
            ech: EchMode::default(),
            refused_names: RefusedNames::default(),
        }
    }
}

/// What to do with Encrypted Client Hello. A real one and a GREASE one cannot be told apart from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EchMode {
    /// Refuse the connection with [`crate::Reason::Ech`].
    #[default]
    Refuse,
    /// Permit it by its outer name; a residual channel that is recorded as such.
    Permit,
}

/// How the resolver answers an address query for a name that is not permitted under an allowlist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedNames {
    /// An address of the sink range 198.18.0.0/15, so that the connection attempt is refused by the kernel and
    /// recorded with its name and port.
    #[default]
    Sink,
    /// REFUSED with an Extended DNS Error (RFC 8914).
    Refused,
    /// NXDOMAIN with an Extended DNS Error.
    Nxdomain,
}
