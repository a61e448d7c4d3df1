//! The resolver of a sandbox.
//!
//! Every DNS query of a sandbox arrives here. The name is judged first; only a name that the policy permits is
//! ever looked up, so that a query is no way to carry data out. The addresses of an answer are judged too, and
//! what is left is *bound* (made reachable) before the reply is sent.
//!
//! What the sandbox gets:
//!
//! | query | reply |
//! |---|---|
//! | A or AAAA of a permitted name | its addresses under the name asked for (CNAMEs are followed here), or the NXDOMAIN, empty or SERVFAIL answer of the upstream server |
//! | any other type of a permitted name | an empty answer, without asking upstream (HTTPS and SVCB among them: no ECH keys, no HTTP/3 hints); ANY gets a synthetic HINFO record (RFC 8482) |
//! | a name that is not permitted | a sink address, REFUSED or NXDOMAIN, as the policy says; REFUSED with an Extended DNS Error (RFC 8914) for other types |
//! | a name of the floor, any name under a blackout | REFUSED with an Extended DNS Error |
//! | `localhost` and names under it | the loopback addresses (RFC 6761) |
//! | more than the sandbox's [limits](Limits) permit | REFUSED with an Extended DNS Error |
//! | anything that is not one question of class IN | FORMERR, NOTIMP or REFUSED |
//!
//! Nothing of a query but the canonical name and A or AAAA ever goes upstream: not its letter case, not its
//! EDNS options, not its flags.

#![forbid(unsafe_code)]

mod answer;
mod budget;
mod message;
mod share;
mod tcp;
mod udp;
mod upstream;
mod zone;

pub use answer::answer;
pub use budget::{Budget, Limits, Lookup, Refused};
pub use message::Transport;
pub use share::Asker;
pub use tcp::serve_tcp;
pub use udp::{Datagrams, serve_udp};
pub use upstream::{Answer, Family, LookupError, Upstream, UpstreamConfig, UpstreamError};
pub use zone::{BindRefused, Zone};
