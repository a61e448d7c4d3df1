//! Init as it is used: the built binary as PID 1 of its own namespaces, under the sandbox's system call filter,
//! spoken to over its socket. Needs root (for a range of user ids), `unshare`, `nsenter`, `perl`,
//! `python3` and `gcc`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod background;
mod commands;
mod confinement;
mod content;
mod lab;
mod sessions;
mod tree;
mod watch;

// The filter is compiled by a crate of a higher layer, which init must not depend on.
#[expect(unreachable_pub, reason = "public where it comes from")]
#[path = "../../../sandbox/src/seccomp.rs"]
mod seccomp;
