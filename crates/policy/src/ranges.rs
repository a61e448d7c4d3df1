//! Address ranges that are not the public internet, and the IPv6 forms of IPv4 networks.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::addresses::AddressIndex;

/// Ranges that are not the public internet and need an address entry that covers them (what no entry can permit
/// is the floor). From the IANA IPv4 and IPv6 special-purpose address registries, each with its RFC.
///
/// They are disjoint, but not all: [`private_networks`] is the exact set, for kernel sets and for judging.
#[rustfmt::skip]
pub const PRIVATE_RANGES: &[&str] = &[
    "10.0.0.0/8",       // private use, RFC 1918
    "100.64.0.0/10",    // shared address space (CGNAT), RFC 6598
    "172.16.0.0/12",    // private use, RFC 1918
    "192.0.0.0/24",     // IETF protocol assignments, RFC 6890
    "192.0.2.0/24",     // documentation (TEST-NET-1), RFC 5737
    "192.88.99.0/24",   // 6to4 relay anycast, deprecated by RFC 7526
    "192.168.0.0/16",   // private use, RFC 1918
    "198.18.0.0/15",    // benchmarking, RFC 2544; sink addresses of refused names
    "198.51.100.0/24",  // documentation (TEST-NET-2), RFC 5737
    "203.0.113.0/24",   // documentation (TEST-NET-3), RFC 5737
    "240.0.0.0/4",      // reserved, RFC 1112
    "::/96",            // IPv4-compatible, deprecated by RFC 4291
    "64:ff9b:1::/48",   // NAT64 with a local prefix, RFC 8215
    "100::/64",         // discard only, RFC 6666
    "2001::/23",        // IETF protocol assignments, RFC 2928
    "2001:db8::/32",    // documentation, RFC 3849
    "2002::/16",        // 6to4, RFC 3056; its IPv4 relays are deprecated by RFC 7526
    "3fff::/20",        // documentation, RFC 9637
    "5f00::/16",        // segment routing identifiers, RFC 9602
    "fc00::/7",         // unique local, RFC 4193
    "fec0::/10",        // site-local, deprecated by RFC 3879
];

/// The IPv6 space in which public addresses are: global unicast, and the well-known prefix of NAT64.
/// (IANA IPv6 address space registry: the rest of it is reserved, or above.)
const PUBLIC_V6: [&str; 2] = ["2000::/3", "64:ff9b::/96"];

/// Every network that is not the public internet: [`PRIVATE_RANGES`], their forms under the well-known prefix of
/// NAT64, and the IPv6 space that IANA has not given out. Disjoint, sorted, IPv4 first.
///
/// Parts of the floor (multicast, loopback …) are in it where they are not public either.
pub fn private_networks() -> &'static [IpNet] {
    static NETWORKS: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
        let ranges: Vec<IpNet> = PRIVATE_RANGES.iter().map(|text| parse(text)).collect();
        let nat64 = ranges.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(as_nat64(*net)),
            IpNet::V6(_) => None,
        });
        let unassigned = without(parse("::/0"), &PUBLIC_V6.map(parse));
        IpNet::aggregate(&nat64.chain(unassigned).chain(ranges.iter().copied()).collect())
    });
    &NETWORKS
}

/// Every network that is the public internet: what [`private_networks`] leaves. Disjoint, IPv4 first.
pub fn public_networks() -> &'static [IpNet] {
    static NETWORKS: LazyLock<Vec<IpNet>> = LazyLock::new(|| {
        let everything = ["0.0.0.0/0", "::/0"].map(parse);
        everything.into_iter().flat_map(|net| without(net, private_networks())).collect()
    });
    &NETWORKS
}

/// Whether `address` is not on the public internet. IPv4-mapped addresses are the IPv4 address.
pub(crate) fn is_private(address: IpAddr) -> bool {
    static INDEX: LazyLock<AddressIndex> = LazyLock::new(|| {
        AddressIndex::new(private_networks().iter().enumerate().map(|(at, net)| (*net, None, at)))
    });
    INDEX.most_specific(address.to_canonical()).is_some()
}

/// The network under the well-known NAT64 prefix 64:ff9b::/96 (RFC 6052).
pub(crate) fn as_nat64(net: Ipv4Net) -> IpNet {
    embedded(net, 0x0064_ff9b << 96, 0)
}

/// The 6to4 networks of the addresses of `net` (RFC 3056).
pub(crate) fn as_6to4(net: Ipv4Net) -> IpNet {
    embedded(net, 0x2002 << 112, 80)
}

