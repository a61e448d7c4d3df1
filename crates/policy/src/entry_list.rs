//! One compiled list of entries.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    AddressRule, Entry, EntryError, Floor, HostName, List, PolicyError, Rule, Target, Warning,
    addresses::AddressIndex,
    names::NameIndex,
    patterns::{MAX_COMPILED_LIST, MAX_PATTERNS, PatternIndex},
    ports::{PortQuery, PortSet, lower},
    ranges::as_nat64,
};

/// One of the two lists, ready to be asked.
#[derive(Debug)]
pub(crate) struct EntryList {
    list: List,
    texts: Vec<Arc<str>>,
    entries: Vec<Entry>,
    everything: PortSet,
    addresses: AddressIndex,
    names: NameIndex,
    patterns: PatternIndex,
}

impl EntryList {
    /// Parses and compiles the entries of a list. Those of `allow_out` may not lie on the floor.
    pub(crate) fn compile(list: List, texts: &[String], floor: &Floor) -> Result<Self, PolicyError> {
        let count = texts.iter().filter(|text| text.starts_with('~')).count();
        if count > MAX_PATTERNS {
            return Err(PolicyError::TooManyPatterns { list, count, limit: MAX_PATTERNS });
        }
        let mut entries = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            let entry = Entry::parse(text).and_then(|entry| match on_the_floor(list, &entry, floor) {
                Some(word) => Err(EntryError::Floor { word }),
                None => Ok(entry),
            });
            entries.push(entry.map_err(|source| PolicyError::Entry {
                list,
                index,
                entry: text.clone(),
                source,
            })?);
        }
        let mut everything = PortSet::default();
        let mut names = NameIndex::new();
        for (index, entry) in entries.iter().enumerate() {
            match &entry.target {
                Target::Everything => everything.add(entry.port, index),
                Target::Host(name) => names.add_host(name, entry.port, index),
                Target::Subdomains(name) => names.add_subdomains(name, entry.port, index),
                Target::Network(_) | Target::Pattern(_) => {}
            }
        }
        everything.finish();
        names.finish();
        let patterns = entries.iter().enumerate().filter_map(|(index, entry)| match &entry.target {
            Target::Pattern(source) => Some((source.as_str(), entry.port, index)),
            _ => None,
        });
        let patterns = PatternIndex::new(patterns)
            .map_err(|_| PolicyError::PatternsTooLarge { list, limit: MAX_COMPILED_LIST })?;
        let addresses = AddressIndex::new(networks(list, &entries));
        let texts = texts.iter().map(|text| Arc::from(text.as_str())).collect();
        Ok(Self { list, texts, entries, everything, addresses, names, patterns })
    }

    /// Whether it has no entries.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether an entry is about everything on every port.
    pub(crate) fn is_everything(&self) -> bool {
        self.everything.find(PortQuery::Every).is_some()
    }

    /// Whether an entry is about names.
    pub(crate) fn has_names(&self) -> bool {
        self.first_name().is_some()
    }

    /// The lowest index of an entry about everything.
    pub(crate) fn find_everything(&self, query: PortQuery) -> Option<usize> {
        self.everything.find(query)
    }

    /// The lowest index of an address entry that covers `address`.
    pub(crate) fn find_address(&self, address: IpAddr, query: PortQuery) -> Option<usize> {
        self.addresses.find(address, query)
    }

    /// The lowest index of a name entry that names `name`.
    pub(crate) fn find_name(&self, name: &HostName, query: PortQuery) -> Option<usize> {
        lower(self.names.find(name, query), self.patterns.find(name, query))
    }

    /// The lowest index of an entry that is exactly `name`.
    pub(crate) fn find_host(&self, name: &HostName, query: PortQuery) -> Option<usize> {
        self.names.find_host(name, query)
    }

    /// The lowest index of an entry about every name below `name`.
    pub(crate) fn find_subdomains(&self, name: &HostName, query: PortQuery) -> Option<usize> {
        self.names.find_subdomains(name, query)
    }

    /// Whether an entry is this very expression.
    pub(crate) fn find_pattern(&self, source: &str, query: PortQuery) -> bool {
        self.entries.iter().any(|entry| {
            matches!(&entry.target, Target::Pattern(other) if other == source) && query.takes(entry.port)
        })
    }

    /// An entry that may name a host below `name`, whatever its port.
    pub(crate) fn find_near(&self, name: &HostName) -> Option<usize> {
        self.names.find_near(name).or_else(|| self.patterns.first())
    }

    /// The first entry that is about names.
    pub(crate) fn first_name(&self) -> Option<usize> {
        let is_name =
            |target: &Target| matches!(target, Target::Host(_) | Target::Subdomains(_) | Target::Pattern(_));
        self.entries.iter().position(|entry| is_name(&entry.target))
    }

    /// The entry at `index` as the rule of a verdict.
    pub(crate) fn rule(&self, index: usize) -> Rule {
        Rule::Entry { list: self.list, index, entry: self.text(index) }
    }

    /// The entry at `index` as it was written.
    pub(crate) fn text(&self, index: usize) -> Arc<str> {
        self.texts.get(index).map_or_else(|| Arc::from(""), Arc::clone)
    }

    /// The entries.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The networks of the address entries with their ports and positions.
    pub(crate) fn networks(&self) -> impl Iterator<Item = (IpNet, Option<u16>, usize)> + '_ {
        networks(self.list, &self.entries)
    }

    /// What is denied with `net`: an IPv4 network by the way through NAT64 too.
    pub(crate) fn denied_forms(net: IpNet) -> impl Iterator<Item = IpNet> {
        let nat64 = match net {
            IpNet::V4(v4) => Some(as_nat64(v4)),
            IpNet::V6(_) => None,
        };
        std::iter::once(net).chain(nat64)
    }

    /// The address entries for the kernel, disjoint for each port; entries about everything on one port cover
    /// the networks of `everything`.
    pub(crate) fn address_rules(&self, everything: &[IpNet]) -> Vec<AddressRule> {
        let mut by_port = std::collections::BTreeMap::<Option<u16>, Vec<IpNet>>::new();
        for (net, port, _) in networks(self.list, &self.entries) {
            by_port.entry(port).or_default().push(net);
        }
        for entry in &self.entries {
            if entry.target == Target::Everything && entry.port.is_some() {
                by_port.entry(entry.port).or_default().extend(everything);
            }
        }
        let rules = by_port.into_iter().flat_map(|(port, nets)| {
            IpNet::aggregate(&nets).into_iter().map(move |net| AddressRule { net, port })
        });
        rules.collect()
    }

    /// What is odd about the entries, in their order.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = Warning> + '_ {
        self.entries.iter().zip(&self.texts).enumerate().flat_map(move |(index, (entry, text))| {
            let warning = move |kind| Warning { list: self.list, index, entry: Arc::clone(text), kind };
            entry.warnings.iter().cloned().map(warning)
        })
    }

    /// The texts of the entries, in their order.
    pub(crate) fn texts(&self) -> &[Arc<str>] {
        &self.texts
    }
}

/// The networks of the address entries with their ports and positions. To deny an IPv4 network denies the way
/// to it through NAT64 as well; to permit it does not permit that way.
fn networks(list: List, entries: &[Entry]) -> impl Iterator<Item = (IpNet, Option<u16>, usize)> + '_ {
    entries.iter().enumerate().flat_map(move |(index, entry)| {
        let (net, forms) = match entry.target {
            Target::Network(net) if list == List::DenyOut => (None, Some(EntryList::denied_forms(net))),
            Target::Network(net) => (Some(net), None),
            _ => (None, None),
        };
        net.into_iter().chain(forms.into_iter().flatten()).map(move |net| (net, entry.port, index))
    })
}

fn on_the_floor(list: List, entry: &Entry, floor: &Floor) -> Option<&'static str> {
    match &entry.target {
        _ if list == List::DenyOut => None,
        Target::Network(net) => floor.covers(net),
        Target::Host(name) => floor.name(name),
        Target::Everything | Target::Subdomains(_) | Target::Pattern(_) => None,
    }
}
