//! Entries of a policy.

use std::net::{IpAddr, Ipv6Addr};

use idna::uts46::{AsciiDenyList, Hyphens, Uts46};
use ipnet::IpNet;

use crate::{EntryError, HostName, HostNameError, WarningKind, patterns, ranges};

/// The longest entry, in bytes.
const MAX_ENTRY: usize = 2048;
/// The word for everything, in both lists.
const ALL_TRAFFIC: &str = "ALL_TRAFFIC";

/// One parsed entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is about.
    pub target: Target,
    /// The only port it is about; `None` means every port.
    pub port: Option<u16>,
    /// What in it is accepted but probably not meant.
    pub warnings: Vec<WarningKind>,
}

/// What an entry is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `*`, `0.0.0.0/0`, `::/0`, `ALL_TRAFFIC`: every name and address of both families.
    Everything,
    /// An address or a CIDR, without host bits; never IPv4-mapped.
    Network(IpNet),
    /// Exactly this host.
    Host(HostName),
    /// Every name below this one, at any depth, but not the name itself.
    Subdomains(HostName),
    /// Names that this regular expression matches as a whole, in any case.
    Pattern(String),
}

impl Entry {
    /// Parses one entry of a list.
    ///
    /// # Errors
    /// When it is none of the forms of [`Target`], with or without `:port`. No entry is ever ignored.
    pub fn parse(text: &str) -> Result<Self, EntryError> {
        if text.is_empty() {
            return Err(EntryError::Empty);
        }
        if text.len() > MAX_ENTRY {
            return Err(EntryError::TooLong { limit: MAX_ENTRY });
        }
        if let Some(pattern) = text.strip_prefix('~') {
            return Self::parse_pattern(pattern);
        }
        if text.contains("://") {
            return Err(EntryError::Url);
        }
        let (target, port) = split_port(text)?;
        let port = port.map(parse_port).transpose()?;
        let mut warnings = Vec::new();
        let target = match target {
            "*" | ALL_TRAFFIC => Target::Everything,
            _ if target.eq_ignore_ascii_case(ALL_TRAFFIC) => return Err(EntryError::AllTraffic),
            _ if looks_like_an_address(target) => parse_network(target, &mut warnings)?,
            _ => parse_name(target, &mut warnings)?,
        };
        Ok(Self { target, port, warnings })
    }

    /// No host name has a colon, so digits after the last one are a port.
    fn parse_pattern(text: &str) -> Result<Self, EntryError> {
        let (source, port) = match text.rsplit_once(':') {
            Some((source, digits)) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                (source, Some(parse_port(digits)?))
            }
            _ => (text, None),
        };
        let warnings = patterns::check(source)?;
        Ok(Self { target: Target::Pattern(source.to_owned()), port, warnings })
    }
}

/// Splits `target`, `target:port`, `[v6]`, `[v6]:port`, `[v6/length]:port`, `v6` and `v6/length:port`; the target
/// still has its brackets.
fn split_port(text: &str) -> Result<(&str, Option<&str>), EntryError> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or(EntryError::Brackets)?;
        let after = text.get(end + 1..).unwrap_or_default();
        return match after.rsplit_once(':') {
            Some((length, port)) => {
                let target = text.get(..=end + length.len()).ok_or(EntryError::Brackets)?;
                Ok((target, Some(port)))
            }
            None => Ok((text, None)),
        };
    }
    let is_v6 = text.matches(':').count() > 1;
    match text.rsplit_once(':') {
        // An IPv6 address without brackets: only after the length of a prefix can there be a port.
        Some((target, port)) if !is_v6 || target.contains('/') => Ok((target, Some(port))),
        _ => Ok((text, None)),
    }
}

fn parse_port(text: &str) -> Result<u16, EntryError> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(EntryError::Port(text.to_owned())),
    }
}

/// Whether the text is meant as an address, so that the error should speak of addresses.
fn looks_like_an_address(text: &str) -> bool {
    let first = text.split('/').next().unwrap_or(text);
    text.starts_with('[') || text.contains(':') || first.parse::<IpAddr>().is_ok()
}

