//! Sets of addresses: whether a network lies in one as a whole.

use std::collections::BTreeMap;

use ipnet::IpNet;

/// A set of addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cover {
    /// Disjoint and sorted, adjacent ones joined where they make up a network.
    nets: Vec<IpNet>,
}

impl Cover {
    /// Every address of any of `nets`.
    pub(crate) fn new(nets: Vec<IpNet>) -> Self {
        let mut nets = IpNet::aggregate(&nets);
        nets.sort_unstable();
        Self { nets }
    }

    /// Whether the whole of `net` is in the set.
    pub(crate) fn contains(&self, net: &IpNet) -> bool {
        // Aggregated, so a network that is covered is so by a single one.
        self.around(net)
    }

    /// Whether some of `net` is in the set.
    pub(crate) fn meets(&self, net: &IpNet) -> bool {
        self.around(net) || self.inside(net)
    }

    /// Whether one of the networks encloses `net`, or is it.
    fn around(&self, net: &IpNet) -> bool {
        let after = self.nets.partition_point(|other| other <= net);
        after.checked_sub(1).and_then(|at| self.nets.get(at)).is_some_and(|other| other.contains(net))
    }

    /// Whether `net` encloses one of the networks.
    fn inside(&self, net: &IpNet) -> bool {
        let after = self.nets.partition_point(|other| other <= net);
        self.nets.get(after).is_some_and(|other| net.contains(other))
    }
}

/// The addresses of a list's entries, by port.
#[derive(Clone, Debug)]
pub(crate) struct PortedCover {
    /// On every port.
    every: Cover,
    /// On one port.
    single: BTreeMap<u16, Cover>,
    /// On any port.
    any: Cover,
}

impl PortedCover {
    /// The addresses of entries; what is third in each is not used.
    pub(crate) fn new(entries: impl IntoIterator<Item = (IpNet, Option<u16>, usize)>) -> Self {
        let (mut every, mut any) = (Vec::new(), Vec::new());
        let mut single = BTreeMap::<u16, Vec<IpNet>>::new();
        for (net, port, _) in entries {
            any.push(net);
            match port {
                None => every.push(net),
                Some(port) => single.entry(port).or_default().push(net),
            }
        }
        let single = single.into_iter().map(|(port, nets)| (port, Cover::new(nets))).collect();
        Self { every: Cover::new(every), single, any: Cover::new(any) }
    }

    /// Whether the whole of `net` is there on `port` (`None`: on every port) or in `also`.
    pub(crate) fn contains(&self, net: &IpNet, port: Option<u16>, also: Option<&Cover>) -> bool {
        let single = port.and_then(|port| self.single.get(&port));
        let covers: Vec<&Cover> = [Some(&self.every), single, also].into_iter().flatten().collect();
        contained(net, &covers)
    }

    /// Whether some of `net` is there on `port` (`None`: on any port).
    pub(crate) fn meets(&self, net: &IpNet, port: Option<u16>) -> bool {
        match port {
            None => self.any.meets(net),
            Some(port) => {
                self.every.meets(net) || self.single.get(&port).is_some_and(|cover| cover.meets(net))
            }
        }
    }
}

/// Whether each address of `net` is in one of `covers`.
fn contained(net: &IpNet, covers: &[&Cover]) -> bool {
    if covers.iter().any(|cover| cover.around(net)) {
        return true;
    }
    if !covers.iter().any(|cover| cover.inside(net)) {
        return false;
    }
    // It ends: what is inside of a network is narrower, and is met on the way down.
    net.subnets(net.prefix_len() + 1).is_ok_and(|mut halves| halves.all(|half| contained(&half, covers)))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_network_made_up_of_parts_is_contained_and_one_with_a_gap_is_not() {
        let cover = Cover::new(nets(&["10.0.0.0/9", "10.128.0.0/10", "10.192.0.0/10", "2001:db8::/33"]));
        let contains = |text: &str| cover.contains(&text.parse().unwrap());
        assert!(contains("10.0.0.0/8") && contains("10.1.2.3/32") && contains("2001:db8::/34"));
        assert!(!contains("10.0.0.0/7") && !contains("2001:db8::/32") && !contains("11.0.0.0/32"));
        assert!(cover.meets(&"0.0.0.0/1".parse().unwrap()) && cover.meets(&"::/0".parse().unwrap()));
        assert!(!cover.meets(&"11.0.0.0/8".parse().unwrap()));
    }

    #[test]
    fn parts_on_every_port_and_on_one_make_up_a_network_on_that_one() {
        let entries = [("10.0.0.0/9", None), ("10.128.0.0/9", Some(443))];
        let entries = entries.map(|(net, port)| (net.parse().unwrap(), port, 0));
        let cover = PortedCover::new(entries);
        let whole = "10.0.0.0/8".parse().unwrap();
        assert!(cover.contains(&whole, Some(443), None));
        assert!(!cover.contains(&whole, Some(80), None) && !cover.contains(&whole, None, None));
        let rest = Cover::new(nets(&["10.128.0.0/9"]));
        assert!(cover.contains(&whole, None, Some(&rest)));
        assert!(cover.meets(&"10.200.0.0/16".parse().unwrap(), None));
        assert!(!cover.meets(&"10.200.0.0/16".parse().unwrap(), Some(80)));
    }

    fn small() -> impl Strategy<Value = IpNet> {
        (0u32..32, 27u8..=32).prop_map(|(bits, length)| {
            let address = Ipv4Addr::from_bits(0x0a00_0000 | bits);
            IpNet::new(IpAddr::V4(address), length).unwrap().trunc()
        })
    }

    fn addresses(net: IpNet) -> impl Iterator<Item = IpAddr> {
        net.subnets(32).unwrap().map(|net| net.addr())
    }

    proptest! {
        #[test]
        fn containing_and_meeting_agree_with_trying_every_address(
            first in prop::collection::vec(small(), 0..8),
            second in prop::collection::vec(small(), 0..8),
            net in small(),
        ) {
            let covered = |address: IpAddr| first.iter().chain(&second).any(|net| net.contains(&address));
            let (one, two) = (Cover::new(first.clone()), Cover::new(second.clone()));
            let both = Cover::new(first.iter().chain(&second).copied().collect());
            prop_assert_eq!(both.contains(&net), addresses(net).all(covered));
            prop_assert_eq!(both.meets(&net), addresses(net).any(covered));
            prop_assert_eq!(contained(&net, &[&one, &two]), both.contains(&net));
        }
    }
}
