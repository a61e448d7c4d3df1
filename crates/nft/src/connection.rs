//! The connection to nftables: transactions and listings.

use std::io;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST};

use crate::batch::{Batch, Transaction};
use crate::describe;
use crate::error::Error;
use crate::message::{Attributes, Head, Message, Messages, Writer, acknowledgement, be32, be64, text};
use crate::object::{Family, Table};
use crate::socket::{Incoming, Socket};
use crate::uapi::{counter, data, element, elements, msg, nfproto, object, subsystem, table};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Room for acknowledgements and listings.
const RECEIVE_BUFFER: usize = 1 << 20;
/// The kernel answers before the request returns; this bounds the wait should it ever not.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// A listing that changes while it is read is begun again, so many times.
const LISTING_ATTEMPTS: u32 = 16;

/// A connection to the nftables of one network namespace: that of the thread which opened it. It can be used from
/// any thread afterwards.
///
/// Keep it for as long as [owned](Table::owned) tables made with it are to exist.
pub struct Connection {
    socket: Socket,
    buffer: Vec<u8>,
    listings: u32,
}

/// A table that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableInfo {
    /// Its family; `None` for one this crate does not make (bridge, ARP, device).
    pub family: Option<Family>,
    /// Its name.
    pub name: String,
    /// The netlink port of the connection that owns it, if one does.
    pub owner: Option<u32>,
}

/// A named counter that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterValue {
    /// Its name.
    pub name: String,
    /// Packets counted.
    pub packets: u64,
    /// Bytes counted, IP headers included.
    pub bytes: u64,
}

/// An element that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ElementInfo {
    /// The key, as [`Key`](crate::Key) writes it.
    pub key: Vec<u8>,
    /// The highest key, in interval sets of several fields.
    pub key_end: Option<Vec<u8>>,
    /// In interval sets of one field: the key is the first one *behind* the interval that began before.
    pub ends_interval: bool,
    /// How long it will still exist, if it has a timeout.
    pub expires_in: Option<Duration>,
}

