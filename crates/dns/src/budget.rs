//! What one sandbox may ask of its resolver, and how much of that is left.
//!
//! A zone that is permitted as a whole (`*.example.com`) can carry data to whoever answers for it, in the names that are
//! looked up. So the new names of each such zone are budgeted, and the bytes that they leave open. A name that was
//! looked up before tells nothing new and is free; so are answers from the cache, because nothing is asked for them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use policy::{Bucket, Decision, HostName, NameZone, Policy, Rate, Reason, Rule, Verdict};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Asker;

/// How many of the names that were looked up are remembered; the oldest is forgotten first, and costs again then.
const MAX_ASKED: usize = 4096;
/// How many zones may have less than their whole budget at the same time. Of others nothing new is asked meanwhile.
const MAX_ZONES: usize = 256;

/// The bounds of one sandbox's resolver.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How fast queries may come; further ones are refused.
    pub queries: Rate,
    /// The most lookups under way at the same time, of each address family one; queries that would need another are
    /// refused.
    pub max_lookups: usize,
    /// How fast names that were not looked up before may be, in each zone that is permitted as a whole.
    pub zone_names: Rate,
    /// How many bytes of them, without what is the same in all names of the zone.
    pub zone_bytes: Rate,
}

impl Default for Limits {
    /// A build that fetches from many hosts stays far below. In names, some kilobytes can be told at once to whoever
    /// answers for a zone, and then some bytes a second.
    fn default() -> Self {
        Self {
            queries: Rate::per_second(1000, 2000),
            max_lookups: 64,
            zone_names: Rate::per_minute(30, 256),
            zone_bytes: Rate::per_minute(1024, 8192),
        }
    }
}

/// What is left of the [`Limits`] of one sandbox.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    queries: Mutex<Bucket>,
    lookups: Arc<Semaphore>,
    asker: Asker,
    names: Mutex<Names>,
}

