//! The names of the small internet, and what they resolve to.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, bail};

/// The zone a lab has unless it is given another: the hosts of the worked examples, and some that are up to no good.
const DEFAULT_ZONE: &str = include_str!("default.zone");

/// The data of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name.
    Cname(String),
    /// A whole subtree is elsewhere (RFC 6672): names below this one are looked for below the other.
    Dname(String),
    /// A text.
    Txt(String),
}

/// An address record about another name than the one that was asked for, which a hostile server adds to its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stray {
    /// The name that it claims to be about.
    pub(crate) owner: String,
    /// The address.
    pub(crate) address: IpAddr,
}

/// All records of one name.
#[derive(Debug, Default)]
struct Node {
    records: Vec<(u32, Data)>,
    /// Added to the answer section and to the additional section of every answer.
    strays: Vec<Stray>,
    /// Queries answered with one record at a time, in turn: a name server that rebinds.
    rotate: bool,
    turn: AtomicUsize,
}

/// A set of names with their records.
///
/// The text form has a line for each record, `NAME [TTL] TYPE VALUE`, where TYPE is `A`, `AAAA`, `CNAME`, `DNAME` or
/// `TXT`; `NAME ROTATE` makes the address records of a name come one at a time, in turn; `NAME STRAY OTHER ADDRESS`
/// adds an address of OTHER to every answer about NAME, where it has no business. `*.NAME` stands for every name below
/// NAME that has no records of its own. `#` starts a comment.
#[derive(Debug, Default)]
pub struct Zone {
    nodes: BTreeMap<String, Node>,
}

impl Zone {
    /// The zone of the worked examples.
    pub fn standard() -> Self {
        DEFAULT_ZONE.parse().expect("the zone in this crate is well formed: a test parses it")
    }

    /// Adds one record, with a time to live in seconds.
    pub fn add(&mut self, name: &str, ttl: u32, data: Data) {
        self.nodes.entry(canonical(name)).or_default().records.push((ttl, data));
    }

    /// Adds an address record for `name`.
    pub fn add_address(&mut self, name: &str, address: IpAddr) {
        let data = match address {
            IpAddr::V4(v4) => Data::A(v4),
            IpAddr::V6(v6) => Data::Aaaa(v6),
        };
        self.add(name, 60, data);
    }

    /// The records of a name, or `None` if it does not exist.
    pub fn lookup(&self, name: &str) -> Option<Vec<(u32, Data)>> {
        let name = canonical(name);
        let node = self.nodes.get(&name).or_else(|| {
            let mut rest = name.as_str();
            while let Some((_, parent)) = rest.split_once('.') {
                if let Some(node) = self.nodes.get(&format!("*.{parent}")) {
                    return Some(node);
                }
                rest = parent;
            }
            None
        })?;
        if !node.rotate || node.records.is_empty() {
            return Some(node.records.clone());
        }
        let turn = node.turn.fetch_add(1, Ordering::Relaxed);
        Some(node.records.get(turn % node.records.len()).cloned().into_iter().collect())
    }
}

impl Zone {
    /// What the server of `name` adds to its answers about other names.
    pub(crate) fn strays(&self, name: &str) -> &[Stray] {
        self.nodes.get(&canonical(name)).map(|node| node.strays.as_slice()).unwrap_or_default()
    }

    /// If a name above `name` says that everything below it is elsewhere: that name, its time to live, and where.
    pub(crate) fn moved(&self, name: &str) -> Option<(String, u32, String)> {
        let name = canonical(name);
        let mut rest = name.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            let records = self.nodes.get(parent).map(|node| node.records.as_slice()).unwrap_or_default();
            for (ttl, data) in records {
                if let Data::Dname(target) = data {
                    return Some((parent.to_owned(), *ttl, target.clone()));
                }
            }
            rest = parent;
        }
        None
    }
}

impl FromStr for Zone {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut zone = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                zone.add_line(line).with_context(|| format!("line {}: {line:?}", number + 1))?;
            }
        }
        Ok(zone)
    }
}

impl Zone {
    fn add_line(&mut self, line: &str) -> Result<()> {
        let mut words = line.split_whitespace().peekable();
        let name = canonical(words.next().context("a name is missing")?);
        let ttl = match words.peek().and_then(|word| word.parse().ok()) {
            Some(ttl) => {
                words.next();
                ttl
            }
            None => 60,
        };
        let kind = words.next().context("a record type is missing")?;
        let value = words.collect::<Vec<_>>().join(" ");
        let data = match kind {
            "A" => Data::A(value.parse()?),
            "AAAA" => Data::Aaaa(value.parse()?),
            "CNAME" => Data::Cname(canonical(&value)),
            "DNAME" => Data::Dname(canonical(&value)),
            "TXT" => Data::Txt(value),
            "STRAY" => {
                let (owner, address) =
                    value.split_once(' ').context("a stray record is NAME STRAY OTHER ADDRESS")?;
                let stray = Stray { owner: canonical(owner), address: address.parse()? };
                self.nodes.entry(name).or_default().strays.push(stray);
                return Ok(());
            }
            "ROTATE" => {
                self.nodes.entry(name).or_default().rotate = true;
                return Ok(());
            }
            other => bail!("{other:?} is not a record type the lab serves"),
        };
        self.add(&name, ttl, data);
        Ok(())
    }
}

fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_zone_has_the_hosts_of_the_worked_examples() {
        let zone = Zone::standard();
        for name in ["api.github.com", "api.openai.com", "evil.com", "files.example.org"] {
            assert!(zone.lookup(name).is_some_and(|records| !records.is_empty()), "{name}");
        }
        assert!(zone.lookup("no-such-host.example").is_none());
    }

    #[test]
    fn a_wildcard_answers_below_its_name_and_not_at_it() {
        let zone: Zone = "*.allowed.test A 203.0.113.7".parse().unwrap();
        assert!(zone.lookup("a.b.allowed.test").is_some());
        assert!(zone.lookup("allowed.test").is_none());
    }

    #[test]
    fn a_subtree_that_moved_and_stray_records_are_read() {
        let zone: Zone = "old.test 30 DNAME new.test\nx.test A 203.0.113.1\nx.test STRAY y.test 203.0.113.2"
            .parse()
            .unwrap();
        assert_eq!(zone.moved("a.b.old.test"), Some(("old.test".to_owned(), 30, "new.test".to_owned())));
        assert_eq!(zone.moved("old.test"), None, "the name itself stays where it is");
        assert_eq!(zone.strays("X.test").len(), 1);
        assert_eq!(zone.lookup("x.test").map(|records| records.len()), Some(1));
    }

    #[test]
    fn a_rotating_name_gives_one_record_after_the_other() {
        let zone: Zone = "r.test A 203.0.113.1\nr.test A 169.254.169.254\nr.test ROTATE".parse().unwrap();
        let first = zone.lookup("r.test").unwrap();
        let second = zone.lookup("r.test").unwrap();
        assert_eq!((first.len(), second.len()), (1, 1));
        assert_ne!(first, second);
    }
}
