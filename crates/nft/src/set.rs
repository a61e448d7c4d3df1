//! Sets and maps, their keys and their elements.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::message::Writer;
use crate::object::Verdict;
use crate::range::{Address, AddressRange};
use crate::uapi::{data, element, list, set};

/// One part of a set's key, or a map's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A TCP or UDP port.
    Port,
    /// A transport protocol's number.
    Protocol,
    /// A packet mark.
    Mark,
    /// An interface's name.
    Interface,
    /// A user id.
    Uid,
}

impl Field {
    /// Length in bytes.
    fn length(self) -> u32 {
        match self {
            Self::Protocol => 1,
            Self::Port => 2,
            Self::Ipv4 | Self::Mark | Self::Uid => 4,
            Self::Ipv6 | Self::Interface => 16,
        }
    }

    /// The number the `nft` program knows the type by. The kernel stores it and asks no questions.
    fn type_number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
            Self::Uid => 30,
            Self::Interface => 41,
        }
    }

    /// Whether the `nft` program takes values of this type for numbers in the machine's own byte order.
    fn is_host_order(self) -> bool {
        matches!(self, Self::Mark | Self::Uid | Self::Interface)
    }
}

/// A set, or a map, to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    pub(crate) name: String,
    key: Vec<Field>,
    flags: u32,
    default_timeout: Option<Duration>,
    size: Option<u32>,
    data: Option<Data>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    Verdict,
    Value(Field),
}

impl Set {
    /// A set whose keys are these fields, one behind the other. Lookups take constant time.
    pub fn new(name: impl Into<String>, key: impl IntoIterator<Item = Field>) -> Self {
        let key: Vec<_> = key.into_iter().collect();
        let flags = if key.len() > 1 { set::F_CONCAT } else { 0 };
        Self { name: name.into(), key, flags, default_timeout: None, size: None, data: None }
    }

    /// Elements may be ranges.
    pub fn interval(mut self) -> Self {
        self.flags |= set::F_INTERVAL;
        self
    }

    /// Elements may have a timeout.
    pub fn timeouts(mut self) -> Self {
        self.flags |= set::F_TIMEOUT;
        self
    }

    /// Elements have this timeout when they are given none of their own.
    pub fn default_timeout(mut self, timeout: Duration) -> Self {
        self.default_timeout = Some(timeout);
        self.timeouts()
    }

    /// Rules may add elements. Bound it with [`size`](Self::size): packets decide how many there are.
    pub fn dynamic(mut self) -> Self {
        self.flags |= set::F_EVAL;
        self
    }

    /// At most this many elements.
    pub fn size(mut self, elements: u32) -> Self {
        self.size = Some(elements);
        self
    }

    /// Each element has a verdict.
    pub fn verdict_map(self) -> Self {
        self.with_data(Data::Verdict)
    }

