//! Incremental, bounded readers of a TLS ClientHello, an HTTP/1 head and the HTTP/2 preface.
//!
//! Nothing here does I/O or knows the time: bytes come in, and what they are comes out. Every reader has a limit
//! on what it keeps, does an amount of work that is linear in its input, and gives the same answer however the
//! input is cut into pieces. They are strict: what two programs could read in two ways is refused, because the
//! one that judges must see what the one that serves will see.

#![forbid(unsafe_code)]

mod client_hello;
mod first_bytes;
pub mod http;
mod progress;
mod tls_fields;

pub use client_hello::{ClientHello, ClientHelloLimits, ClientHelloReader};
pub use first_bytes::{FirstBytes, classify};
pub use progress::{Progress, Refusal, RefusalKind};
