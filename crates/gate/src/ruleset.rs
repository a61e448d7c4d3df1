//! The packet filter of a sandbox's namespace.
//!
//! The whole table is replaced in one transaction whenever a policy is put in force: packets see all of the old
//! one or all of the new one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nft::{
    AddressRange, Batch, Chain, ChainType, Field, Hook, Log, Match, Policy, Set, Table, Tcp, Unreachable, V4,
    V6, priority, rule,
};
use policy::{KernelDefault, KernelView};
use proxy::WEB_PORTS;

use crate::{
    addresses::{
        DIVERT_MARK, DNS_PORT, GATE_V4, GATE_V6, LOG_GROUP, ProxyPorts, RESOLVER_PORT, SANDBOX_V4,
        SANDBOX_V6, Slot, TABLE, WIRE,
    },
    fence::{Direction, EntrySets, Side, add_networks, set_name},
    ports::PortSet,
};

/// Everything the rules depend on.
pub(crate) struct Ruleset<'a> {
    /// What the policy wants of the kernel.
    pub(crate) view: &'a KernelView,
    /// What no policy can permit.
    pub(crate) floor: &'a [IpNet],
    /// Whether the node has an IPv6 path; without one all IPv6 is refused.
    pub(crate) ipv6: bool,
    /// The wire, if there is one, or was one: its addresses stay.
    pub(crate) slot: Option<Slot>,
    /// The ports at which the proxy listens.
    pub(crate) proxy: ProxyPorts,
    /// The port at which the resolver receives datagrams.
    pub(crate) dns_port: u16,
    /// Whether connections by the wire that are refused now get no answer, until they have been cut: one that was reset
    /// before could not be recorded any more. [`answer_wired`] ends it.
    pub(crate) is_cutting: bool,
}

/// The counter of refused packets that are attempts: each of them is to be recorded.
pub(crate) const REFUSED: &str = "refused";
/// The counter of those that should have been logged and were too many.
pub(crate) const UNLOGGED: &str = "unlogged";
/// How many refused packets are logged a second, and how many more at once: a sandbox that does nothing but try
/// must not keep the daemon busy.
const LOG_RATE: u64 = 5000;
const LOG_BURST: u32 = 5000;
/// Bytes of a refused packet that are logged: headers, options included.
pub(crate) const SNAPLEN: u32 = 96;

/// The chain for connections that are about to be cut.
const CUTTING: &str = "cutting";

/// The transaction after which connections by the wire that are refused are reset.
pub(crate) fn answer_wired() -> Batch {
    let mut batch = Batch::new();
    batch.flush_chain(&table(), CUTTING);
    batch
}

/// The table of a sandbox's namespace. It is not tied to the daemon: when the daemon dies, the rules must stay.
pub(crate) fn table() -> Table {
    Table::inet(TABLE)
}

/// Whether the kernel asks the sets of bound addresses at all.
pub(crate) fn uses_bindings(view: &KernelView) -> bool {
    view.default == KernelDefault::Refuse && view.resolves_names
}