    /// Each element has a value.
    pub fn map_to(self, value: Field) -> Self {
        self.with_data(Data::Value(value))
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes the attributes behind table and name. `id` is unique within the batch.
    pub(crate) fn write(&self, id: u32, writer: &mut Writer) {
        writer.u32(set::FLAGS, self.flags);
        writer.u32(set::KEY_TYPE, self.key_type());
        writer.u32(set::KEY_LEN, self.key_length());
        match self.data {
            Some(Data::Verdict) => {
                writer.u32(set::DATA_TYPE, data::TYPE_VERDICT);
                writer.u32(set::DATA_LEN, 0);
            }
            Some(Data::Value(field)) => {
                writer.u32(set::DATA_TYPE, field.type_number());
                writer.u32(set::DATA_LEN, field.length());
            }
            None => {}
        }
        writer.u32(set::ID, id);
        if let Some(timeout) = self.default_timeout {
            writer.u64(set::TIMEOUT, milliseconds(timeout));
        }
        writer.nest(set::DESC, |writer| self.write_description(writer));
        writer.attribute(set::USERDATA, &self.byte_orders());
    }

    fn write_description(&self, writer: &mut Writer) {
        if let Some(size) = self.size {
            writer.u32(set::DESC_SIZE, size);
        }
        if self.key.len() > 1 {
            writer.nest(set::DESC_CONCAT, |writer| {
                for field in &self.key {
                    writer.nest(list::ELEM, |writer| writer.u32(set::FIELD_LEN, field.length()));
                }
            });
        }
    }

    fn with_data(mut self, data: Data) -> Self {
        self.data = Some(data);
        self.flags |= set::F_MAP;
        self
    }

    /// The fields' type numbers, six bits each, as the `nft` program packs them.
    fn key_type(&self) -> u32 {
        self.key.iter().fold(0, |packed, field| packed << 6 | field.type_number())
    }

    fn key_length(&self) -> u32 {
        match self.key.as_slice() {
            [only] => only.length(),
            fields => fields.iter().map(|field| field.length().next_multiple_of(4)).sum(),
        }
    }

    /// User data that tells the `nft` program how to print keys and values; the kernel does not look at it.
    fn byte_orders(&self) -> Vec<u8> {
        const KEY: u8 = 0;
        const VALUE: u8 = 1;
        fn record(kind: u8, field: Field) -> [u8; 6] {
            let order: u32 = if field.is_host_order() { 1 } else { 2 };
            let [a, b, c, d] = order.to_ne_bytes();
            [kind, 4, a, b, c, d]
        }
        let key = match self.key.as_slice() {
            [only] => Some(record(KEY, *only)),
            _ => None,
        };
        let value = match self.data {
            Some(Data::Value(field)) => Some(record(VALUE, field)),
            _ => None,
        };
        key.into_iter().chain(value).flatten().collect()
    }
}

/// The key of an element: one value, or several behind each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    bytes: [u8; Self::CAPACITY],
    length: usize,
}

impl Key {
    /// What the kernel takes at most.
    const CAPACITY: usize = 64;
    const EMPTY: Self = Self { bytes: [0; Self::CAPACITY], length: 0 };

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    pub(crate) fn single(part: &impl KeyPart) -> Self {
        let mut key = Self::EMPTY;
        part.append_to(&mut key);
        key
    }

    /// Appends bytes. The parts there are reach 64 bytes only with four addresses, which no tuple below holds.
    fn push(&mut self, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            place.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }

    fn pad(&mut self) {
        self.length = self.length.next_multiple_of(4);
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Key({:02x?})", self.as_bytes())
    }
}

/// A value that can be (part of) a key.
pub trait KeyPart {
    /// Appends the value, in the byte order of packets.
    fn append_to(&self, key: &mut Key);
}

macro_rules! key_part {
    ($($type:ty, |$value:ident| $bytes:expr;)*) => {$(
        impl KeyPart for $type {
            fn append_to(&self, key: &mut Key) {
                let $value = self;
                key.push(&$bytes);
            }
        }

        impl From<$type> for Key {
            fn from(value: $type) -> Self {
                Self::single(&value)
            }
        }

        impl From<$type> for Element {
            fn from(value: $type) -> Self {
                Self::new(value)
            }
        }
    )*};
}

key_part! {
    Ipv4Addr, |address| address.octets();
    Ipv6Addr, |address| address.octets();
    u8, |protocol| [*protocol];
    u16, |port| port.to_be_bytes();
    u32, |mark| mark.to_ne_bytes(); // marks and ids live in the machine's byte order
    InterfaceName, |name| name.0;
}

macro_rules! key_tuple {
    ($($name:ident)*) => {
        impl<$($name: KeyPart),*> From<($($name,)*)> for Key {
            #[expect(non_snake_case, reason = "each value is named like its type")]
            fn from(($($name,)*): ($($name,)*)) -> Self {
                let mut key = Self::EMPTY;
                $(
                    $name.append_to(&mut key);
                    key.pad();
                )*
                key
            }
        }

        impl<$($name: KeyPart),*> From<($($name,)*)> for Element {
            fn from(parts: ($($name,)*)) -> Self {
                Self::new(parts)
            }
        }
    };
}

