//! A ClientHello has one meaning, however it is segmented and whoever reads it.
//!
//! What the reader accepts is compared with rustls, and with every lax way of reading it: of two programs that read
//! a name from the same bytes, none may read another one.

use std::io::Cursor;

use policy::HostName;
use rustls::server::Acceptor;
use sniff::{ClientHello, ClientHelloLimits, ClientHelloReader, FirstBytes, Progress, classify};

use crate::segments::sized;

pub fn check(input: &[u8]) {
    let Some((size, bytes)) = sized(input) else { return };
    let limits = ClientHelloLimits::default();
    let whole = read(bytes, bytes.len().max(1), limits);
    match (&whole, &read(bytes, size, limits)) {
        // Which of two things that are wrong is seen first may depend on where a segment ends.
        (Progress::Refused(a), Progress::Refused(b)) => assert_eq!(a.kind, b.kind),
        (a, b) => assert_eq!(a, b),
    }
    match read(bytes, size, ClientHelloLimits { bytes: 512, records: 4 }) {
        Progress::Done(hello) => assert_eq!(whole, Progress::Done(hello), "a limit changes the meaning"),
        Progress::NeedMore => assert!(bytes.len() <= 512, "more is kept than the limit"),
        Progress::Refused(_) => {}
    }
    let second = read_with_rustls(bytes);
    if let Progress::Done(hello) = &whole {
        assert_eq!(classify(bytes), FirstBytes::Tls);
        check_bounds(hello, bytes);
        for name in lax_readings(bytes) {
            assert_eq!(name, hello.server_name, "somebody reads another name");
        }
        compare(hello, &second);
    } else if let Second::Hello { .. } = second {
        assert_ne!(whole, Progress::NeedMore, "rustls does not wait for more");
    }
}

fn read(bytes: &[u8], size: usize, limits: ClientHelloLimits) -> Progress<ClientHello> {
    let mut reader = ClientHelloReader::new(limits);
    for piece in bytes.chunks(size) {
        let progress = reader.feed(piece);
        if progress != Progress::NeedMore {
            return progress;
        }
    }
    Progress::NeedMore
}

fn check_bounds(hello: &ClientHello, bytes: &[u8]) {
    let kept = hello.server_name.iter().chain(&hello.alpn).map(Vec::len).sum::<usize>();
    assert!(kept + 2 * hello.versions.len() <= bytes.len());
    assert!(hello.server_name.as_ref().is_none_or(|name| !name.is_empty()));
    assert!(hello.alpn.iter().all(|protocol| !protocol.is_empty()));
}

/// What a TLS server makes of the same bytes.
#[derive(Debug)]
enum Second {
    /// It waits for more.
    NeedMore,
    /// It refuses them, also for what a reader of names does not look at.
    Refused,
    Hello {
        /// `None` also for an address.
        server_name: Option<String>,
        alpn: Vec<Vec<u8>>,
    },
}

fn read_with_rustls(bytes: &[u8]) -> Second {
    let mut acceptor = Acceptor::default();
    let mut rest = Cursor::new(bytes);
    loop {
        match acceptor.read_tls(&mut rest) {
            Ok(0) => return Second::NeedMore,
            Ok(_) => {}
            Err(_) => return Second::Refused,
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Second::Hello {
                    server_name: hello.server_name().map(str::to_owned),
                    alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                };
            }
            Ok(None) => {}
            Err(_) => return Second::Refused,
        }
    }
}

fn compare(hello: &ClientHello, second: &Second) {
    let Second::Hello { server_name, alpn } = second else {
        assert!(matches!(second, Second::Refused), "rustls waits for more");
        return;
    };
    assert_eq!(&hello.alpn, alpn);
    match (&hello.server_name, server_name) {
        (None, None) => {}
        (Some(ours), Some(theirs)) => assert!(ours.eq_ignore_ascii_case(theirs.as_bytes())),
        // rustls says nothing of addresses, and nobody judges one as a name.
        (Some(ours), None) => assert!(HostName::from_wire(ours).is_err()),
        (None, Some(theirs)) => panic!("rustls reads {theirs}"),
    }
}

/// The names that careless readers find: none of them checks anything that it does not need.
fn lax_readings(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut message = without_record_headers(bytes);
    // What follows the message is another one, to whoever reads it.
    message.truncate(4 + usize::from(be16(&message, 2).unwrap_or_default()));
    let extensions = server_name_extensions(&message).unwrap_or_default();
    let (Some(first), Some(last)) = (extensions.first(), extensions.last()) else { return vec![None] };
    [first, last]
        .into_iter()
        .flat_map(|content| {
            let names = listed_names(content.get(2..).unwrap_or_default());
            let length = usize::from(be16(content, 3).unwrap_or_default());
            let at_fixed_place = content.get(5..5 + length).map(<[u8]>::to_vec);
            [names.first().cloned(), names.last().cloned(), at_fixed_place]
        })
        .collect()
}

fn without_record_headers(mut bytes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let Some(length) = be16(bytes, 3) {
        let (record, rest) = bytes.split_at((5 + usize::from(length)).min(bytes.len()));
        message.extend_from_slice(record.get(5..).unwrap_or_default());
        bytes = rest;
    }
    message
}

/// The contents of the extensions of this type.
fn server_name_extensions(message: &[u8]) -> Option<Vec<&[u8]>> {
    let mut at = 4 + 2 + 32; // header of the message, version, random
    at += 1 + usize::from(*message.get(at)?);
    at += 2 + usize::from(be16(message, at)?);
    at += 1 + usize::from(*message.get(at)?);
    at += 2;
    let mut found = Vec::new();
    while let (Some(kind), Some(length)) = (be16(message, at), be16(message, at + 2)) {
        let end = at + 4 + usize::from(length);
        if kind == 0 {
            found.push(message.get(at + 4..end.min(message.len()))?);
        }
        at = end;
    }
    Some(found)
}

/// The names of a list, whatever their types are said to be.
fn listed_names(mut list: &[u8]) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    while let Some(length) = be16(list, 1) {
        let end = (3 + usize::from(length)).min(list.len());
        names.push(list[3..end].to_vec());
        list = &list[end..];
    }
    names
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}
