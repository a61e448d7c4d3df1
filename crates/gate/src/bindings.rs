//! Which addresses the sandbox got as answers for which names, and for how long: no I/O, no clock.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::IpAddr,
    time::{Duration, Instant},
};

use policy::HostName;

use crate::ports::{PortCounts, PortSet};

/// The shortest life of a binding: programs use an address for longer than its TTL says.
pub const MIN_LIFE: Duration = Duration::from_secs(60);
/// The longest, whatever the TTL says.
pub const MAX_LIFE: Duration = Duration::from_secs(3600);
/// How often at most is looked for what has ended, to make room: that looks at every binding.
const ROOM_INTERVAL: Duration = Duration::from_secs(1);
/// The most bindings, for each address that may be bound: names that share their addresses have many.
const BINDINGS_PER_ADDRESS: usize = 4;

/// How much one sandbox can have bound at a time; the answer that would go beyond is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindingLimits {
    /// The most addresses.
    pub max_addresses: usize,
    /// The most names.
    pub max_names: usize,
}

impl Default for BindingLimits {
    fn default() -> Self {
        Self { max_addresses: 4096, max_names: 1024 }
    }
}

/// The bindings of one sandbox: name ↔ address, each with an end.
///
/// What an answer costs depends on the number of its addresses, and not on how many names these have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings {
    limits: BindingLimits,
    names: HashMap<HostName, Name>,
    addresses: HashMap<IpAddr, Address>,
    /// How many there are: addresses of each name, together.
    count: usize,
    /// The number of the next name.
    next: u64,
    /// When room was made last.
    made_room: Option<Instant>,
    /// How many addresses were looked at.
    #[cfg(test)]
    settled: usize,
}

/// What has to change in the kernel. It counts as changed unless [`Bindings::undo`] says otherwise.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// The ports that have to become reachable, by address.
    pub(crate) add: Vec<(IpAddr, PortSet)>,
    /// Those that have to stop being so.
    pub(crate) remove: Vec<(IpAddr, PortSet)>,
}

