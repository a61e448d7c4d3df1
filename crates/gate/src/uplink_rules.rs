//! The packet filter of the uplink namespace, and of the machine's around the uplink's link.

use std::time::Duration;

use ipnet::IpNet;
use nft::{
    Batch, Chain, ChainType, CtState, Daddr, Dport, Element, Field, Hook, Iifname, InterfaceName, Log,
    Oifname, Policy, Saddr, Set, Sport, Table, Unreachable, V4, V6, Verdict, priority, rule,
};
use policy::KernelDefault;

use crate::{
    addresses::{DNS_PORT, LOG_GROUP, Slot, TABLE, UPLINK},
    fence::{Direction, EntrySets, Side, add_networks, set_name},
    ruleset::SNAPLEN,
    uplink::Carries,
};

/// What the log says of a new flow.
pub(crate) const PERMITTED: &str = "permitted";
/// What the log says of a refused packet.
const REFUSED: &str = "refused";
/// How long a flow that nobody answers is remembered, so that it is one flow: longer than TCP waits between two
/// attempts.
const REMEMBERED: Duration = Duration::from_secs(70);
/// How many such flows are remembered; beyond, each of their packets counts as a flow.
const MAX_REMEMBERED: u32 = 65_536;

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
        .add_chain(&table, &nat);
    for chain in ["back", PERMIT, REFUSE, DELIVER, DISCARD] {
        batch.add_chain(&table, &Chain::regular(chain));
    }
    batch
        .add_rule(&table, "forward", rule().iifname(UPLINK).goto("back"))
        .add_rule(&table, "forward", rule().oifname(UPLINK).vmap("wires", Iifname))
        .add_rule(&table, "translate", rule().oifname(UPLINK).masquerade())
        .add_rule(&table, "back", V4::rule().icmp().ct_state(CtState::RELATED).accept())
        .add_rule(&table, "back", V6::rule().icmpv6().ct_state(CtState::RELATED).accept())
        .add_rule(&table, "back", rule().ct_state(CtState::ESTABLISHED).vmap("replies", Oifname))
        .add_rule(&table, DELIVER, rule().accept())
        .add_rule(&table, DISCARD, rule().drop());
    add_networks::<V4>(&mut batch, &table, "floor", floor);
    add_networks::<V6>(&mut batch, &table, "floor", floor);
    add_networks::<V4>(&mut batch, &table, "private", policy::private_networks());
    add_networks::<V6>(&mut batch, &table, "private", policy::private_networks());
    permit::<V4>(&mut batch, &table);
    permit::<V6>(&mut batch, &table);
    batch.add_rule(&table, PERMIT, rule().accept());
    batch
        .add_rule(&table, REFUSE, rule().tcp().syn().log(&log(REFUSED)).end())
        .add_rule(&table, REFUSE, rule().l4proto_not(TCP).log(&log(REFUSED)).end())
        .add_rule(&table, REFUSE, rule().tcp().reset())
        .add_rule(&table, REFUSE, rule().reject(Unreachable::AdminProhibited));
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
    let [out, back] = chains(slot);
    let version = old.map_or(0, |old| old.version + 1);
    match old {
        Some(_) => {
            batch.flush_chain(&table, &out).flush_chain(&table, &back);
        }
        None => create(&mut batch, &table, slot),
    }
    let sets = EntrySets::add(&mut batch, &table, &format!("{out}{version}_"), carries.view);
    outwards(&mut batch, &table, slot, &out, carries, &sets);
    for rule in sets.rules(Direction::Back, DELIVER, DISCARD) {
        batch.add_rule(&table, &back, rule);
    }
    if carries.view.default != KernelDefault::Refuse {
        batch.add_rule(&table, &back, rule().goto(DELIVER));
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
    if let Some(name) = InterfaceName::new(&slot.interface()) {
        batch.del_element(&table, "wires", Element::new(name)).del_element(
            &table,
            "replies",
            Element::new(name),
        );
    }
    for chain in chains(slot) {
        batch.flush_chain(&table, &chain).del_chain(&table, &chain);
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

/// The chain for what is permitted: logged if it is a new flow.
const PERMIT: &str = "permit";
/// The chain for what is refused.
const REFUSE: &str = "refuse";
/// The chain for replies that are let through.
const DELIVER: &str = "deliver";
/// The chain for those that are not.
const DISCARD: &str = "discard";
const TCP: u8 = 6;

/// The chains of one wire: for what comes from the sandbox, and for what goes to it.
fn chains(slot: Slot) -> [String; 2] {
    ["out", "back"].map(|what| format!("{}_{what}", slot.interface()))
}

fn create(batch: &mut Batch, table: &Table, slot: Slot) {
    let [out, back] = chains(slot);
    batch.add_chain(table, &Chain::regular(&out)).add_chain(table, &Chain::regular(&back));
    if let Some(name) = InterfaceName::new(&slot.interface()) {
        batch.add_element(table, "wires", Element::new(name).verdict(Verdict::Goto(out))).add_element(
            table,
            "replies",
            Element::new(name).verdict(Verdict::Goto(back)),
        );
    }
}

fn log(prefix: &str) -> Log {
    Log { group: LOG_GROUP, prefix: prefix.to_owned(), snaplen: SNAPLEN, qthreshold: 0 }
}

/// Logs new flows, once each: connection tracking calls every packet new until one comes back.
fn permit<F: Side>(batch: &mut Batch, table: &Table) {
    let flow = [F::FIELD, Field::Port, F::FIELD, Field::Port];
    let remembered = |name: &str, key: &[Field]| {
        Set::new(name, key.iter().copied()).dynamic().timeouts().size(MAX_REMEMBERED)
    };
    let [tcp, udp, other] = ["tcp", "udp", "other"].map(set_name::<F>);
    batch
        .add_set(table, &remembered(&tcp, &flow))
        .add_set(table, &remembered(&udp, &flow))
        .add_set(table, &remembered(&other, &[F::FIELD, F::FIELD]));
    let for_long = Some(REMEMBERED);
    let is_new = || F::rule().ct_state(CtState::NEW);
    let key = (Saddr, Sport, Daddr, Dport);
    batch
        .add_rule(table, PERMIT, is_new().tcp().lookup(&tcp, key).update_set(&tcp, key, for_long).accept())
        .add_rule(table, PERMIT, is_new().udp().lookup(&udp, key).update_set(&udp, key, for_long).accept())
        .add_rule(table, PERMIT, is_new().tcp().log(&log(PERMITTED)).add_to_set(&tcp, key, for_long).accept())
        .add_rule(
            table,
            PERMIT,
            is_new().udp().log(&log(PERMITTED)).add_to_set(&udp, key, for_long).accept(),
        );
    let key = (Saddr, Daddr);
    batch
        .add_rule(table, PERMIT, is_new().lookup(&other, key).update_set(&other, key, for_long).accept())
        .add_rule(table, PERMIT, is_new().log(&log(PERMITTED)).add_to_set(&other, key, for_long).accept());
}

/// What leaves the sandbox: with its own source only, and then as in the sandbox's own namespace.
fn outwards(
    batch: &mut Batch,
    table: &Table,
    slot: Slot,
    chain: &str,
    carries: Carries<'_>,
    sets: &EntrySets,
) {
    batch
        .add_rule(table, chain, V4::rule().saddr_not(slot.v4()).drop())
        .add_rule(table, chain, V6::rule().saddr_not(slot.v6()).drop())
        .add_rule(table, chain, V4::rule().daddr_in("floor4").goto(REFUSE))
        .add_rule(table, chain, V6::rule().daddr_in("floor6").goto(REFUSE))
        // Queries go to the sandbox's resolver, whatever a socket is bound to.
        .add_rule(table, chain, rule().udp().dport(DNS_PORT).goto(REFUSE));
    if !carries.ipv6 {
        batch.add_rule(table, chain, rule().ipv6().goto(REFUSE));
    }
    for rule in sets.rules(Direction::Out, PERMIT, REFUSE) {
        batch.add_rule(table, chain, rule);
    }
    if carries.view.default == KernelDefault::ForwardPublic {
        batch.add_rule(table, chain, rule().goto(PERMIT));
    }
    batch.add_rule(table, chain, rule().goto(REFUSE));
}
