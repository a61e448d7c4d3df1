//! A head is read alike however it arrives, and a written one means the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sniff::{
    FirstBytes, Progress, classify,
    http::{HeadLimits, RequestHead, RequestReader, ResponseReader},
};

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let size = usize::from(*size).max(1);
    let whole = read_request(bytes, bytes.len().max(1));
    assert_eq!(whole, read_request(bytes, size));
    if let Progress::Done(head) = &whole {
        check_written(head);
        assert_eq!(classify(bytes), FirstBytes::Http1);
    }
    check_classes(bytes);

    let whole = ResponseReader::new(HeadLimits::default()).read(bytes);
    let mut reader = ResponseReader::new(HeadLimits::default());
    let mut progress = Progress::NeedMore;
    for end in ends(bytes, size) {
        progress = reader.read(&bytes[..end]);
        if progress != Progress::NeedMore {
            break;
        }
    }
    assert_eq!(whole, progress);
    if let Progress::Done(head) = whole {
        let _ = head.body("GET");
    }
});

fn read_request(bytes: &[u8], size: usize) -> Progress<RequestHead> {
    let mut reader = RequestReader::new(HeadLimits::default());
    for end in ends(bytes, size) {
        let progress = reader.read(&bytes[..end]);
        if progress != Progress::NeedMore {
            return progress;
        }
    }
    Progress::NeedMore
}

fn ends(bytes: &[u8], size: usize) -> impl Iterator<Item = usize> {
    let length = bytes.len();
    (1..=length.div_ceil(size)).map(move |piece| (piece * size).min(length))
}

fn check_written(head: &RequestHead) {
    for (host, keep_upgrade) in [(None, true), (None, false), (Some("mask.test:8080"), true)] {
        let bytes = head.write(host, keep_upgrade);
        let Progress::Done(again) =
            RequestReader::new(HeadLimits { bytes: 1 << 20, headers: 100 }).read(&bytes)
        else {
            // Framing and connection headers of our own may be one too many.
            assert!(head.headers.len() >= 97, "{:?}", String::from_utf8_lossy(&bytes));
            continue;
        };
        assert_eq!(again.consumed, bytes.len());
        assert_eq!((&again.method, &again.target, again.body), (&head.method, &head.target, head.body));
        if host.is_none() {
            assert_eq!((&again.host, again.port), (&head.host, head.port));
        }
        assert!(keep_upgrade || again.upgrade.is_none());
    }
}

fn check_classes(bytes: &[u8]) {
    let mut class = FirstBytes::NeedMore;
    for end in 0..=bytes.len().min(64) {
        let next = classify(&bytes[..end]);
        assert!(class == FirstBytes::NeedMore || class == next);
        class = next;
    }
}
