//! What each sandbox may use: `[limits]` of the configuration file, and `--limit`.

use std::{fmt, ops::RangeInclusive};

use anyhow::{Result, anyhow};
use gate::ByteLimits;
use sandbox::cgroup;

use crate::exit::BadInput;

/// The limits of each sandbox, and of each account.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of each account: sandboxes at a time.
    pub account_sandboxes: u32,
    /// Of its processes. A template or a request may say otherwise.
    pub processes: cgroup::Limits,
    /// Of what it has of the network.
    pub network: gate::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            account_sandboxes: sandbox::DEFAULT_ACCOUNT_SANDBOXES,
            processes: cgroup::Limits::default(),
            network: gate::Limits::default(),
        }
    }
}

/// One limit, by the name it has in the configuration.
struct Field {
    name: &'static str,
    range: RangeInclusive<u64>,
    get: fn(&Limits) -> u64,
    set: fn(&mut Limits, u64),
}

/// The most of anything that takes memory or descriptors of the daemon.
const MANY: u64 = 1 << 20;

/// A number that is in a field of another type.
macro_rules! field {
    ($name:literal, $range:expr, $($path:ident).+) => {
        Field {
            name: $name,
            range: $range,
            get: |limits| u64::try_from(limits.$($path).+).unwrap_or(u64::MAX),
            // The range is within the type.
            set: |limits, value| limits.$($path).+ = value.try_into().unwrap_or_default(),
        }
    };
}

/// Every limit. `docs/concepts/limits.md` has the same table.
const FIELDS: &[Field] = &[
    Field {
        name: "memory_mib",
        range: 1..=1 << 30,
        get: |limits| limits.processes.memory_bytes >> 20,
        set: |limits, value| limits.processes.memory_bytes = value << 20,
    },
    field!("account_sandboxes", 1..=MANY, account_sandboxes),
    field!("cpu_millis", 1..=MANY, processes.cpu_millis),
    field!("pids", 1..=1 << 22, processes.processes),
    field!("flows", 1..=MANY, network.flows.max_flows),
    field!("flows_per_second", 1..=MANY, network.flows.new_flows.count),
    field!("flows_burst", 1..=MANY, network.flows.new_flows.burst),
    field!("requests_per_second", 1..=MANY, network.flows.new_requests.count),
    field!("requests_burst", 1..=MANY, network.flows.new_requests.burst),
    field!("half_open", 1..=MANY, network.flows.max_half_open),
    field!("bytes_up", 1..=ByteLimits::UNREACHABLE, network.flows.bytes.up),
    field!("bytes_down", 1..=ByteLimits::UNREACHABLE, network.flows.bytes.down),
    field!("bytes_total", 1..=ByteLimits::UNREACHABLE, network.flows.bytes.total),
    field!("wire_flows", 1..=MANY, network.wires.max_flows),
    field!("wire_flows_per_second", 1..=MANY, network.wires.new_flows),
    field!("wire_flows_burst", 1..=MANY, network.wires.burst),
    field!("dns_queries_per_second", 1..=MANY, network.names.queries.count),
    field!("dns_queries_burst", 1..=MANY, network.names.queries.burst),
    field!("dns_lookups", 1..=MANY, network.names.max_lookups),
    field!("zone_names", 1..=MANY, network.names.zone_names.burst),
    field!("zone_names_per_minute", 1..=MANY, network.names.zone_names.count),
    field!("zone_bytes", 1..=MANY, network.names.zone_bytes.burst),
    field!("zone_bytes_per_minute", 1..=MANY, network.names.zone_bytes.count),
    field!("bound_names", 1..=MANY, network.bindings.max_names),
    field!("bound_addresses", 1..=MANY, network.bindings.max_addresses),
];

/// All of them, as `NAME=NUMBER`.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, field) in FIELDS.iter().enumerate() {
            let before = if number > 0 { " " } else { "" };
            write!(f, "{before}{}={}", field.name, (field.get)(self))?;
        }
        Ok(())
    }
}

