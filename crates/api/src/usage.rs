//! What an account uses and has used, in the words of an interface that also counts money. All money is 0.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Balances, Timestamp};

/// How long the sandboxes of an account ran on some days, and how many there were.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// The account.
    pub owner_id: String,
    /// The beginning of the first day.
    pub since: Timestamp,
    /// The end of the last one.
    pub until: Timestamp,
    /// Seconds for which its sandboxes ran, together.
    pub total_seconds: u64,
    /// How many were created.
    pub sandbox_count: u64,
    /// The same once more.
    pub compute: ComputeUsage,
    /// Nothing: 0.
    pub guardrails: NoCost,
    /// 0.
    pub total_cost_micros: u64,
    /// `0.00`
    pub total_cost_usd: String,
    /// 0.
    pub sandbox_balance_remaining_micros: u64,
    /// 0.
    pub balance_remaining_micros: u64,
    /// 0.
    pub guardrails_cost_micros: u64,
    /// `0.00`
    pub guardrails_cost_usd: String,
    /// 0.
    pub guardrails_balance_remaining_micros: u64,
}

/// How long sandboxes ran, and how many there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ComputeUsage {
    /// Seconds for which they ran, together.
    pub total_seconds: u64,
    /// How many were created.
    pub sandbox_count: u64,
    /// 0.
    pub total_cost_micros: u64,
}

/// A cost of 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NoCost {
    /// 0.
    pub total_cost_micros: u64,
}

impl Usage {
    /// What was used from `since` to `until`. Nothing of it costs anything.
    pub fn free(owner_id: String, since: Timestamp, until: Timestamp, seconds: u64, sandboxes: u64) -> Self {
        Self {
            owner_id,
            since,
            until,
            total_seconds: seconds,
            sandbox_count: sandboxes,
            compute: ComputeUsage { total_seconds: seconds, sandbox_count: sandboxes, total_cost_micros: 0 },
            guardrails: NoCost::default(),
            total_cost_micros: 0,
            total_cost_usd: NO_DOLLARS.to_owned(),
            sandbox_balance_remaining_micros: 0,
            balance_remaining_micros: 0,
            guardrails_cost_micros: 0,
            guardrails_cost_usd: NO_DOLLARS.to_owned(),
            guardrails_balance_remaining_micros: 0,
        }
    }
}

const NO_DOLLARS: &str = "0.00";

/// What was used on each of some days.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageDays {
    /// The days, oldest first, also those without any use.
    pub days: Vec<UsageOfDay>,
}

/// What was used on a day (UTC).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsageOfDay {
    /// As in `2026-03-01`.
    pub date: String,
    /// What was used.
    #[serde(flatten)]
    pub usage: UsedToday,
}

/// What was used on a day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UsedToday {
    /// Seconds for which sandboxes ran, together.
    pub total_seconds: u64,
    /// How many were created.
    pub sandbox_count: u64,
    /// 0.
    pub compute_cost_micros: u64,
    /// 0.
    pub guardrails_cost_micros: u64,
    /// 0.
    pub total_cost_micros: u64,
}

/// What an account has now, may have, and has used today.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Overview {
    /// The account.
    pub owner_id: String,
    /// Always `self-hosted`.
    pub tier: String,
    /// How many sandboxes have not ended, paused ones included.
    pub active_sandboxes: u64,
    /// What it may have.
    pub tier_limits: TierLimits,
    /// Empty.
    pub wallets: Balances,
    /// Empty.
    pub wallet: Balances,
    /// What was used today (UTC).
    pub today: UsedToday,
}

/// What an account may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TierLimits {
    /// Sandboxes at a time.
    pub max_concurrent: u64,
    /// Processors of a sandbox, rounded up.
    pub max_vcpus: u64,
    /// Memory of a sandbox, in MiB.
    pub max_memory_mb: u64,
}
