//! Netlink messages and their attributes: writing our own, reading the kernel's.
//!
//! The format is RFC 3549's, with netfilter's four byte header behind netlink's and every number in network byte
//! order. All reading is bounded by the bytes given and skips what it does not know.

use netlink_packet_core::{NLA_F_NESTED, NLA_TYPE_MASK};

/// Length of a netlink header.
pub(crate) const HEADER: usize = 16;
/// Length of netfilter's header behind it.
pub(crate) const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// What stands in front of a message's attributes.
#[derive(Clone, Copy)]
pub(crate) struct Head {
    /// Subsystem in the high byte, operation in the low one; or a control type below 0x20.
    pub(crate) kind: u16,
    /// `NLM_F_*`.
    pub(crate) flags: u16,
    /// Repeated by the kernel in its answer.
    pub(crate) sequence: u32,
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    /// Subsystem of a batch, or group of a log.
    pub(crate) resource: u16,
}

/// Writes messages and nested attributes, one behind the other.
#[derive(Clone, Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    too_long: bool,
}

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), too_long: false }
    }

    /// Everything written so far.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether something did not fit into an attribute: the bytes must not be sent then.
    pub(crate) fn is_too_long(&self) -> bool {
        self.too_long
    }

    /// Writes one whole message.
    pub(crate) fn message(&mut self, head: Head, attributes: impl FnOnce(&mut Self)) {
        let start = self.begin_message(head);
        attributes(self);
        self.end_message(start);
    }

    /// Starts a message; [`end_message`](Self::end_message) wants what this returns.
    pub(crate) fn begin_message(&mut self, head: Head) -> usize {
        let start = self.len();
        self.bytes.extend_from_slice(&[0; 4]); // length, known at the end
        self.bytes.extend_from_slice(&head.kind.to_ne_bytes());
        self.bytes.extend_from_slice(&head.flags.to_ne_bytes());
        self.bytes.extend_from_slice(&head.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]); // port: the kernel fills in the sender's
        self.bytes.extend_from_slice(&[head.family, 0]); // 0: version of nfnetlink
        self.bytes.extend_from_slice(&head.resource.to_be_bytes());
        start
    }

    /// Ends the message that began at `start`.
    pub(crate) fn end_message(&mut self, start: usize) {
        match u32::try_from(self.len() - start) {
            Ok(length) => self.patch(start, &length.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
    }

    /// Adds `flags` to those of the message that began at `start`.
    pub(crate) fn add_flags(&mut self, start: usize, flags: u16) {
        if let Some(old) = u16_at(&self.bytes, start + 6) {
            self.patch(start + 6, &(old | flags).to_ne_bytes());
        }
    }

    /// An attribute whose value is given as it stands.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin_attribute(kind);
        self.bytes.extend_from_slice(value);
        self.end_attribute(start);
    }

    /// An attribute that holds the attributes `inner` writes.
    pub(crate) fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let start = self.begin_nest(kind);
        inner(self);
        self.end_attribute(start);
    }

    /// Starts an attribute of attributes; [`end_attribute`](Self::end_attribute) wants what this returns.
    pub(crate) fn begin_nest(&mut self, kind: u16) -> usize {
        self.begin_attribute(kind | NLA_F_NESTED)
    }

    pub(crate) fn end_attribute(&mut self, start: usize) {
        match u16::try_from(self.len() - start) {
            Ok(length) => self.patch(start, &length.to_ne_bytes()),
            Err(_) => self.too_long = true,
        }
        self.bytes.resize(self.len().next_multiple_of(4), 0);
    }

    /// A number of 8 bits.
    pub(crate) fn u8(&mut self, kind: u16, value: u8) {
        self.attribute(kind, &[value]);
    }

    /// A number of 16 bits.
    pub(crate) fn u16(&mut self, kind: u16, value: u16) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A number of 32 bits.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A number of 64 bits.
    pub(crate) fn u64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// A text, with the NUL the kernel wants behind it.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let start = self.begin_attribute(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.end_attribute(start);
    }

    /// Attributes written elsewhere.
    pub(crate) fn append(&mut self, other: &Self) {
        self.bytes.extend_from_slice(&other.bytes);
        self.too_long |= other.too_long;
    }

    fn begin_attribute(&mut self, kind: u16) -> usize {
        let start = self.len();
        self.bytes.extend_from_slice(&[0; 2]); // length, known at the end
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn patch(&mut self, start: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(start..start + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// One message of a datagram.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// What follows the netlink header.
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes behind netfilter's header.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.body.get(GENERIC_HEADER..).unwrap_or_default())
    }

    /// `NFPROTO_*` of netfilter's header.
    pub(crate) fn family(&self) -> Option<u8> {
        self.body.first().copied()
    }
}

/// The messages of a datagram, in order. Ends early, and says so, where one is malformed.
pub(crate) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(crate) fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

/// Bytes that do not form a message or an attribute.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let message = split_message(self.rest);
        self.rest = message.as_ref().map_or(&[], |(_, rest)| rest);
        Some(message.map(|(message, _)| message).ok_or(Malformed))
    }
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let message = Message {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        sequence: u32_at(bytes, 8)?,
        body: bytes.get(HEADER..length)?,
    };
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// The attributes of a message or of another attribute, in order, as (type, value). Ends where one is malformed.
#[derive(Clone, Copy)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The value of the first attribute of this type.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & NLA_TYPE_MASK;
        let value = self.rest.get(ATTRIBUTE_HEADER..length)?;
        self.rest = self.rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// A number of 16 bits, network byte order.
