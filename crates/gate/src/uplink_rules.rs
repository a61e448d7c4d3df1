//! The packet filter of the uplink namespace, and of the machine's around the uplink's link.

use ipnet::IpNet;
use nft::{
    Batch, Chain, ChainType, CtState, Element, Field, Hook, Iifname, InterfaceName, Log, Oifname, Policy,
    Set, Table, Unreachable, V4, V6, Verdict, priority, rule,
};
use policy::KernelDefault;

use crate::{
    addresses::{DNS_PORT, LOG_GROUP, Slot, TABLE, UPLINK},
    fence::{Direction, EntrySets, Side, add_networks},
    ruleset::SNAPLEN,
    uplink::Carries,
};

/// What the log says of a new flow, before the slot's number.
pub(crate) const PERMITTED: char = 'a';
/// What the log says of a refused packet, before the slot's number.
pub(crate) const REFUSED: char = 'r';

/// What there is for one wire.
pub(crate) struct WireRules {
    version: u64,
    sets: Vec<String>,
}

/// The uplink's table without any wire. What no wire's rules permit is dropped.
pub(crate) fn table(floor: &[IpNet]) -> Batch {
    let table = uplink_table();
    let mut batch = Batch::new();
    let filter = |name, hook| Chain::base(name, ChainType::Filter, hook, priority::FILTER, Policy::Drop);
    let nat = Chain::base("translate", ChainType::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    batch
        .replace_table(&table)
        .add_set(&table, &Set::new("wires", [Field::Interface]).verdict_map())
        .add_set(&table, &Set::new("replies", [Field::Interface]).verdict_map())
        .add_chain(&table, &filter("input", Hook::Input))
        .add_chain(&table, &filter("forward", Hook::Forward))
        .add_chain(&table, &nat)
        .add_chain(&table, &Chain::regular("back"))
        .add_chain(&table, &Chain::regular("discard"))
        .add_rule(&table, "discard", rule().drop())
        .add_rule(&table, "forward", rule().iifname(UPLINK).goto("back"))
        .add_rule(&table, "forward", rule().oifname(UPLINK).vmap("wires", Iifname))
        .add_rule(&table, "translate", rule().oifname(UPLINK).masquerade())
        .add_rule(&table, "back", V4::rule().icmp().ct_state(CtState::RELATED).accept())
        .add_rule(&table, "back", V6::rule().icmpv6().ct_state(CtState::RELATED).accept())
        .add_rule(&table, "back", rule().ct_state(CtState::ESTABLISHED).vmap("replies", Oifname));
    add_networks::<V4>(&mut batch, &table, "floor", floor);
    add_networks::<V6>(&mut batch, &table, "floor", floor);
    add_networks::<V4>(&mut batch, &table, "private", policy::private_networks());
    add_networks::<V6>(&mut batch, &table, "private", policy::private_networks());
    batch
}

/// Replaces the floor in the uplink's table.
pub(crate) fn floor(floor: &[IpNet]) -> Batch {
    let table = uplink_table();
    let mut batch = Batch::new();
    batch
        .flush_set(&table, "floor4")
        .flush_set(&table, "floor6")
        .add_ranges(&table, "floor4", floor.iter().filter_map(V4::range))
        .add_ranges(&table, "floor6", floor.iter().filter_map(V6::range));
    batch
}

/// The rules of one wire, in the place of those it had.
pub(crate) fn wire(slot: Slot, carries: Carries<'_>, old: Option<&WireRules>) -> (Batch, WireRules) {
    let table = uplink_table();
    let mut batch = Batch::new();
    let chains = Chains::of(slot);
    let version = old.map_or(0, |old| old.version + 1);
    match old {
        Some(_) => {
            batch.flush_chain(&table, &chains.out).flush_chain(&table, &chains.back);
        }
        None => create(&mut batch, &table, slot, &chains),
    }
    let sets = EntrySets::add(&mut batch, &table, &format!("{}v{version}_", chains.out), carries.view);
    out(&mut batch, &table, slot, &chains, carries, &sets);
    for rule in sets.rules(Direction::Back, &chains.deliver, "discard") {
        batch.add_rule(&table, &chains.back, rule);
    }
    if carries.view.default != KernelDefault::Refuse {
        batch.add_rule(&table, &chains.back, rule().goto(chains.deliver.as_str()));
    }
    // Now that no rule refers to them any more.
    for set in old.iter().flat_map(|old| &old.sets) {
        batch.del_set(&table, set);
    }
    let rules = WireRules { version, sets: sets.names().map(str::to_owned).collect() };
    (batch, rules)
}

/// Removes everything about one wire.
pub(crate) fn remove_wire(slot: Slot, rules: &WireRules) -> Batch {
    let table = uplink_table();
    let mut batch = Batch::new();
    let chains = Chains::of(slot);
    if let Some(name) = InterfaceName::new(&slot.interface()) {
        batch.del_element(&table, "wires", Element::new(name)).del_element(
            &table,
            "replies",
            Element::new(name),
        );
    }
    for chain in chains.all() {
        batch.flush_chain(&table, chain);
    }
    for chain in chains.all() {
        batch.del_chain(&table, chain);
    }
    for set in &rules.sets {
        batch.del_set(&table, set);
    }
    batch
}

/// The table in the machine's namespace. It disappears with the daemon, and nothing is forwarded then.
///
/// What comes by the link goes out translated, or nowhere: not to the machine's own sockets. What comes back is
/// replies only.
pub(crate) fn machine(link: &str) -> Batch {
    let table = Table::inet(format!("bailiwick-{link}")).owned();
    let mut batch = Batch::new();
    let filter = |name, hook| Chain::base(name, ChainType::Filter, hook, priority::FILTER, Policy::Accept);
    let nat = Chain::base("translate", ChainType::Nat, Hook::Postrouting, priority::SRCNAT, Policy::Accept);
    let replies = CtState::ESTABLISHED | CtState::RELATED;
    batch
        .add_table(&table)
        .add_chain(&table, &filter("input", Hook::Input))
        .add_chain(&table, &filter("forward", Hook::Forward))
        .add_chain(&table, &nat)
        .add_rule(&table, "input", rule().iifname(link).drop())
        .add_rule(&table, "forward", rule().iifname(link).accept())
        .add_rule(&table, "forward", rule().oifname(link).ct_state(replies).accept())
        .add_rule(&table, "forward", rule().oifname(link).drop())
        .add_rule(&table, "translate", rule().iifname(link).oifname_not(link).masquerade());
    batch
}

fn uplink_table() -> Table {
    Table::inet(TABLE)
}

/// The chains of one wire.
struct Chains {
    out: String,
    back: String,
    permit: String,
    refuse: String,
    deliver: String,
}

impl Chains {
    fn of(slot: Slot) -> Self {
        let name = |what| format!("{}_{what}", slot.interface());
        Self {
            out: name("out"),
            back: name("back"),
            permit: name("permit"),
            refuse: name("refuse"),
            deliver: name("deliver"),
        }
    }

    fn all(&self) -> [&str; 5] {
        [&self.out, &self.back, &self.permit, &self.refuse, &self.deliver]
    }
}

fn create(batch: &mut Batch, table: &Table, slot: Slot, chains: &Chains) {
    for chain in chains.all() {
        batch.add_chain(table, &Chain::regular(chain));
    }
    let log = |kind: char| Log {
        group: LOG_GROUP,
        prefix: format!("{kind}{}", slot.number()),
        snaplen: SNAPLEN,
        qthreshold: 0,
    };
    batch
        .add_rule(table, &chains.permit, rule().ct_state(CtState::NEW).log(&log(PERMITTED)).end())
        .add_rule(table, &chains.permit, rule().accept())
        .add_rule(table, &chains.refuse, rule().tcp().syn().log(&log(REFUSED)).end())
        .add_rule(table, &chains.refuse, rule().l4proto_not(TCP).log(&log(REFUSED)).end())
        .add_rule(table, &chains.refuse, rule().tcp().reset())
        .add_rule(table, &chains.refuse, rule().reject(Unreachable::AdminProhibited))
        .add_rule(table, &chains.deliver, rule().accept());
    if let Some(name) = InterfaceName::new(&slot.interface()) {
        let goto = |chain: &str| Element::new(name).verdict(Verdict::Goto(chain.to_owned()));
        batch.add_element(table, "wires", goto(&chains.out)).add_element(
            table,
            "replies",
            goto(&chains.back),
        );
    }
}

/// What leaves the sandbox: with its own source only, and then as in the sandbox's own namespace.
fn out(
    batch: &mut Batch,
    table: &Table,
    slot: Slot,
    chains: &Chains,
    carries: Carries<'_>,
    sets: &EntrySets,
) {
    let (chain, permit, refuse) = (chains.out.as_str(), chains.permit.as_str(), chains.refuse.as_str());
    batch
        .add_rule(table, chain, V4::rule().saddr_not(slot.v4()).drop())
        .add_rule(table, chain, V6::rule().saddr_not(slot.v6()).drop())
        .add_rule(table, chain, V4::rule().daddr_in("floor4").goto(refuse))
        .add_rule(table, chain, V6::rule().daddr_in("floor6").goto(refuse))
        // Queries go to the sandbox's resolver, whatever a socket is bound to.
        .add_rule(table, chain, rule().udp().dport(DNS_PORT).goto(refuse));
    if !carries.ipv6 {
        batch.add_rule(table, chain, rule().ipv6().goto(refuse));
    }
    for rule in sets.rules(Direction::Out, permit, refuse) {
        batch.add_rule(table, chain, rule);
    }
    match carries.view.default {
        KernelDefault::Refuse => {}
        KernelDefault::ForwardPublic => {
            batch.add_rule(table, chain, rule().goto(permit));
        }
        KernelDefault::ProxyTcpForwardPublic => {
            batch
                .add_rule(table, chain, rule().tcp().goto(refuse))
                .add_rule(table, chain, rule().udp().goto(refuse))
                .add_rule(table, chain, rule().goto(permit));
        }
    }
    batch.add_rule(table, chain, rule().goto(refuse));
}

const TCP: u8 = 6;
