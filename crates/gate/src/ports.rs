//! The ports on which a policy permits a name.

use std::collections::{BTreeMap, BTreeSet};

use policy::{Entry, Flow, HostName, Policy, Protocol};

/// A set of destination ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortSet {
    /// All of them.
    Every,
    /// These.
    Only(BTreeSet<u16>),
}

impl PortSet {
    /// No port.
    pub(crate) fn none() -> Self {
        Self::Only(BTreeSet::new())
    }

    /// Adds the ports of another set.
    pub(crate) fn join(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Every, _) => {}
            (_, Self::Every) => *self = Self::Every,
            (Self::Only(own), Self::Only(other)) => own.extend(other),
        }
    }

    /// Removes the elements of another set. "Every port" is an element of its own, as it is in the kernel.
    pub(crate) fn subtract(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Every, Self::Every) => *self = Self::none(),
            (Self::Every, Self::Only(_)) | (Self::Only(_), Self::Every) => {}
            (Self::Only(own), Self::Only(other)) => own.retain(|port| !other.contains(port)),
        }
    }

    /// Whether no port is in it.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Only(ports) if ports.is_empty())
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::none()
    }
}

/// Sets of ports put together, each of which can be taken away again.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortCounts {
    /// How many are every port.
    every: usize,
    /// In how many others each port is.
    only: BTreeMap<u16, usize>,
}

impl PortCounts {
    /// Adds a set.
    pub(crate) fn add(&mut self, ports: &PortSet) {
        match ports {
            PortSet::Every => self.every += 1,
            PortSet::Only(ports) => ports.iter().for_each(|port| *self.only.entry(*port).or_default() += 1),
        }
    }

    /// Takes a set away that was added.
    pub(crate) fn subtract(&mut self, ports: &PortSet) {
        match ports {
            PortSet::Every => self.every = self.every.saturating_sub(1),
            PortSet::Only(ports) => {
                for port in ports {
                    if let Some(count) = self.only.get_mut(port) {
                        *count -= 1;
                        if *count == 0 {
                            self.only.remove(port);
                        }
                    }
                }
            }
        }
    }

    /// What all of them have together, as [`PortSet::join`] would have it.
    pub(crate) fn wanted(&self) -> PortSet {
        if self.every > 0 { PortSet::Every } else { PortSet::Only(self.only.keys().copied().collect()) }
    }

    /// Whether that is what [`Self::wanted`] gives.
    pub(crate) fn is(&self, ports: &PortSet) -> bool {
        match ports {
            PortSet::Every => self.every > 0,
            PortSet::Only(ports) => self.every == 0 && self.only.keys().eq(ports),
        }
    }
}

/// The ports that entries of a policy name, from which the ports of each host name follow by asking the policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct NamedPorts {
    ports: BTreeSet<u16>,
    /// A port that no entry names: what is permitted on it is permitted on every port.
    other: u16,
}

impl NamedPorts {
    /// Reads them off a policy's entries.
    pub(crate) fn of(policy: &Policy) -> Self {
        let spec = policy.spec();
        let entries = spec.allow_out.iter().chain(&spec.deny_out);
        // Every entry of a compiled policy parses.
        let ports: BTreeSet<u16> =
            entries.filter_map(|text| Entry::parse(text).ok().and_then(|entry| entry.port)).collect();
        let other = (1..=u16::MAX).find(|port| !ports.contains(port)).unwrap_or_default();
        Self { ports, other }
    }

    /// The ports on which `policy`, whose ports these are, permits TCP connections to `name`.
    pub(crate) fn permitted(&self, policy: &Policy, name: &HostName) -> PortSet {
        let permits = |port| {
            let flow = Flow { protocol: Protocol::Tcp, name: Some(name), address: None, port: Some(port) };
            policy.judge(&flow).is_allowed()
        };
        if permits(self.other) {
            // A deny entry for one port is enforced by the proxy: next to an open default no set is asked.
            return PortSet::Every;
        }
        PortSet::Only(self.ports.iter().copied().filter(|port| permits(*port)).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use policy::{Floor, PolicySpec};

    use super::*;

    #[test]
    fn the_ports_of_a_name_are_those_on_which_the_policy_permits_it() {
        let allow = ["db.corp.test:5432", "*.corp.test:443", "web.test", "10.0.0.0/8:22"];
        let spec = PolicySpec { allow_out: allow.map(str::to_owned).to_vec(), ..PolicySpec::default() };
        let policy = Policy::compile(&spec, Arc::new(Floor::new([]))).unwrap();
        let named = NamedPorts::of(&policy);
        let permitted = |name| named.permitted(&policy, &HostName::parse(name).unwrap());
        assert_eq!(permitted("db.corp.test"), PortSet::Only([443, 5432].into()));
        assert_eq!(permitted("a.corp.test"), PortSet::Only([443].into()));
        assert_eq!(permitted("web.test"), PortSet::Every);
        assert_eq!(permitted("else.test"), PortSet::none());
    }

    #[test]
    fn joining_sets_gives_what_either_has() {
        let mut ports = PortSet::none();
        ports.join(&PortSet::Only([1, 2].into()));
        assert_eq!(ports, PortSet::Only([1, 2].into()));
        ports.join(&PortSet::Every);
        assert_eq!(ports, PortSet::Every);
    }
}
