//! The client's side: a server's certificate is checked against authorities from a PEM file.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::TlsError;

/// A client's end of a TLS connection.
pub type ClientStream<IO> = tokio_rustls::client::TlsStream<IO>;

/// Where systems keep the authorities they trust, as one PEM file.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes TLS connections to servers. Cheap to clone.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl Connector {
    /// Trusts the authorities that the system trusts.
    ///
    /// # Errors
    /// As [`Self::from_pem_file`], also when the system has no file of them.
    pub fn system() -> Result<Self, TlsError> {
        let found = SYSTEM.iter().map(PathBuf::from).find(|path| path.exists());
        Self::from_pem_file(&found.unwrap_or_else(|| SYSTEM[0].into()))
    }

    /// Trusts the authorities in a PEM file. TLS 1.2 and 1.3 are spoken; ALPN offers `http/1.1`.
    ///
    /// # Errors
    /// [`TlsError::ReadCertificates`] and [`TlsError::NoCertificate`], naming the file.
    pub fn from_pem_file(path: &Path) -> Result<Self, TlsError> {
        let failed = |source| TlsError::ReadCertificates { path: path.to_owned(), source };
        let certificates: Vec<_> =
            CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
        let mut roots = RootCertStore::empty();
        // Old authorities in a system's file may be of a form that is not understood; the others still count.
        let (added, _) = roots.add_parsable_certificates(certificates);
        if added == 0 {
            return Err(TlsError::NoCertificate { path: path.to_owned() });
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Makes the handshake with the server called `host`, a name or an address. Sets no time limit of its own.
    ///
    /// # Errors
    /// The handshake's failure, among them a certificate that is not the host's or not of a trusted authority.
    pub async fn connect<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        io: IO,
    ) -> io::Result<ClientStream<IO>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        self.0.connect(name, io).await
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::Acceptor;

    /// Writes a certificate for `localhost` with its key; gives both paths.
    fn certificate(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
        fs::write(&certificate, cert.pem()).unwrap();
        fs::write(&key, signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    async fn meet(connector: &Connector, acceptor: &Acceptor, host: &str) -> io::Result<()> {
        let (client, server) = tokio::io::duplex(1 << 16);
        let (client, server) = tokio::join!(connector.connect(host, client), acceptor.accept(server));
        let mut client = client?;
        client.write_all(b"hello").await?;
        client.flush().await?;
        let mut read = [0; 5];
        server?.read_exact(&mut read).await?;
        assert_eq!(&read, b"hello");
        Ok(())
    }

    #[tokio::test]
    async fn a_server_is_trusted_by_its_authority_under_its_own_name_only() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, key) = certificate(dir.path(), "mine");
        let (other, _) = certificate(dir.path(), "other");
        let acceptor = Acceptor::from_pem_files(&mine, &key).unwrap();
        let connector = Connector::from_pem_file(&mine).unwrap();
        meet(&connector, &acceptor, "localhost").await.unwrap();
        for host in ["other.test", "127.0.0.1", "not a name"] {
            assert!(meet(&connector, &acceptor, host).await.is_err(), "{host}");
        }
        let stranger = Connector::from_pem_file(&other).unwrap();
        assert!(meet(&stranger, &acceptor, "localhost").await.is_err());
    }

    #[test]
    fn a_file_without_authorities_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        for path in [empty, dir.path().join("missing.pem")] {
            let error = Connector::from_pem_file(&path).unwrap_err().to_string();
            assert!(error.contains(&path.display().to_string()), "{error}");
        }
    }
}
