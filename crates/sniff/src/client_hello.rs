//! The first message of a TLS client, across any number of records and segments.

use crate::{Progress, Refusal, RefusalKind, tls_fields::Fields};

/// Bounds of a [`ClientHelloReader`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHelloLimits {
    /// The most bytes on the wire, record headers included. Also bounds what the reader keeps.
    pub bytes: usize,
    /// The most records.
    pub records: usize,
}

impl Default for ClientHelloLimits {
    /// 64 KiB in 4096 records: a post-quantum ClientHello of two kilobytes may come in fragments of one byte.
    fn default() -> Self {
        Self { bytes: 64 * 1024, records: 4096 }
    }
}

/// What a ClientHello (RFC 8446 section 4.1.2) says that matters to whoever lets it pass or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name (RFC 6066 section 3) as its bytes are: not yet known to be a host name.
    pub server_name: Option<Vec<u8>>,
    /// Whether it carries Encrypted Client Hello (or a draft of it), real or GREASE.
    pub has_ech: bool,
    /// The version in the first record's header.
    pub record_version: u16,
    /// The version in the message.
    pub legacy_version: u16,
    /// The versions of the extension `supported_versions`, in the client's order, GREASE included; empty without it.
    pub versions: Vec<u16>,
    /// The protocols of the extension ALPN, in the client's order; empty without it.
    pub alpn: Vec<Vec<u8>>,
}

/// Reads a ClientHello piece by piece.
#[derive(Debug)]
pub struct ClientHelloReader {
    limits: ClientHelloLimits,
    state: State,
    /// Bytes taken so far.
    taken: usize,
    /// Records begun so far.
    records: usize,
    record_version: u16,
    /// The handshake message without the record headers.
    message: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Inside a record's header, of which this much is there.
    Header {
        bytes: [u8; RECORD_HEADER],
        have: usize,
    },
    /// Inside a record's fragment, of which this much is missing.
    Fragment {
        missing: usize,
    },
    Refused(Refusal),
}

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;
/// The largest fragment of a record (RFC 8446 section 5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const CONTENT_HANDSHAKE: u8 = 22;
const MESSAGE_CLIENT_HELLO: u8 = 1;

impl ClientHelloReader {
    /// A reader that has seen nothing.
    pub fn new(limits: ClientHelloLimits) -> Self {
        Self {
            limits,
            state: State::Header { bytes: [0; RECORD_HEADER], have: 0 },
            taken: 0,
            records: 0,
            record_version: 0,
            message: Vec::new(),
        }
    }

    /// Takes the next bytes of the connection.
    ///
    /// What follows the ClientHello's last record is ignored; after [`Progress::Done`] the reader is used up, and
    /// refuses more.
    pub fn feed(&mut self, bytes: &[u8]) -> Progress<ClientHello> {
        let progress = self.take(bytes);
        match &progress {
            Progress::NeedMore => {}
            Progress::Refused(refusal) => self.state = State::Refused(*refusal),
            Progress::Done(_) => {
                self.state = State::Refused(Refusal::tls("the ClientHello is complete already"))
            }
        }
        progress
    }

    fn take(&mut self, mut rest: &[u8]) -> Progress<ClientHello> {
        loop {
            let step = match self.state {
                State::Refused(refusal) => Err(refusal),
                State::Header { bytes, have } => self.take_header(bytes, have, &mut rest).map(|()| None),
                State::Fragment { missing } => self.take_fragment(missing, &mut rest),
            };
            match step {
                Err(refusal) => return Progress::Refused(refusal),
                Ok(Some(hello)) => return Progress::Done(hello),
                Ok(None) if rest.is_empty() => return Progress::NeedMore,
                Ok(None) => {}
            }
        }
    }

