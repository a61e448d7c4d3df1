//! What is said in the attacks, made by hand: no library would say most of it.

pub(crate) mod dns;
pub(crate) mod http;
pub(crate) mod tls;
