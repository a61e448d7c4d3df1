//! The first bytes that every generator sends: a TLS 1.3 ClientHello as a browser's library makes it.

/// Its length in bytes: what padded hellos have (RFC 7685), the record header included.
pub(crate) const HELLO_LENGTH: usize = 517;

/// Where the byte stands that tells the answering server what is wanted: the first of the random ones.
pub(crate) const WISH_AT: usize = 11;

/// What the server does once it has the ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Answer with one byte.
    Answer,
    /// Take in whatever comes.
    Take,
    /// Send without end.
    Send,
}

impl Wish {
    /// The byte that says so.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Answer => b'a',
            Self::Take => b't',
            Self::Send => b's',
        }
    }

    /// What the byte says; anything unknown is answered with one byte.
    pub(crate) fn of(byte: u8) -> Self {
        [Self::Take, Self::Send].into_iter().find(|wish| wish.byte() == byte).unwrap_or(Self::Answer)
    }
}

/// A ClientHello of [`HELLO_LENGTH`] bytes that names `name`.
///
/// # Panics
/// When the name leaves no room for the rest; names of generators are short.
pub(crate) fn client_hello(name: &str, wish: Wish) -> Vec<u8> {
    let mut body = vec![0x03, 0x03];
    body.push(wish.byte());
    body.extend((1..32u8).map(|i| i.wrapping_mul(37)));
    body.push(32);
    body.extend((0..32u8).map(|i| i.wrapping_mul(91)));
    put_list(&mut body, CIPHER_SUITES);
    body.extend([1, 0]);

    let mut extensions = Vec::new();
    put_extension(&mut extensions, SERVER_NAME, &server_name(name));
    for (kind, data) in FIXED_EXTENSIONS {
        put_extension(&mut extensions, *kind, data);
    }
    let mut key_share = vec![0, 36, 0, 29, 0, 32];
    key_share.extend((0..32u8).map(|i| i.wrapping_mul(53)));
    put_extension(&mut extensions, KEY_SHARE, &key_share);
    let headers = 5 + 4 + 2 + 4;
    let padding = HELLO_LENGTH.checked_sub(headers + body.len() + extensions.len());
    put_extension(&mut extensions, PADDING, &vec![0; padding.expect("the name is short")]);
    put_u16(&mut body, extensions.len());
    body.append(&mut extensions);

    let mut hello = vec![22, 3, 1];
    put_u16(&mut hello, body.len() + 4);
    hello.extend([1, 0]);
    put_u16(&mut hello, body.len());
    hello.append(&mut body);
    hello
}

const SERVER_NAME: u16 = 0;
const PADDING: u16 = 21;
const KEY_SHARE: u16 = 51;

const CIPHER_SUITES: &[u8] = &[
    0x13, 0x02, 0x13, 0x03, 0x13, 0x01, 0xc0, 0x2c, 0xc0, 0x30, 0x00, 0x9f, 0xcc, 0xa9, 0xcc, 0xa8, 0xcc,
    0xaa, 0xc0, 0x2b, 0xc0, 0x2f, 0x00, 0x9e, 0xc0, 0x24, 0xc0, 0x28, 0x00, 0x6b, 0xc0, 0x23, 0xc0, 0x27,
    0x00, 0x67, 0xc0, 0x0a, 0xc0, 0x14, 0x00, 0x39, 0xc0, 0x09, 0xc0, 0x13, 0x00, 0x33, 0x00, 0x9d, 0x00,
    0x9c,
];

/// Point formats, groups, ALPN, session ticket, status request, extended master secret, signature algorithms,
/// versions, key exchange modes.
const FIXED_EXTENSIONS: &[(u16, &[u8])] = &[
    (11, &[3, 0, 1, 2]),
    (10, &[0, 12, 0, 29, 0, 23, 0, 30, 0, 25, 0, 24, 1, 0]),
    (16, b"\0\x0c\x02h2\x08http/1.1"),
    (35, &[]),
    (5, &[1, 0, 0, 0, 0]),
    (23, &[]),
    (13, &[0, 16, 4, 3, 8, 4, 4, 1, 5, 3, 8, 5, 5, 1, 8, 6, 6, 1]),
    (43, &[4, 3, 4, 3, 3]),
    (45, &[1, 1]),
];

fn server_name(name: &str) -> Vec<u8> {
    let mut data = Vec::new();
    put_u16(&mut data, name.len() + 3);
    data.push(0);
    put_list(&mut data, name.as_bytes());
    data
}

fn put_extension(into: &mut Vec<u8>, kind: u16, data: &[u8]) {
    into.extend(kind.to_be_bytes());
    put_list(into, data);
}

/// A list with its length in front.
fn put_list(into: &mut Vec<u8>, data: &[u8]) {
    put_u16(into, data.len());
    into.extend_from_slice(data);
}

fn put_u16(into: &mut Vec<u8>, number: usize) {
    into.extend(u16::try_from(number).expect("a hello is shorter than 64 KiB").to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hello_has_the_length_of_a_padded_one_and_carries_the_wish() {
        for wish in [Wish::Answer, Wish::Take, Wish::Send] {
            let hello = client_hello("load.test", wish);
            assert_eq!(hello.len(), HELLO_LENGTH);
            assert_eq!(Wish::of(hello[WISH_AT]), wish);
        }
    }
}
