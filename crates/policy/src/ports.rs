//! The ports that entries with the same target are about.

/// Which ports a flow asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortQuery {
    /// This one.
    Is(u16),
    /// Whichever: is there one that an entry is about?
    Any,
    /// The flow has no ports, or the answer must hold for every port: only entries without a port count.
    Every,
}

impl PortQuery {
    /// Whether an entry about `port`, or about every port, answers it.
    pub(crate) fn takes(self, port: Option<u16>) -> bool {
        match self {
            Self::Any => true,
            Self::Every => port.is_none(),
            Self::Is(asked) => port.is_none_or(|port| port == asked),
        }
    }
}

/// The entries of one list with the same target, by port. Indexes are positions in the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct PortSet {
    every: Option<usize>,
    /// Sorted by port, one element per port, once [`Self::finish`] has run.
    single: Vec<(u16, usize)>,
    lowest: Option<usize>,
}

impl PortSet {
    /// Adds the entry at `index`, which is about `port` or about every port.
    pub(crate) fn add(&mut self, port: Option<u16>, index: usize) {
        match port {
            None => self.every = lower(self.every, Some(index)),
            Some(port) => self.single.push((port, index)),
        }
        self.lowest = lower(self.lowest, Some(index));
    }

    /// Makes the set ready for [`Self::find`]. To be called once, after the last [`Self::add`].
    pub(crate) fn finish(&mut self) {
        self.single.sort_unstable();
        self.single.dedup_by_key(|(port, _)| *port);
    }

    /// The lowest index of an entry that answers the query.
    pub(crate) fn find(&self, query: PortQuery) -> Option<usize> {
        match query {
            PortQuery::Every => self.every,
            PortQuery::Any => self.lowest,
            PortQuery::Is(port) => {
                let single = self.single.binary_search_by_key(&port, |(port, _)| *port).ok();
                let single = single.and_then(|at| self.single.get(at)).map(|(_, index)| *index);
                lower(self.every, single)
            }
        }
    }
}

/// The lower of two indexes, where there is one.
pub(crate) fn lower(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_index_is_found_whatever_the_order_of_adding() {
        let mut ports = PortSet::default();
        for (port, index) in [(Some(443), 7), (None, 5), (Some(443), 2), (Some(22), 9)] {
            ports.add(port, index);
        }
        ports.finish();
        assert_eq!(ports.find(PortQuery::Is(443)), Some(2));
        assert_eq!(ports.find(PortQuery::Is(22)), Some(5));
        assert_eq!(ports.find(PortQuery::Is(80)), Some(5));
        assert_eq!(ports.find(PortQuery::Any), Some(2));
        assert_eq!(ports.find(PortQuery::Every), Some(5));
    }

    #[test]
    fn an_entry_with_a_port_says_nothing_of_other_ports() {
        let mut ports = PortSet::default();
        ports.add(Some(443), 0);
        ports.finish();
        assert_eq!(ports.find(PortQuery::Is(443)), Some(0));
        assert_eq!(ports.find(PortQuery::Is(80)), None);
        assert_eq!(ports.find(PortQuery::Every), None);
    }
}