key_tuple!(A B);
key_tuple!(A B C);

/// An interface's name as the kernel compares it: 16 bytes, the rest zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceName([u8; 16]);

impl InterfaceName {
    /// The name, or `None` when it is empty or has more than the 15 bytes an interface's name may have.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        (1..=15).contains(&name.len()).then_some(Self(bytes))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// An element to be added or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    key: Key,
    timeout: Option<Duration>,
    data: Option<ElementData>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ElementData {
    Verdict(Verdict),
    Value(Key),
}

impl Element {
    /// The element with this key.
    pub fn new(key: impl Into<Key>) -> Self {
        Self { key: key.into(), timeout: None, data: None }
    }

    /// It disappears by itself after this time (steps of a millisecond).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Its verdict, in a verdict map.
    pub fn verdict(mut self, verdict: Verdict) -> Self {
        self.data = Some(ElementData::Verdict(verdict));
        self
    }

    /// Its value, in a map.
    pub fn value(mut self, value: impl Into<Key>) -> Self {
        self.data = Some(ElementData::Value(value.into()));
        self
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        writer.nest(list::ELEM, |writer| {
            write_key(writer, element::KEY, &self.key);
            if let Some(timeout) = self.timeout {
                writer.u64(element::TIMEOUT, milliseconds(timeout));
            }
            match &self.data {
                Some(ElementData::Verdict(verdict)) => {
                    writer.nest(element::DATA, |writer| verdict.write(writer))
                }
                Some(ElementData::Value(value)) => write_key(writer, element::DATA, value),
                None => {}
            }
        });
    }
}

/// Writes a range of a set of single addresses: its first address, and the first one behind it as its end. A range
/// that reaches the highest address has no end.
pub(crate) fn write_range<A: Address>(range: &AddressRange<A>, writer: &mut Writer) {
    writer.nest(list::ELEM, |writer| write_key(writer, element::KEY, &Key::single(&range.first())));
    if let Some(behind) = range.last().successor() {
        writer.nest(list::ELEM, |writer| {
            write_key(writer, element::KEY, &Key::single(&behind));
            writer.u32(element::FLAGS, element::F_INTERVAL_END);
        });
    }
}

/// Writes a range of addresses with a port, for a set with those two fields: lowest and highest key of one element.
pub(crate) fn write_port_range<A: Address>(range: &AddressRange<A>, port: u16, writer: &mut Writer) {
    writer.nest(list::ELEM, |writer| {
        write_key(writer, element::KEY, &Key::from((range.first(), port)));
        write_key(writer, element::KEY_END, &Key::from((range.last(), port)));
    });
}

/// Milliseconds as the kernel takes them; at least one, because zero means no timeout at all.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn write_key(writer: &mut Writer, kind: u16, key: &Key) {
    writer.nest(kind, |writer| writer.attribute(data::VALUE, key.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_key_start_at_multiples_of_four_bytes() {
        let key = Key::from((6_u8, Ipv4Addr::new(192, 0, 2, 1), 443_u16));
        assert_eq!(key.as_bytes(), [6, 0, 0, 0, 192, 0, 2, 1, 1, 187, 0, 0]);
        assert_eq!(Key::from(443_u16).as_bytes(), [1, 187]);
    }

    #[test]
    fn an_interface_name_has_1_to_15_bytes() {
        assert!(InterfaceName::new("lo").is_some());
        assert!(InterfaceName::new("fifteen-letters").is_some());
        assert!(InterfaceName::new("").is_none());
        assert!(InterfaceName::new("sixteen-letters!").is_none());
        assert!(InterfaceName::new("much-longer-than-sixteen").is_none());
    }

    #[test]
    fn a_timeout_is_never_rounded_to_none() {
        assert_eq!(milliseconds(Duration::from_nanos(1)), 1);
        assert_eq!(milliseconds(Duration::MAX), u64::MAX);
    }
}
