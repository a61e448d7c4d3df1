//! DNS queries, and what matters of their replies.

use std::net::IpAddr;

/// Types of records that can carry data out, by name.
pub(crate) const TYPES: [(&str, u16); 18] = [
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("NULL", 10),
    ("PTR", 12),
    ("MX", 15),
    ("TXT", 16),
    ("AAAA", 28),
    ("SRV", 33),
    ("NAPTR", 35),
    ("DNAME", 39),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("AXFR", 252),
    ("ANY", 255),
    ("CAA", 257),
    ("65399", 65399),
];

/// A query for one name, with recursion desired.
pub(crate) fn question(name: &str, kind: u16) -> Vec<u8> {
    let labels: Vec<&[u8]> = name.split('.').map(str::as_bytes).collect();
    question_of(&labels, kind, &[])
}

/// A query whose name has these labels, whatever is in them, and with these options of EDNS.
pub(crate) fn question_of(labels: &[&[u8]], kind: u16, options: &[u8]) -> Vec<u8> {
    let mut query = vec![0x12, 0x67, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(!options.is_empty())];
    for label in labels {
        query.push(u8::try_from(label.len()).unwrap_or(63));
        query.extend_from_slice(label);
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    if !options.is_empty() {
        query.extend([0, 0, 41, 4, 208, 0, 0, 0x80, 0]);
        query.extend(u16::try_from(options.len()).unwrap_or(u16::MAX).to_be_bytes());
        query.extend(options);
    }
    query
}

/// The query as it is sent over TCP.
pub(crate) fn framed(query: &[u8]) -> Vec<u8> {
    let mut framed = u16::try_from(query.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
    framed.extend(query);
    framed
}

/// What matters of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// The response code.
    pub(crate) code: u8,
    /// How many records it has.
    pub(crate) answers: u16,
    /// The addresses in them.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Reply {
    /// Reads a reply to one question; `None` if it is none.
    pub(crate) fn read(reply: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u16::from_be_bytes(reply.get(at..at + 2)?.try_into().ok()?));
        let code = reply.get(3)? & 15;
        let (questions, answers) = (number(4)?, number(6)?);
        let mut at = 12;
        for _ in 0..questions {
            at = after_name(reply, at)? + 4;
        }
        let mut addresses = Vec::new();
        for _ in 0..answers {
            at = after_name(reply, at)?;
            let (kind, length) = (number(at)?, usize::from(number(at + 8)?));
            let data = reply.get(at + 10..at + 10 + length)?;
            match kind {
                1 => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
                28 => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
                _ => {}
            }
            at += 10 + length;
        }
        Some(Self { code, answers, addresses })
    }
}

fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match usize::from(*message.get(at)?) {
            0 => return Some(at + 1),
            0xc0.. => return Some(at + 2),
            length => at += 1 + length,
        }
    }
}
