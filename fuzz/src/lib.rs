//! What has to hold for every input of every parser.
//!
//! Each module has one function `check`, which takes any bytes and panics if something does not hold. The programs
//! under `fuzz_targets` look for such bytes; the test replays what is in `seeds`.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "every module says in its first line what it checks")]
#![allow(clippy::unwrap_used, reason = "a check panics on what does not hold")]

pub mod api_json;
pub mod chunked;
pub mod client_hello;
pub mod dns_message;
pub mod host_name;
pub mod http_head;
pub mod http_stream;
pub mod init_frame;
pub mod netlink;
pub mod packet;
pub mod policy_entry;
mod second_server;
mod segments;

/// A parser under test: its name, which is that of its program and of its directory of seeds, and its check.
pub type Target = (&'static str, fn(&[u8]));

/// Every parser.
pub const TARGETS: &[Target] = &[
    ("api_json", api_json::check),
    ("chunked", chunked::check),
    ("client_hello", client_hello::check),
    ("dns_message", dns_message::check),
    ("host_name", host_name::check),
    ("http_head", http_head::check),
    ("http_stream", http_stream::check),
    ("init_frame", init_frame::check),
    ("netlink", netlink::check),
    ("packet", packet::check),
    ("policy_entry", policy_entry::check),
];
