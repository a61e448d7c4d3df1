//! TLS configurations. The only crate of the workspace that names rustls and rcgen.
//!
//! One provider of cryptography, aws-lc-rs, is named explicitly everywhere: nothing depends on a process-wide
//! default having been installed.

#![forbid(unsafe_code)]

mod authority;
mod client;
mod error;
mod server;

pub use authority::{Authority, AuthorityError, LeafAcceptor};
pub use client::{ClientStream, Connector};
pub use error::TlsError;
pub use server::{Acceptor, ServerStream};
