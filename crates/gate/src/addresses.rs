//! The addresses, marks and names that the gate uses inside namespaces. All of the addresses are on the floor.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Where the resolver and the proxy listen inside a sandbox's namespace. No interface has it, so no connection
/// gets there that the packet filter did not divert, and the sandbox's own listeners do not collide with it.
pub const GATE_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// As [`GATE_V4`].
pub const GATE_V6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x6169, 0x6c69, 0, 0, 0, 0, 1);
/// A sandbox's own address in its namespace (the same in all of them).
pub const SANDBOX_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// As [`SANDBOX_V4`].
pub const SANDBOX_V6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x6169, 0x6c69, 0, 0, 0, 0, 2);
/// The port that the resolver is asked at.
pub(crate) const DNS_PORT: u16 = 53;
/// The first port that the sandbox may listen on. Those below are the gate's alone, also while no daemon is there: what
/// listens on a port at every address keeps the gate from listening on it.
pub(crate) const FIRST_PORT: &str = "15";
/// The port that the attempts of the proof come from: the sandbox may have taken all others.
pub(crate) const PROOF_PORT: u16 = 1;
/// The port that the resolver's connections are diverted to, and its datagrams if something in the sandbox has port 53.
pub(crate) const RESOLVER_PORT: u16 = 2;
/// Ports the proxy may listen on, for the web and for all else: the first pair that is free, of those that IANA has
/// assigned to nobody.
pub(crate) const PROXY_PORTS: [ProxyPorts; 3] =
    [ProxyPorts { web: 4, other: 6 }, ProxyPorts { web: 8, other: 10 }, ProxyPorts { web: 12, other: 14 }];

/// Where the proxy listens in a sandbox's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProxyPorts {
    /// For connections to the [`proxy::WEB_PORTS`]: they are accepted when their client has sent something.
    pub(crate) web: u16,
    /// For all others, whose server may have to speak first.
    pub(crate) other: u16,
}

/// The mark of packets that turn round to the resolver or the proxy.
pub(crate) const DIVERT_MARK: u32 = 1;
/// The mark of the daemon's own sockets in a sandbox's namespace: whatever the divert mark does not happen to them.
pub(crate) const OWN_MARK: u32 = 2;
/// The routing table in which every destination is local.
pub(crate) const DIVERT_TABLE: u32 = 100;

/// The metric of the default route to loopback, which is there in any case.
pub(crate) const LOOPBACK_METRIC: u32 = 1000;
/// The metric of the default route by the wire, which is preferred as long as the wire is there.
pub(crate) const WIRE_METRIC: u32 = 100;

/// The packet filter's table, in sandboxes' namespaces and in the uplink's.
pub(crate) const TABLE: &str = "bailiwick";
/// The log group of refused packets (and, in the uplink's namespace, of new flows).
pub(crate) const LOG_GROUP: u16 = 1;

/// Where sink addresses of refused names come from (RFC 2544's benchmarking range: on no network).
pub(crate) const SINK_BASE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// The length of the sink range's prefix.
pub(crate) const SINK_PREFIX: u8 = 15;

/// The name of the wire inside the sandbox's namespace.
pub(crate) const WIRE: &str = "eth0";
/// The name of the uplink namespace's link to the machine's.
pub(crate) const UPLINK: &str = "up0";

/// Both default routes.
pub(crate) fn everything() -> [IpNet; 2] {
    [
        IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0),
    ]
}

/// Where the resolver is asked.
pub(crate) fn resolver_sockets() -> [SocketAddr; 2] {
    gate_sockets(DNS_PORT)
}

/// The gate's address of each family with `port`.
pub(crate) fn gate_sockets(port: u16) -> [SocketAddr; 2] {
    [SocketAddr::new(GATE_V4.into(), port), SocketAddr::new(GATE_V6.into(), port)]
}

/// The place of a wired sandbox among those of one daemon: gives its wire's names and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(u32);

/// 100.80.0.0/12 without its last /20, from which the uplink's own address comes.
const WIRE_BASE_V4: Ipv4Addr = Ipv4Addr::new(100, 80, 0, 0);
const WIRE_BASE_V6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x6169, 0x6c69, 1, 0, 0, 0, 0);
const UPLINK_BASE_V4: Ipv4Addr = Ipv4Addr::new(100, 95, 240, 0);

impl Slot {
    /// How many wires one daemon can have.
    pub(crate) const COUNT: u32 = UPLINK_BASE_V4.to_bits() - WIRE_BASE_V4.to_bits() - 1;

    /// The slot with this number, counted from 0.
    pub(crate) fn new(number: u32) -> Option<Self> {
        (number < Self::COUNT).then_some(Self(number))
    }

    /// Whose address on a wire this is.
    pub(crate) fn of(address: IpAddr) -> Option<Self> {
        let number = match address {
            IpAddr::V4(v4) => v4.to_bits().checked_sub(WIRE_BASE_V4.to_bits() + 1)?,
            IpAddr::V6(v6) => u32::try_from(v6.to_bits().checked_sub(WIRE_BASE_V6.to_bits() + 1)?).ok()?,
        };
        Self::new(number)
    }