impl Change {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

/// The bindings are at their limit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Clone, Debug)]
struct Name {
    /// How many names there were before it.
    number: u64,
    ports: PortSet,
    ends: HashMap<IpAddr, Instant>,
}

#[derive(Clone, Debug, Default)]
struct Address {
    /// By their numbers.
    names: BTreeMap<u64, HostName>,
    /// The ports of all of them.
    ports: PortCounts,
    /// Connections that use it: it does not expire while there are any.
    held: usize,
    /// What the kernel has.
    installed: PortSet,
}

impl Bindings {
    /// No bindings, and never more than these.
    pub(crate) fn new(limits: BindingLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Binds a name, permitted on `ports`, to addresses until `ttl` (within [`MIN_LIFE`] and [`MAX_LIFE`]) from
    /// `now`. What is bound already lives on for at least as long. Either all of the addresses are bound or none.
    pub(crate) fn bind(
        &mut self,
        name: &HostName,
        ports: PortSet,
        addresses: &[IpAddr],
        ttl: Duration,
        now: Instant,
    ) -> Result<Change, Full> {
        if addresses.is_empty() {
            return Ok(Change::default());
        }
        if !self.have_room(name, addresses) {
            return Err(Full);
        }
        let end = now + ttl.clamp(MIN_LIFE, MAX_LIFE);
        let mut touched = Vec::new();
        let bound = match self.names.entry(name.clone()) {
            Entry::Occupied(bound) => bound.into_mut(),
            Entry::Vacant(place) => {
                self.next += 1;
                place.insert(Name { number: self.next, ports: ports.clone(), ends: HashMap::new() })
            }
        };
        let has_other_ports = bound.ports != ports;
        if has_other_ports {
            for address in bound.ends.keys() {
                if let Some(entry) = self.addresses.get_mut(address) {
                    entry.ports.subtract(&bound.ports);
                    entry.ports.add(&ports);
                    touched.push(*address);
                }
            }
            bound.ports = ports;
        }
        for &address in addresses {
            match bound.ends.entry(address) {
                Entry::Occupied(mut slot) => {
                    slot.insert(end.max(*slot.get()));
                    // A change may have been undone.
                    let is_settled = self.addresses.get(&address).is_some_and(Address::is_settled);
                    if !is_settled && !has_other_ports {
                        touched.push(address);
                    }
                }
                Entry::Vacant(slot) => {
                    slot.insert(end);
                    self.count += 1;
                    let entry = self.addresses.entry(address).or_default();
                    entry.names.insert(bound.number, name.clone());
                    entry.ports.add(&bound.ports);
                    touched.push(address);
                }
            }
        }
        Ok(self.settle(touched))
    }

    /// Whether all of this can be bound.
    fn have_room(&self, name: &HostName, addresses: &[IpAddr]) -> bool {
        let BindingLimits { max_addresses, max_names } = self.limits;
        let bound = self.names.get(name);
        let new_bindings =
            addresses.iter().filter(|address| !bound.is_some_and(|bound| bound.ends.contains_key(address)));
        let new_addresses = addresses.iter().filter(|address| !self.addresses.contains_key(address));
        self.names.len() + usize::from(bound.is_none()) <= max_names
            && self.addresses.len() + new_addresses.count() <= max_addresses
            && self.count + new_bindings.count() <= max_addresses.saturating_mul(BINDINGS_PER_ADDRESS)
    }

    /// As [`Self::expire`], which is worth a try at the limits, but not for each answer that would go beyond; `None` if that
    /// was tried a moment ago.
    pub(crate) fn make_room(&mut self, now: Instant) -> Option<Change> {
        if self.made_room.is_some_and(|last| now < last + ROOM_INTERVAL) {
            return None;
        }
        self.made_room = Some(now);
        Some(self.expire(now))
    }

    /// Ends the bindings whose time is over and whose addresses no connection uses.
    pub(crate) fn expire(&mut self, now: Instant) -> Change {
        self.retain(|_, _, end, held| end > now || held)
    }

    /// Puts the bindings under another policy: those that are not `permitted` any more end, the others get the
    /// ports on which their names are permitted now. The kernel is to be given all of [`Self::installed`] anew.
    pub(crate) fn rejudge(
        &mut self,
        permitted: impl Fn(&HostName, IpAddr) -> bool,
        ports: impl Fn(&HostName) -> PortSet,
    ) {
        let _ = self.retain(|name, address, _, _| permitted(name, address));
        for (name, bound) in &mut self.names {
            let ports = ports(name);
            for address in bound.ends.keys() {
                if let Some(entry) = self.addresses.get_mut(address) {
                    entry.ports.subtract(&bound.ports);
                    entry.ports.add(&ports);
                }
            }
            bound.ports = ports;
        }
        let addresses: Vec<IpAddr> = self.addresses.keys().copied().collect();
        let _ = self.settle(addresses);
    }

    /// Takes note that a change was not made: the kernel has what it had before.
    pub(crate) fn undo(&mut self, change: &Change) {
        for (address, ports) in &change.add {
            if let Some(entry) = self.addresses.get_mut(address) {
                entry.installed.subtract(ports);
            }
        }
        for (address, ports) in &change.remove {
            if let Some(entry) = self.addresses.get_mut(address) {
                entry.installed.join(ports);
            }
        }
    }

    /// What the kernel has to have: every bound address with its ports.
    pub(crate) fn installed(&self) -> impl Iterator<Item = (IpAddr, &PortSet)> {
        self.addresses.iter().map(|(address, entry)| (*address, &entry.installed))
    }

    /// The names bound to an address, those first that were bound to any first.
    pub(crate) fn names_of(&self, address: IpAddr) -> impl Iterator<Item = &HostName> {
        self.addresses.get(&address).into_iter().flat_map(|entry| entry.names.values())
    }

    /// The addresses bound to a name.
    pub(crate) fn addresses_of(&self, name: &HostName) -> Vec<IpAddr> {
        self.names.get(name).map(|bound| bound.ends.keys().copied().collect()).unwrap_or_default()
    }

    /// Keeps an address from expiring; `false` when it is not bound.
    pub(crate) fn hold(&mut self, address: IpAddr) -> bool {
        let entry = self.addresses.get_mut(&address);
        entry.map(|entry| entry.held += 1).is_some()
    }

    /// Ends one [`Self::hold`].
    pub(crate) fn release(&mut self, address: IpAddr) {
        // The entry may be another one by now, if a policy ended the one that was held.
        if let Some(entry) = self.addresses.get_mut(&address) {
            entry.held = entry.held.saturating_sub(1);
        }
    }

    /// How many addresses are bound.
    pub(crate) fn len(&self) -> usize {
        self.addresses.len()
    }

    fn retain(&mut self, keep: impl Fn(&HostName, IpAddr, Instant, bool) -> bool) -> Change {
        let Self { names, addresses, count, .. } = self;
        let mut touched = Vec::new();
        names.retain(|name, bound| {
            let Name { number, ports, ends } = bound;
            ends.retain(|address, end| {
                let entry = addresses.get_mut(address);
                let held = entry.as_ref().is_some_and(|entry| entry.held > 0);
                let kept = keep(name, *address, *end, held);
                if !kept {
                    *count -= 1;
                    if let Some(entry) = entry {
                        entry.names.remove(number);
                        entry.ports.subtract(ports);
                    }
                    touched.push(*address);
                }
                kept
            });
            !ends.is_empty()
        });
        touched.sort_unstable();
        touched.dedup();
        self.settle(touched)
    }

    /// Brings what the kernel should have for these addresses in line with the names they have.
    fn settle(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Change {
        let mut change = Change::default();
        for address in addresses {
            #[cfg(test)]
            {
                self.settled += 1;
            }
            let Some(entry) = self.addresses.get_mut(&address) else { continue };
            let wanted = entry.ports.wanted();
            let mut missing = wanted.clone();
            missing.subtract(&entry.installed);
            let mut surplus = std::mem::replace(&mut entry.installed, wanted);
            surplus.subtract(&entry.installed);
            if !missing.is_empty() {
                change.add.push((address, missing));
            }
            if !surplus.is_empty() {
                change.remove.push((address, surplus));
            }
            if entry.names.is_empty() {
                self.addresses.remove(&address);
            }
        }
        change
    }
}

impl Address {
    /// Whether the kernel has what it should.
    fn is_settled(&self) -> bool {
        self.ports.is(&self.installed)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> HostName {
        HostName::parse(text).unwrap()
    }

    fn address(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    fn only(ports: &[u16]) -> PortSet {
        PortSet::Only(ports.iter().copied().collect())
    }

    const TTL: Duration = Duration::from_secs(300);

    #[test]
    fn a_new_binding_is_added_once_and_renewed_without_asking_the_kernel() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        let change =
            bindings.bind(&name("a.test"), PortSet::Every, &[address(1), address(2)], TTL, now).unwrap();
        assert_eq!(change.add, [(address(1), PortSet::Every), (address(2), PortSet::Every)]);
        let again = bindings.bind(&name("a.test"), PortSet::Every, &[address(1)], TTL, now).unwrap();
        assert_eq!(again, Change::default());
        assert!(bindings.names_of(address(1)).eq([&name("a.test")]));
    }

    #[test]
    fn a_binding_lives_for_its_ttl_but_at_least_a_minute_and_at_most_an_hour() {
        for (ttl, life) in [(0, MIN_LIFE), (300, TTL), (86_400, MAX_LIFE)] {
            let (mut bindings, now) = (Bindings::default(), Instant::now());
            let ttl = Duration::from_secs(ttl);
            bindings.bind(&name("a.test"), PortSet::Every, &[address(1)], ttl, now).unwrap();
            let just_before = now + life - Duration::from_millis(1);
            assert_eq!(bindings.expire(just_before), Change::default());
            assert_eq!(bindings.expire(now + life).remove, [(address(1), PortSet::Every)]);
            assert_eq!(bindings.len(), 0);
        }
    }

    #[test]
    fn a_binding_in_use_does_not_expire_until_it_is_released() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind(&name("a.test"), PortSet::Every, &[address(1)], TTL, now).unwrap();
        assert!(bindings.hold(address(1)));
        assert!(!bindings.hold(address(2)));
        assert_eq!(bindings.expire(now + MAX_LIFE), Change::default());
        bindings.release(address(1));
        assert_eq!(bindings.expire(now + MAX_LIFE).remove.len(), 1);
    }

    #[test]
    fn an_address_of_two_names_has_the_ports_of_both_and_loses_those_of_the_one_that_ends() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind(&name("a.test"), only(&[443]), &[address(1)], TTL, now).unwrap();
        let later = now + Duration::from_secs(100);
        let change = bindings.bind(&name("b.test"), only(&[22, 443]), &[address(1)], TTL, later).unwrap();
        assert_eq!(change.add, [(address(1), only(&[22]))]);
        assert_eq!(bindings.expire(now + TTL), Change::default());
        assert!(bindings.names_of(address(1)).eq([&name("b.test")]));
        assert_eq!(bindings.expire(later + TTL).remove, [(address(1), only(&[22, 443]))]);
    }

    #[test]
    fn at_the_limit_nothing_is_bound_and_after_expiry_there_is_room_again() {
        let limits = BindingLimits { max_addresses: 20, max_names: 10 };
        let (mut bindings, now) = (Bindings::new(limits), Instant::now());
        for number in 0..limits.max_names {
            bindings
                .bind(&name(&format!("n{number}.test")), PortSet::Every, &[address(1)], TTL, now)
                .unwrap();
        }
        assert_eq!(bindings.bind(&name("more.test"), PortSet::Every, &[address(2)], TTL, now), Err(Full));
        assert_eq!(bindings.len(), 1);
        bindings.expire(now + TTL);
        assert!(bindings.bind(&name("more.test"), PortSet::Every, &[address(2)], TTL, now).is_ok());

        let many: Vec<IpAddr> = (0..20).map(|n| Ipv4Addr::from_bits(n << 8).into()).collect();
        assert_eq!(bindings.bind(&name("x.test"), PortSet::Every, &many, TTL, now), Err(Full));
        assert_eq!(bindings.len(), 1);
        assert!(bindings.bind(&name("x.test"), PortSet::Every, &many[1..], TTL, now).is_ok());
    }

    #[test]
    fn under_a_new_policy_only_what_it_permits_stays_with_its_ports() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        bindings.bind(&name("a.test"), PortSet::Every, &[address(1), address(2)], TTL, now).unwrap();
        bindings.bind(&name("b.test"), PortSet::Every, &[address(1)], TTL, now).unwrap();
        bindings.rejudge(|name, at| name.as_str() == "a.test" && at == address(1), |_| only(&[443]));
        let installed: Vec<_> = bindings.installed().collect();
        assert_eq!(installed, [(address(1), &only(&[443]))]);
        assert!(bindings.names_of(address(1)).eq([&name("a.test")]));
    }

