//! The readers of what the kernel sends, without the socket: for the fuzz targets, no part of the interface.

use crate::{
    connection::{self, CounterValue, ElementInfo, TableInfo},
    conntrack::{Entry, Tuple},
    log::{self, Received},
    message::{Message, Messages, Writer},
};

/// The messages of a datagram as (type, sequence number); `None` if one is malformed.
pub fn messages(datagram: &[u8]) -> Option<Vec<(u16, u32)>> {
    read(datagram, |message| Some((message.kind, message.sequence)))
}

/// The answers to a transaction: 0 or an error number, and an explanation.
pub fn answers(datagram: &[u8]) -> Option<Vec<(i32, Option<String>)>> {
    read(datagram, connection::answer)
}

/// The tables of a listing.
pub fn tables(datagram: &[u8]) -> Option<Vec<TableInfo>> {
    read(datagram, connection::read_table)
}

/// The counters of a table in a listing.
pub fn counters(datagram: &[u8], table: &str) -> Option<Vec<CounterValue>> {
    read(datagram, |message| connection::read_counter(message, table))
}

/// The elements of a set in a listing.
pub fn elements(datagram: &[u8]) -> Option<Vec<ElementInfo>> {
    Some(read(datagram, connection::read_elements)?.into_iter().flatten().collect())
}

/// The tracked connections of a listing, or of a report of those that ended.
pub fn connections(datagram: &[u8]) -> Option<Vec<Entry>> {
    read(datagram, Entry::read)
}

/// What is read of a tuple when it is written.
pub fn written(tuple: &Tuple) -> Option<Tuple> {
    let mut writer = Writer::default();
    tuple.write(&mut writer);
    Tuple::read(writer.bytes())
}

/// The packets of a log; `expected` is the number of the first if none was lost.
pub fn records(datagram: &[u8], expected: &mut u32) -> Received {
    log::read_records(datagram, expected)
}

fn read<T>(datagram: &[u8], read: impl Fn(&Message<'_>) -> Option<T>) -> Option<Vec<T>> {
    let messages = Messages::new(datagram).collect::<Result<Vec<_>, _>>().ok()?;
    Some(messages.iter().filter_map(read).collect())
}