    fn take_header(
        &mut self,
        mut bytes: [u8; RECORD_HEADER],
        mut have: usize,
        rest: &mut &[u8],
    ) -> Result<(), Refusal> {
        for slot in bytes.iter_mut().skip(have) {
            let Some((byte, tail)) = rest.split_first() else { break };
            *slot = *byte;
            *rest = tail;
            have += 1;
            self.count(1)?;
        }
        // What is wrong is said as soon as it is seen: nobody waits for the rest of something else than TLS.
        self.check_header(bytes, have)?;
        self.state = State::Header { bytes, have };
        if have == RECORD_HEADER {
            let [_, major, minor, high, low] = bytes;
            let missing = usize::from(u16::from_be_bytes([high, low]));
            if missing == 0 || missing > MAX_FRAGMENT {
                return Err(Refusal::tls("a record is empty or over 16 KiB"));
            }
            self.records += 1;
            if self.records > self.limits.records {
                return Err(Refusal::tls("the ClientHello has too many records"));
            }
            if self.records == 1 {
                self.record_version = u16::from_be_bytes([major, minor]);
            }
            self.state = State::Fragment { missing };
        }
        Ok(())
    }

    fn check_header(&self, bytes: [u8; RECORD_HEADER], have: usize) -> Result<(), Refusal> {
        let [content, major, minor, ..] = bytes;
        let first_record = self.records == 0;
        if have >= 1 && content != CONTENT_HANDSHAKE {
            // SSL 2 has no record type: the first byte is a length, the third the message type.
            return match (first_record && content & 0x80 != 0, have) {
                (true, ..3) => Ok(()),
                (true, _) if minor == MESSAGE_CLIENT_HELLO => Err(SSL2),
                _ => Err(Refusal::tls("this is no TLS handshake record")),
            };
        }
        match (have, major, minor) {
            (..2, _, _) | (2, 3, _) | (3.., 3, 1..=3) => Ok(()),
            (3.., 3, 0) => Err(SSL3),
            _ => Err(Refusal::tls("the record has no version of TLS")),
        }
    }

    fn take_fragment(&mut self, missing: usize, rest: &mut &[u8]) -> Result<Option<ClientHello>, Refusal> {
        let (fragment, tail) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
        self.count(fragment.len())?;
        self.message.extend_from_slice(fragment);
        *rest = tail;
        let missing = missing - fragment.len();
        self.state = match missing {
            0 => State::Header { bytes: [0; RECORD_HEADER], have: 0 },
            _ => State::Fragment { missing },
        };
        let Some(declared) = self.declared_length()? else { return Ok(None) };
        let have = self.message.len();
        if have + missing > declared {
            // Only the record that completes a message may not hold more (RFC 8446 section 5.1: what follows a
            // ClientHello is under other keys, or another message that nobody sends before the answer).
            return Err(Refusal::tls("something follows the ClientHello in its record"));
        }
        if have < declared {
            return Ok(None);
        }
        let body = self.message.get(MESSAGE_HEADER..).unwrap_or_default();
        parse(body, self.record_version).map(Some)
    }

    /// The length of the whole message with its header, once the header is there.
    fn declared_length(&self) -> Result<Option<usize>, Refusal> {
        if self.message.first().is_some_and(|kind| *kind != MESSAGE_CLIENT_HELLO) {
            return Err(Refusal::tls("the first handshake message is no ClientHello"));
        }
        let Some([_, a, b, c]) = self.message.first_chunk::<MESSAGE_HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        let declared = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(MESSAGE_HEADER);
        if declared > self.limits.bytes {
            return Err(TOO_LARGE);
        }
        Ok(Some(declared))
    }

    fn count(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.taken = self.taken.saturating_add(bytes);
        if self.taken > self.limits.bytes { Err(TOO_LARGE) } else { Ok(()) }
    }
}

const TOO_LARGE: Refusal = Refusal::tls("the ClientHello is over the limit");
const SSL2: Refusal = Refusal { kind: RefusalKind::TlsVersion, detail: "this is SSL 2" };
const SSL3: Refusal = Refusal { kind: RefusalKind::TlsVersion, detail: "this is SSL 3" };