impl Ruleset<'_> {
    /// The transaction that puts these rules in the place of whatever is there, with these bound addresses.
    pub(crate) fn batch<'b>(&self, bound: impl Iterator<Item = (IpAddr, &'b PortSet)>) -> Batch {
        let table = table();
        let mut batch = Batch::new();
        let hook = |name, kind, hook, priority| Chain::base(name, kind, hook, priority, Policy::Accept);
        batch
            .replace_table(&table)
            .add_counter(&table, REFUSED)
            .add_counter(&table, UNLOGGED)
            .add_chain(&table, &Chain::regular("permit"))
            .add_chain(&table, &Chain::regular("divert"))
            .add_chain(&table, &Chain::regular("refuse"))
            .add_chain(&table, &Chain::regular("reject"))
            .add_chain(&table, &Chain::regular(CUTTING))
            .add_chain(&table, &Chain::regular("report"))
            .add_chain(&table, &Chain::regular("quiet"))
            .add_chain(&table, &hook("output", self.output_type(), Hook::Output, priority::MANGLE))
            .add_chain(&table, &hook("prerouting", ChainType::Filter, Hook::Prerouting, priority::MANGLE))
            // An address that does not leave this namespace. What has it is a connection through the proxy that is older than
            // the wire, and goes on there; anything else the uplink would drop, and nobody would be told.
            .add_rule(
                &table,
                "permit",
                carries_on(V4::rule().oifname(WIRE).saddr(SANDBOX_V4).tcp()).goto("divert"),
            )
            .add_rule(
                &table,
                "permit",
                carries_on(V6::rule().oifname(WIRE).saddr(SANDBOX_V6).tcp()).goto("divert"),
            )
            .add_rule(&table, "permit", V4::rule().oifname(WIRE).saddr(SANDBOX_V4).goto("refuse"))
            .add_rule(&table, "permit", V6::rule().oifname(WIRE).saddr(SANDBOX_V6).goto("refuse"))
            .add_rule(&table, "permit", rule().accept())
            .add_rule(&table, "divert", rule().set_mark(DIVERT_MARK).accept());
        if self.is_cutting {
            self.cutting(&mut batch, &table);
        }
        refuse(&mut batch, &table);
        reject(&mut batch, &table);
        self.sets(&mut batch, &table);
        self.output(&mut batch, &table);
        self.prerouting(&mut batch, &table);
        if self.slot.is_some() {
            let filter = |name, at| hook(name, ChainType::Filter, at, priority::FILTER);
            batch
                .add_chain(&table, &filter("input", Hook::Input))
                .add_chain(&table, &filter("postrouting", Hook::Postrouting));
            input(&mut batch, &table);
            postrouting(&mut batch, &table);
        }
        if uses_bindings(self.view) {
            for (address, ports) in bound {
                add_bound(&mut batch, address, ports);
            }
        }
        batch
    }

    fn cutting(&self, batch: &mut Batch, table: &Table) {
        if let Some(slot) = self.slot {
            batch.add_rule(table, CUTTING, carries_on(V4::rule().saddr(slot.v4()).tcp()).drop()).add_rule(
                table,
                CUTTING,
                carries_on(V6::rule().saddr(slot.v6()).tcp()).drop(),
            );
        }
    }

    fn sets(&self, batch: &mut Batch, table: &Table) {
        add_networks::<V4>(batch, table, "floor", self.floor);
        add_networks::<V6>(batch, table, "floor", self.floor);
        if self.view.default != KernelDefault::Refuse {
            add_networks::<V4>(batch, table, "private", policy::private_networks());
            add_networks::<V6>(batch, table, "private", policy::private_networks());
        }
        self.own_addresses::<V4>(batch, table, SANDBOX_V4.into());
        self.own_addresses::<V6>(batch, table, SANDBOX_V6.into());
        bound_sets::<V4>(batch, table);
        bound_sets::<V6>(batch, table);
    }

    /// Loopback and the sandbox's own addresses: as destinations, what is its own business; as sources, the only
    /// ones it may use.
    fn own_addresses<F: Side>(&self, batch: &mut Batch, table: &Table, own: IpAddr) {
        let name = set_name::<F>("own");
        let wire = self.slot.into_iter().flat_map(Slot::addresses);
        let ranges = wire.chain([own]).filter_map(|address| F::range(&address.into()));
        batch.add_set(table, &Set::new(name.as_str(), [F::FIELD]).interval()).add_ranges(
            table,
            &name,
            ranges.chain([F::loopback()]),
        );
    }

    /// What is marked has to be routed again where it would leave by a wire. Without one it has the right route already,
    /// and looking for it costs each packet more than all of these rules.
    fn output_type(&self) -> ChainType {
        if self.slot.is_some() { ChainType::Route } else { ChainType::Filter }
    }

    fn output(&self, batch: &mut Batch, table: &Table) {
        let chain = "output";
        // What the proxy answers comes first: it is half of all packets.
        batch.add_rule(table, chain, V4::rule().oifname("lo").daddr(SANDBOX_V4).accept()).add_rule(
            table,
            chain,
            V6::rule().oifname("lo").daddr(SANDBOX_V6).accept(),
        );
        let has_entries = !self.view.allow.is_empty();
        if self.view.default == KernelDefault::Refuse && !has_entries {
            // The other half. That it stands before the floor lets nothing out: it leads to the proxy, and what is
            // on the floor is never bound.
            divert_bound::<V4>(batch, table, chain);
            if self.ipv6 {
                divert_bound::<V6>(batch, table, chain);
            }
        }
        batch
            .add_rule(table, chain, V4::rule().oifname("lo").daddr_in("own4").accept())
            .add_rule(table, chain, V6::rule().oifname("lo").daddr_in("own6").accept())
            .add_rule(table, chain, V4::rule().icmp().jump("quiet"))
            .add_rule(table, chain, V6::rule().icmpv6().jump("quiet"));
        quiet(batch, table);
        nobody_in_particular(batch, table, chain);
        batch
            .add_rule(table, chain, rule().udp().dport(DNS_PORT).goto("divert"))
            .add_rule(table, chain, V4::rule().tcp().daddr(GATE_V4).dport(DNS_PORT).goto("divert"))
            .add_rule(table, chain, V6::rule().tcp().daddr(GATE_V6).dport(DNS_PORT).goto("divert"))
            .add_rule(table, chain, V4::rule().daddr_in("floor4").goto("refuse"))
            .add_rule(table, chain, V6::rule().daddr_in("floor6").goto("refuse"))
            .add_rule(table, chain, V4::rule().saddr_not_in("own4").goto("refuse"))
            .add_rule(table, chain, V6::rule().saddr_not_in("own6").goto("refuse"));
        if !self.ipv6 {
            batch.add_rule(table, chain, rule().ipv6().goto("reject"));
        }
        let entries = EntrySets::add(batch, table, "", self.view);
        for rule in entries.rules(Direction::Out, "permit", "refuse") {
            batch.add_rule(table, chain, rule);
        }
        match self.view.default {
            KernelDefault::Refuse if has_entries => {
                divert_bound::<V4>(batch, table, chain);
                divert_bound::<V6>(batch, table, chain);
            }
            KernelDefault::Refuse => {}
            KernelDefault::ForwardPublic => {
                batch.add_rule(table, chain, rule().goto("permit"));
            }
            KernelDefault::ProxyTcp => {
                batch.add_rule(table, chain, rule().tcp().goto("divert"));
            }
        }
        batch.add_rule(table, chain, rule().goto("refuse"));
    }

    /// Diverted packets turn round on loopback and are handed to the listener that is meant; when there is none
    /// (no daemon), connections are refused here and datagrams lost.
    fn prerouting(&self, batch: &mut Batch, table: &Table) {
        let chain = "prerouting";
        let v4 = || V4::rule().iifname("lo").mark(DIVERT_MARK);
        let v6 = || V6::rule().iifname("lo").mark(DIVERT_MARK);
        let (dns, datagrams, proxy) = (DNS_PORT, self.dns_port, self.proxy);
        if self.slot.is_some() {
            batch.add_rule(table, chain, rule().iifname(WIRE).accept());
        }
        // What is the most comes first: the proxy's answers, and what they answer to.
        batch
            .add_rule(table, chain, V4::rule().iifname("lo").mark_not(DIVERT_MARK).daddr(SANDBOX_V4).accept())
            .add_rule(
                table,
                chain,
                V6::rule().iifname("lo").mark_not(DIVERT_MARK).daddr(SANDBOX_V6).accept(),
            );
        for port in WEB_PORTS {
            let web = proxy.web;
            batch
                .add_rule(
                    table,
                    chain,
                    v4().tcp().daddr_not(GATE_V4).dport(port).tproxy(GATE_V4, web).accept(),
                )
                .add_rule(
                    table,
                    chain,
                    v6().tcp().daddr_not(GATE_V6).dport(port).tproxy(GATE_V6, web).accept(),
                );
        }
        batch
            .add_rule(table, chain, v4().tcp().daddr_not(GATE_V4).tproxy(GATE_V4, proxy.other).accept())
            .add_rule(table, chain, v6().tcp().daddr_not(GATE_V6).tproxy(GATE_V6, proxy.other).accept())
            .add_rule(table, chain, v4().udp().dport(dns).tproxy(GATE_V4, datagrams).accept())
            .add_rule(table, chain, v6().udp().dport(dns).tproxy(GATE_V6, datagrams).accept())
            .add_rule(
                table,
                chain,
                v4().tcp().daddr(GATE_V4).dport(dns).tproxy(GATE_V4, RESOLVER_PORT).accept(),
            )
            .add_rule(
                table,
                chain,
                v6().tcp().daddr(GATE_V6).dport(dns).tproxy(GATE_V6, RESOLVER_PORT).accept(),
            )
            // What is left has turned round for want of another way: a daemon, or a wire.
            .add_rule(table, chain, V4::rule().iifname("lo").daddr_not_in("own4").goto("reject"))
            .add_rule(table, chain, V6::rule().iifname("lo").daddr_not_in("own6").goto("reject"));
    }
}

