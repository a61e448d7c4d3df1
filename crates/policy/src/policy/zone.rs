//! Names that are permitted as one of many.

use super::Policy;
use crate::{HostName, Rule, Target, ports::PortQuery};

/// What an entry that is about many names leaves to choose in one of them: that much can be told, by asking for the
/// name, to whoever answers for the zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameZone {
    /// The wildcard or the expression that permits the name.
    pub rule: Rule,
    /// The name that all names of a wildcard end in; an expression has none.
    pub apex: Option<HostName>,
    /// How many bytes of the name the entry leaves open: the labels in front of a wildcard's own, with their dots; of
    /// an expression, the whole name.
    pub open_bytes: usize,
}

impl Policy {
    /// The zone of a permitted name. `None` for a name that an entry of `allow_out` is exactly, and under a policy that
    /// permits everything (if only on one port): nothing has to be told by way of names then.
    pub fn zone(&self, name: &HostName) -> Option<NameZone> {
        let query = PortQuery::Any;
        if self.allow.find_everything(query).is_some() || self.allow.find_host(name, query).is_some() {
            return None;
        }
        let index = self.allow.find_name(name, query)?;
        let length = name.as_str().len();
        let (apex, open_bytes) = match &self.allow.entries().get(index)?.target {
            Target::Subdomains(apex) => (Some(apex.clone()), length.saturating_sub(apex.as_str().len() + 1)),
            _ => (None, length),
        };
        Some(NameZone { rule: self.allow.rule(index), apex, open_bytes })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Floor, PolicySpec};

    fn zone(allow: &[&str], name: &str) -> Option<(String, Option<String>, usize)> {
        let allow_out = allow.iter().map(ToString::to_string).collect();
        let spec = PolicySpec { allow_out, ..PolicySpec::default() };
        let policy = Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap();
        let zone = policy.zone(&name.parse().unwrap())?;
        Some((zone.rule.to_string(), zone.apex.map(|apex| apex.to_string()), zone.open_bytes))
    }

    #[test]
    fn a_name_below_a_wildcard_is_open_in_front_of_the_wildcards_own_labels() {
        let allow = ["10.0.0.0/8", "*.allowed.test", "~.*-cdn\\.test"];
        let rule = "allow_out[1] *.allowed.test".to_owned();
        assert_eq!(zone(&allow, "a.b.allowed.test"), Some((rule, Some("allowed.test".to_owned()), 3)));
        let rule = "allow_out[2] ~.*-cdn\\.test".to_owned();
        assert_eq!(zone(&allow, "x-cdn.test"), Some((rule, None, 10)));
        assert_eq!(zone(&allow, "other.test"), None);
    }

    #[test]
    fn a_name_that_an_entry_is_exactly_has_no_zone_wherever_that_entry_stands() {
        for allow in [["*.allowed.test", "api.allowed.test:443"], ["api.allowed.test", "~.*"]] {
            assert_eq!(zone(&allow, "api.allowed.test"), None);
            assert!(zone(&allow, "b.allowed.test").is_some());
        }
    }

    #[test]
    fn where_everything_is_permitted_there_are_no_zones() {
        for allow in [&["*.allowed.test", "*"][..], &["*.allowed.test", "*:443"], &[]] {
            assert_eq!(zone(allow, "b.allowed.test"), None);
        }
    }
}
