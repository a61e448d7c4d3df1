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

    /// The lowest index of an entry that is exactly `name` and answers the query for ports.
    pub(crate) fn find_host(&self, name: &HostName, query: PortQuery) -> Option<usize> {
        let (path, is_whole) = self.path_to(name);
        path.last().filter(|_| is_whole)?.exact.find(query)
    }

    /// The lowest index of an entry that names every name below `name` and answers the query for ports.
    pub(crate) fn find_subdomains(&self, name: &HostName, query: PortQuery) -> Option<usize> {
        let (path, _) = self.path_to(name);
        path.into_iter().map(|node| node.below.find(query)).fold(None, lower)
    }

    /// An entry that names a name below `name`, if there is one, whatever its port.
    pub(crate) fn find_near(&self, name: &HostName) -> Option<usize> {
        let (path, is_whole) = self.path_to(name);
        let above = path.iter().map(|node| node.below.find(PortQuery::Any)).fold(None, lower);
        let last = path.last().filter(|_| is_whole);
        above.or_else(|| self.first_below(last?))
    }

    /// The nodes from the root to `name`, and whether the last is that of `name`.
    fn path_to(&self, name: &HostName) -> (Vec<&Node>, bool) {
        let mut path = Vec::from_iter(self.nodes.first());
        for label in name.labels_from_the_root() {
            let next = path.last().and_then(|node| node.children.get(label));
            match next.and_then(|at| self.nodes.get(*at)) {
                Some(node) => path.push(node),
                None => return (path, false),
            }
        }
        (path, true)
    }

    /// An entry at a node below `node`. Nodes are made for entries, so below each that is no leaf there is one.
    fn first_below(&self, node: &Node) -> Option<usize> {
        let mut node = node;
        loop {
            node = self.nodes.get(*node.children.values().min()?)?;
            let found = lower(node.exact.find(PortQuery::Any), node.below.find(PortQuery::Any));
            if found.is_some() {
                return found;
            }
        }
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
    fn entries_about_all_subdomains_and_about_some_are_told_apart() {
        let index = index(&[("a.b.allowed.test", 0)], &[("allowed.test", 1), ("x.y.other.test", 2)]);
        let name = |text: &str| text.parse().unwrap();
        let all = |text| index.find_subdomains(&name(text), PortQuery::Every);
        assert_eq!(
            (all("allowed.test"), all("b.allowed.test"), all("c.d.allowed.test")),
            (Some(1), Some(1), Some(1))
        );
        assert_eq!((all("test"), all("other.test"), all("notallowed.test")), (None, None, None));
        let some = |text| index.find_near(&name(text));
        assert_eq!((some("allowed.test"), some("b.allowed.test")), (Some(1), Some(1)));
        assert_eq!(
            (some("other.test"), some("x.y.other.test"), some("z.x.y.other.test")),
            (Some(2), Some(2), Some(2))
        );
        assert!(some("test").is_some());
        assert_eq!((some("a.y.other.test"), some("third.test")), (None, None));
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
