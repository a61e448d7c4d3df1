//! Which entry of a list covers an address, in time that does not grow with the list.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::ports::{PortQuery, PortSet, lower};

/// The address entries of one list.
///
/// Networks form a forest: two of them are nested or disjoint. A lookup finds by binary search the last network
/// that begins at or before the address; every network that contains the address is that one or encloses it.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddressIndex {
    /// Sorted, each network once.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
struct Node {
    net: IpNet,
    /// The position of the smallest network that encloses this one.
    parent: Option<usize>,
    ports: PortSet,
}

impl AddressIndex {
    /// Builds the index from networks with the port and the list position of their entries.
    pub(crate) fn new(entries: impl IntoIterator<Item = (IpNet, Option<u16>, usize)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        // The order of IpNet is: family, first address, prefix length; an enclosing network comes first.
        entries.sort_unstable();
        let mut nodes: Vec<Node> = Vec::new();
        for (net, port, index) in entries {
            match nodes.last_mut() {
                Some(last) if last.net == net => last.ports.add(port, index),
                _ => {
                    let parent = enclosing(&nodes, &net);
                    let mut ports = PortSet::default();
                    ports.add(port, index);
                    nodes.push(Node { net, parent, ports });
                }
            }
        }
        nodes.iter_mut().for_each(|node| node.ports.finish());
        Self { nodes }
    }

    /// The lowest list position of an entry that covers `address` and answers the query for ports.
    pub(crate) fn find(&self, address: IpAddr, query: PortQuery) -> Option<usize> {
        self.covering(address).map(|node| node.ports.find(query)).fold(None, lower)
    }

    /// The list position of the entry with the smallest network that covers `address`, whatever its port.
    pub(crate) fn most_specific(&self, address: IpAddr) -> Option<usize> {
        self.covering(address).next().and_then(|node| node.ports.find(PortQuery::Any))
    }

    /// The networks that contain `address`, the smallest first.
    fn covering(&self, address: IpAddr) -> impl Iterator<Item = &Node> {
        let host = IpNet::from(address);
        let after = self.nodes.partition_point(|node| node.net <= host);
        let last = after.checked_sub(1).and_then(|at| self.nodes.get(at));
        std::iter::successors(last, |node| node.parent.and_then(|at| self.nodes.get(at)))
            .filter(move |node| node.net.contains(&address))
    }
}

/// The position of the smallest of `nodes` that encloses `net`, which sorts after all of them.
fn enclosing(nodes: &[Node], net: &IpNet) -> Option<usize> {
    let mut at = nodes.len().checked_sub(1);
    while let Some(node) = at.and_then(|at| nodes.get(at)) {
        if node.net.contains(net) {
            return at;
        }
        at = node.parent;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn index(entries: &[(&str, Option<u16>)]) -> AddressIndex {
        AddressIndex::new(entries.iter().enumerate().map(|(i, (net, port))| (net.parse().unwrap(), *port, i)))
    }

    #[test]
    fn overlapping_networks_all_count_and_the_lowest_index_is_reported() {
        let index = index(&[
            ("10.1.2.3/32", None),
            ("10.0.0.0/8", None),
            ("10.1.0.0/16", Some(443)),
            ("10.1.2.3/32", Some(80)),
            ("2001:db8::/32", None),
        ]);
        let find = |address: &str, port| index.find(address.parse().unwrap(), PortQuery::Is(port));
        assert_eq!(find("10.1.2.3", 80), Some(0));
        assert_eq!(find("10.1.2.4", 443), Some(1));
        assert_eq!(find("10.255.255.255", 1), Some(1));
        assert_eq!(find("11.0.0.0", 1), None);
        assert_eq!(find("9.255.255.255", 1), None);
        assert_eq!(find("2001:db8:ffff::1", 1), Some(4));
        assert_eq!(find("2001:db9::", 1), None);
        assert_eq!(index.most_specific("10.1.2.4".parse().unwrap()), Some(2));
    }

    #[test]
    fn the_first_and_last_addresses_of_a_family_are_found() {
        let index = index(&[("0.0.0.0/1", None), ("255.255.255.255/32", None), ("ffff::/16", None)]);
        let find = |address: &str| index.find(address.parse().unwrap(), PortQuery::Any);
        assert_eq!(find("0.0.0.0"), Some(0));
        assert_eq!(find("127.255.255.255"), Some(0));
        assert_eq!(find("128.0.0.0"), None);
        assert_eq!(find("255.255.255.255"), Some(1));
        assert_eq!(find("255.255.255.254"), None);
        assert_eq!(find("::"), None);
        assert_eq!(find("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), Some(2));
    }

    fn network() -> impl Strategy<Value = IpNet> {
        // Few distinct bits, so that networks nest often.
        let v4 = (0u32..64, 0u8..=32).prop_map(|(bits, len)| {
            let address = std::net::Ipv4Addr::from_bits(bits.rotate_right(6));
            ipnet::Ipv4Net::new(address, len).unwrap().trunc().into()
        });
        let v6 = (0u128..64, 0u8..=128).prop_map(|(bits, len)| {
            let address = std::net::Ipv6Addr::from_bits(bits.rotate_right(6));
            ipnet::Ipv6Net::new(address, len).unwrap().trunc().into()
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn a_lookup_agrees_with_trying_every_network(
            nets in prop::collection::vec((network(), prop::option::of(1u16..4)), 0..40),
            probe in network(),
            port in 1u16..4,
        ) {
            let index = AddressIndex::new(nets.iter().enumerate().map(|(i, (net, port))| (*net, *port, i)));
            for query in [PortQuery::Is(port), PortQuery::Any, PortQuery::Every] {
                let expected = nets.iter().position(|(net, entry)| {
                    net.contains(&probe.addr())
                        && match query {
                            PortQuery::Any => true,
                            PortQuery::Every => entry.is_none(),
                            PortQuery::Is(port) => entry.is_none_or(|entry| entry == port),
                        }
                });
                prop_assert_eq!(index.find(probe.addr(), query), expected);
            }
        }
    }
}
