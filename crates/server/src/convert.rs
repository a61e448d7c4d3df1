//! Between the API's types and the program's.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::Duration,
};

use api::{CreateSandbox, Lifecycle, Metrics, Network, OnTimeout, Sandbox, SandboxState, SecurityPolicy};
use jiff::Timestamp;
use policy::{EchMode, Floor, Policy, PolicyError, PolicySpec, RefusedNames};
use sandbox::{Entry, EntryKind, Measurement, cgroup::Usage};
use serde_json::{Value, json};
use store::SandboxRecord;

use crate::error::ApiError;

/// The time a sandbox gets if the request does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// The template if the request names none.
const DEFAULT_TEMPLATE: &str = "base";
/// The most warnings about a policy that are told.
const WARNINGS: usize = 100;
/// What is shown instead of the value of a variable.
const MASK: &str = "***";

/// A create request that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Creation {
    pub(crate) template: String,
    pub(crate) timeout: Duration,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) policy: PolicySpec,
    /// The field that the policy came from, for errors.
    pub(crate) source: &'static str,
    pub(crate) audit: bool,
    /// Policies as they were given, to be shown again.
    pub(crate) stored: Value,
    pub(crate) warnings: Vec<String>,
}

impl Creation {
    /// Reads and checks the body of a create request.
    pub(crate) fn from_body(body: &[u8]) -> Result<Self, ApiError> {
        let request: CreateSandbox = api::from_json(body)?;
        request.check()?;
        let (security, given_security) = match &request.security {
            Some(security) => security.policy()?,
            None => (SecurityPolicy::default(), Value::Null),
        };
        security.refuse_unimplemented()?;

        let audit = security.audit_enabled();
        let said_nothing = |network: &Network| network.is_empty() && network.unknown.is_empty();
        let top_level = request.network.filter(|network| !said_nothing(network));
        let (source, network) = match (top_level, security.network) {
            (Some(network), _) => ("network", network),
            (None, Some(network)) => ("security.network", network),
            (None, None) => ("network", Network::default()),
        };
        let (policy, warnings) = checked_policy(source, &network)?;
        let template = request.template.filter(|template| !template.is_empty());
        Ok(Self {
            template: template.unwrap_or_else(|| DEFAULT_TEMPLATE.to_owned()),
            timeout: request.timeout.map_or(DEFAULT_TIMEOUT, api::Seconds::rounded_up),
            lifecycle: request.lifecycle.unwrap_or_default(),
            metadata: request.metadata,
            envs: request.envs,
            policy,
            source,
            audit,
            stored: json!({"network": network, "security": given_security}),
            warnings,
        })
    }
}

/// The policy, if it compiles, and what in it is probably not meant.
///
/// The manager compiles it again, over a floor that also knows the addresses of this machine.
pub(crate) fn checked_policy(
    source: &'static str,
    network: &Network,
) -> Result<(PolicySpec, Vec<String>), ApiError> {
    static FLOOR: LazyLock<Arc<Floor>> = LazyLock::new(|| Arc::new(Floor::new([])));
    let fits = network.check().and_then(|()| network.check_size());
    fits.map_err(|error| ApiError::bad_request(format!("{source}.{error}")))?;
    let spec = policy_spec(network);
    let policy =
        Policy::compile(&spec, Arc::clone(&FLOOR)).map_err(|error| invalid_policy(source, &error))?;
    let policy_warnings = policy.warnings().iter().map(ToString::to_string);
    let mut warnings = network.warnings().into_iter().chain(policy_warnings);
    let told = warnings.by_ref().take(WARNINGS).map(|warning| format!("{source}.{warning}"));
    let mut told: Vec<_> = told.collect();
    let more = warnings.count();
    if more > 0 {
        told.push(format!("{source}: {more} more warnings"));
    }
    Ok((spec, told))
}

/// Names the entry: policy errors begin with the list and the position in it.
pub(crate) fn invalid_policy(source: &'static str, error: &PolicyError) -> ApiError {
    ApiError::bad_request(format!("{source}.{error}")).with_code(api::code::INVALID_POLICY)
}