    #[test]
    fn a_change_that_was_not_made_is_asked_for_again() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        let bind = |bindings: &mut Bindings, ports| {
            bindings.bind(&name("a.test"), ports, &[address(1)], TTL, now).unwrap()
        };
        let first = bind(&mut bindings, only(&[80]));
        bindings.undo(&first);
        assert_eq!(bind(&mut bindings, only(&[80])), first);
        let wider = bind(&mut bindings, PortSet::Every);
        assert_eq!(wider.remove, [(address(1), only(&[80]))]);
        bindings.undo(&wider);
        assert_eq!(bind(&mut bindings, PortSet::Every), wider);
    }

    #[test]
    fn an_answer_that_changes_nothing_touches_nothing_however_many_names_its_addresses_have() {
        let (mut bindings, now) = (Bindings::default(), Instant::now());
        let addresses: Vec<IpAddr> = (1..=16).map(address).collect();
        for number in 0..1000 {
            let name = name(&format!("n{number}.test"));
            // Only for what is new the kernel is asked, and only the name that is new is looked at.
            let change = bindings.bind(&name, only(&[443]), &addresses, TTL, now).unwrap();
            assert_eq!(change.add.len(), if number == 0 { 16 } else { 0 });
            settled_after(&mut bindings, 0, |bindings| {
                bindings.bind(&name, only(&[443]), &addresses, TTL, now).unwrap()
            });
        }
        assert_eq!(bindings.names_of(address(1)).count(), 1000);
        // The twin: other ports of one of the names are made so at all of its addresses, also those of earlier answers.
        settled_after(&mut bindings, 16, |bindings| {
            bindings.bind(&name("n7.test"), only(&[22]), &addresses[..1], TTL, now).unwrap()
        });
        assert!(bindings.installed().all(|(_, ports)| *ports == only(&[22, 443])));
    }

