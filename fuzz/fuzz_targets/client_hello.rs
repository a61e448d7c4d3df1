//! A ClientHello is read alike however it is segmented.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sniff::{ClientHello, ClientHelloLimits, ClientHelloReader, Progress, classify};

fuzz_target!(|input: &[u8]| {
    let Some((size, bytes)) = input.split_first() else { return };
    let size = usize::from(*size).max(1);
    let whole = read_in(bytes, bytes.len().max(1));
    let pieces = read_in(bytes, size);
    match (&whole, &pieces) {
        // Which of two things that are wrong is seen first may depend on where a segment ends.
        (Progress::Refused(a), Progress::Refused(b)) => assert_eq!(a.kind, b.kind),
        (a, b) => assert_eq!(a, b),
    }
    if let Progress::Done(hello) = &whole {
        assert!(hello.server_name.as_ref().is_none_or(|name| !name.is_empty()));
        assert_eq!(classify(bytes), sniff::FirstBytes::Tls);
    }
});

fn read_in(bytes: &[u8], size: usize) -> Progress<ClientHello> {
    let mut reader = ClientHelloReader::new(ClientHelloLimits::default());
    for piece in bytes.chunks(size) {
        let progress = reader.feed(piece);
        if progress != Progress::NeedMore {
            return progress;
        }
    }
    Progress::NeedMore
}
