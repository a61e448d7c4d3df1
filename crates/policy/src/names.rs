//! Which entry of a list names a host, in time that depends on the name and not on the list.

use std::collections::HashMap;

use crate::{
    HostName,
    ports::{PortQuery, PortSet, lower},
};

/// The exact and wildcard name entries of one list: a tree of labels, the top-level ones at its root.
#[derive(Clone, Debug)]
pub(crate) struct NameIndex {
    /// The root is the first.
    nodes: Vec<Node>,
}

#[derive(Clone, Debug, Default)]
struct Node {
    children: HashMap<Box<str>, usize>,
    /// Entries that are exactly this name.
    exact: PortSet,
    /// Entries about every name below this one.
    below: PortSet,
}

impl NameIndex {
    /// An index without entries.
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node::default()] }
    }

    /// Adds the entry at `index` that is exactly `name`.
    pub(crate) fn add_host(&mut self, name: &HostName, port: Option<u16>, index: usize) {
        self.node_of(name).exact.add(port, index);
    }

    /// Adds the entry at `index` that is about every name below `name`, but not about `name`.
    pub(crate) fn add_subdomains(&mut self, name: &HostName, port: Option<u16>, index: usize) {
        self.node_of(name).below.add(port, index);
    }

    /// Makes the index ready for [`Self::find`]. To be called once, after the last entry is added.
    pub(crate) fn finish(&mut self) {
        for node in &mut self.nodes {
            node.exact.finish();
            node.below.finish();
        }
    }

    /// The lowest index of an entry that names `name` and answers the query for ports.
    pub(crate) fn find(&self, name: &HostName, query: PortQuery) -> Option<usize> {
        let mut node = self.nodes.first()?;
        let mut found = None;
        for label in name.labels_from_the_root() {
            // What was found before this label is about everything below, and there is something below.
            found = lower(found, node.below.find(query));
            let Some(child) = node.children.get(label).and_then(|at| self.nodes.get(*at)) else {
                return found;
            };
            node = child;
        }
        lower(found, node.exact.find(query))
    }

    fn node_of(&mut self, name: &HostName) -> &mut Node {
        let mut at = 0;
        for label in name.labels_from_the_root() {
            let next = self.nodes.len();
            let node = self.nodes.get_mut(at).expect("positions of nodes are never beyond the nodes");
            at = match node.children.get(label) {
                Some(child) => *child,
                None => {
                    node.children.insert(label.into(), next);
                    self.nodes.push(Node::default());
                    next
                }
            };
        }
        self.nodes.get_mut(at).expect("positions of nodes are never beyond the nodes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(hosts: &[(&str, usize)], below: &[(&str, usize)]) -> NameIndex {
        let mut index = NameIndex::new();
        for (name, at) in hosts {
            index.add_host(&name.parse().unwrap(), None, *at);
        }
        for (name, at) in below {
            index.add_subdomains(&name.parse().unwrap(), None, *at);
        }
        index.finish();
        index
    }

    #[test]
    fn labels_are_compared_whole() {
        let index = index(&[("allowed.test", 0)], &[("allowed.test", 1), ("b.allowed.test", 2)]);
        let find = |name: &str| index.find(&name.parse().unwrap(), PortQuery::Any);
        assert_eq!(find("allowed.test"), Some(0));
        assert_eq!(find("a.allowed.test"), Some(1));
        assert_eq!(find("b.allowed.test"), Some(1));
        assert_eq!(find("a.b.allowed.test"), Some(1));
        for other in ["test", "notallowed.test", "allowed.testevil", "allowed.test.evil.test", "allowed"] {
            assert_eq!(find(other), None, "{other}");
        }
    }
}
