//! The server's side: a certificate chain and a key from PEM files, offered with HTTP/2 and HTTP/1.1.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::TlsError;

/// A server's end of a TLS connection.
pub type ServerStream<IO> = tokio_rustls::server::TlsStream<IO>;

/// Accepts TLS connections with one certificate. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor(TlsAcceptor);

impl Acceptor {
    /// Reads a certificate chain (leaf first) and its private key (PKCS#8, PKCS#1 or SEC1) from PEM files.
    ///
    /// TLS 1.2 and 1.3 are spoken; ALPN offers `h2`, then `http/1.1`.
    ///
    /// # Errors
    /// [`TlsError`], naming the file, when one cannot be read or the two do not belong together.
    pub fn from_pem_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = read_chain(certificate)?;
        let private = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| TlsError::ReadKey { path: key.to_owned(), source })?;
        let pair =
            |source| TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), source };
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(pair)?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }

    /// Makes the handshake on an accepted connection. Sets no time limit of its own.
    ///
    /// # Errors
    /// The handshake's failure.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(&self, io: IO) -> io::Result<ServerStream<IO>> {
        self.0.accept(io).await
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::ReadCertificates { path: path.to_owned(), source };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if chain.is_empty() { Err(TlsError::NoCertificate { path: path.to_owned() }) } else { Ok(chain) }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use rcgen::{CertifiedKey, generate_simple_self_signed};
    use rustls::{ClientConfig, RootCertStore};
    use tokio_rustls::TlsConnector;

    use super::*;

    struct Files {
        dir: tempfile::TempDir,
        certificate: PathBuf,
        key: PathBuf,
        root: CertificateDer<'static>,
    }

    fn files() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (dir.path().join("server.pem"), dir.path().join("server.key"));
        fs::write(&certificate, cert.pem()).unwrap();
        fs::write(&key, signing_key.serialize_pem()).unwrap();
        Files { certificate, key, root: cert.der().clone(), dir }
    }

    async fn negotiated(
        acceptor: Acceptor,
        root: CertificateDer<'static>,
        alpn: &[&[u8]],
    ) -> Option<Vec<u8>> {
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connector = TlsConnector::from(Arc::new(config));
        let (server, client) =
            tokio::join!(acceptor.accept(far), connector.connect("localhost".try_into().unwrap(), near));
        client.unwrap();
        server.unwrap().get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
    }

    #[tokio::test]
    async fn http2_is_preferred_and_http1_is_spoken_with_those_who_know_nothing_else() {
        let files = files();
        let acceptor = Acceptor::from_pem_files(&files.certificate, &files.key).unwrap();
        let both = negotiated(acceptor.clone(), files.root.clone(), &[b"http/1.1", b"h2"]).await;
        assert_eq!(both.as_deref(), Some(&b"h2"[..]));
        let old = negotiated(acceptor.clone(), files.root.clone(), &[b"http/1.1"]).await;
        assert_eq!(old.as_deref(), Some(&b"http/1.1"[..]));
        assert_eq!(negotiated(acceptor, files.root.clone(), &[]).await, None);
    }

    #[test]
    fn errors_name_the_file() {
        let good = files();
        let empty = good.dir.path().join("empty.pem");
        fs::write(&empty, "not PEM\n").unwrap();
        let absent = good.dir.path().join("absent.pem");
        let other = files();
        for (certificate, key, named) in [
            (&absent, &good.key, &absent),
            (&empty, &good.key, &empty),
            (&good.certificate, &absent, &absent),
            (&good.certificate, &empty, &empty),
            (&good.certificate, &other.key, &other.key),
        ] {
            let error = Acceptor::from_pem_files(certificate, key).unwrap_err().to_string();
            assert!(error.contains(named.to_str().unwrap()), "{error}");
        }
    }
}
