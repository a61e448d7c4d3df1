//! A certificate authority that makes leaf certificates for whatever name a client asks for.

use std::{collections::HashMap, sync::Arc};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Most leaf certificates that are kept; when there are as many, the cache starts anew.
const MAX_LEAVES: usize = 1024;
/// The name of leaves for clients that name no server.
const NAMELESS: &str = "nameless.invalid";

/// Why an authority, or one of its leaves, cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A key or certificate cannot be generated.
    #[error("generating a certificate for {name}: {source}")]
    Generate {
        /// Whom it is for.
        name: String,
        /// What went wrong.
        source: rcgen::Error,
    },
    /// A generated key or certificate is not accepted by the TLS implementation.
    #[error("using the certificate for {name}: {source}")]
    Use {
        /// Whom it is for.
        name: String,
        /// What went wrong.
        source: rustls::Error,
    },
}

/// A certificate authority with its private key, held in memory only.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Authority {
    /// Makes a new authority, valid from now on.
    pub fn generate(common_name: &str) -> Result<Self, AuthorityError> {
        let failed = |source| AuthorityError::Generate { name: common_name.to_owned(), source };
        let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority's certificate, for trust stores.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Accepts TLS connections for any server name, with leaves of this authority.
    pub fn into_acceptor(self) -> Result<LeafAcceptor, AuthorityError> {
        let leaves = Leaves { authority: self, made: std::sync::Mutex::default() };
        let name = "the acceptor".to_owned();
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|source| AuthorityError::Use { name, source })?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(leaves));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(LeafAcceptor(TlsAcceptor::from(Arc::new(config))))
    }

    fn leaf(&self, name: &str) -> Result<CertifiedKey, AuthorityError> {
        let failed = |source| AuthorityError::Generate { name: name.to_owned(), source };
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let key = aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|source| AuthorityError::Use { name: name.to_owned(), source })?;
        Ok(CertifiedKey::new(vec![certificate.der().clone(), self.certificate.clone()], key))
    }
}

/// Accepts TLS connections with leaves made on demand. Clones share the leaves.
#[derive(Clone)]
pub struct LeafAcceptor(TlsAcceptor);

impl LeafAcceptor {
    /// Completes a handshake; gives the stream and the server name the client asked for.
    pub async fn accept<S>(&self, stream: S) -> std::io::Result<(TlsStream<S>, Option<String>)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = self.0.accept(stream).await?;
        let name = stream.get_ref().1.server_name().map(str::to_owned);
        Ok((stream, name))
    }
}

struct Leaves {
    authority: Authority,
    made: std::sync::Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Leaves {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Leaves")
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or(NAMELESS).to_owned();
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(leaf) = made.get(&name) {
            return Some(leaf.clone());
        }
        let leaf = Arc::new(self.authority.leaf(&name).ok()?);
        if made.len() >= MAX_LEAVES {
            made.clear();
        }
        made.insert(name, leaf.clone());
        Some(leaf)
    }
}