/// A lookup under way; it counts until this is dropped.
#[derive(Debug)]
pub struct Lookup(#[expect(dead_code, reason = "only its drop matters")] OwnedSemaphorePermit);

#[derive(Debug, Default)]
struct Names {
    asked: Asked,
    /// By the text of the entry that permits the zone: another policy may have the same.
    zones: HashMap<Arc<str>, Zone>,
}

#[derive(Debug, Default)]
struct Zone {
    names: Bucket,
    bytes: Bucket,
}

/// Names, as numbers that nobody can foresee.
#[derive(Debug, Default)]
struct Asked {
    hasher: RandomState,
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Budget {
    /// All of it.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            queries: Mutex::default(),
            lookups: Arc::new(Semaphore::new(limits.max_lookups.min(Semaphore::MAX_PERMITS))),
            asker: Asker::default(),
            names: Mutex::default(),
        }
    }

    /// Whose lookups they are.
    pub fn asker(&self) -> &Asker {
        &self.asker
    }

    /// A query came at `now`. Whether it may be answered.
    pub(crate) fn take_query(&self, now: Instant) -> bool {
        self.queries.lock().take(&self.limits.queries, 1, now)
    }

    /// A permitted name is to be looked up at the upstream servers: as many lookups as families are asked for.
    ///
    /// # Errors
    /// The verdict, if a limit refuses that: nothing may be asked then, and it costs nothing.
    pub fn begin_lookup(
        &self,
        policy: &Policy,
        name: &HostName,
        families: u32,
        now: Instant,
    ) -> Result<Lookup, Refused> {
        // Where only one may be under way, both families are one.
        let most = u32::try_from(self.limits.max_lookups).unwrap_or(u32::MAX).max(1);
        let lookups = Arc::clone(&self.lookups);
        let Ok(permit) = lookups.try_acquire_many_owned(families.min(most)) else {
            return Err(Refused::busy());
        };
        match self.names.lock().take(&self.limits, policy, name, now) {
            Ok(()) => Ok(Lookup(permit)),
            Err(zone) => Err(Refused { reason: Reason::DnsLabels, zone: Some(zone) }),
        }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

/// A lookup that a limit refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    reason: Reason,
    zone: Option<NameZone>,
}

impl Refused {
    /// Too many lookups are under way.
    pub fn busy() -> Self {
        Self { reason: Reason::DnsLookups, zone: None }
    }

    /// It as a verdict. The rule is the entry that permits the zone whose budget is used up.
    pub fn verdict(&self) -> Verdict {
        let rule = self.zone.as_ref().map_or(Rule::Default, |zone| zone.rule.clone());
        Verdict { decision: Decision::Deny, rule, reason: self.reason }
    }

    /// What all names have in common that are refused with this one.
    pub(crate) fn apex(&self) -> Option<&HostName> {
        self.zone.as_ref()?.apex.as_ref()
    }
}

impl Names {
    fn take(
        &mut self,
        limits: &Limits,
        policy: &Policy,
        name: &HostName,
        now: Instant,
    ) -> Result<(), NameZone> {
        if self.asked.contains(name) {
            return Ok(());
        }
        let Some(zone) = policy.zone(name) else { return Ok(()) };
        let Some(budget) = self.zone(&zone, now) else { return Err(zone) };
        let bytes = u32::try_from(zone.open_bytes).unwrap_or(u32::MAX);
        if !budget.bytes.has(&limits.zone_bytes, bytes, now) || !budget.names.take(&limits.zone_names, 1, now)
        {
            return Err(zone);
        }
        budget.bytes.take(&limits.zone_bytes, bytes, now);
        self.asked.insert(name);
        Ok(())
    }

    /// The budget of a zone; `None` if there are too many that are not whole.
    fn zone(&mut self, zone: &NameZone, now: Instant) -> Option<&mut Zone> {
        let Rule::Entry { entry, .. } = &zone.rule else { return None };
        if self.zones.len() >= MAX_ZONES && !self.zones.contains_key(entry) {
            self.zones.retain(|_, zone| !zone.names.is_full(now) || !zone.bytes.is_full(now));
            if self.zones.len() >= MAX_ZONES {
                return None;
            }
        }
        Some(self.zones.entry(Arc::clone(entry)).or_default())
    }
}

impl Asked {
    fn contains(&self, name: &HostName) -> bool {
        self.known.contains(&self.hasher.hash_one(name))
    }

    fn insert(&mut self, name: &HostName) {
        let number = self.hasher.hash_one(name);
        if self.known.insert(number) {
            self.order.push_back(number);
        }
        if self.order.len() > MAX_ASKED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use policy::{Floor, PolicySpec};
    use proptest::prelude::*;

    use super::*;

    fn policy(allow: &[&str]) -> Policy {
        let allow_out = allow.iter().map(ToString::to_string).collect();
        Policy::compile(&PolicySpec { allow_out, ..PolicySpec::default() }, Arc::new(Floor::new([]))).unwrap()
    }

    fn budget(names: u32, bytes: u32) -> Budget {
        Budget::new(Limits {
            zone_names: Rate::per_minute(60, names),
            zone_bytes: Rate::per_minute(600, bytes),
            ..Limits::default()
        })
    }

    /// The reason why a lookup is refused, and the rule.
    fn ask(budget: &Budget, policy: &Policy, name: &str, now: Instant) -> Option<(Reason, String)> {
        let refused = budget.begin_lookup(policy, &name.parse().unwrap(), 1, now).err()?;
        Some((refused.verdict().reason, refused.verdict().rule.to_string()))
    }

    const LABELS: Reason = Reason::DnsLabels;

    #[test]
    fn new_names_of_a_zone_are_budgeted_and_those_asked_before_are_free() {
        let (budget, policy, start) = (budget(2, 1000), policy(&["*.a.test", "*.b.test"]), Instant::now());
        let ask = |name, seconds| ask(&budget, &policy, name, start + Duration::from_secs(seconds));
        assert_eq!([ask("1.a.test", 0), ask("2.a.test", 0)], [None, None]);
        assert_eq!(ask("3.a.test", 0), Some((LABELS, "allow_out[0] *.a.test".to_owned())));
        assert_eq!([ask("1.a.test", 0), ask("2.a.test", 0)], [None, None]);
        // Another zone has its own budget.
        assert_eq!(ask("3.b.test", 0), None);
        // A name was not asked because it was refused.
        assert_eq!(ask("3.a.test", 0).unwrap().0, LABELS);
        assert_eq!(ask("3.a.test", 1), None);
        assert_eq!(ask("4.a.test", 1).unwrap().0, LABELS);
    }

    #[test]
    fn the_bytes_that_a_zone_leaves_open_are_budgeted() {
        let (budget, policy, start) =
            (budget(1000, 100), policy(&["*.a.test", "~.*-cdn\\.test"]), Instant::now());
        let ask = |name: &str, seconds| {
            ask(&budget, &policy, name, start + Duration::from_secs(seconds)).map(|refused| refused.1)
        };
        let long = |digit: &str| format!("{}.{}.a.test", digit.repeat(49), digit.repeat(50));
        let refused = Some("allow_out[0] *.a.test".to_owned());
        assert_eq!(ask(&long("1"), 0), None);
        assert_eq!([ask("x.a.test", 0), ask(&long("1"), 0)], [refused.clone(), None]);
        assert_eq!([ask("x.a.test", 1), ask(&long("2"), 5)], [None, refused]);
        // Of an expression, the whole name.
        let wide = |digit: &str| format!("{}-cdn.test", digit.repeat(50));
        assert_eq!(ask(&wide("1"), 0), None);
        assert_eq!(ask(&wide("2"), 0), Some("allow_out[1] ~.*-cdn\\.test".to_owned()));
    }

    #[test]
    fn a_host_that_is_permitted_by_its_name_costs_nothing() {
        let (budget, start) = (budget(1, 10), Instant::now());
        let hosts = policy(&["*.a.test", "one.a.test", "two.a.test:443", "three.b.test"]);
        assert_eq!(ask(&budget, &hosts, "x.a.test", start), None);
        for name in ["one.a.test", "two.a.test", "three.b.test"] {
            assert_eq!(ask(&budget, &hosts, name, start), None);
        }
        assert!(ask(&budget, &hosts, "four.a.test", start).is_some());
        assert_eq!(ask(&budget, &policy(&["*"]), "four.a.test", start), None);
    }

    #[test]
    fn a_new_policy_with_the_same_zone_has_no_new_budget_for_it() {
        let (budget, start) = (budget(1, 100), Instant::now());
        assert_eq!(ask(&budget, &policy(&["*.a.test"]), "1.a.test", start), None);
        let next = policy(&["other.test", "*.a.test"]);
        let refused = (LABELS, "allow_out[1] *.a.test".to_owned());
        assert_eq!(ask(&budget, &next, "2.a.test", start), Some(refused));
        assert_eq!(ask(&budget, &next, "1.a.test", start), None);
    }

    #[test]
    fn lookups_are_counted_while_they_are_under_way_and_one_that_is_not_made_costs_nothing() {
        let limits = Limits { max_lookups: 1, zone_names: Rate::per_minute(1, 2), ..Limits::default() };
        let (budget, policy, now) = (Budget::new(limits), policy(&["*.a.test"]), Instant::now());
        let name = |text: &str| text.parse::<HostName>().unwrap();
        let begin = |text| budget.begin_lookup(&policy, &name(text), 1, now);
        let first = begin("1.a.test").unwrap();
        let refused = begin("2.a.test").unwrap_err();
        assert_eq!((refused.verdict().reason, refused.apex()), (Reason::DnsLookups, None));
        drop(first);
        assert!(begin("2.a.test").is_ok());
        let refused = begin("3.a.test").unwrap_err();
        assert_eq!((refused.verdict().reason, refused.apex()), (LABELS, Some(&name("a.test"))));
        // What is refused for its name is not under way.
        assert!(begin("1.a.test").is_ok());
    }

    #[test]
    fn a_lookup_in_both_families_counts_twice() {
        let limits = Limits { max_lookups: 3, ..Limits::default() };
        let (budget, policy, now) = (Budget::new(limits), policy(&["a.test"]), Instant::now());
        let begin = |families| budget.begin_lookup(&policy, &"a.test".parse().unwrap(), families, now);
        let both = begin(2).unwrap();
        assert_eq!(begin(2).unwrap_err(), Refused::busy());
        let third = begin(1).unwrap();
        drop(both);
        assert!(begin(2).is_ok());
        drop(third);
        // Where both never have room, one place is enough for them.
        let budget = Budget::new(Limits { max_lookups: 1, ..limits });
        assert!(budget.begin_lookup(&policy, &"a.test".parse().unwrap(), 2, now).is_ok());
    }

    #[test]
    fn queries_are_as_many_as_the_rate_permits() {
        let limits = Limits { queries: Rate::per_second(10, 2), ..Limits::default() };
        let (budget, start) = (Budget::new(limits), Instant::now());
        let at = |millis| budget.take_query(start + Duration::from_millis(millis));
        assert_eq!([at(0), at(0), at(0), at(100), at(100)], [true, true, false, true, false]);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_at_the_bound_nothing_new_is_asked() {
        let zones: Vec<String> = (0..=MAX_ZONES).map(|number| format!("*.z{number}.test")).collect();
        let entries: Vec<&str> = zones.iter().map(String::as_str).collect();
        let (budget, policy, start) = (budget(1, 100), policy(&entries), Instant::now());
        let ask = |zone: usize, name: &str, seconds| {
            let name = format!("{name}.z{zone}.test");
            ask(&budget, &policy, &name, start + Duration::from_secs(seconds)).map(|refused| refused.0)
        };
        assert!((0..MAX_ZONES).all(|zone| ask(zone, "a", 0).is_none()));
        assert_eq!([ask(MAX_ZONES, "a", 0), ask(0, "b", 0)], [Some(LABELS), Some(LABELS)]);
        // Whole again, they need not be remembered.
        assert_eq!([ask(MAX_ZONES, "a", 1), ask(0, "b", 1)], [None, None]);
        assert_eq!(budget.names.lock().zones.len(), 2);

        let mut asked = Asked::default();
        let name = |number: usize| format!("n{number}.test").parse().unwrap();
        (0..=MAX_ASKED).for_each(|number| asked.insert(&name(number)));
        assert_eq!((asked.known.len(), asked.order.len()), (MAX_ASKED, MAX_ASKED));
        assert!(!asked.contains(&name(0)) && asked.contains(&name(1)) && asked.contains(&name(MAX_ASKED)));
    }

    proptest! {
        /// However names are chosen: no more new ones of a zone are asked than its budget has, nor more bytes.
        #[test]
        fn a_zone_carries_no_more_than_its_budget(
            steps in proptest::collection::vec((0u64..20, "[a-z]{1,40}(\\.[a-z]{1,40})?"), 1..200),
            names in 1u32..20,
            bytes in 1u32..500,
        ) {
            let (budget, policy, start) = (budget(names, bytes), policy(&["*.a.test"]), Instant::now());
            let (mut asked, mut told, mut seconds) = (HashSet::new(), 0, 0);
            for (more, label) in steps {
                seconds += more;
                let name = format!("{label}.a.test");
                if ask(&budget, &policy, &name, start + Duration::from_secs(seconds)).is_none() && asked.insert(name) {
                    told += label.len() as u64;
                }
                prop_assert!(asked.len() as u64 <= u64::from(names) + seconds);
                prop_assert!(told <= u64::from(bytes) + seconds * 10);
            }
        }
    }
}