/// What the namespace's own kernel says without anybody having asked it to: errors about packets that came in,
/// neighbour discovery, group membership. It is nobody's flow, so it is dropped without an event.
fn quiet(batch: &mut Batch, table: &Table) {
    for kind in [ICMP_UNREACHABLE, ICMP_REDIRECT, ICMP_TIME_EXCEEDED, ICMP_PARAMETER] {
        batch.add_rule(table, "quiet", V4::rule().icmp().icmp_type(kind).drop());
    }
    for kind in ICMPV6_ERRORS.chain(ICMPV6_LISTENERS).chain(ICMPV6_NEIGHBOURS).chain([ICMPV6_MLDV2]) {
        batch.add_rule(table, "quiet", V6::rule().icmpv6().icmp_type(kind).drop());
    }
}

/// What is to be diverted does not leave by the wire, not even from a socket that is bound to it.
fn postrouting(batch: &mut Batch, table: &Table) {
    batch.add_rule(table, "postrouting", rule().oifname(WIRE).mark(DIVERT_MARK).drop());
}

/// What comes by the wire is replies: the uplink lets nothing else through, and neither does this.
fn input(batch: &mut Batch, table: &Table) {
    batch
        .add_rule(table, "input", rule().iifname("lo").accept())
        .add_rule(table, "input", rule().iifname(WIRE).tcp().syn().drop())
        .add_rule(table, "input", V4::rule().daddr_not_in("own4").drop())
        .add_rule(table, "input", V6::rule().daddr_not_in("own6").drop());
}

