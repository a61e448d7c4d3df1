//! What the check of a chain found.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
};

use jiff::Timestamp;
use serde::Serialize;

use super::super::chain::ChainHash;

/// How many findings a report keeps; the others are counted.
const MOST_FINDINGS: usize = 100;

/// What the check of a chain found.
#[derive(Clone, Debug, Serialize)]
pub struct ChainReport {
    /// Whose chain; absent for the service's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The chain's end as it is kept: it stands for everything before it.
    pub head: ChainHash,
    /// How many links the chain has had from its beginning.
    pub links: u64,
    /// How many of them were deleted because they were too old or the database was full.
    pub pruned: u64,
    /// How many events were checked.
    pub events: u64,
    /// What is wrong, in the order of the chain.
    pub findings: Vec<Finding>,
    /// How many more findings there are than are told.
    #[serde(skip_serializing_if = "is_zero")]
    pub more_findings: u64,
    /// Which of the wanted hashes are in the chain.
    #[serde(skip)]
    pub met: BTreeSet<ChainHash>,
}

/// Something that is wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The event it was found at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<u64>,
    /// The sequence number in the chain, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// When what it was found at happened, as far as what is stored can be believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// When what is before that in the chain happened: if something is gone, it happened in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Timestamp>,
    /// What is wrong.
    #[serde(flatten)]
    pub problem: Problem,
}

/// What can be wrong with a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// It does not follow from what is before it: one of the two was changed.
    Changed,
    /// Its count, last time, bytes or duration are not those that were recorded last.
    OutcomeChanged,
    /// What was before it is gone.
    Missing {
        /// How many links.
        count: u64,
    },
    /// It is out of order: it was moved here, or inserted.
    Misplaced,
    /// It has no place in the chain: it was inserted.
    Unchained,
    /// It cannot be read.
    Unreadable,
    /// The last links of the chain are gone.
    EndMissing {
        /// How many.
        count: u64,
    },
    /// The chain does not lead to its head.
    EndDiffers,
    /// The chain does not begin where its last record of deletion says: events were deleted by somebody else.
    BeginningMissing,
    /// The head of the chain is gone, or cannot be read.
    HeadMissing,
    /// The service's chain does not say that there is this chain: it was inserted.
    NotOpened,
    /// All events of a sandbox are gone, or were replaced by others.
    ChainMissing {
        /// The sandbox.
        sandbox_id: String,
    },
}

/// Where something was found, as it is stored.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) event: Option<i64>,
    pub(super) seq: Option<i64>,
    /// Microseconds since 1970, and so is `after`.
    pub(super) time: Option<i64>,
    pub(super) after: Option<i64>,
}

impl ChainReport {
    pub(super) fn new(sandbox_id: Option<String>, head: ChainHash, links: i64, pruned: i64) -> Self {
        Self {
            sandbox_id,
            head,
            links: unsigned(links),
            pruned: unsigned(pruned),
            events: 0,
            findings: Vec::new(),
            more_findings: 0,
            met: BTreeSet::new(),
        }
    }

    /// Whether nothing is wrong.
    pub fn is_intact(&self) -> bool {
        self.findings.is_empty()
    }

    pub(super) fn add(&mut self, place: Place, problem: Problem) {
        if self.findings.len() < MOST_FINDINGS {
            self.findings.push(Finding {
                event: place.event.map(unsigned),
                sequence: place.seq.map(unsigned),
                time: place.time.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
                after: place.after.and_then(|micros| Timestamp::from_microsecond(micros).ok()),
                problem,
            });
        } else {
            self.more_findings += 1;
        }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.event, self.sequence) {
            (Some(event), Some(sequence)) => write!(f, "event {event} (sequence {sequence}): ")?,
            (Some(event), None) => write!(f, "event {event}: ")?,
            (None, Some(sequence)) => write!(f, "sequence {sequence}: ")?,
            (None, None) => {}
        }
        self.problem.fmt(f)
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("was changed, or the one before it was"),
            Self::OutcomeChanged => f.write_str("has other counts or totals than were recorded last"),
            Self::Missing { count } => write!(f, "{count} before it are gone"),
            Self::Misplaced => f.write_str("is out of order: it was moved or inserted"),
            Self::Unchained => f.write_str("has no place in the chain: it was inserted"),
            Self::Unreadable => f.write_str("cannot be read"),
            Self::EndMissing { count } => write!(f, "the last {count} of the chain are gone"),
            Self::EndDiffers => f.write_str("the chain does not lead to its head"),
            Self::BeginningMissing => {
                f.write_str("the chain does not begin where it was cut off: its beginning is gone")
            }
            Self::HeadMissing => f.write_str("the head of the chain is gone"),
            Self::NotOpened => f.write_str("nothing says that there should be this chain: it was inserted"),
            Self::ChainMissing { sandbox_id } => {
                write!(f, "the events of {sandbox_id} are gone, or were replaced")
            }
        }
    }
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
