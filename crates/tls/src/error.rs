//! What can go wrong with certificates and keys.

use std::path::PathBuf;

/// Why a TLS configuration cannot be made. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate file cannot be read, or is not PEM.
    #[error("certificate file {}: {source}", path.display())]
    ReadCertificates {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate file has no `CERTIFICATE` section.
    #[error("certificate file {}: no certificate in it", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The key file cannot be read, is not PEM, or has no private key.
    #[error("key file {}: {source}", path.display())]
    ReadKey {
        /// The file.
        path: PathBuf,
        /// The failure.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not make a server: the key is of another certificate, or of an unknown kind.
    #[error("certificate file {} with key file {}: {source}", certificate.display(), key.display())]
    Pair {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// The failure.
        source: rustls::Error,
    },
}
