//! Why a policy is refused, and what is accepted with a warning.

use std::{fmt, sync::Arc};

use ipnet::IpNet;

use crate::{HostName, HostNameError, List};

/// How much of an entry is shown in a message, in characters.
const SHOWN: usize = 100;

/// Why a policy does not compile. Names the entry and its position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// An entry is not valid.
    #[error("{list}[{index}]: {}: {source}", shown(entry))]
    Entry {
        /// The list.
        list: List,
        /// The position, from 0.
        index: usize,
        /// The entry as written.
        entry: String,
        /// What is wrong with it.
        source: EntryError,
    },
    /// There are too many entries.
    #[error(
        "allow_out and deny_out have {count} entries together, and a policy may have {limit}: \
         use wildcards, networks or regular expressions"
    )]
    TooManyEntries {
        /// How many there are in both lists.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// There are too many regular expressions in a list.
    #[error(
        "{list} has {count} regular expressions, and a list may have {limit}: use exact names and wildcards"
    )]
    TooManyPatterns {
        /// The list.
        list: List,
        /// How many there are.
        count: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The regular expressions of a list are too large together.
    #[error(
        "{list}: its regular expressions compile to over {limit} bytes together: \
         use fewer, or exact names and wildcards"
    )]
    PatternsTooLarge {
        /// The list.
        list: List,
        /// The limit on the compiled form, in bytes.
        limit: usize,
    },
    /// `mask_request_host` cannot be the value of a `Host` header.
    #[error("mask_request_host: {}: write a host or an address, with or without :port", shown(value))]
    MaskRequestHost {
        /// The value as written.
        value: String,
    },
}

/// What is wrong with one entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// It has no characters.
    #[error("the entry is empty: remove it")]
    Empty,
    /// It is too long to be meant.
    #[error("the entry is over {limit} bytes")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// It has a scheme.
    #[error("this is a URL: write only the host, or host:port")]
    Url,
    /// What follows the colon is no port.
    #[error("{0:?} is not a port: write a number from 1 to 65535")]
    Port(String),
    /// Brackets without an IPv6 address in them.
    #[error("only an IPv6 address stands in brackets: write [2001:db8::1] or [2001:db8::1]:443")]
    Brackets,
    /// Meant as an address, but it is none.
    #[error(
        "{0:?} is not an address or network: write 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32"
    )]
    Address(String),
    /// An IPv4 address in a notation that programs read in different ways.
    #[error("the name ends in a number, so it may be read as an address: write IPv4 as four decimal numbers")]
    OddAddress,
    /// `all_traffic` in another case would be a host name.
    #[error("write ALL_TRAFFIC in capitals, or *")]
    AllTraffic,
    /// A star elsewhere than as the first label.
    #[error(
        "a star stands alone or as the first label, as in *.example.com: \
         for anything else write a regular expression, ~..."
    )]
    Wildcard,
    /// A wildcard below a suffix under which anybody can register.
    #[error(
        "anybody can register a name below {suffix}: name the domains, or, if all of them are meant, \
         write a regular expression: ~.*\\.{}", suffix.as_str().replace('.', "\\.")
    )]
    PublicSuffix {
        /// The suffix.
        suffix: HostName,
    },
    /// Meant as a wildcard by some tools, and as an error by others.
    #[error("a name does not begin with a dot: for every subdomain write *.example.com")]
    LeadingDot,
    /// Not a host name.
    #[error(transparent)]
    Host(#[from] HostNameError),
    /// An entry of `allow_out` that lies entirely on the floor.
    #[error("this is on the floor ({word}), which no policy can permit: remove the entry")]
    Floor {
        /// The part of the floor.
        word: &'static str,
    },
    /// `~` with nothing after it.
    #[error("the regular expression is empty")]
    EmptyPattern,
    /// A regular expression over the limit.
    #[error("the regular expression is over {limit} bytes")]
    PatternTooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// It could never match: names are compared as A-labels.
    #[error("the regular expression is not ASCII: write internationalised labels as A-labels (xn--...)")]
    PatternNotAscii,
    /// It cannot be parsed, or needs what a linear-time engine does not have.
    #[error("the regular expression is not valid: {0}")]
    PatternSyntax(String),
    /// It compiles to too much.
    #[error("the regular expression compiles to over {limit} bytes: use smaller repetitions")]
    PatternTooLarge {
        /// The limit on the compiled form, in bytes.
        limit: usize,
    },
}

/// Something accepted that is probably not meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The list.
    pub list: List,
    /// The position, from 0.
    pub index: usize,
    /// The entry as written.
    pub entry: Arc<str>,
    /// What is odd.
    pub kind: WarningKind,
}

/// What is odd about an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WarningKind {
    /// A CIDR with bits beyond its length; they are ignored.
    #[error("the address has bits beyond the prefix length: it is read as {network}")]
    HostBits {
        /// The network that is in force.
        network: IpNet,
    },
    /// An IPv6 address that ends like a port.
    #[error("this is the address {address} on every port: for a port write [address]:{port}")]
    PortInAddress {
        /// The address that is in force.
        address: String,
        /// What may have been meant as a port.
        port: u16,
    },
    /// A dot that matches any character.
    #[error("the dot at byte {offset} of the regular expression matches any character: for a dot write \\.")]
    UnescapedDot {
        /// The position in the expression, in bytes, from 0.
        offset: usize,
    },
    /// `.*` directly before a name.
    #[error(
        "the regular expression also matches other domains that end in the same letters: \
         for subdomains write (?:.*\\.)?name"
    )]
    LooseBeginning,
    /// A wildcard below a domain that a provider gives out names of.
    #[error("anybody can have a name below {domain}")]
    SharedDomain {
        /// The domain.
        domain: HostName,
    },
    /// Another entry makes this one void.
    #[error("it has no effect, because allow_out permits everything and beats deny_out")]
    NoEffect,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]: {}: {}", self.list, self.index, shown(&self.entry), self.kind)
    }
}

/// An entry for a message: quoted, control characters escaped, shortened.
pub(crate) fn shown(entry: &str) -> String {
    let mut chars = entry.chars();
    let head: String = chars.by_ref().take(SHOWN).collect();
    let rest = if chars.next().is_some() { "…" } else { "" };
    format!("{head:?}{rest}")
}
