//! ClientHello messages, proper ones and others.

/// The extension that hides the server name (RFC 9849).
const ECH: u16 = 0xfe0d;
/// An extension that only takes room (RFC 7685).
const PADDING: u16 = 21;
/// The content type of handshake records.
pub(crate) const HANDSHAKE: u8 = 22;

/// A ClientHello to be made.
#[derive(Clone, Debug)]
pub(crate) struct Hello<'a> {
    /// 32 characters, which are sent as its random bytes: so the hello is known again wherever it arrives.
    pub(crate) canary: &'a str,
    /// Extensions before those that every hello has.
    pub(crate) extensions: Vec<Vec<u8>>,
    /// The version in the message.
    pub(crate) version: u16,
}

impl<'a> Hello<'a> {
    /// One that names these servers.
    pub(crate) fn naming(canary: &'a str, names: &[&[u8]]) -> Self {
        let extensions = if names.is_empty() { Vec::new() } else { vec![server_names(names, 0)] };
        Self { canary, extensions, version: 0x0303 }
    }

    /// With one more extension.
    pub(crate) fn with(mut self, extension: Vec<u8>) -> Self {
        self.extensions.push(extension);
        self
    }

    /// The handshake message; a server of TLS 1.3 can answer it.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut random = self.canary.as_bytes().to_vec();
        random.resize(32, 0);
        let mut key_share = vec![0, 36, 0, 0x1d, 0, 32];
        key_share.extend([9; 32]);
        let always = [
            extension(43, &[4, 3, 4, 3, 3]),
            extension(10, &[0, 2, 0, 0x1d]),
            extension(13, &[0, 6, 4, 3, 8, 4, 4, 1]),
            extension(51, &key_share),
        ];
        let extensions: Vec<u8> = self.extensions.iter().chain(&always).flatten().copied().collect();
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend(random);
        body.push(32);
        body.extend([7; 32]);
        body.extend([0, 6, 0x13, 1, 0x13, 2, 0x13, 3, 1, 0]);
        body.extend(short(&extensions));
        let mut message = vec![1];
        message.extend(length(body.len()).get(1..).unwrap_or_default());
        message.extend(body);
        message
    }

    /// The message in one record.
    pub(crate) fn record(&self) -> Vec<u8> {
        record(&self.message())
    }
}

/// One extension.
pub(crate) fn extension(number: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend(short(body));
    bytes
}

/// The extension with these server names, of this kind (0 is a host name).
pub(crate) fn server_names(names: &[&[u8]], kind: u8) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        list.push(kind);
        list.extend(short(name));
    }
    extension(0, &short(&list))
}

/// Encrypted Client Hello, as browsers send it, real or not.
pub(crate) fn ech() -> Vec<u8> {
    let mut body = vec![0, 0, 1, 0, 1, 7, 0, 32];
    body.extend([5; 32]);
    body.extend([0, 144]);
    body.extend([6; 144]);
    extension(ECH, &body)
}

/// As long as the key share of a post-quantum group is.
pub(crate) fn large_key_share() -> Vec<u8> {
    extension(0xfe00, &[8; 1184])
}

/// Room.
pub(crate) fn padding(size: usize) -> Vec<u8> {
    extension(PADDING, &vec![0; size])
}

/// One record of handshake bytes.
pub(crate) fn record(bytes: &[u8]) -> Vec<u8> {
    record_of(HANDSHAKE, 0x0301, bytes)
}

/// One record.
pub(crate) fn record_of(kind: u8, version: u16, bytes: &[u8]) -> Vec<u8> {
    let mut record = vec![kind];
    record.extend(version.to_be_bytes());
    record.extend(short(bytes));
    record
}

/// The bytes in as many records as it takes when each has at most `size` of them.
pub(crate) fn records(bytes: &[u8], size: usize) -> Vec<u8> {
    bytes.chunks(size.max(1)).flat_map(record).collect()
}

/// The bytes with their length in two bytes before them.
fn short(bytes: &[u8]) -> Vec<u8> {
    let mut all = length(bytes.len()).get(2..).unwrap_or_default().to_vec();
    all.extend(bytes);
    all
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use sniff::{ClientHelloLimits, ClientHelloReader, Progress};

    use super::*;

    fn name(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut reader = ClientHelloReader::new(ClientHelloLimits::default());
        match reader.feed(bytes) {
            Progress::Done(hello) => hello.server_name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_meant_to_be_proper_is_read_by_the_products_own_reader() {
        let canary = "c".repeat(32);
        let hello = Hello::naming(&canary, &[b"allowed.test"]);
        assert_eq!(name(&hello.record()), Some(b"allowed.test".to_vec()));
        assert_eq!(name(&records(&hello.message(), 1)), Some(b"allowed.test".to_vec()));
        let large = hello.clone().with(large_key_share()).with(padding(14_000));
        assert_eq!(name(&large.record()), Some(b"allowed.test".to_vec()));
        assert_eq!(name(&Hello::naming(&canary, &[]).record()), None);
        assert!(hello.record().windows(32).any(|part| part == canary.as_bytes()));
    }
}