/// The kernel's elements for a bound address.
pub(crate) fn add_bound(batch: &mut Batch, address: IpAddr, ports: &PortSet) {
    change_bound(batch, address, ports, true);
}

/// Takes away what [`add_bound`] added; all of it has to be there.
pub(crate) fn del_bound(batch: &mut Batch, address: IpAddr, ports: &PortSet) {
    change_bound(batch, address, ports, false);
}

/// Multicast and broadcast: nobody can answer from such an address, so not even DNS goes there.
fn nobody_in_particular(batch: &mut Batch, table: &Table, chain: &str) {
    let v4 = AddressRange::new(Ipv4Addr::new(224, 0, 0, 0), Ipv4Addr::new(239, 255, 255, 255));
    let v6 = AddressRange::new(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), Ipv6Addr::from(u128::MAX));
    batch
        .add_rule(table, chain, V4::rule().daddr_within(v4).goto("refuse"))
        .add_rule(table, chain, V4::rule().daddr(Ipv4Addr::BROADCAST).goto("refuse"))
        .add_rule(table, chain, V6::rule().daddr_within(v6).goto("refuse"));
}

const ICMP_UNREACHABLE: u8 = 3;
const ICMP_REDIRECT: u8 = 5;
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMP_PARAMETER: u8 = 12;
/// Unreachable, too big, time exceeded, parameter problem.
const ICMPV6_ERRORS: std::ops::RangeInclusive<u8> = 1..=4;
const ICMPV6_LISTENERS: std::ops::RangeInclusive<u8> = 130..=132;
const ICMPV6_NEIGHBOURS: std::ops::RangeInclusive<u8> = 133..=137;
const ICMPV6_MLDV2: u8 = 143;

