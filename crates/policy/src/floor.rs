//! What no policy can permit.

use std::{collections::HashMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net};

use crate::{
    HostName,
    addresses::AddressIndex,
    cover::Cover,
    floor_list::{NAMES, NETWORKS},
    ranges::{as_6to4, as_compatible, as_nat64},
};

/// The floor: built-in addresses and names, and the node's own addresses.
///
/// For every IPv4 address on it, the IPv6 addresses that lead to the same place (NAT64, 6to4, IPv4-compatible)
/// are on it too; IPv4-mapped addresses are the IPv4 address itself.
#[derive(Clone, Debug)]
pub struct Floor {
    rules: Vec<FloorRule>,
    /// Gives positions in `rules`.
    addresses: AddressIndex,
    /// Disjoint and sorted.
    networks: Vec<IpNet>,
    names: HashMap<HostName, &'static str>,
}

/// One line of the floor list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FloorRule {
    /// What is refused.
    pub target: FloorTarget,
    /// Which part of the floor it is: `metadata`, `link_local`, `multicast`, `broadcast`, `loopback`,
    /// `unspecified`, `transition`, `node`, `gate` or `sandbox`.
    pub word: &'static str,
    /// What is found there.
    pub comment: &'static str,
    /// Where that is written.
    pub source: &'static str,
}

/// What a line of the floor list is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FloorTarget {
    /// Every address of a network.
    Network(IpNet),
    /// A name, whatever it resolves to.
    Name(HostName),
}

impl Floor {
    /// The built-in floor plus the node's own addresses (and any other the operator adds).
    pub fn new(node_addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::with_networks(node_addresses.into_iter().map(|address| IpNet::from(address.to_canonical())))
    }

    /// As [`Self::new`], where whole networks are the node's own.
    pub fn with_networks(node_networks: impl IntoIterator<Item = IpNet>) -> Self {
        let mut rules: Vec<FloorRule> = NETWORKS
            .iter()
            .map(|line| FloorRule {
                target: FloorTarget::Network(line.target.parse().expect("the floor list is tested")),
                word: line.word,
                comment: line.comment,
                source: line.source,
            })
            .chain(NAMES.iter().map(|line| FloorRule {
                target: FloorTarget::Name(line.target.parse().expect("the floor list is tested")),
                word: line.word,
                comment: line.comment,
                source: line.source,
            }))
            .collect();
        rules.extend(node_networks.into_iter().map(|network| FloorRule {
            target: FloorTarget::Network(network),
            word: "node",
            comment: "an address of the machine itself, or one its operator protects",
            source: "the machine's interfaces, routes and configuration",
        }));
        let addresses = rules.iter().enumerate().flat_map(|(at, rule)| match rule.target {
            FloorTarget::Network(net) => forms(net).into_iter().map(|net| (net, None, at)).collect(),
            FloorTarget::Name(_) => Vec::new(),
        });
        let addresses: Vec<_> = addresses.collect();
        let networks = IpNet::aggregate(&addresses.iter().map(|(net, _, _)| *net).collect());
        let addresses = AddressIndex::new(addresses);
        let names = rules.iter().filter_map(|rule| match &rule.target {
            FloorTarget::Name(name) => Some((name.clone(), rule.word)),
            FloorTarget::Network(_) => None,
        });
        let names = names.collect();
        Self { rules, addresses, networks, names }
    }

    /// The lines of the list, the node's own addresses last.
    pub fn rules(&self) -> &[FloorRule] {
        &self.rules
    }

    /// The networks of the floor, for kernel sets: disjoint, sorted, IPv4 first.
    ///
    /// IPv4 networks are there in all their IPv6 forms too.
    pub fn networks(&self) -> Vec<IpNet> {
        self.networks.clone()
    }

    /// The part of the floor that `address` is on.
    pub fn address(&self, address: IpAddr) -> Option<&'static str> {
        let at = self.addresses.most_specific(address.to_canonical())?;
        self.rules.get(at).map(|rule| rule.word)
    }

    /// The part of the floor that `name` is on. (A name that is not may still resolve to an address that is.)
    pub fn name(&self, name: &HostName) -> Option<&'static str> {
        self.names.get(name).copied()
    }

    /// Whether everything on `other` is on this floor too.
    pub(crate) fn contains(&self, other: &Self) -> bool {
        let addresses = Cover::new(self.networks.clone());
        other.networks.iter().all(|net| addresses.contains(net))
            && other.names.keys().all(|name| self.names.contains_key(name))
    }

    /// The part of the floor that the whole of `net` is on.
    pub fn covers(&self, net: &IpNet) -> Option<&'static str> {
        let word = self.address(net.addr())?;
        let whole = self.networks.iter().any(|floor| floor.contains(net));
        whole.then_some(word)
    }
}

