//! Incremental, bounded readers of a TLS ClientHello, an HTTP/1 head and the HTTP/2 preface.