/// What the output refuses. A connection to the web may have been made and not accepted yet, because its client has said
/// nothing: if a new policy, or the end of its binding, refuses it meanwhile, the proxy has to hear of it, to judge it and
/// to record that. So what such connections send goes there; what is no connection the kernel resets there. Those that
/// were accepted are cut by the proxy alone.
fn refuse(batch: &mut Batch, table: &Table) {
    batch.add_rule(table, "refuse", rule().jump(CUTTING));
    for port in WEB_PORTS {
        batch.add_rule(table, "refuse", carries_on(rule().tcp().dport(port)).goto("divert"));
    }
    batch.add_rule(table, "refuse", rule().goto("reject"));
}

/// Belongs to a connection, if there is one, instead of opening it.
fn carries_on<F>(segment: Match<F, Tcp>) -> Match<F, Tcp> {
    const SYN: u8 = 0x02;
    segment.tcp_flags(SYN, 0)
}

/// Counted and logged (of TCP only the opening packet: the rest are no attempts), answered so that nobody waits.
fn reject(batch: &mut Batch, table: &Table) {
    let log = Log { group: LOG_GROUP, prefix: String::new(), snaplen: SNAPLEN, qthreshold: 0 };
    batch
        .add_rule(table, "report", rule().count(REFUSED).end())
        .add_rule(table, "report", rule().limit_per_second(LOG_RATE, LOG_BURST).log(&log).ret())
        .add_rule(table, "report", rule().count(UNLOGGED).end())
        .add_rule(table, "reject", rule().tcp().syn().jump("report"))
        .add_rule(table, "reject", rule().l4proto_not(TCP).jump("report"))
        .add_rule(table, "reject", rule().tcp().reset())
        .add_rule(table, "reject", rule().reject(Unreachable::AdminProhibited));
}

const TCP: u8 = 6;

fn bound_sets<F: Side>(batch: &mut Batch, table: &Table) {
    batch
        .add_set(table, &Set::new(set_name::<F>("bound"), [F::FIELD]))
        .add_set(table, &Set::new(set_name::<F>("bound_port"), [F::FIELD, Field::Port]));
}

fn divert_bound<F: Side>(batch: &mut Batch, table: &Table, chain: &str) {
    batch.add_rule(table, chain, F::rule().tcp().daddr_in(&set_name::<F>("bound")).goto("divert")).add_rule(
        table,
        chain,
        F::rule().tcp().daddr_dport_in(&set_name::<F>("bound_port")).goto("divert"),
    );
}

fn change_bound(batch: &mut Batch, address: IpAddr, ports: &PortSet, add: bool) {
    let table = table();
    let digit = if address.is_ipv4() { '4' } else { '6' };
    let mut change = |set: String, element: nft::Element| {
        if add {
            batch.add_element(&table, &set, element);
        } else {
            batch.del_element(&table, &set, element);
        }
    };
    match ports {
        PortSet::Every => {
            let element = match address {
                IpAddr::V4(address) => address.into(),
                IpAddr::V6(address) => address.into(),
            };
            change(format!("bound{digit}"), element);
        }
        PortSet::Only(ports) => {
            for &port in ports {
                let element = match address {
                    IpAddr::V4(address) => (address, port).into(),
                    IpAddr::V6(address) => (address, port).into(),
                };
                change(format!("bound_port{digit}"), element);
            }
        }
    }
}