/// The most extensions; clients send about twenty.
const MAX_EXTENSIONS: usize = 128;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_SUPPORTED_VERSIONS: u16 = 43;
/// Encrypted Client Hello (RFC 9849), its drafts with their own numbers, and ESNI before it.
const EXTENSIONS_ECH: [u16; 7] = [0xfe0d, 0xfe08, 0xfe09, 0xfe0a, 0xfe0b, 0xfe0c, 0xffce];
const SSL_3_0: u16 = 0x0300;
const NAME_TYPE_HOST: u8 = 0;

/// Parses the body of a ClientHello.
fn parse(body: &[u8], record_version: u16) -> Result<ClientHello, Refusal> {
    let mut fields = Fields::new(body);
    let legacy_version = fields.u16()?;
    if legacy_version <= SSL_3_0 {
        return Err(SSL3);
    }
    let _random = fields.bytes(32)?;
    if fields.vector8()?.rest().len() > 32 {
        return Err(Refusal::tls("the session id is over 32 bytes"));
    }
    let cipher_suites = fields.vector16()?.rest().len();
    if cipher_suites == 0 || cipher_suites % 2 != 0 {
        return Err(Refusal::tls("the cipher suites are no list of numbers"));
    }
    if fields.vector8()?.is_empty() {
        return Err(Refusal::tls("there are no compression methods"));
    }
    let mut hello = ClientHello {
        server_name: None,
        has_ech: false,
        record_version,
        legacy_version,
        versions: Vec::new(),
        alpn: Vec::new(),
    };
    // Before extensions existed a ClientHello ended here.
    if !fields.is_empty() {
        let extensions = fields.vector16()?;
        fields.end()?;
        parse_extensions(extensions, &mut hello)?;
    }
    Ok(hello)
}

fn parse_extensions(mut extensions: Fields<'_>, hello: &mut ClientHello) -> Result<(), Refusal> {
    let mut seen: Vec<u16> = Vec::new();
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        if seen.contains(&kind) {
            return Err(Refusal::tls("an extension is there twice"));
        }
        if seen.len() == MAX_EXTENSIONS {
            return Err(Refusal::tls("there are too many extensions"));
        }
        seen.push(kind);
        match kind {
            EXTENSION_SERVER_NAME => hello.server_name = Some(parse_server_name(content)?),
            EXTENSION_ALPN => hello.alpn = parse_alpn(content)?,
            EXTENSION_SUPPORTED_VERSIONS => hello.versions = parse_versions(content)?,
            _ => hello.has_ech |= EXTENSIONS_ECH.contains(&kind),
        }
    }
    Ok(())
}

fn parse_server_name(mut content: Fields<'_>) -> Result<Vec<u8>, Refusal> {
    let mut list = content.vector16()?;
    content.end()?;
    let mut name = None;
    while !list.is_empty() {
        if list.u8()? != NAME_TYPE_HOST {
            // No other type was ever defined, so nobody knows how long one is.
            return Err(Refusal::tls("a server name of an unknown type"));
        }
        let bytes = list.vector16()?.rest();
        if bytes.is_empty() {
            return Err(Refusal { kind: RefusalKind::InvalidSni, detail: "the server name is empty" });
        }
        if name.replace(bytes.to_vec()).is_some() {
            return Err(Refusal { kind: RefusalKind::MultipleSni, detail: "there are several server names" });
        }
    }
    name.ok_or(Refusal::tls("the list of server names is empty"))
}

fn parse_alpn(mut content: Fields<'_>) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut list = content.vector16()?;
    content.end()?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vector8()?.rest();
        if protocol.is_empty() {
            return Err(Refusal::tls("a protocol of ALPN is empty"));
        }
        protocols.push(protocol.to_vec());
    }
    if protocols.is_empty() { Err(Refusal::tls("the list of ALPN is empty")) } else { Ok(protocols) }
}

fn parse_versions(mut content: Fields<'_>) -> Result<Vec<u16>, Refusal> {
    let mut list = content.vector8()?;
    content.end()?;
    let mut versions = Vec::new();
    while !list.is_empty() {
        versions.push(list.u16()?);
    }
    if versions.is_empty() { Err(Refusal::tls("the list of versions is empty")) } else { Ok(versions) }
}

#[cfg(test)]
mod tests;
