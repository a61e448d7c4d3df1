//! What the selftest found.

use jiff::Timestamp;
use policy::PolicySpec;
use serde::{Deserialize, Serialize};

/// The version of the report's form.
pub const REPORT_VERSION: u32 = 1;

/// Kinds of attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Who the destination is.
    Destinations,
    /// The first bytes of TLS.
    Tls,
    /// HTTP/1 in clear.
    Http,
    /// Tunnels and other protocols.
    Tunnels,
    /// Names.
    Dns,
    /// Metadata services, the machine, its control plane, the kernel.
    Machine,
    /// Changes of the policy, pauses, neighbours.
    State,
}

impl Group {
    /// All of them, in the order in which they run.
    pub const ALL: [Self; 7] =
        [Self::Destinations, Self::Tls, Self::Http, Self::Tunnels, Self::Dns, Self::Machine, Self::State];

    /// The letter that the ids of most of its attacks begin with.
    pub fn letter(self) -> char {
        match self {
            Self::Destinations => 'A',
            Self::Tls => 'B',
            Self::Http => 'C',
            Self::Tunnels => 'E',
            Self::Dns => 'F',
            Self::Machine => 'G',
            Self::State => 'H',
        }
    }

    /// The word by which it is chosen, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Destinations => "destinations",
            Self::Tls => "tls",
            Self::Http => "http",
            Self::Tunnels => "tunnels",
            Self::Dns => "dns",
            Self::Machine => "machine",
            Self::State => "state",
        }
    }

    /// The group with this word or letter.
    pub fn parse(text: &str) -> Option<Self> {
        let is = |group: &Self| {
            group.word().eq_ignore_ascii_case(text) || group.letter().to_string().eq_ignore_ascii_case(text)
        };
        Self::ALL.into_iter().find(is)
    }
}

/// What became of an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Something got out that the policy refuses.
    Hole,
    /// Something that the policy permits did not get through.
    FalselyBlocked,
    /// It was refused, and the events do not say so, or not rightly.
    Unrecorded,
    /// It could not be tried, so nothing is known.
    Failed,
    /// Everything that the policy refuses was refused, and recorded.
    Held,
    /// The policy permits all of it, and it got through.
    Permitted,
    /// There is nothing of the kind under this policy.
    Skipped,
}

impl Outcome {
    /// Whether the sandbox is as it should be.
    pub fn is_good(self) -> bool {
        matches!(self, Self::Held | Self::Permitted | Self::Skipped)
    }

    /// The word, as in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Hole => "hole",
            Self::FalselyBlocked => "falsely_blocked",
            Self::Unrecorded => "unrecorded",
            Self::Failed => "failed",
            Self::Held => "held",
            Self::Permitted => "permitted",
            Self::Skipped => "skipped",
        }
    }
}

/// One attack, in all its forms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseReport {
    /// A stable name: a letter and a number.
    pub id: String,
    /// The kind of attack.
    pub group: Group,
    /// What it is, in a line.
    pub title: String,
    /// The worst of what became of its forms.
    pub outcome: Outcome,
    /// How many forms were tried.
    pub attempts: u32,
    /// How many of them the policy permits.
    pub permitted: u32,
    /// The rule of the policy that decided, if it was one and the same for all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// What was seen that should not have been, or was not seen that should, a line each.
    pub evidence: Vec<String>,
}

/// How many attacks ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// [`Outcome::Hole`]
    pub hole: u32,
    /// [`Outcome::FalselyBlocked`]
    pub falsely_blocked: u32,
    /// [`Outcome::Unrecorded`]
    pub unrecorded: u32,
    /// [`Outcome::Failed`]
    pub failed: u32,
    /// [`Outcome::Held`]
    pub held: u32,
    /// [`Outcome::Permitted`]
    pub permitted: u32,
    /// [`Outcome::Skipped`]
    pub skipped: u32,
    /// How many forms were tried in all.
    pub attempts: u32,
}

impl Summary {
    /// Counts the attacks.
    pub fn of<'a>(cases: impl IntoIterator<Item = &'a CaseReport>) -> Self {
        let mut summary = Self::default();
        for case in cases {
            summary.attempts += case.attempts;
            *match case.outcome {
                Outcome::Hole => &mut summary.hole,
                Outcome::FalselyBlocked => &mut summary.falsely_blocked,
                Outcome::Unrecorded => &mut summary.unrecorded,
                Outcome::Failed => &mut summary.failed,
                Outcome::Held => &mut summary.held,
                Outcome::Permitted => &mut summary.permitted,
                Outcome::Skipped => &mut summary.skipped,
            } += 1;
        }
        summary
    }
}

/// The machine that it ran on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// The version of this program.
    pub bailiwick: String,
    /// The release of the kernel.
    pub kernel: String,
    /// The architecture.
    pub architecture: String,
    /// The template of the sandbox.
    pub template: String,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`REPORT_VERSION`]
    pub version: u32,
    /// When it began.
    pub started: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Where.
    pub machine: Machine,
    /// Where the policy is from: `default`, a file or a sandbox.
    pub policy_source: String,
    /// The policy.
    pub policy: PolicySpec,
    /// What the policy needs: `no_wire` or `wire`.
    pub topology: String,
    /// How the sandbox was broken on purpose, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sabotage: Option<String>,
    /// The counts.
    pub summary: Summary,
    /// The attacks, in the order in which they ran.
    pub cases: Vec<CaseReport>,
}

impl Report {
    /// Whether nothing got out, everything that is permitted got through, and all of it was recorded.
    pub fn is_good(&self) -> bool {
        !self.cases.is_empty() && self.cases.iter().all(|case| case.outcome.is_good())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_json() {
        for group in Group::ALL {
            assert_eq!(serde_json::to_value(group).unwrap(), group.word());
            assert_eq!(Group::parse(group.word()), Some(group));
            assert_eq!(Group::parse(&group.letter().to_lowercase().to_string()), Some(group));
        }
        assert_eq!(Group::parse("everything"), None);
        for outcome in [
            Outcome::Hole,
            Outcome::FalselyBlocked,
            Outcome::Unrecorded,
            Outcome::Failed,
            Outcome::Held,
            Outcome::Permitted,
            Outcome::Skipped,
        ] {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.word());
        }
    }
}
