//! Ranges of addresses, and the disjoint form an interval set wants.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::set::KeyPart;

/// An address that can be counted: IPv4 or IPv6.
pub trait Address: KeyPart + Copy + Ord + std::fmt::Debug {
    /// The address one higher, or `None` for the highest.
    fn successor(self) -> Option<Self>;
}

impl Address for Ipv4Addr {
    fn successor(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
}

impl Address for Ipv6Addr {
    fn successor(self) -> Option<Self> {
        self.to_bits().checked_add(1).map(Self::from_bits)
    }
}

/// The addresses from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange<A> {
    first: A,
    last: A,
}

impl<A: Address> AddressRange<A> {
    /// The addresses between two, in whichever order they are given.
    pub fn new(one: A, other: A) -> Self {
        Self { first: one.min(other), last: one.max(other) }
    }

    /// The lowest address.
    pub fn first(&self) -> A {
        self.first
    }

    /// The highest address.
    pub fn last(&self) -> A {
        self.last
    }

    /// Whether an address is in the range.
    pub fn contains(&self, address: A) -> bool {
        self.first <= address && address <= self.last
    }
}

impl<A: Address> From<A> for AddressRange<A> {
    fn from(address: A) -> Self {
        Self { first: address, last: address }
    }
}

impl From<Ipv4Net> for AddressRange<Ipv4Addr> {
    fn from(net: Ipv4Net) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

impl From<Ipv6Net> for AddressRange<Ipv6Addr> {
    fn from(net: Ipv6Net) -> Self {
        Self { first: net.network(), last: net.broadcast() }
    }
}

/// The same addresses as the fewest ranges, ascending: an interval set refuses ranges that overlap.
pub(crate) fn merge<A: Address>(mut ranges: Vec<AddressRange<A>>) -> Vec<AddressRange<A>> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, merged| {
        let touches = merged.last.successor().is_none_or(|behind| next.first <= behind);
        if touches {
            merged.last = merged.last.max(next.last);
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u32, last: u32) -> AddressRange<Ipv4Addr> {
        AddressRange::new(Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(last))
    }

    #[test]
    fn adjacent_and_overlapping_ranges_become_one() {
        assert_eq!(
            merge(vec![range(5, 9), range(0, 4), range(7, 12), range(20, 20)]),
            [range(0, 12), range(20, 20)]
        );
        assert_eq!(
            merge(vec![range(7, u32::MAX), range(9, 9), range(u32::MAX, u32::MAX)]),
            [range(7, u32::MAX)]
        );
    }

    #[test]
    fn a_network_is_its_first_to_its_last_address() {
        let net: Ipv4Net = "10.1.2.3/8".parse().unwrap();
        assert_eq!(
            AddressRange::from(net),
            AddressRange::new(Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 255, 255, 255))
        );
        let all: Ipv6Net = "::/0".parse().unwrap();
        assert_eq!(AddressRange::from(all).last().successor(), None);
    }

    proptest! {
        #[test]
        fn merging_keeps_every_address_and_adds_none(
            pairs in proptest::collection::vec((0_u32..60, 0_u32..60), 0..12),
        ) {
            let ranges: Vec<_> = pairs.iter().map(|(first, last)| range(*first, *last)).collect();
            let merged = merge(ranges.clone());
            for bits in 0..62 {
                let address = Ipv4Addr::from_bits(bits);
                prop_assert_eq!(
                    ranges.iter().any(|range| range.contains(address)),
                    merged.iter().any(|range| range.contains(address))
                );
            }
            for pair in merged.windows(2) {
                prop_assert!(pair[0].last().successor().unwrap() < pair[1].first());
            }
        }
    }
}