impl Connection {
    /// Opens a connection to the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(RECEIVE_BUFFER).map_err(Error::Open)?;
        Ok(Self { socket, buffer: vec![0; 1 << 16], listings: 0 })
    }

    /// Makes the changes of a batch, all or none. They hold for every packet when this returns.
    pub fn commit(&mut self, batch: Batch) -> Result<(), Error> {
        let Some(transaction) = batch.finish()? else {
            return Ok(());
        };
        self.send(&transaction.bytes)?;
        self.outcome(&transaction)
    }

    /// The tables that exist.
    pub fn tables(&mut self) -> Result<Vec<TableInfo>, Error> {
        self.list("tables", msg::GETTABLE, nfproto::UNSPEC, |_| {}, read_table)
    }

    /// The named counters of a table.
    pub fn counters(&mut self, table: &Table) -> Result<Vec<CounterValue>, Error> {
        let what = format!("counters of table `{}`", table.name());
        let filter = |writer: &mut Writer| {
            writer.text(object::TABLE, table.name());
            writer.u32(object::TYPE, object::TYPE_COUNTER);
        };
        let read = |message: &Message<'_>| read_counter(message, table.name());
        self.list(&what, msg::GETOBJ, table.family().nfproto(), filter, read)
    }

    /// What a named counter shows. It begins anew with that: each packet is in the answer to one call.
    ///
    /// # Errors
    /// [`Error::List`] with `NotFound` if there is no such counter.
    pub fn take_counter(&mut self, table: &Table, name: &str) -> Result<CounterValue, Error> {
        let what = format!("counter `{name}` of table `{}`", table.name());
        self.listings = self.listings.wrapping_add(1);
        let sequence = self.listings | 1 << 31;
        let mut request = Writer::with_capacity(128);
        let kind = subsystem::NFTABLES << 8 | msg::GETOBJ_RESET;
        let family = table.family().nfproto();
        let head = Head { kind, flags: NLM_F_REQUEST, sequence, family, resource: 0 };
        request.message(head, |writer| {
            writer.text(object::TABLE, table.name());
            writer.text(object::NAME, name);
            writer.u32(object::TYPE, object::TYPE_COUNTER);
        });
        if request.is_too_long() {
            return Err(Error::TooLong { what });
        }
        self.send(request.bytes())?;
        let limit = Instant::now() + ANSWER_LIMIT;
        loop {
            match self.socket.receive(&mut self.buffer).map_err(Error::Receive)? {
                Incoming::Datagram(datagram) => {
                    for message in Messages::new(datagram) {
                        let message = message.map_err(|_| Error::Malformed { what: "counter" })?;
                        if message.sequence != sequence {
                            continue; // the rest of a listing that was given up
                        }
                        if message.kind == NLMSG_ERROR {
                            listing_end(&message, &what)?;
                        }
                        return read_counter(&message, table.name())
                            .ok_or(Error::Malformed { what: "counter" });
                    }
                }
                Incoming::Overrun => {}
                Incoming::Empty => {
                    if !self.socket.wait(limit).map_err(Error::Receive)? {
                        return Err(Error::Malformed { what: "counter that does not come" });
                    }
                }
            }
        }
    }

    /// The elements of a set.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<ElementInfo>, Error> {
        let what = format!("elements of set `{set}` of table `{}`", table.name());
        let filter = |writer: &mut Writer| {
            writer.text(elements::TABLE, table.name());
            writer.text(elements::SET, set);
        };
        let lists = self.list(&what, msg::GETSETELEM, table.family().nfproto(), filter, read_elements)?;
        Ok(lists.into_iter().flatten().collect())
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.socket.send(bytes).map_err(|source| Error::Send { bytes: bytes.len(), source })
    }

    /// Reads the answers to a transaction. The kernel has queued all of them before the request returned: they are
    /// read to the end, so that nothing is left for the next one.
    fn outcome(&mut self, transaction: &Transaction) -> Result<(), Error> {
        let limit = Instant::now() + ANSWER_LIMIT;
        let mut confirmed = false;
        let mut overrun = false;
        let mut refusal: Option<Refusal> = None;
        loop {
            match self.socket.receive(&mut self.buffer).map_err(Error::Receive)? {
                Incoming::Datagram(datagram) => {
                    for message in Messages::new(datagram) {
                        let message = message.map_err(|_| Error::Malformed { what: "acknowledgement" })?;
                        let Some((code, detail)) = answer(&message) else { continue };
                        if code == 0 {
                            confirmed |= message.sequence == transaction.last;
                        } else if refusal.as_ref().is_none_or(|first| message.sequence < first.index) {
                            // The first one is the cause; later ones often only follow from it.
                            refusal = Some(Refusal { index: message.sequence, code, detail });
                        }
                    }
                }
                Incoming::Overrun => overrun = true,
                Incoming::Empty if confirmed || refusal.is_some() || overrun => break,
                Incoming::Empty => {
                    if !self.socket.wait(limit).map_err(Error::Receive)? {
                        break;
                    }
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal.into_error(&transaction.bytes)),
            None if confirmed && !overrun => Ok(()),
            None => Err(Error::Unconfirmed),
        }
    }

    /// Lists objects: `filter` writes what is asked for, `read` takes each answer.
    fn list<T>(
        &mut self,
        what: &str,
        operation: u16,
        family: u8,
        filter: impl Fn(&mut Writer),
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..LISTING_ATTEMPTS {
            // Apart from the sequence numbers of transactions, which are small.
            self.listings = self.listings.wrapping_add(1);
            let sequence = self.listings | 1 << 31;
            let mut request = Writer::with_capacity(128);
            let kind = subsystem::NFTABLES << 8 | operation;
            let head = Head { kind, flags: NLM_F_REQUEST | NLM_F_DUMP, sequence, family, resource: 0 };
            request.message(head, &filter);
            if request.is_too_long() {
                return Err(Error::TooLong { what: what.to_owned() });
            }
            self.send(request.bytes())?;
            if let Some(found) = self.listing(what, sequence, &read)? {
                return Ok(found);
            }
        }
        Err(Error::Unsettled { what: what.to_owned() })
    }

    /// Reads a listing to its end. `None` when something changed while it was made.
    fn listing<T>(
        &mut self,
        what: &str,
        sequence: u32,
        read: &impl Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        let limit = Instant::now() + ANSWER_LIMIT;
        let mut found = Vec::new();
        let mut settled = true;
        loop {
            match self.socket.receive(&mut self.buffer).map_err(Error::Receive)? {
                Incoming::Datagram(datagram) => {
                    for message in Messages::new(datagram) {
                        let message = message.map_err(|_| Error::Malformed { what: "listing" })?;
                        if message.sequence != sequence {
                            continue; // the rest of a listing that was given up
                        }
                        settled &= message.flags & NLM_F_DUMP_INTR == 0;
                        if matches!(message.kind, NLMSG_DONE | NLMSG_ERROR) {
                            listing_end(&message, what)?;
                            return Ok(settled.then_some(found));
                        }
                        found.extend(read(&message));
                    }
                }
                Incoming::Overrun => settled = false,
                Incoming::Empty => {
                    if !self.socket.wait(limit).map_err(Error::Receive)? {
                        return Err(Error::Malformed { what: "listing without an end" });
                    }
                }
            }
        }
    }
}

