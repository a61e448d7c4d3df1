//! Error bodies, and what is wrong with one field of a request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::shortened::{self, shortened};

/// Machine-readable error codes: the `code` of an [`ErrorBody`].
pub mod code {
    /// 409: the first create with this idempotency key is still running; repeat the identical request.
    pub const IDEMPOTENCY_IN_PROGRESS: &str = "idempotency_in_progress";
    /// 422: this idempotency key was used with a different body.
    pub const IDEMPOTENCY_KEY_REUSED: &str = "idempotency_key_reused";
    /// 409: the template is still being built, or its build failed.
    pub const TEMPLATE_NOT_READY: &str = "template_not_ready";
    /// 501: a part of the API, or of a request, that this server does not have.
    pub const NOT_IMPLEMENTED: &str = "not_implemented";
    /// 400: an entry of the network policy is not valid.
    pub const INVALID_POLICY: &str = "invalid_policy";
    /// 403: the policy permits what the one in force does not, and may not, because a ratchet token asks for it.
    pub const POLICY_WIDENS: &str = "policy_widens";
    /// 500: the policy could not be replaced; the one before is in force.
    pub const POLICY_KEPT: &str = "policy_kept";
    /// 403: a ratchet token opens nothing but the policy of its sandbox.
    pub const RATCHET_ONLY: &str = "ratchet_only";
    /// 409: the account has as many API keys as it can have.
    pub const TOO_MANY_KEYS: &str = "too_many_keys";
    /// 400: nothing can be paid in, because nothing is charged for.
    pub const NO_BILLING: &str = "no_billing";
    /// 409: the sandbox was started by an older version of the server, which did not have this.
    pub const SANDBOX_TOO_OLD: &str = "sandbox_too_old";
    /// 409: the sandbox is paused.
    pub const SANDBOX_PAUSED: &str = "sandbox_paused";
    /// 409: the sandbox is not ready yet.
    pub const SANDBOX_CREATING: &str = "sandbox_creating";
    /// 410: the sandbox was killed.
    pub const SANDBOX_KILLED: &str = "sandbox_killed";
    /// 403: the sandbox's network policy does not permit connections to its ports.
    pub const PUBLIC_TRAFFIC_OFF: &str = "public_traffic_off";
    /// 403: the port is not one that can be connected to.
    pub const PORT_RESERVED: &str = "port_reserved";
    /// 502: nothing listens on the port inside the sandbox.
    pub const PORT_CLOSED: &str = "port_closed";
    /// 502: what listens on the port inside the sandbox does not answer as HTTP wants it.
    pub const PORT_PROTOCOL: &str = "port_protocol";
    /// 504: what listens on the port inside the sandbox does not answer.
    pub const PORT_SILENT: &str = "port_silent";
    /// 413: the sandbox's file system is full.
    pub const NO_SPACE: &str = "no_space";
    /// 429: a limit on how many of something may exist.
    pub const LIMIT: &str = "limit_reached";
    /// 503: the store cannot be written to, because its disk is full or another program keeps it locked. Nothing was
    /// changed.
    pub const STORE_UNAVAILABLE: &str = "store_unavailable";
    /// 500: a failure inside the server.
    pub const INTERNAL: &str = "internal";
}

/// The body of every response that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong, for people.
    pub message: String,
    /// What went wrong, for programs, where a status code alone does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// The value is of the wrong type, out of range or malformed. Answered with 400.
    #[error("{field}: {problem}")]
    Invalid {
        /// The path of the field, as in `network.allow_out[2]`; `body` for the whole.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The value asks for something this server cannot do. Answered with 501: nothing is accepted and ignored.
    #[error("{field}: {what} is not implemented by this server")]
    NotImplemented {
        /// The path of the field.
        field: String,
        /// What was asked for.
        what: &'static str,
    },
    /// The value asks for something no client may choose. Answered with 403.
    #[error("{field}: {problem}")]
    Forbidden {
        /// The path of the field.
        field: String,
        /// Why not.
        problem: String,
    },
}

impl FieldError {
    /// An [`FieldError::Invalid`], with at most 200 characters of the field's name and 1000 of what is wrong with it:
    /// both may be what the request says.
    pub fn invalid(field: impl Into<String>, problem: impl ToString) -> Self {
        Self::Invalid {
            field: shortened(field, shortened::FIELD),
            problem: shortened(problem.to_string(), shortened::PROBLEM),
        }
    }

    /// An [`FieldError::NotImplemented`].
    pub fn not_implemented(field: impl Into<String>, what: &'static str) -> Self {
        Self::NotImplemented { field: field.into(), what }
    }
}
