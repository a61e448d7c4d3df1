//! Addresses for names that are refused, so that the refused connection tells its name.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::Ipv4Net;
use policy::HostName;

use crate::addresses::{SINK_BASE, SINK_PREFIX};

/// The most names that one sandbox can have sink addresses for.
const MAX_SINKS: usize = 8192;

/// The sink addresses of one sandbox: one for each refused name that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Sinks {
    by_name: HashMap<HostName, Ipv4Addr>,
    /// The name of the address so many behind the first.
    names: Vec<HostName>,
}

impl Sinks {
    /// The address of a name, the same every time; `None` when no more are given out.
    pub(crate) fn assign(&mut self, name: &HostName) -> Option<Ipv4Addr> {
        if let Some(address) = self.by_name.get(name) {
            return Some(*address);
        }
        if self.names.len() >= MAX_SINKS {
            return None;
        }
        let address = Ipv4Addr::from_bits(FIRST + u32::try_from(self.names.len()).ok()?);
        self.names.push(name.clone());
        self.by_name.insert(name.clone(), address);
        Some(address)
    }

    /// The name whose sink address this is.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<&HostName> {
        let IpAddr::V4(address) = address else { return None };
        let offset = address.to_bits().checked_sub(FIRST)?;
        self.names.get(usize::try_from(offset).ok()?)
    }
}

/// The first address given out: not the network's own.
const FIRST: u32 = SINK_BASE.to_bits() + 1;

/// The whole range.
pub(crate) fn range() -> Ipv4Net {
    Ipv4Net::new_assert(SINK_BASE, SINK_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_address_and_the_address_tells_the_name() {
        let mut sinks = Sinks::default();
        let names = ["evil.test", "other.test"].map(|text| HostName::parse(text).unwrap());
        let addresses = names.each_ref().map(|name| sinks.assign(name).unwrap());
        assert_ne!(addresses[0], addresses[1]);
        for (name, address) in names.iter().zip(addresses) {
            assert!(range().contains(&address));
            assert_eq!(sinks.assign(name), Some(address));
            assert_eq!(sinks.name_of(address.into()), Some(name));
        }
        assert_eq!(sinks.name_of(SINK_BASE.into()), None);
        assert_eq!(sinks.name_of("198.19.255.255".parse().unwrap()), None);
        assert_eq!(sinks.name_of("::1".parse().unwrap()), None);
    }

    #[test]
    fn the_table_is_bounded_and_stays_inside_the_range() {
        let mut sinks = Sinks::default();
        let name = |number: usize| HostName::parse(&format!("n{number}.test")).unwrap();
        for number in 0..MAX_SINKS {
            assert!(range().contains(&sinks.assign(&name(number)).unwrap()));
        }
        assert_eq!(sinks.assign(&name(MAX_SINKS)), None);
        assert!(sinks.assign(&name(0)).is_some(), "a name that has one keeps it");
    }
}