/// The first message of a batch the kernel did not like.
struct Refusal {
    index: u32,
    code: i32,
    detail: Option<String>,
}

impl Refusal {
    fn into_error(self, batch: &[u8]) -> Error {
        Error::Rejected {
            index: self.index,
            action: describe::action(batch, self.index),
            source: kernel_error(self.code),
            detail: self.detail,
        }
    }
}

/// What the kernel says about one message of a transaction: 0 or an error number, and an explanation.
pub(crate) fn answer(message: &Message<'_>) -> Option<(i32, Option<String>)> {
    (message.kind == NLMSG_ERROR).then(|| acknowledgement(message)).flatten()
}

/// The message that ends a listing says whether it failed.
fn listing_end(message: &Message<'_>, what: &str) -> Result<(), Error> {
    match message.body.first_chunk().copied().map(i32::from_ne_bytes) {
        Some(code) if code < 0 => Err(Error::List { what: what.to_owned(), source: kernel_error(code) }),
        _ => Ok(()),
    }
}

/// Netlink reports errors as negative numbers.
fn kernel_error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code.saturating_neg())
}

pub(crate) fn read_table(message: &Message<'_>) -> Option<TableInfo> {
    let attributes = message.attributes();
    Some(TableInfo {
        family: message.family().and_then(Family::from_nfproto),
        name: attributes.find(table::NAME).map(text)?,
        owner: attributes.find(table::OWNER).and_then(be32),
    })
}

/// `None` also for a counter of another table: kernels may list more than was asked for.
pub(crate) fn read_counter(message: &Message<'_>, table: &str) -> Option<CounterValue> {
    let attributes = message.attributes();
    let same_table = attributes.find(object::TABLE).map(text)? == table;
    let value = Attributes::new(attributes.find(object::DATA)?);
    same_table.then_some(CounterValue {
        name: attributes.find(object::NAME).map(text)?,
        packets: value.find(counter::PACKETS).and_then(be64)?,
        bytes: value.find(counter::BYTES).and_then(be64)?,
    })
}

pub(crate) fn read_elements(message: &Message<'_>) -> Option<Vec<ElementInfo>> {
    let list = Attributes::new(message.attributes().find(elements::ELEMENTS)?);
    Some(list.filter_map(|(_, element)| read_element(element)).collect())
}

fn read_element(bytes: &[u8]) -> Option<ElementInfo> {
    let attributes = Attributes::new(bytes);
    let value = |kind| Attributes::new(attributes.find(kind)?).find(data::VALUE).map(<[u8]>::to_vec);
    let flags = attributes.find(element::FLAGS).and_then(be32).unwrap_or_default();
    Some(ElementInfo {
        key: value(element::KEY)?,
        key_end: value(element::KEY_END),
        ends_interval: flags & element::F_INTERVAL_END != 0,
        expires_in: attributes.find(element::EXPIRATION).and_then(be64).map(Duration::from_millis),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_element_is_read_with_its_key_and_its_remaining_time() {
        let mut writer = Writer::default();
        writer.nest(element::KEY, |writer| writer.attribute(data::VALUE, &[192, 0, 2, 1]));
        writer.u64(element::EXPIRATION, 1500);
        let read = read_element(writer.bytes()).unwrap();
        assert_eq!((read.key, read.expires_in), (vec![192, 0, 2, 1], Some(Duration::from_millis(1500))));
        assert!(!read.ends_interval);
    }

    proptest! {
        #[test]
        fn any_element_is_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read_element(&bytes);
        }

        #[test]
        fn any_error_number_becomes_an_error(code in any::<i32>()) {
            let _ = Refusal { index: 1, code, detail: None }.into_error(&[]).to_string();
        }
    }
}
