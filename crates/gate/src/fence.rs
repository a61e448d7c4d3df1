//! The rules about addresses, which both fences have: the one in the sandbox's namespace and the one in the uplink's.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nft::{
    Address, AddressFamily, AddressRange, AnyProtocol, Batch, Field, Match, Rule, Saddr, Set, Sport, Table,
    V4, V6, rule,
};
use policy::{AddressRule, KernelDefault, KernelView};

/// An address family, as rules and sets need it.
pub(crate) trait Side: AddressFamily<Address: Address> + Sized {
    /// What the names of its sets end in.
    const DIGIT: char;
    /// The type of its addresses in a set.
    const FIELD: Field;
    /// The loopback addresses.
    fn loopback() -> AddressRange<Self::Address>;
    /// The beginning of a rule for it.
    fn rule() -> Match<Self, AnyProtocol>;
    /// The range of a network, if it is of this family.
    fn range(net: &IpNet) -> Option<AddressRange<Self::Address>>;
}

impl Side for V4 {
    const DIGIT: char = '4';
    const FIELD: Field = Field::Ipv4;

    fn loopback() -> AddressRange<Ipv4Addr> {
        AddressRange::new(Ipv4Addr::new(127, 0, 0, 0), Ipv4Addr::new(127, 255, 255, 255))
    }

    fn rule() -> Match<Self, AnyProtocol> {
        rule().ipv4()
    }

    fn range(net: &IpNet) -> Option<AddressRange<Ipv4Addr>> {
        match net {
            IpNet::V4(net) => Some((*net).into()),
            IpNet::V6(_) => None,
        }
    }
}

impl Side for V6 {
    const DIGIT: char = '6';
    const FIELD: Field = Field::Ipv6;

    fn loopback() -> AddressRange<Ipv6Addr> {
        Ipv6Addr::LOCALHOST.into()
    }

    fn rule() -> Match<Self, AnyProtocol> {
        rule().ipv6()
    }

    fn range(net: &IpNet) -> Option<AddressRange<Ipv6Addr>> {
        match net {
            IpNet::V4(_) => None,
            IpNet::V6(net) => Some((*net).into()),
        }
    }
}

/// The name of a set of one family.
pub(crate) fn set_name<F: Side>(base: &str) -> String {
    format!("{base}{}", F::DIGIT)
}

/// Adds an interval set of the networks that are of this family.
pub(crate) fn add_networks<F: Side>(batch: &mut Batch, table: &Table, base: &str, networks: &[IpNet]) {
    let name = set_name::<F>(base);
    batch.add_set(table, &Set::new(name.as_str(), [F::FIELD]).interval()).add_ranges(
        table,
        &name,
        networks.iter().filter_map(F::range),
    );
}

/// Which end of a packet's way a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the sandbox: the destination is judged.
    Out,
    /// To the sandbox: the source is, which is what the sandbox's own packets went to.
    Back,
}

/// The sets that a policy's address entries make.
pub(crate) struct EntrySets {
    allow: Vec<EntrySet>,
    deny: Vec<EntrySet>,
    is_open: bool,
}

impl EntrySets {
    /// Adds the sets to a table; their names begin with `prefix`.
    pub(crate) fn add(batch: &mut Batch, table: &Table, prefix: &str, view: &KernelView) -> Self {
        let mut add = |base: &str, entries: &[AddressRule]| {
            let base = format!("{prefix}{base}");
            let mut sets = add_entries::<V4>(batch, table, &base, entries);
            sets.extend(add_entries::<V6>(batch, table, &base, entries));
            sets
        };
        let is_open = view.default != KernelDefault::Refuse;
        let deny: &[AddressRule] = if is_open { &view.deny } else { &[] };
        Self { allow: add("allow", &view.allow), deny: add("deny", deny), is_open }
    }

    /// The names of the sets.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.allow.iter().chain(&self.deny).map(|set| set.name.as_str())
    }

    /// The rules, in order: what the allow entries permit, then what deny entries and, under an open policy, the
    /// private ranges refuse (the sets `private4` and `private6` of the table).
    pub(crate) fn rules(&self, direction: Direction, permit: &str, refuse: &str) -> Vec<Rule> {
        let mut rules = Vec::new();
        for set in &self.allow {
            set.append_rules(&mut rules, direction, permit);
        }
        for set in &self.deny {
            set.append_rules(&mut rules, direction, refuse);
        }
        if self.is_open {
            rules.push(addressed::<V4>(direction, "private4").goto(refuse));
            rules.push(addressed::<V6>(direction, "private6").goto(refuse));
        }
        rules
    }
}

struct EntrySet {
    name: String,
    is_v6: bool,
    has_ports: bool,
}

impl EntrySet {
    fn append_rules(&self, rules: &mut Vec<Rule>, direction: Direction, chain: &str) {
        if self.is_v6 {
            self.append_rules_of::<V6>(rules, direction, chain);
        } else {
            self.append_rules_of::<V4>(rules, direction, chain);
        }
    }

    fn append_rules_of<F: Side>(&self, rules: &mut Vec<Rule>, direction: Direction, chain: &str) {
        if !self.has_ports {
            rules.push(addressed::<F>(direction, &self.name).goto(chain));
            return;
        }
        let (tcp, udp) = (F::rule().tcp(), F::rule().udp());
        let (tcp, udp) = match direction {
            Direction::Out => (tcp.daddr_dport_in(&self.name), udp.daddr_dport_in(&self.name)),
            Direction::Back => {
                (tcp.lookup(&self.name, (Saddr, Sport)), udp.lookup(&self.name, (Saddr, Sport)))
            }
        };
        rules.extend([tcp.goto(chain), udp.goto(chain)]);
    }
}

fn addressed<F: Side>(direction: Direction, set: &str) -> Match<F, AnyProtocol> {
    match direction {
        Direction::Out => F::rule().daddr_in(set),
        Direction::Back => F::rule().saddr_in(set),
    }
}

fn add_entries<F: Side>(
    batch: &mut Batch,
    table: &Table,
    base: &str,
    entries: &[AddressRule],
) -> Vec<EntrySet> {
    let mut whole = Vec::new();
    let mut ports = Vec::new();
    for entry in entries {
        match (F::range(&entry.net), entry.port) {
            (Some(range), None) => whole.push(range),
            (Some(range), Some(port)) => ports.push((range, port)),
            (None, _) => {}
        }
    }
    let mut sets = Vec::new();
    let is_v6 = F::DIGIT == V6::DIGIT;
    let name = set_name::<F>(base);
    if !whole.is_empty() {
        batch.add_set(table, &Set::new(name.as_str(), [F::FIELD]).interval()).add_ranges(table, &name, whole);
        sets.push(EntrySet { name: name.clone(), is_v6, has_ports: false });
    }
    if !ports.is_empty() {
        let name = format!("{name}p");
        batch
            .add_set(table, &Set::new(name.as_str(), [F::FIELD, Field::Port]).interval())
            .add_port_ranges(table, &name, ports);
        sets.push(EntrySet { name, is_v6, has_ports: true });
    }
    sets
}