fn policy_spec(network: &Network) -> PolicySpec {
    PolicySpec {
        allow_out: network.allow_out.clone(),
        deny_out: network.deny_out.clone(),
        allow_public_traffic: network.allow_public_traffic.unwrap_or(true),
        mask_request_host: network.mask_request_host.as_ref().and_then(|mask| mask.host()).map(str::to_owned),
        ech: match network.ech {
            Some(api::EchMode::Permit) => EchMode::Permit,
            Some(api::EchMode::Refuse) | None => EchMode::Refuse,
        },
        refused_names: match network.refused_names {
            Some(api::RefusedNames::Sink) | None => RefusedNames::Sink,
            Some(api::RefusedNames::Refused) => RefusedNames::Refused,
            Some(api::RefusedNames::Nxdomain) => RefusedNames::Nxdomain,
        },
    }
}

/// A stored sandbox as it is shown.
pub(crate) fn sandbox(record: SandboxRecord) -> Sandbox {
    let given = |field: &str| record.spec.get(field).filter(|value| !value.is_null()).cloned();
    Sandbox {
        network: given("network"),
        security: given("security"),
        state: state(&record),
        lifecycle: Lifecycle {
            on_timeout: if record.on_timeout == "pause" { OnTimeout::Pause } else { OnTimeout::Kill },
            auto_resume: record.auto_resume,
        },
        sandbox_id: record.id,
        template_id: record.template_id,
        name: record.name,
        timeout: record.timeout_s,
        metadata: record.metadata,
        envs: masked(record.envs),
        created_at: record.created_at.into(),
        started_at: record.started_at.map(Into::into),
        end_at: record.end_at.map(Into::into),
        warnings: Vec::new(),
    }
}

pub(crate) fn state(record: &SandboxRecord) -> SandboxState {
    match record.state.parse() {
        Ok(SandboxState::Live) => SandboxState::Running,
        Ok(state) => state,
        Err(_) => {
            tracing::error!(id = record.id, state = record.state, "a stored sandbox has an unknown state");
            SandboxState::Creating
        }
    }
}

/// Names stay, values do not: they are secrets more often than not, and only processes inside need them.
pub(crate) fn masked(envs: BTreeMap<String, String>) -> BTreeMap<String, String> {
    envs.into_keys().map(|name| (name, MASK.to_owned())).collect()
}

pub(crate) fn entry(entry: Entry) -> api::Entry {
    let kind = match entry.kind {
        EntryKind::Directory => api::EntryKind::Dir,
        EntryKind::File => api::EntryKind::File,
    };
    api::Entry { name: entry.name, path: entry.path, kind, size: entry.size }
}

/// The policies as given, with another network policy.
pub(crate) fn with_network(mut stored: Value, network: &Network) -> Value {
    match stored.as_object_mut() {
        Some(fields) => {
            fields.insert("network".to_owned(), json!(network));
            stored
        }
        None => json!({"network": network}),
    }
}

/// What was used between two looks so far apart.
pub(crate) fn measurement(now: Timestamp, before: Usage, after: Usage, elapsed: Duration) -> Measurement {
    let micros = after.cpu_micros.saturating_sub(before.cpu_micros);
    Measurement {
        time: now,
        processors: Duration::from_micros(micros).div_duration_f64(elapsed),
        memory_bytes: after.memory_bytes,
    }
}

/// A measurement as it is shown. How much disk is used, nobody counts.
pub(crate) fn metrics(measured: Measurement) -> Metrics {
    Metrics {
        timestamp: measured.time.into(),
        cpu_usage_percent: measured.processors * 100.0,
        memory_usage_mb: mebibytes(measured.memory_bytes),
        disk_usage_mb: None,
    }
}

/// Exact to far below a byte for all amounts that exist.
#[expect(clippy::as_conversions, reason = "there is no lossless conversion to a floating point number")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
