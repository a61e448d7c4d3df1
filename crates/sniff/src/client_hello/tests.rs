use proptest::prelude::*;

use super::*;

/// Extensions by number and content.
type Extensions = Vec<(u16, Vec<u8>)>;

fn vector8(content: &[u8]) -> Vec<u8> {
    [&[u8::try_from(content.len()).unwrap()], content].concat()
}

fn vector16(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).unwrap().to_be_bytes(), content].concat()
}

fn server_names(names: &[&[u8]]) -> (u16, Vec<u8>) {
    let list: Vec<u8> = names.iter().flat_map(|name| [vec![0], vector16(name)].concat()).collect();
    (EXTENSION_SERVER_NAME, vector16(&list))
}

/// A ClientHello as a handshake message.
fn message(legacy_version: u16, extensions: Option<&Extensions>) -> Vec<u8> {
    let mut body = legacy_version.to_be_bytes().to_vec();
    body.extend([7; 32]);
    body.extend(vector8(&[9; 32]));
    body.extend(vector16(&[0x13, 0x01, 0xc0, 0x2f]));
    body.extend(vector8(&[0]));
    if let Some(extensions) = extensions {
        let list = extensions
            .iter()
            .flat_map(|(kind, content)| [kind.to_be_bytes().to_vec(), vector16(content)].concat());
        body.extend(vector16(&list.collect::<Vec<u8>>()));
    }
    with_header(&body)
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], body].concat()
}

/// Cuts a message into records with fragments of at most `size` bytes.
fn records(message: &[u8], version: u16, size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|fragment| [&[22], version.to_be_bytes().as_slice(), &vector16(fragment)].concat())
        .collect()
}

fn hello(extensions: &Extensions) -> Vec<u8> {
    records(&message(0x0303, Some(extensions)), 0x0301, MAX_FRAGMENT)
}

/// Feeds the bytes in pieces of `size`, and says how many pieces it took.
fn read_in(bytes: &[u8], size: usize) -> (Progress<ClientHello>, usize) {
    let mut reader = ClientHelloReader::new(ClientHelloLimits::default());
    let mut pieces = 0;
    for piece in bytes.chunks(size) {
        pieces += 1;
        let progress = reader.feed(piece);
        if progress != Progress::NeedMore {
            return (progress, pieces);
        }
    }
    (Progress::NeedMore, pieces)
}

fn read(bytes: &[u8]) -> Progress<ClientHello> {
    read_in(bytes, bytes.len().max(1)).0
}