/// A network and the IPv6 networks that lead to it.
fn forms(net: IpNet) -> Vec<IpNet> {
    match net {
        IpNet::V4(v4) => {
            let into: [fn(Ipv4Net) -> IpNet; 3] = [as_nat64, as_6to4, as_compatible];
            std::iter::once(net).chain(into.into_iter().map(|form| form(v4))).collect()
        }
        IpNet::V6(_) => vec![net],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor() -> Floor {
        Floor::new(["192.168.7.7".parse().unwrap(), "2001:db8:7::7".parse().unwrap()])
    }

    #[test]
    fn every_address_of_the_list_is_on_the_floor_with_its_word() {
        let floor = floor();
        let cases = [
            ("metadata", "169.254.169.254 169.254.170.2 169.254.170.23 169.254.169.253 169.254.169.123"),
            ("metadata", "169.254.42.42 169.254.0.23 168.63.129.16 100.100.100.200 192.0.0.192"),
            ("metadata", "fd00:ec2::254 fd00:ec2::23 fd20:ce::254 fd00:42::42"),
            ("link_local", "169.254.0.0 169.254.255.255 fe80::1 febf:ffff::1"),
            ("multicast", "224.0.0.1 239.255.255.250 ff02::1"),
            ("broadcast", "255.255.255.255"),
            ("unspecified", "0.0.0.0 0.1.2.3 ::"),
            ("loopback", "127.0.0.1 127.255.255.255 ::1"),
            ("node", "192.168.7.7 2001:db8:7::7"),
            ("gate", "100.64.0.1 100.64.0.7 fd62:6169:6c69::1"),
            ("sandbox", "100.80.0.0 100.95.255.255 fd62:6169:6c69:1::5"),
        ];
        for (word, addresses) in cases {
            for address in addresses.split(' ') {
                assert_eq!(floor.address(address.parse().unwrap()), Some(word), "{address}");
            }
        }
        for address in
            ["1.1.1.1", "10.0.0.1", "100.64.0.8", "100.96.0.0", "192.168.7.8", "2001:db8:7::8", "fd00::1"]
        {
            assert_eq!(floor.address(address.parse().unwrap()), None, "{address}");
        }
    }

    #[test]
    fn no_ipv6_notation_of_an_ipv4_address_leaves_the_floor() {
        let floor = floor();
        for address in [
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2002:a9fe:a9fe:1234:5678::9",
            "::169.254.169.254",
        ] {
            assert_eq!(floor.address(address.parse().unwrap()), Some("metadata"), "{address}");
        }
        assert_eq!(floor.address("64:ff9b::192.168.7.7".parse().unwrap()), Some("node"));
        assert_eq!(floor.address("64:ff9b::127.0.0.1".parse().unwrap()), Some("loopback"));
        // Teredo hides the address in inverted bits, which no prefix can express: all of it is refused.
        assert_eq!(
            floor.address("2001:0:4136:e378:8000:63bf:5601:5601".parse().unwrap()),
            Some("transition")
        );
        assert_eq!(floor.address("64:ff9b::1.1.1.1".parse().unwrap()), None);
    }

    #[test]
    fn metadata_names_are_on_the_floor_and_their_neighbours_are_not() {
        let floor = floor();
        for name in ["metadata.google.internal", "METADATA", "instance-data.", "metadata.tencentyun.com"] {
            assert_eq!(floor.name(&name.parse().unwrap()), Some("metadata"), "{name}");
        }
        for name in ["google.internal", "x.metadata.google.internal", "metadata.test"] {
            assert_eq!(floor.name(&name.parse().unwrap()), None, "{name}");
        }
    }

    #[test]
    fn kernel_networks_are_disjoint_and_agree_with_the_lookup() {
        let floor = floor();
        let networks = floor.networks();
        for (at, net) in networks.iter().enumerate() {
            assert!(floor.address(net.addr()).is_some() || net.to_string() == "::ffff:0.0.0.0/96", "{net}");
            assert!(
                networks[at + 1..].iter().all(|other| !other.contains(net) && !net.contains(other)),
                "{net}"
            );
        }
        for address in
            ["169.254.1.1", "64:ff9b::a9fe:101", "2002:a9fe:101::", "::ffff:8.8.8.8", "192.168.7.7"]
        {
            let address: IpAddr = address.parse().unwrap();
            assert!(networks.iter().any(|net| net.contains(&address)), "{address}");
        }
        assert!(!networks.iter().any(|net| net.contains(&"8.8.8.8".parse::<IpAddr>().unwrap())));
    }

    #[test]
    fn a_network_is_on_the_floor_only_as_a_whole() {
        let floor = floor();
        let covers = |net: &str| floor.covers(&net.parse().unwrap());
        assert_eq!(covers("169.254.169.254/32"), Some("metadata"));
        assert_eq!(covers("169.254.169.0/24"), Some("link_local"));
        assert_eq!(covers("169.0.0.0/8"), None);
        assert_eq!(covers("0.0.0.0/1"), None);
        assert_eq!(covers("fe80::/64"), Some("link_local"));
    }

    #[test]
    fn every_line_has_a_comment_and_a_source() {
        assert!(floor().rules().iter().all(|rule| !rule.comment.is_empty() && !rule.source.is_empty()));
    }
}