pub(crate) fn be16(value: &[u8]) -> Option<u16> {
    value.first_chunk().copied().map(u16::from_be_bytes)
}

/// A number of 32 bits, network byte order.
pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_be_bytes)
}

/// A number of 64 bits, network byte order.
pub(crate) fn be64(value: &[u8]) -> Option<u64> {
    value.first_chunk().copied().map(u64::from_be_bytes)
}

/// A text up to its NUL; bytes that are not UTF-8 are replaced.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// The error number and the explanation in an `NLMSG_ERROR` message; 0 is an acknowledgement.
pub(crate) fn acknowledgement(message: &Message<'_>) -> Option<(i32, Option<String>)> {
    const EXPLANATION: u16 = 1; // NLMSGERR_ATTR_MSG
    let code = message.body.first_chunk().copied().map(i32::from_ne_bytes)?;
    let explained = message.flags & netlink_packet_core::NLM_F_ACK_TLVS != 0;
    // Behind the code stands the header of the message it is about, whole unless the kernel capped it.
    let copied = if message.flags & netlink_packet_core::NLM_F_CAPPED != 0 {
        HEADER
    } else {
        usize::try_from(u32_at(message.body, 4)?).ok()?.next_multiple_of(4)
    };
    let attributes = message.body.get(copied.saturating_add(4)..).unwrap_or_default();
    let detail = explained.then(|| Attributes::new(attributes).find(EXPLANATION).map(text)).flatten();
    Some((code, detail))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_written_is_read_back() {
        let mut writer = Writer::default();
        let head = Head { kind: 0x0a03, flags: 5, sequence: 7, family: 1, resource: 10 };
        writer.message(head, |message| {
            message.text(1, "fence");
            message.nest(2, |nested| nested.u32(1, 0xdead_beef));
            message.u8(3, 9);
        });
        writer.message(Head { sequence: 8, ..head }, |_| {});

        let messages: Vec<_> = Messages::new(writer.bytes()).collect::<Result<_, _>>().unwrap();
        assert_eq!(messages.iter().map(|message| message.sequence).collect::<Vec<_>>(), [7, 8]);
        let first = messages[0].attributes();
        assert_eq!(text(first.find(1).unwrap()), "fence");
        assert_eq!(Attributes::new(first.find(2).unwrap()).find(1).and_then(be32), Some(0xdead_beef));
        assert_eq!(first.find(3), Some(&[9][..]));
        assert!(!writer.is_too_long());
    }

    #[test]
    fn an_attribute_of_64_kib_is_noticed() {
        let mut writer = Writer::default();
        writer.attribute(1, &vec![0; 65_536]);
        assert!(writer.is_too_long());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for message in Messages::new(&bytes).flatten() {
                let _ = acknowledgement(&message);
                for (_, value) in message.attributes() {
                    let _ = (Attributes::new(value).count(), text(value), be16(value), be32(value), be64(value));
                }
            }
        }

        #[test]
        fn a_length_that_lies_ends_the_reading(length in any::<u32>(), tail in 0_usize..64) {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.resize(4 + 12 + tail, 0);
            prop_assert!(Messages::new(&bytes).count() <= bytes.len() / HEADER + 1);
        }
    }
}
