//! Why a policy is not within another.

use std::sync::Arc;

use crate::{List, error::shown};

/// What in a policy permits more than the policy it is compared with, "the policy in force", or may permit more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Widening {
    /// An entry of `allow_out` that none of the policy in force covers.
    #[error("allow_out[{index}]: {}: the policy in force does not permit this", shown(entry))]
    Allow {
        /// Its position, from 0.
        index: usize,
        /// The entry as written.
        entry: Arc<str>,
    },
    /// An entry of `allow_out` that permits what the policy in force, which is open, denies, or may resolve to it.
    #[error(
        "allow_out[{index}]: {}: this may permit what the policy in force denies by deny_out[{denied_index}] {}",
        shown(entry),
        shown(denied)
    )]
    BeatsDeny {
        /// Its position, from 0.
        index: usize,
        /// The entry as written.
        entry: Arc<str>,
        /// The position in `deny_out` of the policy in force, from 0.
        denied_index: usize,
        /// That entry as written.
        denied: Arc<str>,
    },
    /// An entry of `deny_out` of the policy in force that is missing, in a policy that is open.
    #[error(
        "deny_out: the policy in force denies {} (its deny_out[{index}]), and this one does not",
        shown(entry)
    )]
    DenyDropped {
        /// Its position in the policy in force, from 0.
        index: usize,
        /// The entry as written.
        entry: Arc<str>,
    },
    /// What no entry names is permitted, and is not under the policy in force.
    #[error(
        "allow_out: without an entry the public internet is permitted, and the policy in force does not permit it"
    )]
    Default,
    /// `ech` is `permit`, and `refuse` in the policy in force.
    #[error("ech: the policy in force refuses Encrypted Client Hello")]
    Ech,
    /// `allow_public_traffic` is set, and is not in the policy in force.
    #[error("allow_public_traffic: the policy in force does not permit it")]
    PublicTraffic,
    /// `mask_request_host` is not that of the policy in force.
    #[error("mask_request_host: it differs from that of the policy in force")]
    MaskRequestHost,
    /// The policy in force was compiled over a floor that has more on it.
    #[error("the policy in force is over a larger floor")]
    Floor,
}

impl Widening {
    /// The entry responsible: its list, its position and its text. For [`Self::DenyDropped`] it is one of the policy
    /// in force, for others one of the new policy.
    pub fn entry(&self) -> Option<(List, usize, &str)> {
        match self {
            Self::Allow { index, entry } | Self::BeatsDeny { index, entry, .. } => {
                Some((List::AllowOut, *index, entry))
            }
            Self::DenyDropped { index, entry } => Some((List::DenyOut, *index, entry)),
            Self::Default | Self::Ech | Self::PublicTraffic | Self::MaskRequestHost | Self::Floor => None,
        }
    }
}
