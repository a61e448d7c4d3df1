//! Why a call failed.

use std::io;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server's address is not one.
    #[error("{url:?} is not the address of a server: {problem}")]
    Url {
        /// The address as given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The key has characters that no key has.
    #[error("the API key has characters that no key has")]
    Key,
    /// The id of a sandbox has characters that none has.
    #[error("{0:?} is not the id of a sandbox")]
    Id(String),
    /// Certificates to check the server's by cannot be read.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// There is no connection.
    #[error("cannot connect to {server}")]
    Connect {
        /// The server.
        server: String,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke off.
    #[error("the connection to {server} broke off")]
    Transport {
        /// The server.
        server: String,
        /// How.
        source: hyper::Error,
    },
    /// The server refused, or failed.
    #[error("{message} ({status}{})", code.as_ref().map(|code| format!(" {code}")).unwrap_or_default())]
    Status {
        /// The HTTP status.
        status: u16,
        /// The machine-readable code, if the server gave one.
        code: Option<String>,
        /// What the server said.
        message: String,
    },
    /// The answer is not what the API says.
    #[error("{server} does not answer as the API does: {problem}")]
    Answer {
        /// The server.
        server: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file on this side cannot be read or written.
    #[error("cannot transfer the file")]
    Local(#[source] io::Error),
}

impl ClientError {
    /// The HTTP status of the answer, if the server answered with an error.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The code of the answer, if the server gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Status { code, .. } => code.as_deref(),
            _ => None,
        }
    }

    /// Whether what was asked for is not valid, so that asking again is no use.
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::Url { .. } | Self::Key | Self::Id(_) | Self::Status { status: 400 | 413 | 422, .. }
        )
    }
}
