//! Changes that are made together or not at all.

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST};

use crate::error::Error;
use crate::message::{Head, Writer};
use crate::object::{Chain, Table};
use crate::range::{Address, AddressRange, merge};
use crate::rule::Rule;
use crate::set::{Element, Set, write_port_range, write_range};
use crate::uapi::{batch, chain, counter, elements, msg, nfproto, object, rule, set, subsystem, table};

/// A list of changes, applied in order by [`Connection::commit`](crate::Connection::commit) as one transaction.
///
/// What cannot be written down (a name or prefix of thousands of bytes) is remembered and reported by `commit`,
/// which then sends nothing.
#[derive(Clone)]
pub struct Batch {
    writer: Writer,
    /// Where the last message begins.
    last: usize,
    /// Messages behind the opening one.
    count: u32,
    /// Sets created so far: their ids.
    sets: u32,
    too_long: Option<String>,
}

/// A batch as it is sent.
pub(crate) struct Transaction {
    pub(crate) bytes: Vec<u8>,
    /// Number of the last message before the closing one: the one that is acknowledged.
    pub(crate) last: u32,
}

/// An attribute's length has 16 bits: elements are split into messages of about this many bytes.
const ELEMENTS_BYTES: usize = 60_000;

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch. Committing it does nothing.
    pub fn new() -> Self {
        let mut writer = Writer::with_capacity(512);
        writer.message(control(batch::BEGIN, 0), |_| {});
        Self { writer, last: 0, count: 0, sets: 0, too_long: None }
    }

    /// Whether nothing has been added.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Creates a table, or keeps the one of this name.
    pub fn add_table(&mut self, table: &Table) -> &mut Self {
        self.in_table(msg::NEWTABLE, table, table::NAME, table.name(), |writer| {
            if table.is_owned() {
                writer.u32(table::FLAGS, table::F_OWNER);
            }
        })
    }

    /// Creates an empty table in the place of whatever has its name. As part of a transaction this is atomic: with
    /// the new content in the same batch, every packet sees all of the old rules or all of the new.
    pub fn replace_table(&mut self, table: &Table) -> &mut Self {
        // Deleting what is absent is an error, so it is made first; without flags, because those of a table that
        // exists may be others.
        self.in_table(msg::NEWTABLE, table, table::NAME, table.name(), |_| {});
        self.del_table(table);
        self.add_table(table)
    }

    /// Deletes a table with everything in it.
    pub fn del_table(&mut self, table: &Table) -> &mut Self {
        self.in_table(msg::DELTABLE, table, table::NAME, table.name(), |_| {})
    }

    /// Creates a chain, or keeps the one of this name (and gives a base chain the policy).
    pub fn add_chain(&mut self, table: &Table, chain: &Chain) -> &mut Self {
        self.in_table(msg::NEWCHAIN, table, chain::TABLE, &chain.name, |writer| {
            writer.text(chain::NAME, &chain.name);
            if let Some(base) = chain.base {
                writer.nest(chain::HOOK, |writer| {
                    writer.u32(chain::HOOK_HOOKNUM, base.hook.number());
                    writer.u32(chain::HOOK_PRIORITY, base.priority.cast_unsigned());
                });
                writer.text(chain::TYPE, base.kind.name());
                writer.u32(chain::POLICY, base.policy.verdict());
            }
        })
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        self.in_table(msg::DELRULE, table, rule::TABLE, chain, |writer| writer.text(rule::CHAIN, chain))
    }

    /// Deletes a chain with its rules. `EBUSY` while a rule or a map jumps to it.
    pub fn del_chain(&mut self, table: &Table, chain: &str) -> &mut Self {
        self.flush_chain(table, chain);
        self.in_table(msg::DELCHAIN, table, chain::TABLE, chain, |writer| writer.text(chain::NAME, chain))
    }

    /// Appends a rule to a chain. Sets, counters and chains it names must exist or be created before in the batch.
    pub fn add_rule(&mut self, table: &Table, chain: &str, rule: Rule) -> &mut Self {
        let Some(expressions) = rule.expressions() else {
            self.too_long.get_or_insert_with(|| format!("a name in a rule of chain `{chain}`"));
            return self;
        };
        self.in_table(msg::NEWRULE, table, rule::TABLE, chain, |writer| {
            writer.text(rule::CHAIN, chain);
            writer.nest(rule::EXPRESSIONS, |writer| writer.append(expressions));
        })
    }

    /// Creates a set, or keeps the one of this name if it is of the same kind.
    pub fn add_set(&mut self, table: &Table, set: &Set) -> &mut Self {
        self.sets += 1;
        let id = self.sets;
        self.in_table(msg::NEWSET, table, set::TABLE, &set.name, |writer| {
            writer.text(set::NAME, &set.name);
            set.write(id, writer);
        })
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, table: &Table, set: &str) -> &mut Self {
        self.in_table(msg::DELSETELEM, table, elements::TABLE, set, |writer| writer.text(elements::SET, set))
    }

    /// Deletes a set. `EBUSY` while a rule looks into it.
    pub fn del_set(&mut self, table: &Table, set: &str) -> &mut Self {
        self.in_table(msg::DELSET, table, set::TABLE, set, |writer| writer.text(set::NAME, set))
    }

    /// Creates a named counter, or keeps the one of this name with its count.
    pub fn add_counter(&mut self, table: &Table, name: &str) -> &mut Self {
        self.in_table(msg::NEWOBJ, table, object::TABLE, name, |writer| {
            writer.text(object::NAME, name);
            writer.u32(object::TYPE, object::TYPE_COUNTER);
            writer.nest(object::DATA, |writer| {
                writer.u64(counter::BYTES, 0);
                writer.u64(counter::PACKETS, 0);
            });
        })
    }

    /// Deletes a named counter. `EBUSY` while a rule counts with it.
    pub fn del_counter(&mut self, table: &Table, name: &str) -> &mut Self {
        self.in_table(msg::DELOBJ, table, object::TABLE, name, |writer| {
            writer.text(object::NAME, name);
            writer.u32(object::TYPE, object::TYPE_COUNTER);
        })
    }

    /// Adds an element to a set; one that is there is kept. In a map `EEXIST` if it is there with other data.
    pub fn add_element(&mut self, table: &Table, set: &str, element: impl Into<Element>) -> &mut Self {
        self.add_elements(table, set, [element])
    }

    /// Adds elements to a set; those that are there are kept.
    pub fn add_elements<E: Into<Element>>(
        &mut self,
        table: &Table,
        set: &str,
        elements: impl IntoIterator<Item = E>,
    ) -> &mut Self {
        self.elements(msg::NEWSETELEM, table, set, elements, |element, writer| element.into().write(writer))
    }

    /// Adds an element, or gives the one that is there a new life with the timeout given.
    pub fn renew_element(&mut self, table: &Table, set: &str, element: impl Into<Element>) -> &mut Self {
        // Kernels before 6.12 ignore the timeout of an element that exists, and none can delete what may be absent:
        // so it is made to exist, then replaced.
        let element = element.into();
        self.add_elements(table, set, [element.clone()]);
        self.del_elements(table, set, [element.clone()]);
        self.add_elements(table, set, [element])
    }

    /// Deletes an element of a set; `ENOENT` if it is absent.
    pub fn del_element(&mut self, table: &Table, set: &str, element: impl Into<Element>) -> &mut Self {
        self.del_elements(table, set, [element])
    }

    /// Deletes elements of a set; `ENOENT` if one is absent.
    pub fn del_elements<E: Into<Element>>(
        &mut self,
        table: &Table,
        set: &str,
        elements: impl IntoIterator<Item = E>,
    ) -> &mut Self {
        self.elements(msg::DELSETELEM, table, set, elements, |element, writer| element.into().write(writer))
    }

    /// Adds ranges or networks to an [interval](Set::interval) set of addresses. They may overlap each other, but
    /// not what is in the set already: to change such a set, flush it and add everything in one batch.
    pub fn add_ranges<A: Address, R: Into<AddressRange<A>>>(
        &mut self,
        table: &Table,
        set: &str,
        ranges: impl IntoIterator<Item = R>,
    ) -> &mut Self {
        let ranges = merge(ranges.into_iter().map(Into::into).collect());
        self.elements(msg::NEWSETELEM, table, set, ranges, |range, writer| write_range(&range, writer))
    }

    /// Adds ranges or networks with a port each to an [interval](Set::interval) set of an address and a port.
    /// Otherwise like [`add_ranges`](Self::add_ranges).
    pub fn add_port_ranges<A: Address, R: Into<AddressRange<A>>>(
        &mut self,
        table: &Table,
        set: &str,
        ranges: impl IntoIterator<Item = (R, u16)>,
    ) -> &mut Self {
        let mut by_port = std::collections::BTreeMap::<u16, Vec<AddressRange<A>>>::new();
        for (range, port) in ranges {
            by_port.entry(port).or_default().push(range.into());
        }
        let merged = by_port
            .into_iter()
            .flat_map(|(port, ranges)| merge(ranges).into_iter().map(move |range| (range, port)));
        self.elements(msg::NEWSETELEM, table, set, merged, |(range, port), writer| {
            write_port_range(&range, port, writer);
        })
    }

    /// Closes the batch. `None` when there is nothing to do.
    pub(crate) fn finish(mut self) -> Result<Option<Transaction>, Error> {
        if let Some(what) = self.too_long {
            return Err(Error::TooLong { what });
        }
        if self.count == 0 {
            return Ok(None);
        }
        // One acknowledgement says that the batch holds; errors are reported for every message anyway.
        self.writer.add_flags(self.last, NLM_F_ACK);
        self.writer.message(control(batch::END, self.count + 1), |_| {});
        Ok(Some(Transaction { bytes: self.writer.into_bytes(), last: self.count }))
    }

    /// A message about the object `name` of a table, whose own name goes into attribute `table_attribute`.
    fn in_table(
        &mut self,
        kind: u16,
        table: &Table,
        table_attribute: u16,
        name: &str,
        attributes: impl FnOnce(&mut Writer),
    ) -> &mut Self {
        self.begin(kind, table, table_attribute);
        attributes(&mut self.writer);
        self.end(name);
        self
    }

    /// Messages about elements of a set, as many as their number needs; none for none.
    fn elements<T>(
        &mut self,
        kind: u16,
        table: &Table,
        set: &str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(T, &mut Writer),
    ) -> &mut Self {
        let mut items = items.into_iter().peekable();
        while items.peek().is_some() {
            self.begin(kind, table, elements::TABLE);
            self.writer.text(elements::SET, set);
            let list = self.writer.begin_nest(elements::ELEMENTS);
            while self.writer.len() - list < ELEMENTS_BYTES
                && let Some(item) = items.next()
            {
                write(item, &mut self.writer);
            }
            self.writer.end_attribute(list);
            self.end(set);
        }
        self
    }

    fn begin(&mut self, kind: u16, table: &Table, table_attribute: u16) {
        self.count += 1;
        self.last = self.writer.begin_message(Head {
            kind: subsystem::NFTABLES << 8 | kind,
            flags: NLM_F_REQUEST | creation_flags(kind),
            sequence: self.count,
            family: table.family().nfproto(),
            resource: 0,
        });
        self.writer.text(table_attribute, table.name());
    }

    fn end(&mut self, name: &str) {
        self.writer.end_message(self.last);
        if self.writer.is_too_long() {
            self.too_long.get_or_insert_with(|| {
                let shown: String = name.chars().take(40).collect();
                format!("what is said about `{shown}`")
            });
        }
    }
}

fn creation_flags(kind: u16) -> u16 {
    match kind {
        msg::NEWRULE => NLM_F_CREATE | NLM_F_APPEND,
        msg::NEWTABLE | msg::NEWCHAIN | msg::NEWSET | msg::NEWSETELEM | msg::NEWOBJ => NLM_F_CREATE,
        _ => 0,
    }
}

/// The message that opens or closes a batch.
fn control(kind: u16, sequence: u32) -> Head {
    Head { kind, flags: NLM_F_REQUEST, sequence, family: nfproto::UNSPEC, resource: subsystem::NFTABLES }
}