/// The network in the IPv4-compatible form (RFC 4291 section 2.5.5.1).
pub(crate) fn as_compatible(net: Ipv4Net) -> IpNet {
    embedded(net, 0, 0)
}

/// The IPv6 network whose addresses begin with `prefix` and carry an address of `net` so that `right` bits follow.
fn embedded(net: Ipv4Net, prefix: u128, right: u8) -> IpNet {
    let bits = prefix | (u128::from(net.network().to_bits()) << right);
    let length = 96 - right + net.prefix_len();
    Ipv6Net::new(Ipv6Addr::from_bits(bits), length).expect("at most 96 + 32").into()
}

/// What is left of `net` without `holes`.
fn without(net: IpNet, holes: &[IpNet]) -> Vec<IpNet> {
    let holes: Vec<IpNet> =
        holes.iter().filter(|hole| hole.contains(&net) || net.contains(*hole)).copied().collect();
    if holes.is_empty() {
        return vec![net];
    }
    if holes.iter().any(|hole| hole.contains(&net)) {
        return Vec::new();
    }
    let halves =
        net.subnets(net.prefix_len() + 1).expect("a network with a smaller one inside can be halved");
    halves.flat_map(|half| without(half, &holes)).collect()
}

fn parse(text: &str) -> IpNet {
    text.parse().expect("the range lists are tested")
}

/// `address` with `length`, its IPv4-mapped form made IPv4, its host bits cleared.
pub(crate) fn network(address: IpAddr, length: u8) -> Option<IpNet> {
    let (address, length) = match address {
        IpAddr::V6(v6) if length >= 96 => match v6.to_ipv4_mapped() {
            Some(v4) => (IpAddr::V4(v4), length - 96),
            None => (address, length),
        },
        IpAddr::V6(_) => (address, length),
        IpAddr::V4(_) => (address, length),
    };
    IpNet::new(address, length).ok().map(|net| net.trunc())
}

/// The longest prefix of the family of `address`, as it was written.
pub(crate) fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => u8::try_from(Ipv4Addr::BITS).expect("32"),
        IpAddr::V6(_) => u8::try_from(Ipv6Addr::BITS).expect("128"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn private(address: &str) -> bool {
        is_private(address.parse().unwrap())
    }

    #[test]
    fn special_ranges_are_not_the_public_internet_and_their_neighbours_are() {
        for range in PRIVATE_RANGES {
            let net: IpNet = range.parse().unwrap();
            assert_eq!(net, net.trunc(), "{range} has host bits");
            assert!(is_private(net.network()) && is_private(net.broadcast()), "{range}");
        }
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2a00::1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(!private(public), "{public}");
        }
    }

    #[test]
    fn other_notations_of_private_addresses_are_private() {
        for address in [
            "::ffff:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::192.168.0.1",
            "2002:a00:1::1",
            "::10.0.0.1",
            "64:ff9b:1::10.0.0.1",
        ] {
            assert!(private(address), "{address}");
        }
    }

    #[test]
    fn ipv6_space_that_is_not_given_out_is_not_public() {
        for address in
            ["1::", "64:ff9a::1", "64:ff9b::1:0:0", "400::1", "4000::1", "8000::1", "fe00::1", "ff0e::1"]
        {
            assert!(private(address), "{address}");
        }
    }

    #[test]
    fn public_and_private_networks_partition_the_address_space() {
        let all: Vec<IpNet> = public_networks().iter().chain(private_networks()).copied().collect();
        let whole: Vec<String> = IpNet::aggregate(&all).iter().map(ToString::to_string).collect();
        assert_eq!(whole, ["0.0.0.0/0", "::/0"]);
        for net in public_networks() {
            assert!(!is_private(net.network()) && !is_private(net.broadcast()), "{net}");
            assert!(!private_networks().iter().any(|private| net.contains(private)), "{net}");
        }
    }

    #[test]
    fn private_ranges_are_disjoint() {
        let nets: Vec<IpNet> = PRIVATE_RANGES.iter().map(|text| text.parse().unwrap()).collect();
        for (at, net) in nets.iter().enumerate() {
            assert!(nets[at + 1..].iter().all(|other| !net.contains(other) && !other.contains(net)), "{net}");
        }
    }

    #[test]
    fn embedding_keeps_the_prefix_and_its_length() {
        let net: Ipv4Net = "169.254.0.0/16".parse().unwrap();
        assert_eq!(as_nat64(net).to_string(), "64:ff9b::a9fe:0/112");
        assert_eq!(as_6to4(net).to_string(), "2002:a9fe::/32");
        assert_eq!(as_compatible(net).to_string(), "::a9fe:0/112");
    }
}
