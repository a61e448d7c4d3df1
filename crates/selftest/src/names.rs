//! The names of the world: every name has an address, and the hostile ones have hostile addresses.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use parking_lot::Mutex;

/// Where addresses of names come from that nobody has given one: public, and of no name that is given one.
const ANY_V4: Ipv4Addr = Ipv4Addr::new(23, 192, 0, 1);
const ANY_V6: Ipv6Addr = Ipv6Addr::new(0x2600, 0x1400, 0, 0, 0, 0, 0, 1);
/// The most names that get an address of their own; later ones share one.
const MAX_NAMES: u32 = 65_536;

/// Which name has which addresses.
#[derive(Default)]
pub(crate) struct Names {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    given: HashMap<String, Vec<IpAddr>>,
    /// Zones below which every name has these addresses.
    zones: Vec<(String, Vec<IpAddr>)>,
    any: HashMap<String, u32>,
}

impl Names {
    /// Gives a name its addresses.
    pub(crate) fn give(&self, name: &str, addresses: &[IpAddr]) {
        self.table.lock().given.insert(name.to_ascii_lowercase(), addresses.to_vec());
    }

    /// Gives every name below `zone` these addresses.
    pub(crate) fn give_below(&self, zone: &str, addresses: &[IpAddr]) {
        self.table.lock().zones.push((format!(".{}", zone.to_ascii_lowercase()), addresses.to_vec()));
    }

    /// The addresses of a name. There is no name without.
    pub(crate) fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let name = name.to_ascii_lowercase();
        let mut table = self.table.lock();
        if let Some(addresses) = table.given.get(&name) {
            return addresses.clone();
        }
        if let Some((_, addresses)) = table.zones.iter().find(|(zone, _)| name.ends_with(zone.as_str())) {
            return addresses.clone();
        }
        let next = u32::try_from(table.any.len()).unwrap_or(MAX_NAMES).min(MAX_NAMES);
        let number = match table.any.get(&name) {
            Some(number) => *number,
            None if next < MAX_NAMES => *table.any.entry(name).or_insert(next),
            None => next,
        };
        let v4 = Ipv4Addr::from_bits(ANY_V4.to_bits().wrapping_add(number));
        let v6 = Ipv6Addr::from_bits(ANY_V6.to_bits().wrapping_add(u128::from(number)));
        vec![v4.into(), v6.into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_addresses_and_no_two_share_one() {
        let names = Names::default();
        names.give("a.test", &["104.16.1.1".parse().unwrap()]);
        names.give_below("inside.test", &["10.0.0.1".parse().unwrap()]);
        assert_eq!(names.addresses("A.test"), ["104.16.1.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(names.addresses("x.y.inside.test"), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        let other = names.addresses("b.test");
        assert_eq!((other.len(), names.addresses("B.test")), (2, other.clone()));
        assert_ne!(names.addresses("inside.test"), other);
    }
}
