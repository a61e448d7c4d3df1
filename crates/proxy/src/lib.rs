//! The proxy of a sandbox: accepted connection → first bytes → judgement → relay.
//!
//! The packet filter hands every TCP connection that is not decided by an address entry to a transparent listener;
//! the accepted socket's local address is the destination that the client meant. What happens then:
//!
//! 1. An address entry of the policy covers the destination: it is connected to and relayed as it is.
//! 2. Otherwise the first bytes are read, within bounds of size and time. TLS has to name exactly one host (SNI)
//!    and HTTP/1 names one with every request; that name has to be permitted, and the connection goes to *that
//!    name's* address, which is the client's choice only where the name is bound to it.
//! 3. Anything else passes only to an address that is bound to a permitted name, and never on ports 80 and 443.
//!    If the client waits for the server to speak first, its own first bytes are still examined when they come.
//!
//! A refusal can be read: a TLS alert, an HTTP 403 with a JSON body, a reset for the rest. So can a cut or failed
//! connection: whatever did not end regularly ends with a reset, never with a clean end of the stream.

#![forbid(unsafe_code)]

mod buffer;
mod bytes;
mod connection;
mod decision;
mod dial;
mod egress;
mod flows;
mod http;
mod opening;
mod pipes;
mod refusal;
mod relay;
mod serve;
mod socket;
mod turns;
mod workers;

pub use bytes::ByteLimits;
pub use connection::WEB_PORTS;
pub use egress::{Egress, EventId, Hold, NoAddress};
pub use flows::Flows;
pub use serve::{Limits, serve};
pub use workers::Workers;
