//! The head of a request or response has one meaning, however it arrives and whoever reads it; written anew it means
//! the same.

use sniff::{
    FirstBytes, Progress, classify,
    http::{HeadLimits, RequestHead, RequestReader, ResponseHead, ResponseReader},
};

use crate::segments::{ends, sized};

pub fn check(input: &[u8]) {
    let Some((size, bytes)) = sized(input) else { return };
    check_classes(bytes);

    let limits = HeadLimits::default();
    let whole = read_request(bytes, bytes.len().max(1), limits);
    assert_eq!(whole, read_request(bytes, size, limits));
    check_limits(&whole, read_request(bytes, size, SMALL), bytes);
    if let Progress::Done(head) = &whole {
        assert_eq!(classify(bytes), FirstBytes::Http1);
        check_written(head);
        for (host, port) in lax_hosts(&bytes[..head.consumed]) {
            assert_eq!((host, port), (head.host.clone(), head.port), "somebody reads another host");
        }
    }

    let whole = read_response(bytes, bytes.len().max(1), limits);
    assert_eq!(whole, read_response(bytes, size, limits));
    check_limits(&whole, read_response(bytes, size, SMALL), bytes);
    if let Progress::Done(head) = whole {
        assert!((100..1000).contains(&head.status));
        let _ = (head.body("GET"), head.body("HEAD"));
    }
}

const SMALL: HeadLimits = HeadLimits { bytes: 128, headers: 3 };

fn read_request(bytes: &[u8], size: usize, limits: HeadLimits) -> Progress<RequestHead> {
    let mut reader = RequestReader::new(limits);
    for end in ends(bytes, size) {
        let progress = reader.read(&bytes[..end]);
        if progress != Progress::NeedMore {
            return progress;
        }
    }
    Progress::NeedMore
}

fn read_response(bytes: &[u8], size: usize, limits: HeadLimits) -> Progress<ResponseHead> {
    let mut reader = ResponseReader::new(limits);
    for end in ends(bytes, size) {
        let progress = reader.read(&bytes[..end]);
        if progress != Progress::NeedMore {
            return progress;
        }
    }
    Progress::NeedMore
}

fn check_limits<T: PartialEq + std::fmt::Debug>(whole: &Progress<T>, small: Progress<T>, bytes: &[u8]) {
    match small {
        Progress::Done(_) => assert_eq!(*whole, small, "a limit changes the meaning"),
        Progress::NeedMore => assert!(bytes.len() <= SMALL.bytes, "more is kept than the limit"),
        Progress::Refused(_) => {}
    }
}

fn check_written(head: &RequestHead) {
    for (host, keep_upgrade) in [(None, true), (None, false), (Some("mask.test:8080"), true)] {
        let bytes = head.write(host, keep_upgrade);
        let limits = HeadLimits { bytes: 1 << 20, ..HeadLimits::default() };
        let Progress::Done(again) = RequestReader::new(limits).read(&bytes) else {
            // Framing and connection headers of our own may be one too many.
            assert!(head.headers.len() >= 97, "{:?}", String::from_utf8_lossy(&bytes));
            continue;
        };
        assert_eq!(again.consumed, bytes.len());
        assert_eq!((&again.method, &again.target, again.body), (&head.method, &head.target, head.body));
        assert_eq!((again.version, again.expect_continue), (head.version, head.expect_continue));
        match host {
            None => assert_eq!((&again.host, again.port), (&head.host, head.port)),
            Some(host) => assert_eq!(again.authority(), host),
        }
        assert_eq!(again.upgrade, head.upgrade.filter(|_| keep_upgrade));
        assert!(again.upgrade.is_some() || again.keep_alive == head.keep_alive);
    }
}

/// The hosts that careless readers find: lines end at any LF or CR, names at the first colon, and white space counts
/// for nothing.
fn lax_hosts(head: &[u8]) -> Vec<(String, Option<u16>)> {
    head.split(|byte| matches!(byte, b'\n' | b'\r' | 0))
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
            name.eq_ignore_ascii_case(b"host").then(|| {
                let value = String::from_utf8_lossy(value).into_owned();
                match value.rsplit_once(':') {
                    Some((host, port)) if !port.contains(']') => (host.to_owned(), port.parse().ok()),
                    _ => (value, None),
                }
            })
        })
        .collect()
}

fn check_classes(bytes: &[u8]) {
    let mut class = FirstBytes::NeedMore;
    for end in 0..=bytes.len().min(64) {
        let next = classify(&bytes[..end]);
        assert!(class == FirstBytes::NeedMore || class == next);
        class = next;
    }
}