    pub(crate) fn number(self) -> u32 {
        self.0
    }

    /// The sandbox's address on its wire.
    pub(crate) fn v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(WIRE_BASE_V4.to_bits() + 1 + self.0)
    }

    /// As [`Self::v4`].
    pub(crate) fn v6(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(WIRE_BASE_V6.to_bits() + 1 + u128::from(self.0))
    }

    /// Both addresses.
    pub(crate) fn addresses(self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }

    /// Which bits of the mark of a connection by a wire say which wire: they are [`Self::mark`]. The others say under
    /// which of the wire's rules it was last found to be permitted.
    pub(crate) const MARK_MASK: u32 = (1 << 21) - 1;
    const RULES: u64 = 1 << (u32::BITS - Self::MARK_MASK.count_ones());

    /// The mark of the connections that pass by the wire; never 0.
    pub(crate) fn mark(self) -> u32 {
        self.0 + 1
    }

    /// The mark of those that are permitted under this version of its rules. Versions are told apart for as long as it
    /// takes to make some two thousand more, and what a new one does not permit is ended at once.
    pub(crate) fn mark_under(self, version: u64) -> u32 {
        let version = u32::try_from(version % Self::RULES).unwrap_or_default();
        self.mark() | version << Self::MARK_MASK.count_ones()
    }

    /// Whose connections have this mark.
    pub(crate) fn marked(mark: u32) -> Option<Self> {
        Self::new((mark & Self::MARK_MASK).checked_sub(1)?)
    }

    /// The wire's end in the uplink namespace.
    pub(crate) fn interface(self) -> String {
        format!("s{}", self.0)
    }

    /// The hardware address of both ends; locally administered.
    pub(crate) fn hardware_address(self) -> [u8; 6] {
        let [a, b, c, d] = self.0.to_be_bytes();
        [0x02, 0x62, a, b, c, d]
    }
}

/// Whether an address is that of some sandbox's wire (or of an uplink).
pub(crate) fn is_wire_address(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.to_bits() >> 20 == WIRE_BASE_V4.to_bits() >> 20,
        IpAddr::V6(v6) => v6.segments().starts_with(&[0xfd62, 0x6169, 0x6c69, 1]),
    }
}

/// The uplink's addresses towards the machine; different for most daemons, so that two can run beside each other.
pub(crate) fn uplink_addresses(daemon: u32) -> [IpAddr; 2] {
    let host = daemon & 0xffe;
    let v6 = Ipv6Addr::new(0xfd62, 0x6169, 0x6c69, 2, 0, 0, 0, 0).to_bits() + u128::from(daemon);
    [Ipv4Addr::from_bits(UPLINK_BASE_V4.to_bits() + host + 1).into(), Ipv6Addr::from_bits(v6).into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_addresses_of_its_own_on_the_floor() {
        let floor = policy::Floor::new([]);
        for number in [0, 1, 255, Slot::COUNT - 1] {
            let slot = Slot::new(number).unwrap();
            for address in slot.addresses() {
                assert_eq!(floor.address(address), Some("sandbox"), "{address}");
                assert!(is_wire_address(address));
                assert_eq!(Slot::of(address), Some(slot));
            }
            assert!(slot.interface().len() <= 15);
            for version in [0, 1, 2047, 2048, u64::MAX] {
                assert_eq!(Slot::marked(slot.mark_under(version)), Some(slot));
            }
            assert_ne!(slot.mark_under(7), slot.mark_under(8));
        }
        assert_eq!((Slot::new(Slot::COUNT), Slot::marked(0), Slot::marked(u32::MAX)), (None, None, None));
        for address in [GATE_V4.into(), GATE_V6.into(), SANDBOX_V4.into(), SANDBOX_V6.into()] {
            assert_eq!(floor.address(address), Some("gate"));
            assert!(!is_wire_address(address));
            assert_eq!(Slot::of(address), None);
        }
    }

    #[test]
    fn the_ports_of_the_gate_are_different_and_nobody_elses() {
        let proxy = PROXY_PORTS.into_iter().flat_map(|ports| [ports.web, ports.other]);
        let mut ports: Vec<_> = [PROOF_PORT, RESOLVER_PORT].into_iter().chain(proxy).collect();
        ports.dedup();
        assert_eq!(ports.len(), 2 + 2 * PROXY_PORTS.len());
        let first: u16 = FIRST_PORT.parse().unwrap();
        assert!(ports.is_sorted() && ports.iter().all(|port| *port < first));
    }

    #[test]
    fn the_uplink_has_an_address_that_no_slot_has() {
        let last = Slot::new(Slot::COUNT - 1).unwrap().v4();
        for daemon in [0, 1, 0xfff, u32::MAX] {
            let [IpAddr::V4(v4), IpAddr::V6(_)] = uplink_addresses(daemon) else { panic!("families") };
            assert!(v4 > last && is_wire_address(v4.into()), "{v4}");
        }
    }
}
