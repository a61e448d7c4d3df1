//! TLS configurations; the only crate that names rustls.