#[track_caller]
fn done(bytes: &[u8]) -> ClientHello {
    match read(bytes) {
        Progress::Done(hello) => hello,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn refused(bytes: &[u8]) -> RefusalKind {
    match read(bytes) {
        Progress::Refused(refusal) => refusal.kind,
        other => panic!("{other:?}"),
    }
}

fn modern() -> Extensions {
    vec![
        (0x0a0a, vec![]),
        server_names(&[b"allowed.test"]),
        (EXTENSION_ALPN, vector16(&[vector8(b"h2"), vector8(b"http/1.1")].concat())),
        (EXTENSION_SUPPORTED_VERSIONS, vector8(&[0x0a, 0x0a, 3, 4, 3, 3])),
        (51, vec![5; 1200]),
        (21, vec![0; 100]),
    ]
}

#[test]
fn a_client_hello_says_its_name_versions_and_protocols() {
    let expected = ClientHello {
        server_name: Some(b"allowed.test".to_vec()),
        has_ech: false,
        record_version: 0x0301,
        legacy_version: 0x0303,
        versions: vec![0x0a0a, 0x0304, 0x0303],
        alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    assert_eq!(done(&hello(&modern())), expected);
}

#[test]
fn segments_and_records_of_one_byte_say_the_same() {
    let expected = done(&hello(&modern()));
    let message = message(0x0303, Some(&modern()));
    for fragment in [1, 2, 3, 4, 5, 100, MAX_FRAGMENT] {
        let bytes = records(&message, 0x0301, fragment);
        for segment in [1, 2, 5, 6, 7, 1460, bytes.len()] {
            assert_eq!(read_in(&bytes, segment).0, Progress::Done(expected.clone()), "{fragment} {segment}");
        }
    }
}

#[test]
fn a_large_post_quantum_hello_is_accepted_and_one_over_the_limit_is_not() {
    let mut extensions = modern();
    extensions.push((0xfafa, vec![0; 30_000]));
    assert!(matches!(read(&hello(&extensions)), Progress::Done(_)));
    extensions.push((0xfbfb, vec![0; 33_800]));
    let message = message(0x0303, Some(&extensions));
    assert!(matches!(read(&records(&message, 0x0301, MAX_FRAGMENT)), Progress::Done(_)));
    let bytes = records(&message, 0x0301, 100);
    assert!(bytes.len() > 64 * 1024);
    assert_eq!(refused(&bytes), RefusalKind::MalformedTls);
}

#[test]
fn a_declared_length_over_the_limit_is_refused_before_anything_is_kept() {
    let mut reader = ClientHelloReader::new(ClientHelloLimits::default());
    let progress = reader.feed(&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]);
    assert!(matches!(progress, Progress::Refused(_)), "{progress:?}");
    assert!(reader.message.capacity() < 64);
}

#[test]
fn the_number_of_records_is_bounded() {
    let mut reader = ClientHelloReader::new(ClientHelloLimits { bytes: 64 * 1024, records: 3 });
    let message = message(0x0303, Some(&modern()));
    assert_eq!(reader.feed(&records(&message[..3], 0x0301, 1)), Progress::NeedMore);
    assert!(matches!(reader.feed(&records(&message[3..4], 0x0301, 1)), Progress::Refused(_)));
    assert!(matches!(reader.feed(&[]), Progress::Refused(_)), "it stays refused");
}

#[test]
fn a_hello_without_a_name_is_complete_and_says_so() {
    assert_eq!(done(&hello(&vec![])).server_name, None);
    let without_extensions = records(&message(0x0301, None), 0x0301, MAX_FRAGMENT);
    assert_eq!(done(&without_extensions).server_name, None);
}

#[test]
fn several_server_names_are_refused_as_such() {
    assert_eq!(refused(&hello(&vec![server_names(&[b"a.test", b"b.test"])])), RefusalKind::MultipleSni);
    assert_eq!(refused(&hello(&vec![server_names(&[b"a.test", b"a.test"])])), RefusalKind::MultipleSni);
    let twice = vec![server_names(&[b"a.test"]), server_names(&[b"b.test"])];
    assert_eq!(refused(&hello(&twice)), RefusalKind::MalformedTls);
    assert_eq!(refused(&hello(&vec![server_names(&[])])), RefusalKind::MalformedTls);
    assert_eq!(refused(&hello(&vec![server_names(&[b""])])), RefusalKind::InvalidSni);
    let unknown_type = (EXTENSION_SERVER_NAME, vector16(&[vec![1], vector16(b"a.test")].concat()));
    assert_eq!(refused(&hello(&vec![unknown_type])), RefusalKind::MalformedTls);
}

#[test]
fn a_server_name_is_handed_on_with_every_byte() {
    for name in [b"allowed.test\0.evil.test".as_slice(), b"1.2.3.4", b"[::1]", b"\xff", &[b'a'; 300]] {
        assert_eq!(done(&hello(&vec![server_names(&[name])])).server_name.as_deref(), Some(name));
    }
}

#[test]
fn encrypted_client_hello_is_seen() {
    assert!(!done(&hello(&modern())).has_ech);
    for kind in EXTENSIONS_ECH {
        let mut extensions = modern();
        extensions.push((kind, vec![0; 200]));
        assert!(done(&hello(&extensions)).has_ech, "{kind:#x}");
    }
}

#[test]
fn ssl_2_and_ssl_3_are_refused_and_tls_1_0_is_not() {
    let ssl2 = [0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10];
    assert_eq!(refused(&ssl2), RefusalKind::TlsVersion);
    assert_eq!(read_in(&ssl2, 1).1, 3, "said as soon as it can be");
    assert_eq!(refused(&[0x80, 0x2e, 1, 3, 3]), RefusalKind::TlsVersion);
    let ssl3_message = records(&message(0x0300, None), 0x0301, MAX_FRAGMENT);
    assert_eq!(refused(&ssl3_message), RefusalKind::TlsVersion);
    let ssl3_record = records(&message(0x0303, Some(&modern())), 0x0300, MAX_FRAGMENT);
    assert_eq!(refused(&ssl3_record), RefusalKind::TlsVersion);
    let tls10 = records(&message(0x0301, Some(&modern())), 0x0301, MAX_FRAGMENT);
    assert_eq!(done(&tls10).legacy_version, 0x0301);
}

#[test]
fn what_follows_the_hello_in_its_record_is_refused_and_a_record_after_it_is_not() {
    let message = message(0x0303, Some(&modern()));
    let with_garbage = records(&[message.as_slice(), &[0]].concat(), 0x0301, MAX_FRAGMENT);
    assert_eq!(refused(&with_garbage), RefusalKind::MalformedTls);
    assert_eq!(read_in(&with_garbage, 1).0, read(&with_garbage));
    let two = records(&[message.clone(), message.clone()].concat(), 0x0301, 100);
    assert_eq!(refused(&two), RefusalKind::MalformedTls);
    let early_data = [records(&message, 0x0301, MAX_FRAGMENT).as_slice(), &[23, 3, 3, 0, 1, 0]].concat();
    assert!(matches!(read(&early_data), Progress::Done(_)));
}

#[test]
fn what_is_no_client_hello_is_refused() {
    let ok = message(0x0303, Some(&modern()));
    let mut server_hello = ok.clone();
    server_hello[0] = 2;
    let mut longer_extensions = ok.clone();
    longer_extensions.truncate(ok.len() - 1);
    let longer_extensions = with_header(&longer_extensions[4..]);
    let left_over = with_header(&[&ok[4..], &[0]].concat());
    for (what, message) in [
        ("a server hello", server_hello),
        ("extensions longer than the message", longer_extensions),
        ("bytes after the extensions", left_over),
        ("an empty message", with_header(&[])),
    ] {
        assert_eq!(refused(&records(&message, 0x0301, MAX_FRAGMENT)), RefusalKind::MalformedTls, "{what}");
    }
    for bytes in [
        &[21, 3, 3, 0, 2, 1, 0][..],
        &[22, 3, 1, 0, 0],
        &[22, 3, 1, 0x40, 1],
        &[22, 2, 0],
        &[22, 3, 5],
        &[22, 4],
        b"GET / HTTP/1.1\r\n",
        &[0x80, 0x2e, 2],
    ] {
        assert_eq!(refused(bytes), RefusalKind::MalformedTls, "{bytes:?}");
    }
    // A record of another kind between two fragments.
    let between = [&records(&ok[..10], 0x0301, 10)[..], &[20, 3, 3, 0, 1, 1]].concat();
    assert_eq!(refused(&between), RefusalKind::MalformedTls);
}

#[test]
fn malformed_lists_of_extensions_are_refused() {
    let cases: Vec<(u16, Vec<u8>)> = vec![
        (EXTENSION_SERVER_NAME, vec![]),
        (EXTENSION_SERVER_NAME, vec![0, 9, 0, 0, 1, b'a']),
        (EXTENSION_SERVER_NAME, [server_names(&[b"a"]).1, vec![0]].concat()),
        (EXTENSION_ALPN, vector16(&[])),
        (EXTENSION_ALPN, vector16(&[0])),
        (EXTENSION_ALPN, vector16(&[5, b'h', b'2'])),
        (EXTENSION_SUPPORTED_VERSIONS, vector8(&[])),
        (EXTENSION_SUPPORTED_VERSIONS, vector8(&[3])),
        (EXTENSION_SUPPORTED_VERSIONS, vec![2, 3, 4, 0]),
    ];
    for case in cases {
        assert_eq!(refused(&hello(&vec![case.clone()])), RefusalKind::MalformedTls, "{case:?}");
    }
    assert_eq!(refused(&hello(&vec![(5, vec![]), (5, vec![])])), RefusalKind::MalformedTls);
    let many = (0..129).map(|kind| (0x5000 + kind, vec![])).collect();
    assert_eq!(refused(&hello(&many)), RefusalKind::MalformedTls);
}

#[test]
fn every_truncation_needs_more() {
    let bytes = records(&message(0x0303, Some(&modern())), 0x0301, 300);
    for end in 0..bytes.len() {
        assert_eq!(read(&bytes[..end]), Progress::NeedMore, "{end}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic_and_alike_in_any_segmentation(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        size in 1usize..20,
    ) {
        prop_assert_eq!(read_in(&bytes, size).0, read(&bytes));
    }

    #[test]
    fn a_damaged_hello_is_read_alike_in_any_segmentation(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        fragment in 1usize..400,
        segment in 1usize..400,
    ) {
        let mut bytes = records(&message(0x0303, Some(&modern())), 0x0301, fragment);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        prop_assert_eq!(read_in(&bytes, segment).0, read(&bytes));
        prop_assert_eq!(read_in(&bytes, 1).0, read(&bytes));
    }
}
