//! Which addresses the sandbox got as answers for which names, and for how long: no I/O, no clock.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use policy::HostName;

use crate::ports::PortSet;

/// The shortest life of a binding: programs use an address for longer than its TTL says.
pub const MIN_LIFE: Duration = Duration::from_secs(60);
/// The longest, whatever the TTL says.
pub const MAX_LIFE: Duration = Duration::from_secs(3600);

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
#[derive(Clone, Debug, Default)]
pub(crate) struct Bindings {
    limits: BindingLimits,
    names: HashMap<HostName, Name>,
    addresses: HashMap<IpAddr, Address>,
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
    ports: PortSet,
    ends: HashMap<IpAddr, Instant>,
}

#[derive(Clone, Debug)]
struct Address {
    names: Vec<HostName>,
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
        let new_name = usize::from(!self.names.contains_key(name));
        let new_addresses = addresses.iter().filter(|address| !self.addresses.contains_key(address)).count();
        let BindingLimits { max_addresses, max_names } = self.limits;
        if self.names.len() + new_name > max_names || self.addresses.len() + new_addresses > max_addresses {
            return Err(Full);
        }
        let end = now + ttl.clamp(MIN_LIFE, MAX_LIFE);
        let bound = self
            .names
            .entry(name.clone())
            .or_insert_with(|| Name { ports: ports.clone(), ends: HashMap::new() });
        bound.ports = ports;
        for &address in addresses {
            let slot = bound.ends.entry(address).or_insert(end);
            *slot = end.max(*slot);
            let entry = self.addresses.entry(address).or_insert_with(|| Address {
                names: Vec::new(),
                held: 0,
                installed: PortSet::none(),
            });
            if !entry.names.contains(name) {
                entry.names.push(name.clone());
            }
        }
        Ok(self.settle(addresses.iter().copied()))
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
            bound.ports = ports(name);
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

    /// The names bound to an address.
    pub(crate) fn names_of(&self, address: IpAddr) -> &[HostName] {
        self.addresses.get(&address).map_or(&[], |entry| &entry.names)
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
        let Self { names, addresses, .. } = self;
        let mut touched = Vec::new();
        names.retain(|name, bound| {
            bound.ends.retain(|address, end| {
                let entry = addresses.get_mut(address);
                let held = entry.as_ref().is_some_and(|entry| entry.held > 0);
                let kept = keep(name, *address, *end, held);
                if !kept {
                    if let Some(entry) = entry {
                        entry.names.retain(|other| other != name);
                    }
                    touched.push(*address);
                }
                kept
            });
            !bound.ends.is_empty()
        });
        self.settle(touched)
    }

    /// Brings what the kernel should have for these addresses in line with the names they have.
    fn settle(&mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Change {
        let mut change = Change::default();
        for address in addresses {
            let Some(entry) = self.addresses.get_mut(&address) else { continue };
            let mut wanted = PortSet::none();
            for name in entry.names.iter().filter_map(|name| self.names.get(name)) {
                wanted.join(&name.ports);
            }
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
        assert_eq!(bindings.names_of(address(1)), [name("a.test")]);
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
        assert_eq!(bindings.names_of(address(1)), [name("b.test")]);
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
        assert_eq!(bindings.names_of(address(1)), [name("a.test")]);
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
            }
        }
    }
}