    /// How many addresses are looked at.
    fn settled_after(bindings: &mut Bindings, count: usize, work: impl Fn(&mut Bindings) -> Change) {
        let before = bindings.settled;
        work(bindings);
        assert_eq!(bindings.settled - before, count);
    }

    #[test]
    fn at_the_limit_what_has_ended_is_looked_for_once_a_second_and_found_then() {
        let limits = BindingLimits { max_addresses: 20, max_names: 1 };
        let (mut bindings, start) = (Bindings::new(limits), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        bindings.bind(&name("a.test"), PortSet::Every, &[address(1)], TTL, start).unwrap();
        assert_eq!(bindings.make_room(at(299_500)), Some(Change::default()));
        assert_eq!(bindings.make_room(at(300_400)), None);
        assert_eq!(bindings.make_room(at(300_500)).unwrap().remove, [(address(1), PortSet::Every)]);
        assert!(bindings.bind(&name("b.test"), PortSet::Every, &[address(1)], TTL, at(300_500)).is_ok());
    }

    #[test]
    fn names_that_share_their_addresses_have_so_many_bindings_and_no_more() {
        let limits = BindingLimits { max_addresses: 10, max_names: 100 };
        let (mut bindings, now) = (Bindings::new(limits), Instant::now());
        let addresses: Vec<IpAddr> = (0..10).map(address).collect();
        let mut bind = |name: &str, addresses: &[IpAddr]| {
            bindings.bind(&HostName::parse(name).unwrap(), PortSet::Every, addresses, TTL, now).is_ok()
        };
        assert!(["a.test", "b.test", "c.test"].iter().all(|name| bind(name, &addresses)));
        assert!(bind("d.test", &addresses[..9]) && bind("a.test", &addresses));
        assert!(!bind("e.test", &addresses[..2]) && bind("e.test", &addresses[..1]));
        assert!(!bind("f.test", &addresses[..1]));
        bindings.expire(now + TTL);
        assert_eq!((bindings.len(), bindings.count), (0, 0));
        assert!(bindings.bind(&name("f.test"), PortSet::Every, &addresses, TTL, now).is_ok());
    }

    proptest! {
        /// Whatever happens, the changes add up to exactly what is installed.
        #[test]
        fn changes_add_up(steps in proptest::collection::vec((0u8..4, 0u8..6, 0u8..6, 0u64..400), 1..60)) {
            let (mut bindings, start) = (Bindings::default(), Instant::now());
            let mut now = start;
            let mut kernel: HashMap<IpAddr, PortSet> = HashMap::new();
            for (kind, a, b, seconds) in steps {
                now += Duration::from_secs(seconds);
                let change = match kind {
                    0 | 1 => {
                        let ports = if b == 5 { PortSet::Every } else { only(&[u16::from(b), 443]) };
                        let ttl = Duration::from_secs(seconds);
                        bindings.bind(&name(&format!("n{a}.test")), ports, &[address(a), address(b)], ttl, now).unwrap()
                    }
                    2 => { bindings.hold(address(a)); Change::default() }
                    _ => { bindings.release(address(a)); bindings.expire(now) }
                };
                for (address, ports) in &change.remove {
                    let had = kernel.get_mut(address).expect("only what is there is removed");
                    had.subtract(ports);
                }
                for (address, ports) in &change.add {
                    kernel.entry(*address).or_insert_with(PortSet::none).join(ports);
                }
                kernel.retain(|_, ports| !ports.is_empty());
                let installed: HashMap<IpAddr, PortSet> =
                    bindings.installed().map(|(address, ports)| (address, ports.clone())).collect();
                prop_assert_eq!(&kernel, &installed);
                prop_assert!(bindings.addresses.values().all(Address::is_settled));
                let pairs: usize = bindings.names.values().map(|bound| bound.ends.len()).sum();
                let names: usize = bindings.addresses.values().map(|entry| entry.names.len()).sum();
                prop_assert_eq!((bindings.count, pairs), (pairs, names));
                for (address, entry) in &bindings.addresses {
                    let mut ports = PortSet::none();
                    entry.names.values().for_each(|name| ports.join(&bindings.names[name].ports));
                    prop_assert_eq!((address, &entry.installed), (address, &ports));
                }
            }
        }
    }
}