impl Limits {
    /// The defaults, but for what `file` says, but for what `overrides` (each `NAME=VALUE`) say.
    ///
    /// # Errors
    /// For a name that no limit has, and for a value that is not a whole number within the limit's range.
    pub(crate) fn read(file: &toml::Table, overrides: &[String]) -> Result<Self> {
        let mut limits = Self::default();
        for (name, value) in file {
            let number = value.as_integer().and_then(|value| u64::try_from(value).ok());
            limits.set(name, number, value).map_err(|text| anyhow!(BadInput(format!("limits.{text}"))))?;
        }
        for pair in overrides {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let set = limits.set(name.trim(), value.trim().parse().ok(), &value);
            set.map_err(|text| anyhow!(BadInput(format!("--limit {text}"))))?;
        }
        Ok(limits)
    }

    /// The limit of this name, if there is one.
    pub(crate) fn get(&self, name: &str) -> Option<u64> {
        FIELDS.iter().find(|field| field.name == name).map(|field| (field.get)(self))
    }

    fn set(&mut self, name: &str, number: Option<u64>, text: &dyn fmt::Display) -> Result<(), String> {
        let Some(field) = FIELDS.iter().find(|field| field.name == name) else {
            let known: Vec<&str> = FIELDS.iter().map(|field| field.name).collect();
            return Err(format!("{name}: there is no such limit; there are: {}", known.join(", ")));
        };
        match number.filter(|number| field.range.contains(number)) {
            Some(number) => {
                (field.set)(self, number);
                Ok(())
            }
            None => {
                let (least, most) = (field.range.start(), field.range.end());
                Err(format!("{name}: {text} is not a whole number from {least} to {most}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &str, overrides: &[&str]) -> Result<Limits> {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Limits::read(&file.parse().unwrap(), &overrides)
    }

    #[test]
    fn every_limit_can_be_set_and_leaves_the_others_as_they_are() {
        for field in FIELDS {
            let default = (field.get)(&Limits::default());
            for value in [*field.range.start(), *field.range.end()] {
                let limits = read(&format!("{} = {value}", field.name), &[]).unwrap();
                assert_eq!((field.get)(&limits), value, "{}", field.name);
                for other in FIELDS.iter().filter(|other| other.name != field.name) {
                    assert_eq!((other.get)(&limits), (other.get)(&Limits::default()), "{}", other.name);
                }
            }
            assert!(field.range.contains(&default), "{}: {default}", field.name);
        }
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let limits = read("flows = 10\nhalf_open = 5", &["flows=20", "pids = 7"]).unwrap();
        assert_eq!(limits.network.flows.max_flows, 20);
        assert_eq!(limits.network.flows.max_half_open, 5);
        assert_eq!(limits.processes.processes, 7);
        assert!(limits.to_string().contains("pids=7 flows=20 "), "{limits}");
    }

    #[test]
    fn a_limit_that_is_no_limit_is_refused_by_its_name() {
        let refusal = |file, overrides: &[&str]| {
            let error = read(file, overrides).unwrap_err();
            assert_eq!(crate::exit::code_of(&error), crate::exit::BAD_INPUT);
            error.to_string()
        };
        for bad in ["flows = 0", "flows = -1", "flows = \"ten\"", "flows = 1.5", "flows = 1048577"] {
            let text = refusal(bad, &[]);
            assert!(text.starts_with("limits.flows: ") && text.ends_with("from 1 to 1048576"), "{text}");
        }
        assert!(refusal("flow = 1", &[]).starts_with("limits.flow: there is no such limit"));
        for bad in ["half_open", "half_open=", "half_open=x", "half_open=-1", "half_open=0"] {
            assert!(refusal("", &[bad]).starts_with("--limit half_open: "), "{bad}");
        }
    }

    #[test]
    fn the_documentation_has_every_limit_with_its_default() {
        let page = include_str!("../../../docs/concepts/limits.md");
        for field in FIELDS {
            let row = format!("| `{}` | {} |", field.name, (field.get)(&Limits::default()));
            assert!(page.contains(&row), "docs/concepts/limits.md has no {row}");
        }
    }
}
