//! A client of the REST API: typed calls, one connection each.
//!
//! Nothing is repeated by itself. Calls take as long as the server does; only connecting has a time limit.

#![forbid(unsafe_code)]

mod endpoint;
mod error;
mod files;
mod http;
mod sandboxes;
mod sessions;
mod terminals;

use std::path::Path;

use secrecy::SecretString;

pub use endpoint::{DEFAULT_URL, Endpoint};
pub use error::ClientError;
pub use sandboxes::{EventFilter, NewCommand, NewSandbox};
pub use sessions::{SessionEvent, SessionEvents};
pub use terminals::NewTerminal;

/// A client of one server, with one key.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    key: Option<SecretString>,
    /// Made for `https` only.
    tls: Option<tls::Connector>,
}

impl Client {
    /// A client that sends `key`, if there is one, with every call. Nothing is connected yet.
    ///
    /// Over `https` the server's certificate is checked against the authorities in the PEM file `authorities`; without
    /// it, against those that the system trusts.
    ///
    /// # Errors
    /// [`ClientError::Tls`] if those cannot be read, [`ClientError::Key`] if no header can hold the key.
    pub fn new(
        endpoint: Endpoint,
        key: Option<SecretString>,
        authorities: Option<&Path>,
    ) -> Result<Self, ClientError> {
        let tls = match (endpoint.is_https(), authorities) {
            (false, _) => None,
            (true, Some(path)) => Some(tls::Connector::from_pem_file(path)?),
            (true, None) => Some(tls::Connector::system()?),
        };
        key.as_ref().map(http::authorization).transpose()?;
        Ok(Self { endpoint, key, tls })
    }

    /// Where the server is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}
