//! What the kernel says is read alike by both of our readers and by another program, and never grows.

use netlink_packet_core::{ErrorBuffer, NetlinkBuffer, NlaBuffer, NlasIterator};
use netns::Transport;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
/// Of nfnetlink, behind the header.
const GENERIC_HEADER: usize = 4;
/// The name of a table, in a description of it and in one of anything inside it.
const NAME_OF_TABLE: u16 = 1;

pub fn check(datagram: &[u8]) {
    let messages = nft::fuzz::messages(datagram);
    if let Ok(theirs) = netns::fuzz::messages(datagram) {
        assert_eq!(messages.as_ref(), Some(&theirs), "the two readers see other messages");
    }
    check_records(datagram);
    check_listings(datagram);
    let Some(messages) = messages else { return };
    let parts = split(datagram);
    assert_eq!(parts.len(), messages.len());
    check_answers(datagram, &parts);
    check_tables(datagram, &parts);
}

/// The messages as netlink-packet-core has them: type and what follows the header.
fn split(mut rest: &[u8]) -> Vec<(u16, &[u8])> {
    let mut parts = Vec::new();
    while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
        parts.push((buffer.message_type(), buffer.payload()));
        rest = rest.get(buffer.length().next_multiple_of(4) as usize..).unwrap_or_default();
    }
    parts
}

fn check_answers(datagram: &[u8], parts: &[(u16, &[u8])]) {
    let answers = nft::fuzz::answers(datagram).expect("the messages are well-formed");
    let errors = parts.iter().filter(|(kind, _)| *kind == NLMSG_ERROR);
    let codes = errors.filter_map(|(_, body)| {
        // The kernel's answer has at least the header of what it is about.
        let buffer = ErrorBuffer::new_checked(body).ok()?;
        Some(buffer.code().map_or(0, |code| code.get()))
    });
    let ours = answers.iter().map(|(code, _)| *code).collect::<Vec<_>>();
    for code in &ours {
        assert!(codes.clone().any(|theirs| theirs == *code), "nobody else reads the error {code}");
    }
    for (_, text) in answers {
        assert!(text.is_none_or(|text| text.len() <= 3 * datagram.len()));
    }
}

fn check_tables(datagram: &[u8], parts: &[(u16, &[u8])]) {
    let ours = nft::fuzz::tables(datagram).expect("the messages are well-formed");
    let theirs = parts.iter().filter_map(|(_, body)| attribute(body, NAME_OF_TABLE)).collect::<Vec<_>>();
    assert_eq!(ours.iter().map(|table| table.name.clone()).collect::<Vec<_>>(), theirs);
}

/// The first attribute of this type, as a text.
fn attribute(body: &[u8], kind: u16) -> Option<String> {
    let attributes = NlasIterator::new(body.get(GENERIC_HEADER..)?);
    let found = attributes.map_while(Result::ok).find(|nla: &NlaBuffer<_>| nla.kind() == kind)?;
    let text = found.value().split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(text).into_owned())
}

fn check_listings(datagram: &[u8]) {
    for element in nft::fuzz::elements(datagram).unwrap_or_default() {
        let keys = [Some(element.key), element.key_end];
        for key in keys.into_iter().flatten().filter(|key| !key.is_empty()) {
            assert!(datagram.windows(key.len()).any(|bytes| bytes == key), "a key that is not there");
        }
    }
    let counters = nft::fuzz::counters(datagram, "fence").unwrap_or_default();
    assert!(counters.len() <= datagram.len() / HEADER);
    for connection in nft::fuzz::connections(datagram).unwrap_or_default() {
        for tuple in [connection.original, connection.reply] {
            // The kernel has both of one family.
            if tuple.source.is_ipv4() == tuple.destination.is_ipv4() {
                assert_eq!(nft::fuzz::written(&tuple), Some(tuple));
            }
            assert_eq!(tuple.inverted(&tuple).inverted(&tuple), tuple);
        }
    }
    for address in netns::fuzz::addresses(datagram).unwrap_or_default() {
        assert!(address.link.get() > 0 && address.address.prefix_len() <= address.address.max_prefix_len());
    }
    for transport in [Transport::Tcp, Transport::Udp] {
        for socket in netns::fuzz::sockets(datagram, transport).unwrap_or_default() {
            assert_eq!(socket.transport, transport);
        }
    }
}

fn check_records(datagram: &[u8]) {
    let mut expected = 7;
    let received = nft::fuzz::records(datagram, &mut expected);
    let read = received.packets.len() + usize::try_from(received.malformed).unwrap();
    assert!(read <= datagram.len() / HEADER + 1);
    let Some(last) = received.packets.last() else {
        assert_eq!((expected, received.lost), (7, 0));
        return;
    };
    assert_eq!(expected, last.sequence.wrapping_add(1));
    assert!(received.lost <= u64::from(u32::MAX) * received.packets.len() as u64);
}
