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
    wired::{Room, WireLimits},
};

/// What the log says of a new flow.
pub(crate) const PERMITTED: &str = "permitted";
/// What the log says of a flow that was one too many.
pub(crate) const LIMITED: &str = "limited";
/// What the log says of a refused packet.
const REFUSED: &str = "refused";
/// How many of those that are too many are logged a second and wire, and how many more at once: a sandbox that does
/// nothing but try must not fill the log, which all share.
const LOG_RATE: u64 = 500;
const LOG_BURST: u32 = 500;

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
        .add_set(&table, &Set::new(FULL, [Field::Interface]))
        .add_chain(&table, &filter("input", Hook::Input))
        .add_chain(&table, &filter("forward", Hook::Forward))
        .add_chain(&table, &nat);
    for chain in ["back", REFUSE, REJECT, DELIVER, DISCARD] {
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
    batch
        .add_rule(&table, REFUSE, rule().tcp().syn().log(&log(REFUSED)).end())
        .add_rule(&table, REFUSE, rule().l4proto_not(TCP).log(&log(REFUSED)).end())
        .add_rule(&table, REFUSE, rule().goto(REJECT))
        .add_rule(&table, REJECT, rule().tcp().syn().reset())
        // A connection that the new rules of its wire refuse, and that will be cut in a moment: reset, it could not be
        // recorded any more.
        .add_rule(&table, REJECT, rule().tcp().drop())
        .add_rule(&table, REJECT, rule().reject(Unreachable::AdminProhibited));
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

/// The rules of one wire, in the place of those it had. What it had begun to count goes on.
pub(crate) fn wire(
    slot: Slot,
    carries: Carries<'_>,
    limits: &WireLimits,
    old: Option<&WireRules>,
) -> (Batch, WireRules) {
    let table = uplink_table();
    let mut batch = Batch::new();
    let Chains { out, back, permit, admit, refuse, .. } = &Chains::of(slot);
    let version = old.map_or(0, |old| old.version + 1);
    match old {
        Some(_) => {
            batch.flush_chain(&table, out).flush_chain(&table, back).flush_chain(&table, permit);
        }
        None => create(&mut batch, &table, slot, limits),
    }
    let sets = EntrySets::add(&mut batch, &table, &format!("{out}{version}_"), carries.view);
    let mark = slot.mark_under(version);
    outwards(&mut batch, &table, slot, mark, carries);
    for rule in sets.rules(Direction::Out, permit, refuse) {
        batch.add_rule(&table, out, rule);
    }
    if carries.view.default == KernelDefault::ForwardPublic {
        batch.add_rule(&table, out, rule().goto(permit));
    }
    batch.add_rule(&table, out, rule().goto(refuse));
    batch
        .add_rule(
            &table,
            permit,
            rule().ct_mark_masked(slot.mark(), Slot::MARK_MASK).set_ct_mark(mark).accept(),
        )
        .add_rule(&table, permit, rule().goto(admit))
        .add_rule(&table, back, rule().ct_mark(mark).accept());
    for rule in sets.rules(Direction::Back, DELIVER, DISCARD) {
        batch.add_rule(&table, back, rule);
    }
    if carries.view.default != KernelDefault::Refuse {
        batch.add_rule(&table, back, rule().goto(DELIVER));
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
    let Chains { out, back, permit, admit, limit, refuse } = Chains::of(slot);
    // Each before those that it leads to.
    for chain in [out, back, permit, admit, limit, refuse] {
        batch.flush_chain(&table, &chain).del_chain(&table, &chain);
    }
    batch.del_counter(&table, &unlogged(slot)).del_counter(&table, &logged(slot));
    for set in &rules.sets {
        batch.del_set(&table, set);
    }
    batch
}

/// Says whether a wire may have new flows.
pub(crate) fn room(slot: Slot, room: Room) -> Option<Batch> {
    let name = InterfaceName::new(&slot.interface())?;
    let mut batch = Batch::new();
    match room {
        Room::Unchanged => return None,
        Room::Full => batch.add_element(&uplink_table(), FULL, Element::new(name)),
        Room::Free => batch.del_element(&uplink_table(), FULL, Element::new(name)),
    };
    Some(batch)
}

/// The counter of a wire's refused flows that should have been logged and were too many.
pub(crate) fn unlogged(slot: Slot) -> String {
    format!("{}_unlogged", slot.interface())
}

/// The counter of what the log is to tell of a wire: flows that are permitted, that are too many, and refused packets.
pub(crate) fn logged(slot: Slot) -> String {
    format!("{}_logged", slot.interface())
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

/// The table of the uplink namespace.
pub(crate) fn uplink_table() -> Table {
    Table::inet(TABLE)
}

/// The wires that may not have new flows.
const FULL: &str = "full";
/// The chain for what is refused: logged, and answered.
const REFUSE: &str = "refuse";
/// The chain for what has been logged, or need not be.
const REJECT: &str = "reject";
/// The chain for replies that are let through.
const DELIVER: &str = "deliver";
/// The chain for those that are not.
const DISCARD: &str = "discard";
const TCP: u8 = 6;

/// The chains of one wire.
struct Chains {
    /// For what comes from the sandbox.
    out: String,
    /// For what goes to it.
    back: String,
    /// For what is permitted.
    permit: String,
    /// For flows that are permitted and new.
    admit: String,
    /// For flows that are too many.
    limit: String,
    /// For what is refused.
    refuse: String,
}

impl Chains {
    fn of(slot: Slot) -> Self {
        let name = |what| format!("{}_{what}", slot.interface());
        Self {
            out: name("out"),
            back: name("back"),
            permit: name("permit"),
            admit: name("admit"),
            limit: name("limit"),
            refuse: name("refuse"),
        }
    }
}

fn create(batch: &mut Batch, table: &Table, slot: Slot, limits: &WireLimits) {
    let Chains { out, back, permit, admit: new, limit, refuse } = Chains::of(slot);
    for chain in [&out, &back, &permit, &new, &limit, &refuse] {
        batch.add_chain(table, &Chain::regular(chain));
    }
    // As the chain for all wires logs it.
    let logged = logged(slot);
    batch
        .add_counter(table, &logged)
        .add_rule(table, &refuse, rule().tcp().syn().count(&logged).end())
        .add_rule(table, &refuse, rule().l4proto_not(TCP).count(&logged).end())
        .add_rule(table, &refuse, rule().goto(REFUSE));
    admit(batch, table, slot, limits);
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

/// The first packet of a flow that a wire's policy permits is logged and marks its connection, which makes the others
/// known, answered or not; unless it is one too many.
fn admit(batch: &mut Batch, table: &Table, slot: Slot, limits: &WireLimits) {
    let Chains { admit, limit, .. } = Chains::of(slot);
    let (counter, logged) = (unlogged(slot), logged(slot));
    let strange = CtState::INVALID | CtState::ESTABLISHED | CtState::RELATED | CtState::UNTRACKED;
    batch
        .add_counter(table, &counter)
        // It would leave as it is, untranslated.
        .add_rule(table, &admit, rule().ct_state(strange).drop())
        .add_rule(
            table,
            &admit,
            rule().over_limit_per_second(limits.new_flows.into(), limits.burst).goto(&limit),
        )
        .add_rule(table, &admit, rule().lookup(FULL, Iifname).goto(&limit))
        .add_rule(table, &admit, rule().set_ct_mark(slot.mark()).count(&logged).log(&log(PERMITTED)).accept())
        .add_rule(
            table,
            &limit,
            rule().limit_per_second(LOG_RATE, LOG_BURST).count(&logged).log(&log(LIMITED)).goto(REJECT),
        )
        .add_rule(table, &limit, rule().count(&counter).goto(REJECT));
}

/// What leaves the sandbox: with its own source only, and then as in the sandbox's own namespace. A connection that
/// these rules have permitted has `mark`, and is not judged by each of its packets.
fn outwards(batch: &mut Batch, table: &Table, slot: Slot, mark: u32, carries: Carries<'_>) {
    let Chains { out: chain, refuse, .. } = &Chains::of(slot);
    batch
        .add_rule(table, chain, V4::rule().saddr_not(slot.v4()).drop())
        .add_rule(table, chain, V6::rule().saddr_not(slot.v6()).drop())
        .add_rule(table, chain, rule().ct_mark(mark).accept())
        .add_rule(table, chain, V4::rule().daddr_in("floor4").goto(refuse))
        .add_rule(table, chain, V6::rule().daddr_in("floor6").goto(refuse))
        // Queries go to the sandbox's resolver, whatever a socket is bound to.
        .add_rule(table, chain, rule().udp().dport(DNS_PORT).goto(refuse));
    if !carries.ipv6 {
        batch.add_rule(table, chain, rule().ipv6().goto(refuse));
    }
}
