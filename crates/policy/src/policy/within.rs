//! Whether one policy permits no more than another.

use std::collections::HashSet;

use ipnet::IpNet;

use super::Policy;
use crate::{
    EchMode, Entry, KernelDefault, Target, Widening,
    cover::{Cover, PortedCover},
    entry_list::EntryList,
    ports::{PortQuery, PortSet},
    ranges::{private_networks, public_networks},
};

impl Policy {
    /// Checks that this policy permits nothing that `wider` does not.
    ///
    /// When the answer is yes, every flow that [`Policy::judge`] permits under this policy it permits under `wider`
    /// too, and nothing else that a policy decides is looser. It may say no to a policy that is narrower in a way
    /// that it cannot prove: expressions are compared as text, a wildcard must lie below one wildcard, and under an
    /// open policy a permitted name is taken to resolve to any public address.
    ///
    /// How refused names are answered (`refused_names`) may differ, because no flow depends on it.
    ///
    /// # Errors
    /// The first thing that permits more, or may.
    pub fn check_within(&self, wider: &Self) -> Result<(), Widening> {
        self.check_settings(wider)?;
        let old = Wider::new(wider);
        if self.is_open() {
            self.check_default(wider)?;
        }
        for (index, entry) in once(&self.allow) {
            old.covers(entry).map_err(|denied| {
                let entry = self.allow.text(index);
                match denied {
                    None => Widening::Allow { index, entry },
                    Some(denied_index) => {
                        let denied = wider.deny.text(denied_index);
                        Widening::BeatsDeny { index, entry, denied_index, denied }
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Everything but the lists.
    fn check_settings(&self, wider: &Self) -> Result<(), Widening> {
        let (new, old) = (&self.spec, &wider.spec);
        if !self.floor.contains(&wider.floor) {
            return Err(Widening::Floor);
        }
        if new.ech == EchMode::Permit && old.ech != EchMode::Permit {
            return Err(Widening::Ech);
        }
        if new.allow_public_traffic && !old.allow_public_traffic {
            return Err(Widening::PublicTraffic);
        }
        if new.mask_request_host != old.mask_request_host {
            return Err(Widening::MaskRequestHost);
        }
        Ok(())
    }

    /// Whether what no entry names is permitted.
    fn is_open(&self) -> bool {
        self.allow.is_empty() && self.kernel.default != KernelDefault::Refuse
    }

    /// Checks an open default: what this policy does not deny must be permitted by `wider`.
    fn check_default(&self, wider: &Self) -> Result<(), Widening> {
        if wider.allow.is_everything() {
            return Ok(());
        }
        if !wider.is_open() {
            return Err(Widening::Default);
        }
        let denied = Denied::new(&self.deny);
        for (index, entry) in once(&wider.deny) {
            if !denied.covers(entry) {
                return Err(Widening::DenyDropped { index, entry: wider.deny.text(index) });
            }
        }
        // Denied names close what cannot name its host, and entries for everything on a port do not.
        if wider.kernel.default == KernelDefault::ProxyTcp && self.kernel.default != KernelDefault::ProxyTcp {
            return Err(Widening::Default);
        }
        Ok(())
    }
}

/// What the policy in force permits, ready to be asked about many entries.
struct Wider<'a> {
    policy: &'a Policy,
    /// The address entries of `allow_out`.
    allowed: PortedCover,
    /// Those of `deny_out`.
    denied: PortedCover,
    public: Cover,
    /// The ports of those entries of `deny_out` that public addresses are denied by.
    denied_public: PortSet,
}

impl<'a> Wider<'a> {
    fn new(policy: &'a Policy) -> Self {
        let public = Cover::new(public_networks().to_vec());
        let mut denied_public = PortSet::default();
        for (net, port, index) in policy.deny.networks() {
            if public.meets(&net) {
                denied_public.add(port, index);
            }
        }
        denied_public.finish();
        Self {
            policy,
            allowed: PortedCover::new(policy.allow.networks()),
            denied: PortedCover::new(policy.deny.networks()),
            public,
            denied_public,
        }
    }

    /// Whether every flow that `entry` permits is permitted. If not, and an entry of `deny_out` is why, its position.
    fn covers(&self, entry: &Entry) -> Result<(), Option<usize>> {
        if self.policy.is_open() {
            return self.leaves_open(entry);
        }
        let allow = &self.policy.allow;
        let query = at_least(entry.port);
        let everything = allow.find_everything(query).is_some();
        let covered = match &entry.target {
            Target::Network(net) => {
                let public = everything.then_some(&self.public);
                self.allowed.contains(net, entry.port, public)
            }
            _ if everything => true,
            Target::Everything => false,
            Target::Host(name) => allow.find_name(name, query).is_some(),
            Target::Subdomains(name) => allow.find_subdomains(name, query).is_some(),
            Target::Pattern(source) => allow.find_pattern(source, query),
        };
        if covered { Ok(()) } else { Err(None) }
    }

    /// As [`Self::covers`], for an open policy: no entry of `deny_out` may be about what `entry` permits.
    fn leaves_open(&self, entry: &Entry) -> Result<(), Option<usize>> {
        let deny = &self.policy.deny;
        let touching = touching(entry.port);
        if let Some(index) = deny.find_everything(touching) {
            return Err(Some(index));
        }
        // Next to denied names, an open default permits only what can name its host.
        let hides_names = self.policy.kernel.default == KernelDefault::ProxyTcp;
        match &entry.target {
            Target::Network(_) | Target::Everything if hides_names => Err(deny.first_name()),
            Target::Network(net) if !self.public.contains(net) => Err(None),
            Target::Network(net) if self.denied.meets(net, entry.port) => {
                let meets = |denied: &IpNet| denied.contains(net) || net.contains(denied);
                let mut denied =
                    deny.networks().filter(|(denied, port, _)| touching.takes(*port) && meets(denied));
                Err(denied.next().map(|(_, _, index)| index))
            }
            Target::Network(_) => Ok(()),
            Target::Everything => none(self.denied_public.find(touching)),
            // A name may resolve to any public address.
            Target::Host(name) => {
                none(self.denied_public.find(touching).or_else(|| deny.find_name(name, touching)))
            }
            Target::Subdomains(name) => {
                none(self.denied_public.find(touching).or_else(|| deny.find_near(name)))
            }
            // Which names an expression matches is not computed.
            Target::Pattern(_) => none(self.denied_public.find(touching).or_else(|| deny.first_name())),
        }
    }
}

/// What the new policy denies, ready to be asked about many entries.
struct Denied<'a> {
    deny: &'a EntryList,
    nets: PortedCover,
    /// What an open default never permits.
    private: Cover,
}

impl<'a> Denied<'a> {
    fn new(deny: &'a EntryList) -> Self {
        Self {
            deny,
            nets: PortedCover::new(deny.networks()),
            private: Cover::new(private_networks().to_vec()),
        }
    }

    /// Whether everything that `entry` of the other policy's `deny_out` denies is denied.
    fn covers(&self, entry: &Entry) -> bool {
        let query = at_least(entry.port);
        if self.deny.find_everything(query).is_some() {
            return true;
        }
        match &entry.target {
            Target::Everything => false,
            Target::Network(net) => {
                let mut forms = EntryList::denied_forms(*net);
                forms.all(|net: IpNet| self.nets.contains(&net, entry.port, Some(&self.private)))
            }
            Target::Host(name) => self.deny.find_name(name, query).is_some(),
            Target::Subdomains(name) => self.deny.find_subdomains(name, query).is_some(),
            Target::Pattern(source) => self.deny.find_pattern(source, query),
        }
    }
}

/// The entries of a list with their positions, each network once: what it costs to find one covered grows with the
/// other policy.
fn once(list: &EntryList) -> impl Iterator<Item = (usize, &Entry)> {
    let mut seen = HashSet::new();
    list.entries().iter().enumerate().filter(move |(_, entry)| match entry.target {
        Target::Network(net) => seen.insert((net, entry.port)),
        _ => true,
    })
}

/// Asks for entries about all of the ports of an entry.
fn at_least(port: Option<u16>) -> PortQuery {
    port.map_or(PortQuery::Every, PortQuery::Is)
}

/// Asks for entries about any of the ports of an entry.
fn touching(port: Option<u16>) -> PortQuery {
    port.map_or(PortQuery::Any, PortQuery::Is)
}

fn none(found: Option<usize>) -> Result<(), Option<usize>> {
    match found {
        None => Ok(()),
        found => Err(found),
    }
}
