//! The authority of the world's names: answers for every name there is, and tells what was asked.

use std::net::IpAddr;

use crate::names::Names;

/// How long an answer holds, in seconds.
const TTL: u32 = 60;
const A: u16 = 1;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const ANY: u16 = 255;
const HEADER: usize = 12;
/// Longer than any query.
const MAX_QUERY: usize = 1024;
/// A pointer to the name of the question (RFC 1035 section 4.1.4).
const POINTER: [u8; 2] = [0xc0, 12];

/// The name that was asked for, and the reply; `None` if it is no query.
pub(crate) fn answer(query: &[u8], names: &Names) -> Option<(String, Vec<u8>)> {
    let id = query.get(..2)?;
    let is_response = query.get(2)? & 0x80 != 0;
    let questions = u16::from_be_bytes(query.get(4..6)?.try_into().ok()?);
    if is_response || questions == 0 {
        return None;
    }
    let (name, end) = name(query)?;
    let kind = u16::from_be_bytes(query.get(end..end + 2)?.try_into().ok()?);
    let question = query.get(HEADER..end + 4)?;
    let records: Vec<Vec<u8>> = names
        .addresses(&name)
        .iter()
        .filter_map(|address| match (kind, address) {
            (A | ANY, IpAddr::V4(v4)) => Some(record(A, &v4.octets())),
            (AAAA | ANY, IpAddr::V6(v6)) => Some(record(AAAA, &v6.octets())),
            _ => None,
        })
        .chain((kind == TXT).then(|| record(TXT, b"\x06canary")))
        .collect();
    let count = u16::try_from(records.len()).ok()?.to_be_bytes();
    let mut reply = Vec::with_capacity(512);
    reply.extend_from_slice(id);
    // A response with recursion desired and available, and no error.
    reply.extend_from_slice(&[0x81, 0x80, 0, 1]);
    reply.extend_from_slice(&count);
    reply.extend_from_slice(&[0; 4]);
    reply.extend_from_slice(question);
    reply.extend(records.concat());
    Some((name, reply))
}

/// The reply to what is said on a connection so far, with the name that is asked for; `None` as long as it may become
/// a query. What cannot become one is sent back.
pub(crate) fn answer_stream(said: &[u8], names: &Names) -> Option<(Option<String>, Vec<u8>)> {
    let echo = || Some((None, said.to_vec()));
    let [high, low, message @ ..] = said else { return None };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    if length > MAX_QUERY {
        return echo();
    }
    match message.get(..length).map(|query| answer(query, names)) {
        None => None,
        Some(None) => echo(),
        Some(Some((name, reply))) => {
            let mut framed = u16::try_from(reply.len()).unwrap_or(u16::MAX).to_be_bytes().to_vec();
            framed.extend(reply);
            Some((Some(name), framed))
        }
    }
}

fn record(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).unwrap_or(u16::MAX);
    let mut record = POINTER.to_vec();
    record.extend(kind.to_be_bytes());
    record.extend([0, 1]);
    record.extend(TTL.to_be_bytes());
    record.extend(length.to_be_bytes());
    record.extend(data);
    record
}

/// The name of the first question, in lower case, and where it ends.
fn name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            return Some((labels.join("."), at));
        }
        // Questions are never compressed.
        if length > 63 {
            return None;
        }
        let label = query.get(at..at + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forms::dns::{Reply, question};

    #[test]
    fn every_name_is_answered_with_its_addresses() {
        let names = Names::default();
        names.give("a.test", &["104.16.1.1".parse().unwrap(), "2606:4700::1".parse().unwrap()]);
        let (name, reply) = answer(&question("A.test", 1), &names).unwrap();
        assert_eq!(name, "a.test");
        let reply = Reply::read(&reply).unwrap();
        assert_eq!((reply.code, reply.addresses), (0, vec!["104.16.1.1".parse().unwrap()]));
        let (_, reply) = answer(&question("a.test", 28), &names).unwrap();
        assert_eq!(Reply::read(&reply).unwrap().addresses, ["2606:4700::1".parse::<IpAddr>().unwrap()]);
        let (_, reply) = answer(&question("other.test", 16), &names).unwrap();
        assert_eq!(Reply::read(&reply).unwrap().answers, 1);
    }

    #[test]
    fn over_tcp_a_query_is_answered_when_it_is_whole() {
        let names = Names::default();
        let framed = crate::forms::dns::framed(&question("a.test", 1));
        assert!(answer_stream(&framed[..20], &names).is_none());
        let (name, reply) = answer_stream(&framed, &names).unwrap();
        assert_eq!((name.as_deref(), Reply::read(&reply[2..]).unwrap().answers), (Some("a.test"), 1));
        assert_eq!(answer_stream(b"canary", &names), Some((None, b"canary".to_vec())));
    }

    #[test]
    fn what_is_no_query_is_not_answered() {
        let names = Names::default();
        let mut response = question("a.test", 1);
        response[2] |= 0x80;
        for broken in [&response[..], b"", &[0; 12], &question("a.test", 1)[..20]] {
            assert!(answer(broken, &names).is_none(), "{broken:?}");
        }
    }
}
