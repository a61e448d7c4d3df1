//! A policy as the kernel needs it: addresses, ports and a default.

use ipnet::IpNet;

/// An address entry, for a set of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressRule {
    /// The addresses.
    pub net: IpNet,
    /// The only port it is about; `None` means every port and every protocol.
    pub port: Option<u16>,
}

/// What the kernel does with a packet that no set decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelDefault {
    /// Refuse it (an allowlist or a blackout).
    Refuse,
    /// Forward it if its destination is on the public internet (an open policy).
    ForwardPublic,
    /// Hand TCP to the proxy and refuse the rest (an open policy in which a deny entry is a name): in the rest
    /// nobody could check the name.
    ProxyTcp,
}

/// Whether the sandbox needs an interface to the uplink namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Loopback only: nothing but the resolver and the proxy leads out.
    NoWire,
    /// A veth pair to the uplink namespace.
    Wire,
}

/// The part of a policy that the kernel enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelView {
    /// `allow_out` address entries. They beat `deny` and everything below, but never the floor. Disjoint for each
    /// port. An entry for everything on one port (`*:443`) is here as the public networks with that port; one
    /// for everything is expressed by `default`.
    pub allow: Vec<AddressRule>,
    /// `deny_out` address entries, for an open default only; disjoint for each port. IPv4 entries are here in
    /// their NAT64 form too. (`0.0.0.0/0` and its like are expressed by `default`, not here, unless with a port.)
    pub deny: Vec<AddressRule>,
    /// What happens to the rest.
    pub default: KernelDefault,
    /// Whether DNS is answered at all: false for a blackout.
    pub resolves_names: bool,
}