fn parse_network(text: &str, warnings: &mut Vec<WarningKind>) -> Result<Target, EntryError> {
    let invalid = || EntryError::Address(text.to_owned());
    let (address, length) = match unbracketed(text)?.rsplit_once('/') {
        Some((address, length)) => (address.to_owned(), Some(length.to_owned())),
        None => (unbracketed(text)?, None),
    };
    let address: IpAddr = address.parse().map_err(|_| invalid())?;
    let length = match length {
        None => ranges::full_length(address),
        Some(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => return Err(invalid()),
        Some(digits) => digits.parse().map_err(|_| invalid())?,
    };
    let net = ranges::network(address, length).ok_or_else(invalid)?;
    if net.addr() != address.to_canonical() {
        warnings.push(WarningKind::HostBits { network: net });
    }
    if let Some(port) = port_like_ending(text) {
        warnings.push(WarningKind::PortInAddress { address: address.to_string(), port });
    }
    Ok(if net.prefix_len() == 0 { Target::Everything } else { Target::Network(net) })
}

/// `[v6]`, `[v6/length]` and `[v6]/length` without the brackets.
fn unbracketed(text: &str) -> Result<String, EntryError> {
    let Some(inner) = text.strip_prefix('[') else {
        return Ok(text.to_owned());
    };
    let (inside, after) = inner.split_once(']').ok_or(EntryError::Brackets)?;
    let address = inside.split('/').next().unwrap_or(inside);
    let is_v6 = address.parse::<Ipv6Addr>().is_ok();
    if !is_v6 || !(after.is_empty() || after.starts_with('/')) {
        return Err(EntryError::Brackets);
    }
    Ok(format!("{inside}{after}"))
}

/// The last group of an IPv6 address without brackets, if its author may have meant a port.
fn port_like_ending(text: &str) -> Option<u16> {
    if text.starts_with('[') {
        return None;
    }
    let (_, last) = text.rsplit_once(':')?;
    ["22", "80", "443", "8080", "8443"].contains(&last).then(|| last.parse().ok()).flatten()
}

fn parse_name(text: &str, warnings: &mut Vec<WarningKind>) -> Result<Target, EntryError> {
    if let Some(parent) = text.strip_prefix("*.") {
        if parent.contains('*') {
            return Err(EntryError::Wildcard);
        }
        let parent = HostName::parse(parent).map_err(host_error)?;
        refuse_public_suffix(&parent, warnings)?;
        return Ok(Target::Subdomains(parent));
    }
    if text.contains('*') {
        return Err(EntryError::Wildcard);
    }
    if text.starts_with('.') {
        return Err(EntryError::LeadingDot);
    }
    HostName::parse(text).map(Target::Host).map_err(host_error)
}

fn host_error(error: HostNameError) -> EntryError {
    match error {
        HostNameError::IpLiteral => EntryError::OddAddress,
        other => EntryError::Host(other),
    }
}

/// A wildcard directly below a suffix under which anybody can register takes in hosts of strangers.
fn refuse_public_suffix(parent: &HostName, warnings: &mut Vec<WarningKind>) -> Result<(), EntryError> {
    // The list is written with U-labels.
    let (unicode, _) =
        Uts46::new().to_unicode(parent.as_str().as_bytes(), AsciiDenyList::EMPTY, Hyphens::Allow);
    let Some(suffix) = psl::Psl::suffix(&psl::List, unicode.as_bytes()) else {
        return Ok(());
    };
    if suffix.as_bytes() != unicode.as_bytes() {
        return Ok(());
    }
    if suffix.typ() == Some(psl::Type::Private) {
        // A hosting provider's domain: meant more often than not (object stores, content networks).
        warnings.push(WarningKind::SharedDomain { domain: parent.clone() });
        return Ok(());
    }
    Err(EntryError::PublicSuffix { suffix: parent.clone() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn parse(text: &str) -> (String, Option<u16>) {
        let entry = Entry::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let target = match entry.target {
            Target::Everything => "everything".to_owned(),
            Target::Network(net) => format!("net {net}"),
            Target::Host(name) => format!("host {name}"),
            Target::Subdomains(name) => format!("below {name}"),
            Target::Pattern(source) => format!("pattern {source}"),
        };
        (target, entry.port)
    }

    #[test]
    fn every_form_of_entry_is_understood() {
        let cases: &[(&str, &str, Option<u16>)] = &[
            ("1.2.3.4", "net 1.2.3.4/32", None),
            ("1.2.3.4:443", "net 1.2.3.4/32", Some(443)),
            ("10.0.0.0/8", "net 10.0.0.0/8", None),
            ("10.0.0.0/8:5432", "net 10.0.0.0/8", Some(5432)),
            ("2001:db8::/32", "net 2001:db8::/32", None),
            ("2001:db8::1", "net 2001:db8::1/128", None),
            ("[2001:db8::1]", "net 2001:db8::1/128", None),
            ("[2001:db8::1]:443", "net 2001:db8::1/128", Some(443)),
            ("[2001:db8::/32]:443", "net 2001:db8::/32", Some(443)),
            ("[2001:db8::]/32:443", "net 2001:db8::/32", Some(443)),
            ("2001:db8::/32:443", "net 2001:db8::/32", Some(443)),
            ("::ffff:1.2.3.4", "net 1.2.3.4/32", None),
            ("::ffff:10.0.0.0/104", "net 10.0.0.0/8", None),
            ("[::ffff:1.2.3.4]:80", "net 1.2.3.4/32", Some(80)),
            ("255.255.255.255/32", "net 255.255.255.255/32", None),
            ("128.0.0.0/1", "net 128.0.0.0/1", None),
            ("api.example.com", "host api.example.com", None),
            ("API.Example.com.", "host api.example.com", None),
            ("db.example.com:5432", "host db.example.com", Some(5432)),
            ("bücher.test", "host xn--bcher-kva.test", None),
            ("localhost", "host localhost", None),
            ("*.example.com", "below example.com", None),
            ("*.Bücher.test:443", "below xn--bcher-kva.test", Some(443)),
            (r"~api[0-9]+\.example\.com", r"pattern api[0-9]+\.example\.com", None),
            (r"~(?:a|b)\.example\.com:443", r"pattern (?:a|b)\.example\.com", Some(443)),
            ("*", "everything", None),
            ("0.0.0.0/0", "everything", None),
            ("::/0", "everything", None),
            ("ALL_TRAFFIC", "everything", None),
            ("*:443", "everything", Some(443)),
            ("0.0.0.0/0:53", "everything", Some(53)),
            ("[::]/0:53", "everything", Some(53)),
            ("ALL_TRAFFIC:25", "everything", Some(25)),
        ];
        for (text, target, port) in cases {
            assert_eq!(parse(text), ((*target).to_owned(), *port), "{text}");
        }
    }

    #[test]
    fn what_is_no_entry_is_refused_with_the_cause() {
        let cases: &[(&str, &str)] = &[
            ("", "the entry is empty"),
            ("https://api.example.com/", "this is a URL"),
            ("example.com/path", "'/' cannot be part"),
            ("example.com:", "is not a port"),
            ("example.com:0", "is not a port"),
            ("example.com:65536", "is not a port"),
            ("example.com:https", "is not a port"),
            ("example.com:+80", "is not a port"),
            ("~a:65536", "is not a port"),
            ("10.0.0.0/33", "is not an address or network"),
            ("10.0.0.0/x", "is not an address or network"),
            ("10.0.0.0/", "is not an address or network"),
            ("2001:db8::/129", "is not an address or network"),
            ("2001:db8:::1", "is not an address or network"),
            ("fe80::1%eth0", "is not an address or network"),
            ("[1.2.3.4]:80", "in brackets"),
            ("[2001:db8::1", "in brackets"),
            ("[2001:db8::1]x", "in brackets"),
            ("[example.com]:80", "in brackets"),
            ("10.0.0.256", "decimal numbers"),
            ("0x7f.1", "decimal numbers"),
            ("2130706433", "decimal numbers"),
            ("127.1:80", "decimal numbers"),
            ("010.0.0.1", "decimal numbers"),
            (".example.com", "*.example.com"),
            ("a..example.com", "empty label"),
            ("user@example.com", "'@' cannot be part"),
            ("evil.test\0.allowed.test", "cannot be part"),
            ("all_traffic", "ALL_TRAFFIC"),
            ("All_Traffic:80", "ALL_TRAFFIC"),
            (" example.com", "' ' cannot be part"),
        ];
        for (text, cause) in cases {
            let error = Entry::parse(text).unwrap_err().to_string();
            assert!(error.contains(cause), "{text}: {error}");
        }
        assert!(matches!(Entry::parse(&"a".repeat(3000)), Err(EntryError::TooLong { .. })));
    }

    #[test]
    fn wildcards_over_names_of_strangers_are_refused() {
        for text in ["*.com", "*.test", "*.co.uk", "*.co.uk.", "*.foo.ck", "*.xn--p1ai", "*.срб", "*.ак.срб"]
        {
            let result = Entry::parse(text);
            let expected = text == "*.ак.срб" || matches!(result, Err(EntryError::PublicSuffix { .. }));
            assert!(expected, "{text}: {result:?}");
        }
        for text in ["*.*.x.test", "a*.x.test", "x.*", "**", "*com", "*.", "x.*.test", "*.*"] {
            let result = Entry::parse(text);
            assert!(matches!(result, Err(EntryError::Wildcard | EntryError::Host(_))), "{text}: {result:?}");
        }
        assert_eq!(parse("*.example.co.uk").0, "below example.co.uk");
        let shared = Entry::parse("*.github.io").unwrap();
        assert!(matches!(shared.warnings.as_slice(), [WarningKind::SharedDomain { .. }]));
    }

    #[test]
    fn a_public_suffix_is_recognised_in_its_a_label_form() {
        // The list has it as 個人.香港.
        let result = Entry::parse("*.xn--gmqw5a.xn--j6w193g");
        assert!(matches!(result, Err(EntryError::PublicSuffix { .. })), "{result:?}");
    }

    #[test]
    fn what_is_probably_not_meant_is_warned_of() {
        let warnings = |text| Entry::parse(text).unwrap().warnings;
        let network = "10.0.0.0/8".parse().unwrap();
        assert_eq!(warnings("10.1.2.3/8"), [WarningKind::HostBits { network }]);
        assert_eq!(warnings("10.0.0.0/8"), []);
        assert_eq!(warnings("::ffff:10.0.0.0/104"), []);
        let address = "2001:db8::443".to_owned();
        assert_eq!(warnings("2001:db8::443"), [WarningKind::PortInAddress { address, port: 443 }]);
        assert_eq!(warnings("~anthropic.com"), [WarningKind::UnescapedDot { offset: 9 }]);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = Entry::parse(&text);
        }

        #[test]
        fn parsing_of_near_entries_never_panics(text in r"[~*\[\]a-f0-9.:/%x-]{0,40}") {
            let _ = Entry::parse(&text);
        }

        #[test]
        fn networks_have_no_host_bits_and_are_never_mapped(
            address in any::<IpAddr>(),
            length in 0u8..=128,
            port in prop::option::of(1u16..),
        ) {
            let text = match port {
                Some(port) => format!("{address}/{length}:{port}"),
                None => format!("{address}/{length}"),
            };
            if let Ok(Entry { target: Target::Network(net), port: parsed, .. }) = Entry::parse(&text) {
                prop_assert_eq!(net, net.trunc());
                prop_assert_eq!(net.addr(), net.addr().to_canonical());
                prop_assert_eq!(parsed, port);
            }
        }
    }
}
